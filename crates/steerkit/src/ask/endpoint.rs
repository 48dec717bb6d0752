//! An OpenAI-compatible endpoint: one call, and what its failures mean.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use ureq::http::Uri;

use super::cost::Usage;
use super::retry::retry_after;
use super::{AskError, Decoding, Prompt, Reply};
use crate::Result;

/// Largest answer that is read, in bytes.
const MAX_BODY: u64 = 4 << 20;
/// Longest part of an endpoint's message that is shown.
const MAX_MESSAGE: usize = 300;

/// A secret that no message shows.
#[derive(Clone)]
struct Key(String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// An endpoint with the model to ask there.
#[derive(Clone, Debug)]
pub struct Endpoint {
    agent: ureq::Agent,
    /// Without the slash at its end.
    base: String,
    model: String,
    key: Option<Key>,
}

/// Why a call brought no answer.
#[derive(Debug)]
pub(super) enum CallError {
    /// It may work later.
    Transient {
        what: String,
        /// What `Retry-After` says.
        wait: Option<Duration>,
        /// The endpoint may have worked on it.
        sent: bool,
    },
    /// This prompt is refused.
    Prompt { status: u16, message: String },
    /// Every prompt would be refused.
    Always(AskError),
}

impl Endpoint {
    /// The endpoint at `base` (such as `http://localhost:8080/v1`), `timeout` for a whole call.
    ///
    /// The key comes from the environment variable `key_variable`, or there is none; it is sent to this endpoint
    /// alone, over https or to this machine.
    ///
    /// # Errors
    /// [`AskError::Setting`]: an address that is none, with credentials in it, or without encryption where a key goes
    /// to another machine; a variable that is not set.
    pub fn new(base: &str, model: &str, key_variable: Option<&str>, timeout: Duration) -> Result<Self> {
        let key = key_variable.map(key_from).transpose()?;
        let uri = address(base)?;
        let host = uri.host().unwrap_or_default();
        let near = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
        if key.is_some() && uri.scheme_str() != Some("https") && !near {
            let what = format!("the key would go to {host} without encryption");
            return Err(setting(what, "use https, a tunnel to localhost, or no key"));
        }
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(timeout.min(Duration::from_secs(15))))
            .timeout_global(Some(timeout))
            .user_agent(concat!("steerkit/", env!("CARGO_PKG_VERSION")));
        if near {
            config = config.proxy(None);
        }
        let (agent, base) = (config.build().new_agent(), base.trim_end_matches('/').to_owned());
        Ok(Self { agent, base, model: model.to_owned(), key })
    }

    /// The address.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// The model asked.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// One call.
    pub(super) fn call(&self, prompt: &Prompt, decoding: &Decoding) -> Result<Reply, CallError> {
        let body = json!({
            "model": self.model,
            "messages": [
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": prompt.user},
            ],
            "max_tokens": decoding.max_tokens,
            "temperature": decoding.temperature,
            "seed": decoding.seed,
        });
        let mut request = self.agent.post(format!("{}/chat/completions", self.base));
        if let Some(Key(key)) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let mut response = request.send_json(&body).map_err(|error| self.failed(&error))?;
        let status = response.status().as_u16();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let wait = header("retry-after").and_then(|text| retry_after(text, SystemTime::now()));
        let target = header("location").map(str::to_owned);
        let text = response.body_mut().with_config().limit(MAX_BODY).lossy_utf8(true).read_to_string();
        match (status, text) {
            (200, Ok(text)) => self.reply(&text),
            (200, Err(error)) => Err(self.failed(&error)),
            (300..=399, _) => {
                Err(self.always(status, &format!("redirects to {}", target.unwrap_or_default())))
            }
            (status, text) => Err(self.refused(status, &text.unwrap_or_default(), wait)),
        }
    }

    /// A call that ended without a status or in the middle of its answer.
    fn failed(&self, error: &ureq::Error) -> CallError {
        let sent = match error {
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => false,
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => false,
            ureq::Error::Io(error) => error.kind() != std::io::ErrorKind::ConnectionRefused,
            _ => true,
        };
        CallError::Transient { what: self.shown(&error.to_string()), wait: None, sent }
    }

    /// A call that was answered with an error.
    fn refused(&self, status: u16, body: &str, wait: Option<Duration>) -> CallError {
        let message = self.shown(&message_of(body));
        match status {
            400 | 413 | 422 => CallError::Prompt { status, message },
            408 | 409 | 425 | 429 | 500..=599 => {
                CallError::Transient { what: format!("status {status}: {message}"), wait, sent: false }
            }
            _ => self.always(status, &message),
        }
    }

    fn always(&self, status: u16, message: &str) -> CallError {
        let (url, message) = (self.base.clone(), self.shown(message));
        CallError::Always(AskError::Refused { url, status, message })
    }

    /// The answer in the body of a call that succeeded.
    fn reply(&self, body: &str) -> Result<Reply, CallError> {
        let broken = |what: String| CallError::Transient { what, wait: None, sent: true };
        let value: Value = serde_json::from_str(body)
            .map_err(|error| broken(format!("found an answer that is not JSON ({error})")))?;
        let choice = &value["choices"][0];
        let message = &choice["message"];
        let text = match (&message["content"], &message["refusal"]) {
            (Value::String(text), _) => text.clone(),
            (Value::Null, Value::String(refusal)) => refusal.clone(),
            (Value::Null, _) if message.is_object() => String::new(),
            _ => {
                return Err(broken(format!(
                    "found {}, expected choices[0].message.content",
                    self.shown(&message_of(body))
                )));
            }
        };
        let count = |name: &str| value["usage"][name].as_u64();
        let usage = count("prompt_tokens").zip(count("completion_tokens"));
        let usage = usage.map(|(input, output)| Usage { input, output });
        Ok(Reply { text, cut: choice["finish_reason"] == "length", usage })
    }

    /// A text of the endpoint, without the key, control characters or great length.
    fn shown(&self, text: &str) -> String {
        let text = match &self.key {
            Some(Key(key)) => text.replace(key.as_str(), "***"),
            None => text.to_owned(),
        };
        text.chars().take(MAX_MESSAGE).map(|c| if c.is_control() { ' ' } else { c }).collect()
    }
}

