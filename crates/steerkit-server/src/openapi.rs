//! The description of the API at `/openapi.json`, which `/docs` shows.

use serde_json::{Map, Value, json};

/// Method, path, what it does, the schema of its body.
const ROUTES: &[(&str, &str, &str, Option<&str>)] = &[
    ("post", "/v1/chat/completions", "Answer a conversation, whole or as a stream", Some("ChatRequest")),
    (
        "post",
        "/v1/completions",
        "Continue texts or token ids, with the log-probabilities of the prompt if wanted",
        Some("CompletionRequest"),
    ),
    ("get", "/v1/models", "The model, and an alias for each vector", None),
    ("get", "/v1/models/{id}", "The model or an alias", None),
    ("get", "/v1/vectors", "The vectors that requests may name", None),
    ("get", "/v1/vectors/{name}", "One vector: layer, norm, dose, how it was made", None),
    ("put", "/v1/vectors/{name}", "Store a vector; the body is a safetensors file (admin key)", None),
    ("delete", "/v1/vectors/{name}", "Remove a vector (admin key)", None),
    ("get", "/v1/profiles", "The profiles of the caller's key", None),
    ("post", "/v1/profiles", "Store a new profile", Some("Profile")),
    ("get", "/v1/profiles/{name}", "One profile", None),
    ("put", "/v1/profiles/{name}", "Store or replace a profile", Some("Profile")),
    ("delete", "/v1/profiles/{name}", "Remove a profile", None),
    ("get", "/control-vectors", "The vectors that act where a request says nothing (admin key)", None),
    ("post", "/control-vectors/load", "Let one more act: path is its name (admin key)", Some("Standing")),
    ("post", "/control-vectors/unload", "Let one no longer act, by its id (admin key)", Some("Standing")),
    ("post", "/control-vectors/apply", "Change scales and layers, by ids (admin key)", Some("StandingList")),
    ("post", "/tokenize", "Token ids of a text or a conversation", Some("TokenizeRequest")),
    ("post", "/detokenize", "The text of token ids", Some("DetokenizeRequest")),
    ("get", "/tokenizer_info", "Special tokens and the chat template", None),
    ("get", "/health", "Whether the server takes requests", None),
    ("get", "/metrics", "Counters in Prometheus's format, under vLLM's names", None),
];

/// The document.
pub(crate) fn document() -> Value {
    let mut paths = Map::new();
    for &(method, path, summary, schema) in ROUTES {
        let operation = operation(path, summary, schema);
        paths.entry(path).or_insert_with(|| json!({}))[method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "steerkit",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's API with steering vectors per request: in the body, in the header X-Steer, in the model's name (base:NAME=SCALE), or by a profile.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas(),
        },
        "security": [{"key": []}],
    })
}

fn operation(path: &str, summary: &str, schema: Option<&str>) -> Value {
    let error = json!({
        "description": "A mistake in the request, in OpenAI's shape",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    });
    let mut operation = json!({
        "summary": summary,
        "responses": {"200": {"description": "OK"}, "4XX": error},
    });
    let parameters: Vec<Value> = path
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(name, _)| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(schema) = schema {
        let reference = format!("#/components/schemas/{schema}");
        operation["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": {"$ref": reference}}}});
    }
    operation
}

fn number(low: f64, high: f64, about: &str) -> Value {
    json!({"type": "number", "minimum": low, "maximum": high, "description": about})
}

fn flag(about: &str) -> Value {
    json!({"type": "boolean", "default": false, "description": about})
}

