//! What a completion answers, whole or in pieces, in OpenAI's shapes.

use serde_json::{Map, Value, json};
use steerkit_model::{Finish, NewToken, PromptToken, TokenLogprob, Tokenizer};

use crate::app::App;
use crate::ask::{Ask, Kind};

/// A token with what is reported of it.
struct Token {
    id: u32,
    /// None for the first of a prompt, which nothing predicts.
    logprob: Option<f32>,
    top: Vec<TokenLogprob>,
    /// It ends the response and has no text.
    is_end: bool,
}

/// One choice of a reply as it is written.
struct Choice {
    index: usize,
    /// Tokens of the prompt, where they are part of the text.
    prompt: Vec<Token>,
    /// New tokens that were not handed out yet.
    tokens: Vec<Token>,
    /// New text that was not handed out yet.
    text: String,
    finish: Option<Finish>,
    /// New tokens so far.
    count: usize,
    /// Characters of the text so far, for `text_offset`.
    offset: usize,
}

/// A reply as it is written.
pub(crate) struct Reply<'a> {
    app: &'a App,
    ask: &'a Ask,
    tokenizer: &'a Tokenizer,
    id: String,
    created: u64,
    choices: Vec<Choice>,
    begun: bool,
}

impl<'a> Reply<'a> {
    /// A reply without any text yet.
    pub(crate) fn new(app: &'a App, tokenizer: &'a Tokenizer, ask: &'a Ask) -> Self {
        let kind = match ask.kind {
            Kind::Chat => "chatcmpl",
            Kind::Plain => "cmpl",
        };
        Self {
            app,
            ask,
            tokenizer,
            id: format!("{kind}-{:016x}", rand::random::<u64>()),
            created: crate::app::now(),
            choices: (0..ask.prompts.len() * ask.params.n).map(Choice::empty).collect(),
            begun: false,
        }
    }

    /// Takes a new token of choice `index`.
    pub(crate) fn push(&mut self, index: usize, new: NewToken) {
        let NewToken { token, logprob, text, finish, top, prompt } = new;
        let choice = &mut self.choices[index];
        if choice.count == 0 && self.ask.echo {
            let ids = &self.ask.prompts[index / self.ask.params.n].tokens;
            let scores = prompt.into_iter().map(|PromptToken { logprob, top }| (Some(logprob), top));
            let scores = std::iter::once((None, Vec::new())).chain(scores);
            // Without log-probabilities there are no scores, and nobody reads these.
            choice.prompt = ids
                .iter()
                .zip(scores)
                .map(|(&id, (logprob, top))| Token { id, logprob, top, is_end: false })
                .collect();
        }
        choice.count += 1;
        choice.finish = finish;
        if self.ask.only_prompt() {
            choice.finish = Some(Finish::Length);
            return;
        }
        choice.text.push_str(text.as_deref().unwrap_or_default());
        let is_end = finish == Some(Finish::End);
        choice.tokens.push(Token { id: token, logprob: Some(logprob), top, is_end });
    }

