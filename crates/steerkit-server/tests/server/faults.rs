//! Bad input: every case is a 4xx in OpenAI's shape that names the field, and the next request is served.

use crate::support::*;
use serde_json::{Value, json};
use steerkit_server::{Keys, Options, Server, ServerError};

const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = "/v1/completions";

/// The reply to a raw body.
fn raw(server: &Running, path: &str, body: &[u8]) -> Reply {
    server.send("POST", path, &[("Content-Type", "application/json")], body)
}

/// Sends a good request with one field changed and expects a 400 that names `param`.
fn refused(server: &Running, path: &str, field: &str, value: &str, param: &str) -> String {
    let mut body = if path == CHAT { chat("Hi", 2) } else { json!({"prompt": "Hi", "max_tokens": 2}) };
    body.as_object_mut().unwrap().remove(field);
    let text = body.to_string();
    let text = format!("{},\"{field}\":{value}}}", &text[..text.len() - 1]);
    let reply = raw(server, path, text.as_bytes());
    assert_eq!(reply.error(), (400, Some(param.to_owned())), "{field}: {value} gave {}", reply.text());
    reply.message()
}

#[test]
fn bodies_that_are_not_the_json_they_should_be() {
    let server = Running::start(|_| {});
    let deep = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"null",
        b"{\"messages\":}",
        b"{\"n\":1,\"n\":2}",
        b"{\"a\":\"\xff\xfe\"}",
        b"{\"temperature\":NaN}",
        deep.as_bytes(),
    ] {
        let reply = raw(&server, CHAT, body);
        assert_eq!(reply.error(), (400, Some("body".to_owned())), "{}", reply.text());
    }
    for (messages, param) in [
        ("null", "messages"),
        ("\"s\"", "messages"),
        ("[]", "messages"),
        ("[123]", "messages[0]"),
        ("[{}]", "messages[0].role"),
        ("[{\"role\": 123, \"content\": \"a\"}]", "messages[0].role"),
        ("[{\"role\": \"tool\", \"content\": \"a\"}]", "messages[0].role"),
        ("[{\"role\": \"user\"}]", "messages[0].content"),
        ("[{\"role\": \"user\", \"content\": 1}]", "messages[0].content"),
        ("[{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]", "messages[0].content"),
    ] {
        refused(&server, CHAT, "messages", messages, param);
    }
    for prompt in [
        "null",
        "1",
        "[]",
        "[[]]",
        "[1, \"a\"]",
        "[\"a\", 1]",
        "[-1]",
        "[1.5]",
        "[4294967296]",
        "\"\"",
        "[\"\"]",
    ] {
        refused(&server, PLAIN, "prompt", prompt, "prompt");
    }
    // The next request is served.
    assert_eq!(server.post(CHAT, &chat("Hi", 2)).status, 200);
}

