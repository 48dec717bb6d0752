//! From the body of a completion request to the texts that the engine writes.

use axum::http::HeaderMap;
use serde_json::{Map, Value};
use steerkit::PromptShape;
use steerkit::scope::last_user_span;
use steerkit_model::{Message, Prompting, Request, Specials};

use crate::app::{App, Caller};
use crate::engine::Place;
use crate::error::{ApiError, ApiResult};
use crate::json::{self, Fields, kind};
use crate::params::{Params, check_prompt};
use crate::registry::is_name;
use crate::steering::{Routes, Steering};

/// Messages of one conversation.
const MAX_MESSAGES: usize = 2048;
/// Prompts in one request.
const MAX_PROMPTS: usize = 256;
/// No tokeniser needs a token for so many bytes of text: longer texts are refused before they are tokenised.
const BYTES_PER_TOKEN: usize = 32;

/// Which of the two kinds of completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Plain,
}

/// A prompt of a request.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    /// As the client wrote it, where it wrote text.
    pub(crate) text: Option<String>,
    shape: PromptShape,
}

/// A request, understood.
pub(crate) struct Ask {
    pub(crate) kind: Kind,
    /// As the client called it.
    pub(crate) model: String,
    pub(crate) params: Params,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) steering: Steering,
    /// The prompt is part of the text.
    pub(crate) echo: bool,
    /// One for each choice of each prompt.
    pub(crate) places: Vec<Place>,
}

impl Ask {
    /// Reads and checks everything about a request; takes its places in the queue.
    pub(crate) fn read(
        app: &App,
        kind: Kind,
        headers: &HeaderMap,
        caller: &Caller,
        body: &[u8],
    ) -> ApiResult<Self> {
        let map = json::object(body)?;
        let fields = Fields::new(&map);
        let echo = kind == Kind::Plain && fields.flag("echo")?.unwrap_or(false);
        let context = app.model.config().context;
        let mut params = Params::read(fields, context, usize::from(!echo))?;
        params.logprobs = match kind {
            Kind::Chat => Params::chat_logprobs(fields)?,
            Kind::Plain => Params::plain_logprobs(fields)?,
        };
        if kind == Kind::Plain && params.max_tokens.is_none() {
            // OpenAI's default.
            params.max_tokens = Some(16);
        }
        let (model, alias) = model_and_alias(app, fields)?;
        let steering = steering(app, headers, caller, fields, alias)?;
        let sources = match kind {
            Kind::Chat => vec![Source::Messages(messages(&map)?)],
            Kind::Plain => prompts(&map)?,
        };
        let places = places(app, sources.len() * params.n)?;
        let needs_user = steering.plan.needs_user();
        let special = fields.flag("add_special_tokens")?.unwrap_or(true);
        let prompts = sources.into_iter().map(|source| source.tokens(app, special, needs_user));
        let prompts = prompts.collect::<ApiResult<Vec<_>>>()?;
        Ok(Self { kind, model: model.to_owned(), params, prompts, steering, echo, places })
    }

    /// What the engine writes: the choices of the first prompt, then those of the next.
    pub(crate) fn requests(&self, app: &App) -> ApiResult<Vec<Request>> {
        let mut requests = Vec::with_capacity(self.places.len());
        for prompt in &self.prompts {
            let edits = self.steering.plan.edits(app.model.config(), &prompt.shape);
            let edits = edits.map_err(|e| ApiError::of_steering("steering", &e))?;
            for choice in 0..self.params.n {
                let mut sampling = self.params.sampling;
                sampling.seed = sampling.seed.wrapping_add(choice as u64);
                requests.push(Request {
                    prompt: prompt.tokens.clone(),
                    edits: edits.clone(),
                    sampling,
                    // To score a prompt alone, the one token that follows is written and left out.
                    max_tokens: self.params.max_tokens.unwrap_or(usize::MAX).max(1),
                    stop: self.params.stop.clone(),
                    top_logprobs: self.params.logprobs.unwrap_or(0),
                    prompt_logprobs: self.echo && self.params.logprobs.is_some(),
                    ignore_end: self.params.ignore_end,
                });
            }
        }
        Ok(requests)
    }

    /// Whether no new text is wanted.
    pub(crate) fn only_prompt(&self) -> bool {
        self.params.max_tokens == Some(0)
    }
}