/// What an error's body says: the message of OpenAI's shape, or the body.
fn message_of(body: &str) -> String {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let messages = [&value["error"]["message"], &value["error"], &value["message"], &value["detail"]];
    let message = messages.into_iter().find_map(Value::as_str).unwrap_or(body).trim();
    if message.is_empty() { "an empty body".into() } else { message.into() }
}

fn key_from(variable: &str) -> Result<Key> {
    let hint = format!("export {variable}=...; keys come from the environment only");
    match std::env::var(variable) {
        Ok(key) if !key.trim().is_empty() && key.trim().bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Key(key.trim().to_owned()))
        }
        Ok(key) if key.trim().is_empty() => {
            Err(setting(format!("the environment variable {variable} is empty"), hint))
        }
        Ok(_) => Err(setting(format!("the environment variable {variable} holds no key"), hint)),
        Err(_) => Err(setting(format!("the environment variable {variable} is not set"), hint)),
    }
}

fn address(base: &str) -> Result<Uri> {
    let hint = "give the address that ends before /chat/completions, such as http://localhost:8080/v1";
    let wrong = |found: &str| setting(format!("found {found}, expected the address of an endpoint"), hint);
    let uri: Uri = base.parse().map_err(|_| wrong("no address"))?;
    let known = matches!(uri.scheme_str(), Some("http" | "https"));
    if !known || uri.host().is_none_or(str::is_empty) {
        return Err(wrong(&format!("{base:?}")));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(wrong("an address with a user or password in it"));
    }
    if uri.query().is_some() {
        return Err(wrong("an address with a query"));
    }
    Ok(uri)
}

fn setting(what: impl Into<String>, hint: impl Into<String>) -> crate::SteerError {
    AskError::Setting { what: what.into(), hint: hint.into() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(base: &str, variable: Option<&str>) -> Result<Endpoint> {
        Endpoint::new(base, "m", variable, Duration::from_secs(1))
    }

    #[test]
    fn addresses_that_are_none() {
        for bad in
            ["", "localhost:8080", "ftp://x/v1", "http://", "http://u:p@x/v1", "http://x/v1?key=1", "a b"]
        {
            assert!(endpoint(bad, None).is_err(), "{bad}");
        }
        assert_eq!(endpoint("http://localhost:8080/v1/", None).unwrap().url(), "http://localhost:8080/v1");
        let error = endpoint("http://x/v1", Some("STEERKIT_TEST_NO_SUCH_KEY")).unwrap_err();
        assert!(error.to_string().contains("is not set"), "{error}");
    }

    #[test]
    fn a_key_needs_encryption_and_is_never_shown() {
        // Cargo sets it.
        let error = endpoint("http://example.org/v1", Some("CARGO_PKG_VERSION")).unwrap_err();
        assert!(error.to_string().contains("without encryption"), "{error}");
        let near = endpoint("http://localhost:1/v1", Some("CARGO_PKG_VERSION")).unwrap();
        assert!(format!("{near:?}").contains("key: Some(***)"));
        let message = format!("bad key {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(near.shown(&message), "bad key ***");
    }

    #[test]
    fn messages_of_errors() {
        assert_eq!(message_of(r#"{"error": {"message": "no"}}"#), "no");
        assert_eq!(message_of(r#"{"error": "no"}"#), "no");
        assert_eq!(message_of("<html>"), "<html>");
        assert_eq!(message_of(" "), "an empty body");
    }
}