#[test]
fn numbers_outside_their_limits() {
    let server = Running::start(|_| {});
    for (field, value) in [
        ("n", "1000000000"),
        ("n", "0"),
        ("n", "1.5"),
        ("max_tokens", "-1"),
        ("max_tokens", "0"),
        ("max_tokens", "9223372036854775808"),
        ("max_tokens", "\"ten\""),
        ("max_completion_tokens", "0"),
        ("temperature", "-1"),
        ("temperature", "\"hot\""),
        ("temperature", "1e300"),
        ("top_p", "2"),
        ("top_p", "-0.1"),
        ("top_k", "-2"),
        ("min_p", "7"),
        ("presence_penalty", "3"),
        ("frequency_penalty", "-9"),
        ("repetition_penalty", "0"),
        ("seed", "1e30"),
        ("seed", "\"a\""),
        ("stream", "\"yes\""),
        ("stream_options", "{\"include_usage\": true}"),
        ("return_token_ids", "1"),
        ("tools", "[{\"type\": \"function\"}]"),
        ("response_format", "{\"type\": \"json_object\"}"),
        ("logit_bias", "{\"5\": 1}"),
    ] {
        for path in [CHAT, PLAIN] {
            refused(&server, path, field, value, field);
        }
    }
    let stops = format!("[{}]", vec!["\"a\""; 100_000].join(","));
    let long = format!("\"{}\"", "x".repeat(513));
    for stop in [stops.as_str(), long.as_str(), "[\"\"]", "[1]", "5"] {
        assert!(refused(&server, CHAT, "stop", stop, "stop").contains("up to 16 texts"));
    }
    assert!(refused(&server, PLAIN, "logprobs", "1000000", "logprobs").contains("0 to 20"));
    assert!(refused(&server, CHAT, "top_logprobs", "21", "top_logprobs").contains("0 to 20"));
    refused(&server, CHAT, "top_logprobs", "1", "top_logprobs");
    refused(&server, CHAT, "logprobs", "2", "logprobs");
    // Not a number at all: the JSON itself is refused.
    for value in ["NaN", "Infinity", "1e999"] {
        let reply = raw(&server, CHAT, format!("{{\"messages\":[],\"temperature\":{value}}}").as_bytes());
        assert_eq!(reply.error().0, 400);
    }
    // Nulls are as good as absent.
    let mut body = chat("Hi", 2);
    for field in
        ["n", "stop", "tools", "steering", "user", "logprobs", "stream_options", "max_completion_tokens"]
    {
        body[field] = Value::Null;
    }
    assert_eq!(server.post(CHAT, &body).status, 200);
}

#[test]
fn steering_that_is_no_sane_number() {
    let server = Running::start(|_| {});
    let scale = |value: &str| format!("{{\"vectors\":[{{\"name\":\"wave\",\"scale\":{value}}}]}}");
    for value in ["null", "1e39", "1e30", "\"1\"", "-1001"] {
        refused(&server, CHAT, "steering", &scale(value), "steering.vectors[0].scale");
    }
    for value in ["NaN", "Infinity", "-Infinity", "1e999"] {
        refused_json(&server, &scale(value));
    }
    for header in ["wave=nan", "wave=inf", "wave=1e999", "wave=1e39", "wave=", "wave=x"] {
        let headers = [("Content-Type", "application/json"), ("X-Steer", header)];
        let reply = server.send("POST", CHAT, &headers, chat("Hi", 2).to_string().as_bytes());
        assert_eq!(reply.error(), (400, Some("X-Steer".to_owned())), "{header}");
    }
    refused(&server, CHAT, "model", "\"base:wave=nan\"", "model");
    refused(&server, CHAT, "custom", "{\"steer_multiplier\": 1}", "custom.steer_multiplier");
    refused(&server, CHAT, "steering", "{\"vectors\": [], \"more\": 1}", "steering.more");
    refused(
        &server,
        PLAIN,
        "steering",
        "{\"vectors\":[{\"name\":\"wave\",\"scope\":\"last-user\"}]}",
        "steering",
    );
    refused(
        &server,
        CHAT,
        "steering",
        "{\"vectors\":[{\"name\":\"wave\",\"layers\":[9]}]}",
        "steering.vectors.layers",
    );
    // What overflows inside the model is an error, never token 0.
    let mut huge = vector(5, 3);
    huge.direction.iter_mut().for_each(|x| *x *= 3e38);
    huge.save(&server.file("huge.safetensors")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(800));
    let reply = server.post(CHAT, &steered("Hi", 2, &[("wave", 999.0)]));
    assert!(reply.message().contains("times the norm of the residual stream"), "{}", reply.text());
    let reply = server.post(CHAT, &steered("Hi", 2, &[("huge", 2.0)]));
    assert_eq!(reply.status, 400, "{}", reply.text());
    // Twice 3e38 in one residual stream is infinite; a vector without a residual norm has no dose to refuse.
    for (name, layer) in [("upper", 3), ("lower", 2)] {
        let mut large = vector(5, layer);
        large.provenance.residual_norm = None;
        large.direction.iter_mut().for_each(|x| *x *= 3e38);
        large.save(&server.file(&format!("{name}.safetensors"))).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(800));
    let both = steered("Hi", 5, &[("upper", 1.0), ("lower", 1.0)]);
    let (chunks, done) = server.stream(CHAT, &both).all();
    assert!(!done, "a cut stream");
    assert!(chunks.last().unwrap()["error"]["message"].as_str().unwrap().contains("not finite"));
    assert_eq!(server.post(CHAT, &both).error(), (400, Some("steering".to_owned())));
    assert_eq!(server.post(CHAT, &chat("Hi", 2)).status, 200);
}