/// Places in the queue, all or none.
fn places(app: &App, n: usize) -> ApiResult<Vec<Place>> {
    if n > app.engine.places() {
        let message = format!("prompts times n are {n}, this server takes {} at a time", app.engine.places());
        return Err(ApiError::bad("n", message));
    }
    app.engine.reserve(n).ok_or_else(|| {
        app.metrics.reject();
        ApiError::overloaded()
    })
}

/// The model's name as the client wrote it, and what follows the colon.
fn model_and_alias<'a>(app: &'a App, fields: Fields<'a>) -> ApiResult<(&'a str, Option<&'a str>)> {
    let Some(name) = fields.text("model")? else { return Ok((&app.id, None)) };
    for base in [app.id.as_str(), "base"] {
        match name.strip_prefix(base) {
            Some("") => return Ok((name, None)),
            Some(rest) if rest.starts_with(':') && rest.len() <= 1024 => return Ok((name, Some(&rest[1..]))),
            _ => {}
        }
    }
    let message =
        format!("there is no such model (this server has {:?}, and {:?})", app.id, "base:VECTOR=SCALE");
    Err(ApiError::not_found("model", "model_not_found", message))
}

/// How the request is steered.
pub(crate) fn steering(
    app: &App,
    headers: &HeaderMap,
    caller: &Caller,
    fields: Fields<'_>,
    alias: Option<&str>,
) -> ApiResult<Steering> {
    let profile = match headers.get("x-steer-profile") {
        None => None,
        Some(name) => {
            let name = name.to_str().ok().filter(|name| is_name(name));
            let name =
                name.ok_or_else(|| ApiError::bad("X-Steer-Profile", "X-Steer-Profile is no profile's name"))?;
            Some(app.profiles.steering(&caller.scope, name)?)
        }
    };
    let users = match fields.text("user")? {
        Some(user) if user.len() <= 256 => app.profiles.of_user(&caller.scope, user)?,
        _ => None,
    };
    let default_vector = app.default_vector.as_deref();
    let standing = app.standing.asked(app)?;
    let routes = Routes { body: fields, headers, alias, default_vector, profile, users, standing };
    let (source, asked) = routes.meaning()?;
    Steering::new(&app.registry.snapshot(), app.registry.identity(), source, &asked)
}

/// What a prompt is made from.
enum Source {
    Messages(Vec<Message>),
    Text(String),
    Tokens(Vec<u32>),
}

impl Source {
    fn tokens(self, app: &App, special: bool, needs_user: bool) -> ApiResult<Prompt> {
        let config = app.model.config();
        let param = if matches!(self, Self::Messages(_)) { "messages" } else { "prompt" };
        if needs_user && param == "prompt" {
            let message = "the token scope last-user needs a chat: use /v1/chat/completions or another scope";
            return Err(ApiError::bad("steering", message));
        }
        self.check_size(config.context, param)?;
        let mut last_user = 0..0;
        let (tokens, text) = match self {
            Self::Messages(messages) => {
                let tokens = conversation(app, &messages)?;
                if needs_user {
                    last_user = user_span(app, messages, &tokens)?;
                }
                (tokens, None)
            }
            Self::Text(text) => (text_tokens(app, &text, special, "prompt")?, Some(text)),
            Self::Tokens(tokens) => (tokens, None),
        };
        check_prompt(param, &tokens, config.vocab, config.context)?;
        let shape = PromptShape { len: tokens.len(), last_user };
        Ok(Prompt { tokens, text, shape })
    }

    fn check_size(&self, context: usize, param: &str) -> ApiResult<()> {
        let bytes = match self {
            Self::Messages(messages) => messages.iter().map(|m| m.content.len()).sum(),
            Self::Text(text) => text.len(),
            Self::Tokens(_) => 0,
        };
        if bytes <= context * BYTES_PER_TOKEN {
            return Ok(());
        }
        let message =
            format!("the prompt has {bytes} bytes, far more than a context of {context} tokens holds");
        Err(ApiError::bad(param, message).coded("context_length_exceeded"))
    }
}

/// The ids of a conversation and the beginning of the answer.
pub(crate) fn conversation(app: &App, messages: &[Message]) -> ApiResult<Vec<u32>> {
    prompting(app)?.conversation(messages).map_err(|e| ApiError::of_model("messages", &e))
}

fn prompting(app: &App) -> ApiResult<Prompting<'_>> {
    let failed = |e| ApiError::of_model("messages", &e);
    let template = app.model.chat_template().map_err(failed)?;
    Ok(Prompting::new(app.model.tokenizer().map_err(failed)?, template))
}

