//! The `serve` command: what it prints, and how it ends.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Sandbox, run, stderr, tiny_model};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

#[test]
fn it_says_where_it_is_and_ends_when_told() {
    let sandbox = Sandbox::new(1);
    let model = tiny_model();
    let mut command = sandbox.steerkit(&["serve", "--model", &model, "--port", "0", "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let address = ready["url"].as_str().unwrap().strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 200") && reply.contains("\"status\":\"ok\""), "{reply}");
    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(told.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    line.clear();
    assert_eq!(stdout.read_line(&mut line).unwrap(), 0, "one line: {line}");
}

#[test]
fn what_cannot_be_served_is_said_before_the_model_is_opened() {
    let sandbox = Sandbox::new(1);
    let open = run(sandbox.steerkit(&["serve", "--model", &tiny_model(), "--host", "0.0.0.0"]), 2);
    assert!(stderr(&open).contains("has no key") && stderr(&open).contains("hint: "), "{}", stderr(&open));
    let key =
        run(sandbox.steerkit(&["serve", "--model", "none", "--api-key-env", "STEERKIT_NO_SUCH_KEY"]), 2);
    assert!(stderr(&key).contains("STEERKIT_NO_SUCH_KEY"), "{}", stderr(&key));
    let folder =
        run(sandbox.steerkit(&["serve", "--model", &tiny_model(), "--port", "0", "--vectors", "nowhere"]), 4);
    assert!(stderr(&folder).contains("nowhere"), "{}", stderr(&folder));
}
