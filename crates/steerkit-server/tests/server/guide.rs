//! The examples of the guide do what it says.

use crate::support::*;
use serde_json::Value;
use std::process::Command;
use steerkit_server::Keys;

#[test]
fn the_curl_examples_of_the_guide_work() {
    if Command::new("curl").arg("--version").output().is_err() {
        println!("left out: the guide's examples (curl is not installed)");
        return;
    }
    let server = Running::start(|o| o.admin_keys = Keys::parse("a test", "administrator").unwrap());
    vector(4, 1).save(&server.file("formality.safetensors")).unwrap();
    while server.get("/v1/vectors/formality").status != 200 {
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/serving.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let sections = guide.split("\n## ").filter(|s| s.starts_with("Asking") || s.starts_with("Vectors\n"));
    let examples = |section: &'_ str| -> Vec<String> {
        let parts = section.split("```sh\n").skip(1);
        parts.map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    let examples: Vec<String> = sections.flat_map(examples).collect();
    assert_eq!(examples.len(), 6);
    let mut sources = Vec::new();
    for example in examples {
        let url = format!("http://{}", server.address);
        let mut shell = Command::new("sh");
        shell.args(["-ec", &example]).env("URL", url).env("ADMIN", "administrator").current_dir(&server.dir);
        let output = shell.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{example}\n{text}");
        for reply in serde_json::Deserializer::from_str(&text).into_iter::<Value>() {
            let reply = reply.unwrap();
            assert!(reply.get("error").is_none(), "{example}\n{reply}");
            sources.extend(reply["steering"]["source"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(sources, ["body", "header", "alias", "profile"]);
}
