//! Many requests at once: what they must not do to each other.

use crate::support::*;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Requests of mixed prompts, vectors and scales.
fn mixed(n: usize, tokens: usize) -> Vec<Value> {
    (0..n)
        .map(|i| {
            let scale = [-2.0, -0.5, 0.0, 0.5, 1.0, 3.0][i % 6];
            let question = format!("Question {}: what would you do with a river?", i % 9);
            match i % 4 {
                0 => chat(&question, tokens),
                1 => steered(&question, tokens, &[("wave", scale)]),
                2 => steered(&question, tokens, &[("swell", scale)]),
                _ => steered(&question, tokens, &[("wave", scale), ("swell", 1.0 - scale)]),
            }
        })
        .collect()
}

#[test]
fn streams_at_mixed_scales_are_as_if_alone() {
    let server = Running::start(|o| {
        o.max_batch = 32;
        o.prefix_cache = 2000;
    });
    let bodies = mixed(64, 24);
    let alone: Vec<Value> =
        bodies.iter().map(|body| server.post("/v1/chat/completions", body).ok()).collect();
    let different: std::collections::HashSet<Vec<u64>> = alone.iter().map(ids).collect();
    assert!(different.len() > 30, "{} different answers", different.len());
    let together: Vec<(Vec<Value>, bool)> = std::thread::scope(|scope| {
        let streams: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(|| server.stream("/v1/chat/completions", body).all()))
            .collect();
        streams.into_iter().map(|stream| stream.join().unwrap()).collect()
    });
    for (i, (alone, (chunks, done))) in alone.iter().zip(&together).enumerate() {
        assert!(done, "stream {i}");
        assert_eq!(streamed_ids(chunks), ids(alone), "stream {i}");
        assert_eq!(streamed_text(chunks), alone["choices"][0]["message"]["content"].as_str().unwrap());
        let reasons = chunks.iter().filter(|c| !c["choices"][0]["finish_reason"].is_null()).count();
        assert_eq!(reasons, 1, "stream {i}");
    }
    let hits = server.get("/metrics").text();
    let hits = hits.lines().find(|l| l.starts_with("vllm:prefix_cache_hits_total{")).unwrap();
    assert!(!hits.ends_with(" 0"), "the prefix cache was of use: {hits}");
}

#[test]
fn a_client_that_goes_frees_its_place() {
    let server = Arc::new(Running::start(|o| {
        o.max_batch = 2;
        o.prefill_chunk = 16;
    }));
    let (other, _) = server.stream("/v1/chat/completions", &chat("Who are you?", 200)).all();
    // Long answers: two in the batch, the others in the queue or reading their prompts when they go.
    for round in 0..6 {
        let long = "a river ".repeat(30 + round);
        let going: Vec<_> = (0..8)
            .map(|i| {
                let mut body = steered(&format!("{i} {long}"), 400, &[("wave", 1.0)]);
                body["stream"] = (i % 2 == 0).into();
                let headers = [("Content-Type", "application/json")];
                server.open("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes())
            })
            .collect();
        std::thread::sleep(Duration::from_millis(5 * round as u64));
        let beside = Arc::clone(&server);
        let one = std::thread::spawn(move || {
            beside.stream("/v1/chat/completions", &chat("Who are you?", 200)).all()
        });
        drop(going);
        let (chunks, done) = one.join().unwrap();
        assert!(done && streamed_ids(&chunks) == streamed_ids(&other), "another stream is unaffected");
        let idle = server.wait_idle();
        assert!(idle < Duration::from_secs(2), "places are free after {idle:?}");
    }
    let metrics = server.get("/metrics").text();
    let aborted = metrics.lines().find(|l| l.contains("finished_reason=\"abort\"")).unwrap();
    let aborted: f64 = aborted.rsplit_once(' ').unwrap().1.parse().unwrap();
    assert!(aborted > 20.0, "{aborted} aborted");
}

#[test]
fn at_ten_times_the_load_every_reply_is_200_or_429() {
    let server = Running::start(|o| {
        o.max_batch = 2;
        o.max_queue = 6;
    });
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..80)
            .map(|i| {
                let server = &server;
                scope.spawn(move || server.post("/v1/chat/completions", &chat(&format!("{i}"), 60)))
            })
            .collect();
        asked.into_iter().map(|reply| reply.join().unwrap()).collect()
    });
    let count = |status: u16| replies.iter().filter(|r| r.status == status).count();
    assert_eq!(count(200) + count(429), 80);
    assert!(count(200) >= 8 && count(429) > 0, "{} answered, {} refused", count(200), count(429));
    for reply in replies.iter().filter(|r| r.status == 429) {
        assert_eq!(reply.error(), (429, None));
        assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    }
    let began = Instant::now();
    server.post("/v1/chat/completions", &chat("after", 5)).ok();
    assert!(began.elapsed() < Duration::from_secs(2));
    // More texts in one request than there are places will never fit.
    let mut many = chat("a", 1);
    many["n"] = 9.into();
    assert_eq!(server.post("/v1/chat/completions", &many).error(), (400, Some("n".to_owned())));
}