/// A body that is no JSON because of its steering.
fn refused_json(server: &Running, steering: &str) {
    let body = format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"a\"}}],\"steering\":{steering}}}");
    assert_eq!(raw(server, CHAT, body.as_bytes()).error(), (400, Some("body".to_owned())));
}

#[test]
fn vectors_are_names_and_never_paths() {
    let server = Running::start(|_| {});
    let long = "x".repeat(10_000);
    for name in
        ["nobody", "../../etc/passwd", "%2e%2e", "a\0b", "/etc/passwd", "wave.safetensors", "WAVE", "", &long]
    {
        let reply = server.post(CHAT, &steered("Hi", 2, &[(name, 1.0)]));
        assert_eq!(reply.error(), (404, Some("steering".to_owned())), "{name}");
        assert!(reply.message().contains("vectors: swell, wave"), "the list: {}", reply.message());
        assert!(reply.text().len() < 1000);
    }
    for path in
        ["/v1/vectors/..%2f..%2fetc%2fpasswd", "/v1/vectors/%2e%2e", "/v1/vectors/a%00b", "/v1/vectors/.."]
    {
        assert_eq!(server.get(path).error().0, 404, "{path}");
    }
    assert_eq!(
        server.post(CHAT, &json!({"model": "gpt-4", "messages": []})).error(),
        (404, Some("model".to_owned()))
    );
    assert_eq!(server.send("DELETE", "/v1/vectors/wave", &[], b"").error().0, 403);
}

#[test]
fn prompts_that_do_not_fit() {
    let server = Running::start(|_| {});
    refused(&server, PLAIN, "prompt", "[384]", "prompt");
    let ids = |n: usize| json!(vec![7; n]);
    let context = server
        .post(PLAIN, &json!({"prompt": ids(511), "max_tokens": 5, "temperature": 0, "ignore_eos": true}));
    let context = context.ok();
    assert_eq!(
        (&context["usage"]["completion_tokens"], &context["choices"][0]["finish_reason"]),
        (&json!(1), &json!("length"))
    );
    for n in [512, 5000] {
        let reply = server.post(PLAIN, &json!({"prompt": ids(n), "max_tokens": 1}));
        assert_eq!(reply.error(), (400, Some("prompt".to_owned())));
        assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    }
    for words in [600, 150_000] {
        let reply = server.post(CHAT, &chat(&"word ".repeat(words), 1));
        assert_eq!(reply.error(), (400, Some("messages".to_owned())));
        assert_eq!(reply.json()["error"]["code"], "context_length_exceeded");
    }
}

#[test]
fn bodies_and_heads_that_are_too_large() {
    let server = Running::start(|_| {});
    let large = chat(&"x".repeat(2 << 20), 1).to_string();
    assert_eq!(raw(&server, CHAT, large.as_bytes()).error(), (413, Some("body".to_owned())));
    let chunked = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")];
    let mut body = format!("{:x}\r\n", large.len()).into_bytes();
    body.extend(large.as_bytes());
    body.extend(b"\r\n0\r\n\r\n");
    assert_eq!(server.send("POST", CHAT, &chunked, &body).error().0, 413);
    let long = "x".repeat(17 << 10);
    assert_eq!(server.send("GET", "/health", &[("X-Long", &long)], b"").status, 431);
    let fits = "x".repeat(12 << 10);
    assert_eq!(server.send("GET", "/health", &[("X-Long", &fits)], b"").status, 200);
}

