//! Text to tokens and back.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use serde_json::{Value, json};
use steerkit_model::{ChatTemplate, Message, ModelError};

use crate::app::{App, blocking, json_response};
use crate::ask::{conversation, messages, text_tokens};
use crate::error::{ApiError, ApiResult};
use crate::json::{self, Fields};

type Shared = State<Arc<App>>;

/// `POST /tokenize`.
pub(crate) async fn tokenize(State(app): Shared, body: Bytes) -> ApiResult {
    let reply = blocking(move || {
        let map = json::object(&body)?;
        let fields = Fields::new(&map);
        let tokens = match fields.text("prompt")? {
            Some(text) => {
                let special = fields.flag("add_special_tokens")?.unwrap_or(true);
                text_tokens(&app, text, special, "prompt")?
            }
            None if map.contains_key("messages") => {
                let messages = messages(&map)?;
                match fields.flag("add_generation_prompt")? {
                    Some(false) => rendered(&app, &messages)?,
                    _ => conversation(&app, &messages)?,
                }
            }
            None => return Err(ApiError::bad("prompt", "expected prompt or messages")),
        };
        let context = app.model.config().context;
        Ok(json!({"count": tokens.len(), "max_model_len": context, "tokens": tokens}))
    });
    Ok(json_response(reply.await?))
}

/// A conversation without the beginning of the next answer.
fn rendered(app: &App, messages: &[Message]) -> ApiResult<Vec<u32>> {
    let failed = |e: ModelError| ApiError::of_model("messages", &e);
    let template = app.model.chat_template().map_err(failed)?;
    let template = template.ok_or_else(|| ApiError::bad("messages", "the model has no chat template"))?;
    text_tokens(app, &template.render(messages, false).map_err(failed)?, true, "messages")
}

/// `POST /detokenize`.
pub(crate) async fn detokenize(State(app): Shared, body: Bytes) -> ApiResult {
    let reply = blocking(move || {
        let map = json::object(&body)?;
        let Some(Value::Array(list)) = map.get("tokens") else {
            return Err(ApiError::bad("tokens", "tokens is no list of token ids"));
        };
        let tokens = json::token_ids("tokens", list)?;
        let vocab = app.model.config().vocab;
        if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(ApiError::bad("tokens", ModelError::UnknownToken { id, vocab }.to_string()));
        }
        let tokenizer = app.model.tokenizer().map_err(|e| ApiError::of_model("tokens", &e))?;
        Ok(json!({"prompt": tokenizer.decode(&tokens)}))
    });
    Ok(json_response(reply.await?))
}

/// `GET /tokenizer_info`.
pub(crate) async fn tokenizer_info(State(app): Shared) -> ApiResult {
    let tokenizer = app.model.tokenizer().map_err(|e| ApiError::of_model("model", &e))?;
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
    let eos = text(tokenizer.eos());
    Ok(json_response(json!({
        "tokenizer_class": "steerkit",
        "bos_token": text(tokenizer.bos()),
        "eos_token": eos,
        "pad_token": eos,
        "vocab_size": tokenizer.vocab_size(),
        "model_max_length": app.model.config().context,
        "add_bos_token": tokenizer.add_bos(),
        "chat_template": app.model.chat_template().ok().flatten().map(ChatTemplate::source),
    })))
}

/// Whether the template writes a system prompt of its own into a conversation that has none.
pub(crate) fn has_default_system(template: &ChatTemplate) -> bool {
    const PROBE: &str = "system probe 77ab";
    let user = Message::new("user", "hello");
    let with = template.render(&[Message::new("system", PROBE), user.clone()], false);
    let (Ok(with), Ok(without)) = (with, template.render(&[user], false)) else { return false };
    // What stands before a system prompt stands there without one too, and more than the user's turn follows.
    match with.split_once(PROBE) {
        Some((before, after)) => {
            without.strip_prefix(before).is_some_and(|rest| rest.ends_with(after) && rest.len() > after.len())
        }
        None => false,
    }
}