#[test]
fn a_running_request_keeps_its_version_of_a_vector() {
    let server = Running::start(|_| {});
    let body = steered("Tell me about the sea.", 300, &[("wave", 1.5)]);
    let before = server.post("/v1/chat/completions", &body).ok();
    let mut stream = server.stream("/v1/chat/completions", &body);
    let mut chunks: Vec<Value> =
        (0..4).map(|_| serde_json::from_str(&stream.next_data().unwrap()).unwrap()).collect();
    vector(77, 1).save(&server.file("wave.safetensors")).unwrap();
    let sha = |server: &Running| server.get("/v1/vectors/wave").json()["sha256"].clone();
    let old = sha(&server);
    for _ in 0..100 {
        if sha(&server) != old {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let (rest, done) = stream.all();
    chunks.extend(rest);
    assert!(done && streamed_ids(&chunks) == ids(&before));
    assert_ne!(
        ids(&server.post("/v1/chat/completions", &body).ok()),
        ids(&before),
        "the new version acts now"
    );
    let second = server.post("/v1/chat/completions", &body).ok();
    let mut stream = server.stream("/v1/chat/completions", &body);
    let first: Value = serde_json::from_str(&stream.next_data().unwrap()).unwrap();
    std::fs::remove_file(server.file("wave.safetensors")).unwrap();
    for _ in 0..100 {
        if server.get("/v1/vectors/wave").status == 404 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.post("/v1/chat/completions", &body).status, 404);
    let (rest, done) = stream.all();
    let chunks: Vec<Value> = std::iter::once(first).chain(rest).collect();
    assert!(done && streamed_ids(&chunks) == ids(&second), "one that is removed too");
}

#[test]
fn a_client_that_reads_nothing_is_hung_up_on() {
    let server = Running::start(|o| o.write_timeout = Duration::from_millis(500));
    // More than the buffers of a connection hold, and nobody reads it.
    let mut body = chat("Tell me about the sea.", 400);
    let more =
        [("stream", json!(true)), ("logprobs", json!(true)), ("top_logprobs", json!(20)), ("n", json!(8))];
    more.into_iter().for_each(|(field, value)| body[field] = value);
    let headers = [("Content-Type", "application/json")];
    let deaf: Vec<_> = (0..3)
        .map(|_| server.open("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes()))
        .collect();
    let beside = server.post("/v1/chat/completions", &chat("Who are you?", 20)).ok();
    assert_eq!(ids(&beside).len(), 20);
    server.wait_idle();
    // A drained server has no connection left that waits for them.
    server.ask_to_stop();
    let began = Instant::now();
    server.wait();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(deaf);
}

#[test]
fn stopping_lets_running_answers_end_and_takes_nothing_new() {
    let server = Running::start(|_| {});
    let body = chat("Count to a hundred.", 300);
    let whole = server.post("/v1/chat/completions", &body).ok();
    let mut stream = server.stream("/v1/chat/completions", &body);
    let first: Value = serde_json::from_str(&stream.next_data().unwrap()).unwrap();
    server.ask_to_stop();
    let (rest, done) = stream.all();
    let chunks: Vec<Value> = std::iter::once(first).chain(rest).collect();
    assert!(done && streamed_ids(&chunks) == ids(&whole));
    let address = server.address;
    let began = Instant::now();
    server.wait();
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(std::net::TcpStream::connect(address).is_err(), "nobody listens any more");
}

#[test]
fn slow_clients_do_not_slow_others() {
    let server = Running::start(|_| {});
    let ask = || {
        let began = Instant::now();
        server.post("/v1/chat/completions", &chat("What is a river?", 30)).ok();
        began.elapsed()
    };
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let quiet = median(&mut (0..9).map(|_| ask()).collect());
    let mut slow: Vec<_> = (0..500).map(|_| std::net::TcpStream::connect(server.address).unwrap()).collect();
    for stream in &mut slow {
        std::io::Write::write_all(stream, b"P").unwrap();
    }
    let beside = median(&mut (0..9).map(|_| ask()).collect());
    assert!(beside < 2 * quiet + Duration::from_millis(5), "{beside:?} beside slow clients, {quiet:?} alone");
    // Half of a body, then nothing.
    let headers = [("Content-Type", "application/json"), ("Content-Length", "1000")];
    let half = server.open("POST", "/v1/chat/completions", &headers, b"{");
    let began = Instant::now();
    assert_eq!(Reply::read(half).status, 408);
    let cut = began.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&cut), "{cut:?}");
    // The heads were begun before that.
    let mut byte = [0; 1];
    for stream in &mut slow {
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let gone = std::io::Read::read(stream, &mut byte);
        assert!(gone.is_ok() || gone.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset));
    }
    assert_eq!(json!(1), server.get("/health").json()["running"].as_u64().map_or(json!(1), |n| json!(n + 1)));
}