/// What both kinds of completion take.
fn settings() -> Map<String, Value> {
    let steering = json!({"$ref": "#/components/schemas/Steering"});
    let entries = [
        ("model", json!({"type": "string", "description": "The model, or base:NAME=SCALE[,NAME=SCALE]"})),
        ("steering", steering),
        ("max_tokens", json!({"type": "integer", "minimum": 1, "description": "New tokens at most"})),
        ("temperature", number(0.0, 10.0, "0 takes the likeliest token; 1 by default")),
        ("top_p", number(0.0, 1.0, "Draw from the likeliest tokens of this probability together")),
        (
            "top_k",
            json!({"type": "integer", "minimum": -1, "description": "Draw from this many tokens; 0 and -1: all"}),
        ),
        ("min_p", number(0.0, 1.0, "Leave out tokens less likely than this times the likeliest")),
        ("presence_penalty", number(-2.0, 2.0, "Taken off tokens that were written already")),
        ("frequency_penalty", number(-2.0, 2.0, "The same, per time")),
        ("repetition_penalty", number(0.01, 100.0, "Divides the logits of tokens that occurred")),
        ("seed", json!({"type": "integer", "description": "The same seed gives the same text"})),
        ("n", json!({"type": "integer", "minimum": 1, "maximum": 16, "description": "Choices per prompt"})),
        ("stop", json!({"description": "A text or up to 16 before which the answer ends"})),
        ("stream", flag("Server-sent events")),
        ("stream_options", json!({"type": "object", "description": "{\"include_usage\": true}"})),
        ("return_token_ids", flag("Adds prompt_token_ids and token_ids")),
        ("ignore_eos", flag("Goes on after the token that ends a response")),
        (
            "user",
            json!({"type": "string", "description": "Whose profile applies where nothing else is said"}),
        ),
    ];
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn schemas() -> Value {
    let top = json!({"type": "integer", "minimum": 0, "maximum": 20, "description": "Likeliest tokens reported per token"});
    let text = json!({"type": "string"});
    let mut chat = settings();
    chat.insert(
        "messages".to_owned(),
        json!({"type": "array", "items": {"type": "object", "properties": {
            "role": {"enum": ["system", "developer", "user", "assistant"]}, "content": text,
        }}}),
    );
    chat.insert("logprobs".to_owned(), flag("Reports log-probabilities"));
    chat.insert("top_logprobs".to_owned(), top.clone());
    let mut plain = settings();
    plain.insert("prompt".to_owned(), json!({"description": "A text, texts, token ids, or lists of them"}));
    plain.insert(
        "echo".to_owned(),
        flag("The prompt is part of the text; with logprobs its tokens are scored, and max_tokens may be 0"),
    );
    plain.insert("logprobs".to_owned(), top);
    let standing = json!({"type": "object", "properties": {
        "id": {"type": "integer"}, "path": text, "scale": number(-1000.0, 1000.0, "1 by default"),
        "layer_start": {"type": "integer"}, "layer_end": {"type": "integer"},
    }});
    json!({
        "ChatRequest": {"type": "object", "required": ["messages"], "properties": chat},
        "CompletionRequest": {"type": "object", "required": ["prompt"], "properties": plain},
        "Steering": {"type": "object", "required": ["vectors"], "additionalProperties": false, "properties": {
            "vectors": {"type": "array", "maxItems": 16, "items": {
                "type": "object", "required": ["name"], "additionalProperties": false, "properties": {
                    "name": {"type": "string", "pattern": "^[a-z0-9._-]{1,64}$"},
                    "scale": number(-1000.0, 1000.0, "Times which the vector is added; 0 is the plain model, 1 the default"),
                    "layers": {"type": "array", "items": {"type": "integer"}, "description": "Of a vector of several layers, those to use"},
                    "operator": {"type": "string", "description": "add, ablate, one-sided[:BIAS] or clamp:LOW:HIGH"},
                    "scope": {"type": "string", "description": "all, all-but-first, prompt, generated, last-prompt, last-user or first-K+last-K"},
                },
            }},
        }},
        "Profile": {"type": "object", "required": ["name", "steering"], "properties": {
            "name": text, "user": text, "steering": {"$ref": "#/components/schemas/Steering"},
        }},
        "Standing": standing,
        "StandingList": {"type": "array", "items": standing},
        "TokenizeRequest": {"type": "object", "properties": {
            "prompt": text, "messages": {"type": "array"},
            "add_special_tokens": {"type": "boolean", "default": true},
            "add_generation_prompt": {"type": "boolean", "default": true},
        }},
        "DetokenizeRequest": {"type": "object", "required": ["tokens"], "properties": {"tokens": {"type": "array", "items": {"type": "integer"}}}},
        "Error": {"type": "object", "properties": {"error": {"type": "object", "properties": {
            "message": text, "type": text, "param": {"type": ["string", "null"]}, "code": {"type": ["string", "null"]},
        }}}},
    })
}
