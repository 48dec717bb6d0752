//! The settings that chat and plain completions share, with their limits.

use serde_json::Value;
use steerkit_model::{ModelError, Sampling, generate};

use crate::error::{ApiError, ApiResult};
use crate::json::Fields;

/// Choices per prompt.
const MAX_CHOICES: usize = 16;
/// Likeliest tokens reported per token.
const MAX_TOP: usize = 20;

/// Settings of a request.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// With the seed of the first choice.
    pub(crate) sampling: Sampling,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) n: usize,
    pub(crate) stop: Vec<String>,
    /// Whether log-probabilities are reported, and with how many likeliest tokens.
    pub(crate) logprobs: Option<usize>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) token_ids: bool,
    pub(crate) ignore_end: bool,
}

impl Params {
    /// Reads what both kinds of completion have; `context` bounds `max_tokens`, `least_tokens` is 1, or 0 where no token
    /// may be asked for.
    pub(crate) fn read(fields: Fields<'_>, context: usize, least_tokens: usize) -> ApiResult<Self> {
        unsupported(fields)?;
        let range = least_tokens..=context;
        let newer = fields.count("max_completion_tokens", range.clone())?;
        let max_tokens = newer.or(fields.count("max_tokens", range)?);
        let stream = fields.flag("stream")?.unwrap_or(false);
        Ok(Self {
            sampling: sampling(fields)?,
            max_tokens,
            n: choices(fields)?,
            stop: stops(fields)?,
            logprobs: None,
            stream,
            include_usage: include_usage(fields, stream)?,
            token_ids: fields.flag("return_token_ids")?.unwrap_or(false),
            ignore_end: fields.flag("ignore_eos")?.unwrap_or(false),
        })
    }

    /// `logprobs` and `top_logprobs` of a chat.
    pub(crate) fn chat_logprobs(fields: Fields<'_>) -> ApiResult<Option<usize>> {
        let wanted = fields.flag("logprobs")?.unwrap_or(false);
        match fields.count("top_logprobs", 0..=MAX_TOP)? {
            Some(_) if !wanted => Err(ApiError::bad("top_logprobs", "top_logprobs needs \"logprobs\": true")),
            top => Ok(wanted.then(|| top.unwrap_or(0))),
        }
    }

    /// `logprobs` of a plain completion.
    pub(crate) fn plain_logprobs(fields: Fields<'_>) -> ApiResult<Option<usize>> {
        fields.count("logprobs", 0..=MAX_TOP)
    }
}

/// What clients may send and this server cannot do: better an error than an answer that ignores it.
fn unsupported(fields: Fields<'_>) -> ApiResult<()> {
    let empty = |value: &Value| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(flag) => !flag,
        Value::String(text) => text.is_empty() || text == "none" || text == "auto",
        _ => false,
    };
    let names = ["tools", "functions", "tool_choice", "function_call", "logit_bias", "suffix", "audio"];
    for name in names {
        if fields.get(name).is_some_and(|value| !empty(value)) {
            return Err(ApiError::bad(name, format!("{name} is not supported")).coded("unsupported"));
        }
    }
    if let Some(value) = fields.get("response_format")
        && value.get("type").and_then(Value::as_str) != Some("text")
    {
        let message = "response_format other than {\"type\": \"text\"} is not supported";
        return Err(ApiError::bad("response_format", message).coded("unsupported"));
    }
    Ok(())
}

fn sampling(fields: Fields<'_>) -> ApiResult<Sampling> {
    let number = |name: &str, low: f64, high: f64, default: f64| -> ApiResult<f32> {
        Ok(fields.number(name, low..=high)?.unwrap_or(default) as f32)
    };
    // Others write "all tokens" as -1.
    let top_k = fields.whole("top_k", -1..=1_000_000)?.unwrap_or(0).max(0) as usize;
    // Any 64-bit number is a seed.
    let seed = match fields.get("seed") {
        None => rand::random(),
        Some(value) => value
            .as_u64()
            .or_else(|| value.as_i64().map(|n| n as u64))
            .ok_or_else(|| fields.refuse("seed", value, "a whole number of 64 bits"))?,
    };
    Ok(Sampling {
        temperature: number("temperature", 0.0, 10.0, 1.0)?,
        top_k,
        top_p: number("top_p", 0.0, 1.0, 1.0)?,
        min_p: number("min_p", 0.0, 1.0, 0.0)?,
        repetition_penalty: number("repetition_penalty", 0.01, 100.0, 1.0)?,
        presence_penalty: number("presence_penalty", -2.0, 2.0, 0.0)?,
        frequency_penalty: number("frequency_penalty", -2.0, 2.0, 0.0)?,
        seed,
    })
}

fn choices(fields: Fields<'_>) -> ApiResult<usize> {
    let n = fields.count("n", 1..=MAX_CHOICES)?.unwrap_or(1);
    match fields.count("best_of", 1..=MAX_CHOICES)? {
        Some(best_of) if best_of != n => {
            Err(ApiError::bad("best_of", "best_of other than n is not supported"))
        }
        _ => Ok(n),
    }
}

fn stops(fields: Fields<'_>) -> ApiResult<Vec<String>> {
    let expected =
        format!("a text or up to {} texts of 1 to {} bytes", generate::MAX_STOPS, generate::MAX_STOP_BYTES);
    let Some(value) = fields.get("stop") else { return Ok(Vec::new()) };
    let refuse = || fields.refuse("stop", value, &expected);
    let stops: Vec<String> = match value {
        // Some clients send an empty text for none.
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::String(text) => vec![text.clone()],
        Value::Array(list) if list.len() <= generate::MAX_STOPS => {
            let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(refuse);
            list.iter().map(text).collect::<ApiResult<_>>()?
        }
        _ => return Err(refuse()),
    };
    match stops.iter().any(|stop| stop.is_empty() || stop.len() > generate::MAX_STOP_BYTES) {
        true => Err(refuse()),
        false => Ok(stops),
    }
}

fn include_usage(fields: Fields<'_>, stream: bool) -> ApiResult<bool> {
    let Some(value) = fields.get("stream_options") else { return Ok(false) };
    let Value::Object(map) = value else {
        return Err(fields.refuse("stream_options", value, "an object"));
    };
    if !stream {
        return Err(ApiError::bad("stream_options", "stream_options needs \"stream\": true"));
    }
    Ok(Fields { path: "stream_options", map }.flag("include_usage")?.unwrap_or(false))
}

/// Whether a prompt fits with at least one new token.
pub(crate) fn check_prompt(param: &str, tokens: &[u32], vocab: usize, context: usize) -> ApiResult<()> {
    if tokens.is_empty() {
        return Err(ApiError::bad(param, format!("{param} has no tokens")));
    }
    if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab) {
        return Err(ApiError::bad(param, ModelError::UnknownToken { id, vocab }.to_string()));
    }
    if tokens.len() >= context {
        let found = tokens.len();
        let message =
            format!("the prompt has {found} tokens, the model's context holds {context} with the answer");
        return Err(ApiError::bad(param, message).coded("context_length_exceeded"));
    }
    Ok(())
}
