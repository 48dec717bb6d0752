//! What the routes answer.

use crate::support::*;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use steerkit_model::{Pack, Request};
use steerkit_server::Keys;

#[test]
fn a_chat_and_its_stream_say_the_same() {
    let server = Running::start(|_| {});
    let body = steered("What is a river?", 12, &[("wave", 1.5)]);
    let whole = server.post("/v1/chat/completions", &body).ok();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 12);
    let total = whole["usage"]["prompt_tokens"].as_u64().unwrap() + 12;
    assert_eq!(whole["usage"]["total_tokens"], total);
    let echo = &whole["steering"];
    assert_eq!((&echo["source"], &echo["vectors"][0]["scale"]), (&json!("body"), &json!(1.5)));
    assert_eq!((&echo["vectors"][0]["layer"], &echo["vectors"][0]["operator"]), (&json!(1), &json!("add")));
    assert!(echo["relative_dose"].as_f64().unwrap() > 0.1);

    let mut body = body;
    body["stream_options"] = json!({"include_usage": true});
    let (chunks, done) = server.stream("/v1/chat/completions", &body).all();
    assert!(done);
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk" && c["id"] == chunks[0]["id"]));
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[0]["steering"], whole["steering"]);
    assert_eq!(chunks[0]["prompt_token_ids"], whole["prompt_token_ids"]);
    assert_eq!(streamed_text(&chunks), whole["choices"][0]["message"]["content"].as_str().unwrap());
    assert_eq!(streamed_ids(&chunks), ids(&whole));
    let (usage, before) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    let reasons: Vec<&Value> =
        before.iter().map(|c| &c["choices"][0]["finish_reason"]).filter(|r| !r.is_null()).collect();
    assert_eq!(reasons, ["length"]);
    assert!(before.iter().all(|c| c["usage"].is_null()));
}