fn user_span(app: &App, mut messages: Vec<Message>, tokens: &[u32]) -> ApiResult<std::ops::Range<usize>> {
    let at = messages.iter().rposition(|m| m.role == "user");
    let at =
        at.ok_or_else(|| ApiError::bad("messages", "the token scope last-user needs a user's message"))?;
    last_user_span(tokens, |text| {
        messages[at].content = text.to_owned();
        conversation(app, &messages)
    })
}

/// The ids of a text; control tokens that it spells are read as such.
pub(crate) fn text_tokens(app: &App, text: &str, special: bool, param: &str) -> ApiResult<Vec<u32>> {
    let failed = |e| ApiError::of_model(param, &e);
    let tokenizer = app.model.tokenizer().map_err(failed)?;
    let mut tokens = tokenizer.encode(text, Specials::Parse).map_err(failed)?;
    let bos = tokenizer.bos().filter(|_| special && tokenizer.add_bos());
    if let Some(bos) = bos.filter(|bos| tokens.first() != Some(bos)) {
        tokens.insert(0, bos);
    }
    Ok(tokens)
}

/// The prompts of a plain completion: a text, texts, token ids, or lists of them.
fn prompts(map: &Map<String, Value>) -> ApiResult<Vec<Source>> {
    let refuse = |found: &str| {
        let expected = "a text, a list of texts, token ids, or a list of lists of them";
        ApiError::bad("prompt", format!("prompt is {found}, expected {expected}"))
    };
    let many = |n: usize| ApiError::bad("prompt", format!("{n} prompts, at most {MAX_PROMPTS} are allowed"));
    let list = match map.get("prompt") {
        Some(Value::String(text)) => return Ok(vec![Source::Text(text.clone())]),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(Value::Array(_)) => return Err(refuse("an empty list")),
        Some(other) => return Err(refuse(kind(other))),
        None => return Err(refuse("missing")),
    };
    if list[0].is_number() {
        return Ok(vec![Source::Tokens(json::token_ids("prompt", list)?)]);
    }
    if list.len() > MAX_PROMPTS {
        return Err(many(list.len()));
    }
    let source = |value: &Value| match value {
        Value::String(text) => Ok(Source::Text(text.clone())),
        Value::Array(ids) => Ok(Source::Tokens(json::token_ids("prompt", ids)?)),
        other => Err(refuse(&format!("a list with {}", kind(other)))),
    };
    list.iter().map(source).collect()
}

/// The conversation of a request.
pub(crate) fn messages(map: &Map<String, Value>) -> ApiResult<Vec<Message>> {
    let list = match map.get("messages") {
        Some(Value::Array(list)) if (1..=MAX_MESSAGES).contains(&list.len()) => list,
        other => {
            let found = match other {
                None => "missing".to_owned(),
                Some(Value::Array(list)) => format!("a list of {}", list.len()),
                Some(other) => kind(other).to_owned(),
            };
            let expected = format!("a list of 1 to {MAX_MESSAGES} messages");
            return Err(ApiError::bad("messages", format!("messages is {found}, expected {expected}")));
        }
    };
    list.iter().enumerate().map(|(i, value)| message(i, value)).collect()
}

fn message(i: usize, value: &Value) -> ApiResult<Message> {
    let path = format!("messages[{i}]");
    let Value::Object(map) = value else {
        return Err(ApiError::bad(&path, format!("{path} is {}, expected an object", kind(value))));
    };
    let fields = Fields { path: &path, map };
    let role = match fields.text("role")? {
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant")) => role,
        _ => {
            let param = fields.param("role");
            let message = format!("{param} is none of system, developer, user, assistant");
            return Err(ApiError::bad(param, message));
        }
    };
    let content = match fields.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().map(|part| text_part(fields, part)).collect::<ApiResult<_>>()?
        }
        Some(other) => return Err(fields.refuse("content", other, "a text or a list of text parts")),
        None => return Err(ApiError::bad(fields.param("content"), format!("{path} has no content"))),
    };
    Ok(Message::new(role, content))
}

fn text_part(fields: Fields<'_>, part: &Value) -> ApiResult<String> {
    let text = part.get("text").and_then(Value::as_str);
    match (part.get("type").and_then(Value::as_str), text) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        _ => Err(ApiError::bad(
            fields.param("content"),
            "only text parts are supported: {\"type\": \"text\", \"text\": ..}",
        )),
    }
}
