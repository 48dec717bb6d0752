//! A server on the tiny model, and a client that can be as rude as a test wants.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use steerkit::SteeringVector;
use steerkit_model::{Model, OpenOptions};
use steerkit_server::{Log, Options, Server};

/// A random four-block Llama with a tokeniser and a chat template, context 512, vocabulary 384.
pub fn model() -> Model {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("tests/data/tiny-llama-gguf/tiny-llama-f32.gguf");
    Model::open(&path, &OpenOptions::default()).unwrap()
}

pub const D_MODEL: usize = 64;

/// A vector after block `layer`: a wave, so that vectors of different seeds differ.
pub fn vector(seed: usize, layer: usize) -> SteeringVector {
    let direction = (0..D_MODEL).map(|i| ((i * 7 + seed * 13) as f32 * 0.37).sin()).collect();
    let mut vector = SteeringVector { direction, layer, provenance: Default::default() };
    vector.provenance.residual_norm = Some(10.0);
    vector
}

/// A running server; stopped when dropped.
pub struct Running {
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
    pub log: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// With vectors `wave` and `swell`, a batch of 8, a queue of 64.
    pub fn start(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        vector(1, 1).save(&dir.path().join("wave.safetensors")).unwrap();
        vector(2, 2).save(&dir.path().join("swell.safetensors")).unwrap();
        let mut options = Options {
            port: 0,
            vectors: Some(dir.path().to_owned()),
            max_batch: 8,
            max_queue: 64,
            ..Options::default()
        };
        change(&mut options);
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&log);
        let server = Server::bind(model(), &options, move |line| {
            let (Log::Request(line) | Log::Note(line)) = line;
            lines.lock().unwrap().push(line.to_owned());
        })
        .unwrap();
        let address = server.address();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || server.run(&stopping).unwrap());
        Self { address, dir, log, stop, thread: Some(thread) }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Asks it to stop, as SIGTERM does.
    pub fn ask_to_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn wait(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// With these headers and, where they name none, Host and Content-Length.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        Reply::read(self.open(method, path, headers, body))
    }

    /// Sends a request and leaves the reply to be read.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        let has = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        if !has("host") {
            head.push_str(&format!("Host: {}\r\n", self.address));
        }
        if !has("content-length") && !has("transfer-encoding") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A server that has seen enough may close before it has read everything.
        let _ = stream.write_all(body);
        stream
    }

    /// A stream's chunks until the end.
    pub fn stream(&self, path: &str, body: &Value) -> Events {
        let mut body = body.clone();
        body["stream"] = true.into();
        let headers = [("Content-Type", "application/json")];
        Events::new(self.open("POST", path, &headers, body.to_string().as_bytes()))
    }

    /// Waits until the batch and the queue are empty.
    pub fn wait_idle(&self) -> Duration {
        let began = Instant::now();
        loop {
            let health = self.get("/health").json();
            if health["running"] == 0 && health["waiting"] == 0 {
                return began.elapsed();
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{health}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A whole reply.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn read(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let (status, headers) = head(&mut reader);
        let chunked = headers.iter().any(|(n, v)| n == "transfer-encoding" && v == "chunked");
        let mut body = Vec::new();
        match chunked {
            true => {
                while let Some(chunk) = chunk(&mut reader) {
                    body.extend(chunk);
                }
            }
            // A connection that was reset after the reply is as good as one that was closed.
            false => drop(reader.read_to_end(&mut body)),
        }
        Self { status, headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The body, of a reply that went well.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// `(status, param)` of an error in OpenAI's shape.
    pub fn error(&self) -> (u16, Option<String>) {
        let value = self.json();
        let error = &value["error"];
        assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{value}");
        assert!(error["type"].is_string(), "{value}");
        (self.status, error["param"].as_str().map(str::to_owned))
    }

    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

fn head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { return (status, headers) };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
}

/// The next chunk of a chunked body.
fn chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let size = usize::from_str_radix(line.trim(), 16).ok()?;
    let mut bytes = vec![0; size + 2];
    reader.read_exact(&mut bytes).ok()?;
    bytes.truncate(size);
    (size > 0).then_some(bytes)
}

/// The events of a stream as they come.
pub struct Events {
    reader: BufReader<TcpStream>,
    text: String,
}

impl Events {
    fn new(stream: TcpStream) -> Self {
        let mut reader = BufReader::new(stream);
        let (status, headers) = head(&mut reader);
        assert_eq!(status, 200);
        assert!(headers.iter().any(|(n, v)| n == "content-type" && v.starts_with("text/event-stream")));
        Self { reader, text: String::new() }
    }

    /// Reads to the end: all chunks, and whether the last event was `[DONE]`.
    pub fn all(mut self) -> (Vec<Value>, bool) {
        let mut chunks = Vec::new();
        while let Some(data) = self.next_data() {
            if data == "[DONE]" {
                assert_eq!(self.next_data(), None, "nothing follows [DONE]");
                return (chunks, true);
            }
            chunks.push(serde_json::from_str(&data).unwrap());
        }
        (chunks, false)
    }
}

impl Events {
    pub fn next_data(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                match event.strip_prefix("data: ") {
                    Some(data) => return Some(data.to_owned()),
                    None => assert!(event.starts_with(':'), "{event:?}"),
                }
                continue;
            }
            let bytes = chunk(&mut self.reader)?;
            self.text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
}

/// All `token_ids` of the chunks of choice 0.
pub fn streamed_ids(chunks: &[Value]) -> Vec<u64> {
    let ids = chunks.iter().filter_map(|chunk| chunk["choices"][0]["token_ids"].as_array());
    ids.flatten().map(|id| id.as_u64().unwrap()).collect()
}

/// All text of the chunks of choice 0 of a chat.
pub fn streamed_text(chunks: &[Value]) -> String {
    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect()
}

/// Token ids of choice 0.
pub fn ids(reply: &Value) -> Vec<u64> {
    reply["choices"][0]["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// A greedy chat of `tokens` tokens with ids in the reply.
pub fn chat(question: &str, tokens: usize) -> Value {
    json!({
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": true,
        "return_token_ids": true,
    })
}

/// `chat` with vectors.
pub fn steered(question: &str, tokens: usize, vectors: &[(&str, f64)]) -> Value {
    let vectors: Vec<Value> =
        vectors.iter().map(|(name, scale)| json!({"name": name, "scale": scale})).collect();
    let mut body = chat(question, tokens);
    body["steering"] = json!({"vectors": vectors});
    body
}