#[test]
fn requests_from_elsewhere() {
    let server = Running::start(|o| o.hosts = vec!["my.name".to_owned()]);
    let json = ("Content-Type", "application/json");
    let body = chat("Hi", 1).to_string();
    let send = |headers: &[(&str, &str)]| server.send("POST", CHAT, headers, body.as_bytes()).status;
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.1.2", "localhost.evil"]
    {
        let reply = server.send("GET", "/v1/models", &[("Host", host)], b"");
        assert_eq!(reply.error().0, 403, "{host}");
    }
    for host in ["localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:80", "my.name:8080"] {
        assert_eq!(server.send("GET", "/v1/models", &[("Host", host)], b"").status, 200, "{host}");
    }
    let own = format!("http://{}", server.address);
    assert_eq!(send(&[json, ("Origin", own.as_str())]), 200);
    for origin in ["https://evil.example", "null", "http://localhost:1", "file://", ""] {
        assert_eq!(send(&[json, ("Origin", origin)]), 403, "{origin}");
    }
    let preflight = [("Origin", "https://evil.example"), ("Access-Control-Request-Method", "POST")];
    let preflight = server.send("OPTIONS", CHAT, &preflight, b"");
    assert_eq!(preflight.status, 403);
    assert_eq!(preflight.header("access-control-allow-origin"), None);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
        assert_eq!(send(&[("Content-Type", kind)]), 415, "{kind}");
    }
    assert_eq!(send(&[("Content-Type", "Application/JSON; charset=utf-8")]), 200);
}

#[test]
fn an_address_for_others_needs_a_key() {
    let bind = |keys: Keys| {
        let options = Options { host: "0.0.0.0".to_owned(), port: 0, keys, ..Options::default() };
        Server::bind(model(), &options, |_| {}).map(|server| server.address())
    };
    let error = bind(Keys::default()).unwrap_err();
    assert!(matches!(error, ServerError::OpenToAll { .. }));
    assert!(error.hint().unwrap().contains("--api-key-env"));
    assert!(bind(Keys::parse("a test", "long-enough").unwrap()).is_ok());
    for text in ["", " , ", "short", "long-enough,short"] {
        let error = Keys::parse("A_VARIABLE", text).unwrap_err().to_string();
        assert!(error.contains("A_VARIABLE") && !error.contains("long-enough"), "{error}");
    }
    let both = Keys::parse("a test", "long-enough other-long-one").unwrap();
    assert_eq!(format!("{both:?}"), "2 keys");
}

#[test]
fn the_log_holds_lines_and_no_texts() {
    let key = "a-secret-key";
    let server = Running::start(|o| o.keys = Keys::parse("a test", key).unwrap());
    let text = "secret\r\nGET /fake \u{1b}[31m";
    let bearer = format!("Bearer {key}");
    let headers = [("Content-Type", "application/json"), ("Authorization", bearer.as_str())];
    let body = chat(text, 1).to_string();
    assert_eq!(server.send("POST", CHAT, &headers, body.as_bytes()).status, 200);
    let wrong = [headers[0], ("Authorization", "Bearer another-secret")];
    assert_eq!(server.send("POST", CHAT, &wrong, body.as_bytes()).error().0, 401);
    server.send("GET", "/v1/vectors/a%0d%0afake%1b[31m", &headers, b"");
    let log = server.log.lock().unwrap();
    assert!(log.len() >= 3, "{log:?}");
    for line in log.iter() {
        assert!(!line.chars().any(char::is_control) && !line.contains("secret"), "{line:?}");
    }
}