/// The batch that the engine itself would write.
#[test]
fn the_answer_is_the_engines() {
    let server = Running::start(|_| {});
    let model = model();
    let reply =
        server.post("/v1/chat/completions", &steered("Tell me.", 20, &[("wave", -1.0), ("swell", 0.5)])).ok();
    let prompt: Vec<u32> =
        reply["prompt_token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let (wave, swell) = (vector(1, 1), vector(2, 2));
    let plan = steerkit::SteeringPlan::new().add(wave.into(), -1.0).unwrap().add(swell.into(), 0.5).unwrap();
    let edits = plan.edits(model.config(), &Default::default()).unwrap();
    let request = Request { prompt, edits, max_tokens: 20, ignore_end: true, ..Request::default() };
    let expected = model.generate(vec![request], 1, &mut |_| ControlFlow::Continue(())).unwrap().remove(0);
    assert_eq!(ids(&reply), expected.tokens.iter().map(|&id| u64::from(id)).collect::<Vec<_>>());
    assert_eq!(reply["choices"][0]["message"]["content"], expected.text);
}

#[test]
fn scale_zero_is_the_plain_model_and_every_route_steers_alike() {
    let server = Running::start(|o| o.default_vector = Some("wave".to_owned()));
    let ask = |change: &dyn Fn(&mut Value), headers: &[(&str, &str)]| {
        let mut body = chat("Where does the wind come from?", 16);
        body["logprobs"] = true.into();
        change(&mut body);
        let headers = [&[("Content-Type", "application/json")], headers].concat();
        let reply = server.send("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes()).ok();
        (reply["choices"][0].clone(), reply["steering"]["source"].as_str().unwrap().to_owned())
    };
    let (plain, source) = ask(&|_| {}, &[]);
    assert_eq!(source, "none");
    let zero = ask(&|b| b["steering"] = json!({"vectors": [{"name": "wave", "scale": 0}]}), &[]);
    assert_eq!(zero, (plain.clone(), "body".to_owned()));
    let (strong, _) = ask(&|b| b["steering"] = json!({"vectors": [{"name": "wave", "scale": 2}]}), &[]);
    assert_ne!(strong, plain);
    assert_eq!(ask(&|_| {}, &[("X-Steer", "wave=2")]), (strong.clone(), "header".to_owned()));
    assert_eq!(ask(&|b| b["model"] = "base:wave=2".into(), &[]), (strong.clone(), "alias".to_owned()));
    let custom = ask(&|b| b["custom"] = json!({"steer_multiplier": 2.0}), &[]);
    assert_eq!(custom, (strong.clone(), "body".to_owned()));
    let profile =
        json!({"name": "bold", "user": "ann", "steering": {"vectors": [{"name": "wave", "scale": 2}]}});
    assert_eq!(server.post("/v1/profiles", &profile).status, 201);
    assert_eq!(ask(&|_| {}, &[("X-Steer-Profile", "bold")]), (strong.clone(), "profile".to_owned()));
    assert_eq!(ask(&|b| b["user"] = "ann".into(), &[]), (strong.clone(), "profile".to_owned()));
    assert_eq!(ask(&|b| b["user"] = "bob".into(), &[]), (plain.clone(), "none".to_owned()));
    // A user's profile is a default.
    let other = ask(&|b| b["user"] = "ann".into(), &[("X-Steer", "wave=0")]);
    assert_eq!(other, (plain, "header".to_owned()));
    let both = [("Content-Type", "application/json"), ("X-Steer", "wave=1")];
    let body = steered("a", 1, &[("wave", 2.0)]).to_string();
    let e = server.send("POST", "/v1/chat/completions", &both, body.as_bytes());
    assert_eq!(e.error(), (400, Some("steering".to_owned())));
}

#[test]
fn echoed_prompts_have_the_engines_log_probabilities() {
    let server = Running::start(|_| {});
    let model = model();
    let prompts: Vec<Vec<u32>> = vec![(5..90).collect(), (100..140).collect(), vec![7]];
    let body = json!({
        "prompt": prompts, "echo": true, "logprobs": 3, "max_tokens": 1, "temperature": 0, "seed": 1,
    });
    let reply = server.post("/v1/completions", &body).ok();
    for (prompt, choice) in prompts.iter().zip(reply["choices"].as_array().unwrap()) {
        let logprobs = &choice["logprobs"];
        let own: Vec<Option<f64>> =
            logprobs["token_logprobs"].as_array().unwrap().iter().map(Value::as_f64).collect();
        assert_eq!(own.len(), prompt.len() + 1);
        assert_eq!(own[0], None);
        let tops = logprobs["top_logprobs"].as_array().unwrap();
        assert_eq!((tops.len(), &tops[0]), (prompt.len() + 1, &Value::Null));
        if prompt.len() > 1 {
            let mut pack = Pack::default();
            let first = pack.push(None, &prompt[..1]);
            pack.push_response(first, &prompt[1..]);
            let expected: Vec<f32> = model.score(&pack).unwrap();
            let found: Vec<f32> = own[1..prompt.len()].iter().map(|p| p.unwrap() as f32).collect();
            assert_eq!(found, expected);
        }
        for (at, top) in tops.iter().enumerate().skip(1) {
            let top = top.as_object().unwrap();
            assert!((3..=4).contains(&top.len()), "{top:?}");
            let name = logprobs["tokens"][at].as_str().unwrap();
            // The identical number, which lm-eval compares exactly.
            assert_eq!(top[name].as_f64(), own[at]);
        }
        let best = tops[prompt.len()].as_object().unwrap().values().filter_map(Value::as_f64);
        assert_eq!(best.fold(f64::NEG_INFINITY, f64::max), own[prompt.len()].unwrap(), "greedy");
        assert!(!choice["text"].as_str().unwrap().is_empty());
    }
    // The prompt alone.
    let mut alone = body;
    alone["max_tokens"] = 0.into();
    let alone = server.post("/v1/completions", &alone).ok();
    let choice = &alone["choices"][0]["logprobs"];
    assert_eq!(choice["token_logprobs"].as_array().unwrap().len(), prompts[0].len());
    assert_eq!(
        choice["token_logprobs"].as_array().unwrap()[..],
        reply["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap()[..prompts[0].len()]
    );
    assert_eq!(choice["token_ids"], json!(prompts[0]));
    assert_eq!(alone["usage"]["completion_tokens"], 0);
}

#[test]
fn plain_completions_stream_stop_and_come_in_numbers() {
    let server = Running::start(|_| {});
    let body = json!({"prompt": "What would you", "max_tokens": 24, "temperature": 0, "ignore_eos": true, "return_token_ids": true, "logprobs": 1});
    let whole = server.post("/v1/completions", &body).ok();
    let text = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    let (chunks, done) = server.stream("/v1/completions", &body).all();
    assert!(done && streamed_ids(&chunks) == ids(&whole));
    let pieces: String = chunks.iter().map(|c| c["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(pieces, text);
    let joined = |field: &str| -> Vec<Value> {
        chunks.iter().flat_map(|c| c["choices"][0]["logprobs"][field].as_array().unwrap().clone()).collect()
    };
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(Value::Array(joined(field)), whole["choices"][0]["logprobs"][field], "{field}");
    }
    // A stop text ends the answer before it.
    let middle: String = text.chars().skip(6).take(3).collect();
    let mut held = body.clone();
    held["stop"] = json!([middle]);
    let held = server.post("/v1/completions", &held).ok();
    assert_eq!(held["choices"][0]["finish_reason"], "stop");
    let cut = text.find(&middle).unwrap();
    assert_eq!(held["choices"][0]["text"].as_str().unwrap(), &text[..cut]);
    // Choices have seeds of their own, and a seed repeats.
    let many = json!({"prompt": ["What", "Who"], "n": 3, "max_tokens": 8, "seed": 7, "temperature": 1.5, "echo": true});
    let first = server.post("/v1/completions", &many).ok();
    assert_eq!(first["choices"], server.post("/v1/completions", &many).ok()["choices"]);
    let texts: Vec<&str> =
        first["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 6);
    assert!(
        texts[..3].iter().all(|t| t.starts_with("What")) && texts[3..].iter().all(|t| t.starts_with("Who"))
    );
    assert!(texts[0] != texts[1]);
}

#[test]
fn vectors_are_listed_replaced_and_removed() {
    let server = Running::start(|o| o.admin_keys = Keys::parse("a test", "administrator").unwrap());
    let list = server.get("/v1/vectors").ok();
    let names: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["swell", "wave"]);
    let models = server.get("/v1/models").ok();
    let models: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|v| v["id"].as_str().unwrap()).collect();
    assert_eq!(models[1..], ["base:swell=1", "base:wave=1"]);
    assert_eq!(server.get("/v1/models/base:wave=1").ok()["id"], "base:wave=1");
    let base = server.get(&format!("/v1/models/{}", models[0])).ok();
    assert_eq!(
        base["steerkit"],
        json!({"d_model": 64, "layers": 4, "context": 512, "chat_template": true, "default_system": true})
    );
    assert_eq!(server.get("/v1/vectors/wave").ok()["layer"], 1);

    let file = server.file("upload.tmp");
    vector(9, 3).save(&file).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let admin = [("Authorization", "Bearer administrator")];
    assert_eq!(server.send("PUT", "/v1/vectors/tide", &[], &bytes).status, 403);
    assert_eq!(server.send("PUT", "/v1/vectors/tide", &admin, &bytes).ok()["layer"], 3);
    assert_eq!(server.post("/v1/chat/completions", &steered("a", 2, &[("tide", 1.0)])).status, 200);
    for bad in [&b"x"[..], b"", &bytes[..40]] {
        let e = server.send("PUT", "/v1/vectors/tide", &admin, bad);
        assert_eq!(e.error(), (400, Some("body".to_owned())));
        assert!(!e.message().contains("/tmp"), "no paths: {}", e.message());
    }
    assert_eq!(server.send("PUT", "/v1/vectors/Up", &admin, &bytes).status, 400);
    assert_eq!(server.send("PUT", "/v1/vectors/..%2fx", &admin, &bytes).status, 400);
    assert_eq!(server.get("/v1/vectors/tide").ok()["layer"], 3, "what failed changed nothing");
    assert_eq!(server.send("DELETE", "/v1/vectors/tide", &admin, b"").ok()["deleted"], true);
    assert_eq!(server.get("/v1/vectors/tide").status, 404);
    assert!(!server.file("tide.safetensors").exists());

    // A file that appears, changes, breaks.
    let found = |name: &str, layer: u64| {
        for _ in 0..100 {
            if server.get(&format!("/v1/vectors/{name}")).json()["layer"] == layer {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(30));
        }
        false
    };
    vector(3, 2).save(&server.file("new.safetensors")).unwrap();
    assert!(found("new", 2));
    vector(3, 0).save(&server.file("new.safetensors")).unwrap();
    assert!(found("new", 0));
    std::fs::write(server.file("new.safetensors"), "broken").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert_eq!(server.get("/v1/vectors/new").ok()["layer"], 0, "the version that worked stays");
    assert!(server.log.lock().unwrap().iter().any(|line| line.contains("new.safetensors")));
}

#[test]
fn vectors_may_stand_for_requests_that_say_nothing() {
    let server = Running::start(|o| o.admin_keys = Keys::parse("a test", "administrator").unwrap());
    let post = |path: &str, body: Value| {
        let headers = [("Content-Type", "application/json"), ("Authorization", "Bearer administrator")];
        server.send("POST", &format!("/control-vectors/{path}"), &headers, body.to_string().as_bytes())
    };
    let loaded =
        || server.send("GET", "/control-vectors", &[("Authorization", "Bearer administrator")], b"").ok();
    let chat_of = |body: &Value| server.post("/v1/chat/completions", body).ok();
    let (plain, silent) = (chat_of(&steered("Hi", 8, &[])), chat("Hi", 8));
    let both = chat_of(&steered("Hi", 8, &[("swell", -1.0), ("wave", 2.0)]));
    assert_ne!(ids(&both), ids(&plain));

    assert_eq!(post("load", json!({"path": "wave", "scale": 1})).ok(), json!({"success": true, "id": 0}));
    assert_eq!(post("load", json!({"path": "swell", "scale": -1, "layer_end": 2})).ok()["id"], 1);
    assert_eq!(post("apply", json!([{"id": 0, "scale": 2.0}])).ok(), json!({"success": true}));
    assert_eq!(
        loaded(),
        json!([
            {"id": 0, "path": "wave", "scale": 2.0, "layer_start": null, "layer_end": null},
            {"id": 1, "path": "swell", "scale": -1, "layer_start": null, "layer_end": 2},
        ])
    );
    let found = chat_of(&silent);
    assert_eq!((ids(&found), &found["steering"]["source"]), (ids(&both), &json!("server")));
    // What a request says itself goes before.
    assert_eq!(ids(&chat_of(&steered("Hi", 8, &[]))), ids(&plain));

    for (path, body, status) in [
        ("load", json!({"path": "/etc/passwd"}), 404),
        ("load", json!({"path": "wave"}), 400),
        ("load", json!({}), 400),
        ("apply", json!([{"id": 0, "scale": 9.0}, {"id": 7, "scale": 1.0}]), 400),
        ("apply", json!([{"id": 0, "scale": null}]), 400),
        ("apply", json!([{"id": 0, "scale": 1e39}]), 400),
        ("apply", json!([{"id": 1, "layer_start": 3, "layer_end": 9}]), 400),
        ("apply", json!([1]), 400),
        ("apply", json!({"id": 0}), 400),
        ("unload", json!({"id": 7}), 400),
        ("unload", json!({}), 400),
    ] {
        assert_eq!(post(path, body.clone()).error().0, status, "{path} {body}");
    }
    assert_eq!(loaded()[0]["scale"], 2.0, "what failed changed nothing");
    assert_eq!(server.post("/control-vectors/unload", &json!({"id": 0})).error().0, 403);
    assert_eq!(server.get("/control-vectors").error().0, 403);
    for id in [0, 1] {
        post("unload", json!({"id": id})).ok();
    }
    assert_eq!((loaded(), ids(&chat_of(&silent))), (json!([]), ids(&plain)));
}

#[test]
fn profiles_are_a_keys_own() {
    let server = Running::start(|o| o.keys = Keys::parse("a test", "first-key-1,second-key-2").unwrap());
    let ask = |key: &str, method: &str, path: &str, body: &str| {
        let key = format!("Bearer {key}");
        let headers = [("Authorization", key.as_str()), ("Content-Type", "application/json")];
        server.send(method, path, &headers, body.as_bytes())
    };
    let mine = r#"{"name": "mine", "steering": {"vectors": [{"name": "wave", "scale": 0.5}]}}"#;
    assert_eq!(ask("first-key-1", "POST", "/v1/profiles", mine).status, 201);
    assert_eq!(ask("first-key-1", "POST", "/v1/profiles", mine).status, 409);
    assert_eq!(ask("second-key-2", "GET", "/v1/profiles/mine", "").status, 404);
    assert_eq!(ask("second-key-2", "GET", "/v1/profiles", "").ok()["data"], json!([]));
    let found = ask("first-key-1", "GET", "/v1/profiles/mine", "").ok();
    assert_eq!(found["steering"]["vectors"][0], json!({"name": "wave", "scale": 0.5}));
    let changed = found.to_string().replace("0.5", "2.5");
    assert_eq!(
        ask("first-key-1", "PUT", "/v1/profiles/mine", &changed).ok()["steering"]["vectors"][0]["scale"],
        2.5
    );
    for (body, status, param) in [
        (r#"{"name": "x"}"#, 400, "steering"),
        (r#"{"name": "../x", "steering": {"vectors": []}}"#, 400, "name"),
        (r#"{"name": "x", "steering": {"vectors": [{"name": "none"}]}}"#, 404, "steering"),
        (r#"{"name": "x", "steering": {"vectors": []}, "more": 1}"#, 400, "more"),
    ] {
        assert_eq!(
            ask("first-key-1", "POST", "/v1/profiles", body).error(),
            (status, Some(param.to_owned()))
        );
    }
    assert_eq!(ask("first-key-1", "DELETE", "/v1/profiles/mine", "").status, 200);
    assert_eq!(ask("first-key-1", "DELETE", "/v1/profiles/mine", "").status, 404);
    for key in ["", "first-key-2", "first-key-1x"] {
        assert_eq!(ask(key, "GET", "/v1/models", "").error().0, 401);
    }
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/metrics").status, 401);
    assert!(server.log.lock().unwrap().iter().all(|line| !line.contains("-key-")), "no key in the log");
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let server = Running::start(|_| {});
    let found =
        server.post("/tokenize", &json!({"prompt": "What would you do?", "add_special_tokens": false})).ok();
    assert_eq!(found["count"], found["tokens"].as_array().unwrap().len());
    assert_eq!(found["max_model_len"], 512);
    assert_eq!(
        server.post("/detokenize", &json!({"tokens": found["tokens"]})).ok()["prompt"],
        "What would you do?"
    );
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let open = server.post("/tokenize", &json!({"messages": messages})).ok();
    let closed =
        server.post("/tokenize", &json!({"messages": messages, "add_generation_prompt": false})).ok();
    assert!(open["count"].as_u64() > closed["count"].as_u64());
    let reply = server.post("/v1/chat/completions", &chat("Hi", 1)).ok();
    assert_eq!(reply["prompt_token_ids"], open["tokens"]);
    let info = server.get("/tokenizer_info").ok();
    assert!(info["eos_token"].is_string() && info["chat_template"].as_str().unwrap().contains("im_start"));
}

#[test]
fn the_page_its_files_and_the_documentation() {
    let server = Running::start(|_| {});
    for path in ["/", "/docs", "/assets/docs.js", "/openapi.json", "/metrics"] {
        let reply = server.get(path);
        assert_eq!(reply.status, 200, "{path}");
        let policy = reply.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'self'") && policy.contains("frame-ancestors 'none'"));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(reply.header("access-control-allow-origin"), None);
        if reply.header("content-type").unwrap().starts_with("text/html") {
            let text = reply.text();
            for attribute in ["src=\"http", "href=\"http", "src=\"//", "href=\"//"] {
                assert!(!text.contains(attribute), "{path} loads from elsewhere");
            }
        }
    }
    assert_eq!(server.get("/assets/..%2fapp.rs").status, 404);
    // Every route of the document is there, and none is a surprise.
    let paths = server.get("/openapi.json").ok()["paths"].clone();
    for (path, methods) in paths.as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("{name}", "wave").replace("{id}", "base");
            let headers = [("Content-Type", "application/json")];
            let reply = server.send(&method.to_uppercase(), &path, &headers, b"{}");
            assert_ne!(reply.status, 405, "{method} {path}");
            assert!(
                reply.status != 404 || reply.message() != "there is no such route: see /docs",
                "{method} {path}"
            );
        }
    }
    assert_eq!(server.get("/v1/nothing").error().0, 404);
    assert_eq!(server.get("/v1/chat/completions").error().0, 405);
    let metrics = server.get("/metrics").text();
    assert!(metrics.contains("vllm:num_requests_running{"));
}