    /// Whether all choices have ended.
    pub(crate) fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    fn head(&self, object: &str) -> Map<String, Value> {
        let Value::Object(head) = json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": self.app.fingerprint,
        }) else {
            unreachable!("the literal is an object")
        };
        head
    }

    fn object(&self, stream: bool) -> &'static str {
        match (self.ask.kind, stream) {
            (Kind::Chat, false) => "chat.completion",
            (Kind::Chat, true) => "chat.completion.chunk",
            (Kind::Plain, _) => "text_completion",
        }
    }

    fn usage(&self) -> Value {
        let prompt: usize = self.ask.prompts.iter().map(|prompt| prompt.tokens.len()).sum();
        let written: usize = match self.ask.only_prompt() {
            true => 0,
            false => self.choices.iter().map(|choice| choice.count).sum(),
        };
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": written,
            "total_tokens": prompt + written,
        })
    }

    /// What only the whole reply, or the first chunk, says.
    fn add_once(&self, reply: &mut Map<String, Value>) {
        reply.insert("steering".to_owned(), self.ask.steering.echo.clone());
        if self.ask.params.token_ids {
            reply.insert("prompt_token_ids".to_owned(), json!(self.ask.prompts[0].tokens));
        }
    }

    /// The whole reply.
    pub(crate) fn whole(mut self) -> Value {
        let mut choices = std::mem::take(&mut self.choices);
        let mut reply = self.head(self.object(false));
        let values = choices.iter_mut().map(|choice| match self.ask.kind {
            Kind::Chat => self.chat_choice(choice),
            Kind::Plain => self.plain_choice(choice, true),
        });
        let values: Vec<Value> = values.collect();
        reply.insert("choices".to_owned(), Value::Array(values));
        self.choices = choices;
        reply.insert("usage".to_owned(), self.usage());
        self.add_once(&mut reply);
        Value::Object(reply)
    }

    fn chat_choice(&self, choice: &mut Choice) -> Value {
        let tokens = std::mem::take(&mut choice.tokens);
        let mut value = json!({
            "index": choice.index,
            "message": {"role": "assistant", "content": std::mem::take(&mut choice.text), "refusal": null},
            "logprobs": self.chat_logprobs(&tokens),
            "finish_reason": choice.finish.map(finish_name),
        });
        self.add_token_ids(&mut value, &tokens);
        value
    }

    /// A plain choice, or the part of it that was not handed out yet.
    fn plain_choice(&self, choice: &mut Choice, first: bool) -> Value {
        let tokens = std::mem::take(&mut choice.tokens);
        let prompt = &self.ask.prompts[choice.index / self.ask.params.n];
        let mut text = String::new();
        let mut scored = Vec::new();
        if first && self.ask.echo {
            text = prompt.text.clone().unwrap_or_else(|| self.tokenizer.decode(&prompt.tokens));
            scored = std::mem::take(&mut choice.prompt);
        }
        text.push_str(&std::mem::take(&mut choice.text));
        let logprobs = self.ask.params.logprobs.map(|_| {
            let all: Vec<&Token> = scored.iter().chain(&tokens).collect();
            self.plain_logprobs(&all, &mut choice.offset)
        });
        let mut value = json!({
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": choice.finish.map(finish_name),
        });
        self.add_token_ids(&mut value, &tokens);
        if first && self.ask.params.token_ids && self.ask.prompts.len() > 1 {
            value["prompt_token_ids"] = json!(prompt.tokens);
        }
        value
    }

    fn add_token_ids(&self, value: &mut Value, tokens: &[Token]) {
        if self.ask.params.token_ids {
            value["token_ids"] = tokens.iter().map(|token| token.id).collect();
        }
    }

    /// `{"content": [{"token", "logprob", "bytes", "top_logprobs"}]}`, without the token that ends the response.
    fn chat_logprobs(&self, tokens: &[Token]) -> Value {
        if self.ask.params.logprobs.is_none() {
            return Value::Null;
        }
        let entry = |id: u32, logprob: f32| {
            let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
            json!({"token": String::from_utf8_lossy(&bytes), "logprob": logprob, "bytes": bytes})
        };
        let token = |token: &Token| {
            let mut value = entry(token.id, token.logprob.unwrap_or_default());
            value["top_logprobs"] = token.top.iter().map(|t| entry(t.token, t.logprob)).collect();
            value
        };
        let shown = tokens.iter().filter(|token| !token.is_end).map(token);
        json!({"content": shown.collect::<Vec<_>>(), "refusal": null})
    }

    fn plain_logprobs(&self, tokens: &[&Token], offset: &mut usize) -> Value {
        let mut offsets = Vec::with_capacity(tokens.len());
        for token in tokens {
            offsets.push(*offset);
            let bytes = self.tokenizer.token_bytes(token.id).unwrap_or_default();
            *offset += String::from_utf8_lossy(&bytes).chars().count();
        }
        let names: Vec<String> = tokens.iter().map(|token| self.token_name(token.id)).collect();
        json!({
            "tokens": names,
            "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(|token| self.top(token)).collect::<Vec<_>>(),
            "text_offset": offsets,
            "token_ids": tokens.iter().map(|token| token.id).collect::<Vec<_>>(),
        })
    }

    /// The likeliest tokens and the chosen one by their texts; of two with one text, the likelier.
    fn top(&self, token: &Token) -> Value {
        let Some(logprob) = token.logprob else { return Value::Null };
        let mut map = Map::new();
        for t in token.top.iter().chain(&[TokenLogprob { token: token.id, logprob }]) {
            map.entry(self.token_name(t.token)).or_insert(json!(t.logprob));
        }
        Value::Object(map)
    }

    /// A token's text; `bytes:\xe2\x80` for one that is a part of a character.
    fn token_name(&self, id: u32) -> String {
        let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_else(|e| {
            let hex: String = e.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{hex}")
        })
    }

    /// The first chunks of a stream: the role of each choice of a chat.
    pub(crate) fn first_chunks(&mut self) -> Vec<Value> {
        if self.ask.kind == Kind::Plain {
            return Vec::new();
        }
        let delta = |index: usize| {
            json!({
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": null,
                "finish_reason": null,
            })
        };
        (0..self.choices.len()).map(|index| self.chunk(delta(index))).collect()
    }

    fn chunk(&mut self, choice: Value) -> Value {
        let mut chunk = self.head(self.object(true));
        chunk.insert("choices".to_owned(), Value::Array(vec![choice]));
        if self.ask.params.include_usage {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        if !std::mem::replace(&mut self.begun, true) {
            self.add_once(&mut chunk);
        }
        Value::Object(chunk)
    }

    /// The chunks that are due after a token of choice `index`: none while its text is not certain.
    pub(crate) fn next_chunks(&mut self, index: usize) -> Vec<Value> {
        let mut choice = std::mem::replace(&mut self.choices[index], Choice::empty(index));
        let mut chunks = Vec::new();
        if !choice.text.is_empty() || choice.finish.is_some() {
            match self.ask.kind {
                Kind::Chat => chunks = self.chat_chunks(&mut choice),
                Kind::Plain => {
                    let first = choice.count == choice.tokens.len() || self.ask.only_prompt();
                    let value = self.plain_choice(&mut choice, first);
                    chunks.push(self.chunk(value));
                }
            }
        }
        self.choices[index] = choice;
        chunks
    }

    /// Text and its tokens, and the reason of the end in a chunk of its own.
    fn chat_chunks(&mut self, choice: &mut Choice) -> Vec<Value> {
        let mut chunks = Vec::new();
        let mut tokens = std::mem::take(&mut choice.tokens);
        let end = tokens.pop_if(|token| token.is_end);
        let text = std::mem::take(&mut choice.text);
        if !text.is_empty() {
            let mut value = json!({
                "index": choice.index,
                "delta": {"content": text},
                "logprobs": self.chat_logprobs(&tokens),
                "finish_reason": null,
            });
            self.add_token_ids(&mut value, &tokens);
            tokens.clear();
            chunks.push(self.chunk(value));
        }
        if let Some(finish) = choice.finish {
            let mut value = json!({
                "index": choice.index,
                "delta": {},
                "logprobs": if tokens.is_empty() { Value::Null } else { self.chat_logprobs(&tokens) },
                "finish_reason": finish_name(finish),
            });
            tokens.extend(end);
            self.add_token_ids(&mut value, &tokens);
            chunks.push(self.chunk(value));
        }
        chunks
    }

    /// The last chunk, where it is asked for.
    pub(crate) fn usage_chunk(&self) -> Option<Value> {
        self.ask.params.include_usage.then(|| {
            let mut chunk = self.head(self.object(true));
            chunk.insert("choices".to_owned(), json!([]));
            chunk.insert("usage".to_owned(), self.usage());
            Value::Object(chunk)
        })
    }
}

impl Choice {
    fn empty(index: usize) -> Self {
        let (prompt, tokens, text) = (Vec::new(), Vec::new(), String::new());
        Self { index, prompt, tokens, text, finish: None, count: 0, offset: 0 }
    }
}

/// As OpenAI calls it.
fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::End | Finish::Stop => "stop",
        Finish::Length => "length",
    }
}
