//! A real HTTP server in the shape of an OpenAI-compatible endpoint that misbehaves as told.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "test support")]

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the server does with a call.
pub enum Act {
    /// Answers with this text and usage.
    Say(String),
    /// Answers with this text and no usage.
    SayFree(String),
    /// Answers with this status, header lines and body.
    Status(u16, &'static str, String),
    /// Answers 200 with this body.
    Body(String),
    /// Promises more bytes than it sends.
    Truncated,
    /// Says nothing for so long, then answers with the text.
    Slow(Duration, String),
    /// Closes the connection without a word.
    Close,
}

/// A call as the server saw it.
#[derive(Clone, Debug)]
pub struct Call {
    /// Request line and headers.
    pub head: Vec<String>,
    /// The body.
    pub body: Value,
}

impl Call {
    /// What the user's message says.
    pub fn user(&self) -> &str {
        self.body["messages"][1]["content"].as_str().unwrap()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .iter()
            .filter_map(|l| l.split_once(": "))
            .find(|h| h.0.eq_ignore_ascii_case(name))
            .map(|h| h.1)
    }
}

pub struct Server {
    /// Address for the client, ending in `/v1`.
    pub url: String,
    /// Calls in the order they came.
    pub calls: Arc<Mutex<Vec<Call>>>,
    /// The most calls that were being answered at the same time.
    pub at_once: Arc<AtomicUsize>,
}

impl Server {
    /// Serves every call by `act`, which is told its number (from 0).
    pub fn start(act: impl Fn(usize, &Call) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let calls = Arc::new(Mutex::new(Vec::new()));
        let at_once = Arc::new(AtomicUsize::new(0));
        let (log, most, act) = (Arc::clone(&calls), Arc::clone(&at_once), Arc::new(act));
        let now = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, most, act, now) =
                    (Arc::clone(&log), Arc::clone(&most), Arc::clone(&act), Arc::clone(&now));
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Some(call) = read(&stream) else { return };
                    let n = {
                        let mut log = log.lock().unwrap();
                        log.push(call.clone());
                        log.len() - 1
                    };
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let act = act(n, &call);
                    // A client that gave up is no matter.
                    answer(&mut stream, act, &now).ok();
                });
            }
        });
        Self { url, calls, at_once }
    }

    /// Calls so far.
    pub fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// All calls so far.
    pub fn seen(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }
}

/// An address where nobody listens.
pub fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}/v1", listener.local_addr().unwrap())
}

fn read(stream: &TcpStream) -> Option<Call> {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let call = Call { head, body: Value::Null };
    let length: usize = call.header("content-length").unwrap_or("0").parse().unwrap();
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Call { body: serde_json::from_slice(&body).unwrap_or_default(), ..call })
}

fn answer(stream: &mut TcpStream, act: Act, now: &AtomicUsize) -> std::io::Result<()> {
    let said = |text: &str, usage: bool| {
        let mut reply = json!({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]});
        if usage {
            reply["usage"] = json!({"prompt_tokens": 100, "completion_tokens": 10});
        }
        reply.to_string()
    };
    let (status, headers, body, cut) = match act {
        Act::Say(text) => (200, "", said(&text, true), false),
        Act::SayFree(text) => (200, "", said(&text, false), false),
        Act::Status(status, headers, body) => (status, headers, body, false),
        Act::Body(body) => (200, "", body, false),
        Act::Truncated => (200, "", said("{\"score\": 4}", true), true),
        Act::Slow(time, text) => {
            std::thread::sleep(time);
            (200, "", said(&text, true), false)
        }
        Act::Close => {
            now.fetch_sub(1, Ordering::SeqCst);
            return Ok(());
        }
    };
    let promised = body.len() + if cut { 100 } else { 0 };
    let head =
        format!("HTTP/1.1 {status} x\r\n{headers}Content-Length: {promised}\r\nConnection: close\r\n\r\n");
    now.fetch_sub(1, Ordering::SeqCst);
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body.as_bytes()[..if cut { body.len() / 2 } else { body.len() }])
}
