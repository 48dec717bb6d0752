//! Checks before any route: where a request comes from, whose key it has, how large it is. Then the log line.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio_stream::StreamExt;

use crate::app::{App, Caller};
use crate::error::{ApiError, ApiResult};
use crate::{Log, ServerError, assets};

/// Largest body.
pub(crate) const MAX_BODY: usize = 2 << 20;
/// Of a body that is too large, so much is read before the answer: a client that is still sending may not see it.
const MAX_DRAINED: usize = 32 << 20;
/// A body must have arrived after this long.
const BODY_TIME: Duration = Duration::from_secs(10);

/// Who may ask for what.
pub(crate) struct Guard {
    /// None: everybody on this machine.
    pub(crate) keys: Keys,
    /// Those that may change vectors.
    pub(crate) admin: Keys,
    /// Host names that requests may give besides this machine's own.
    pub(crate) hosts: Vec<String>,
    /// Whether an address in the Host header is as good as a name: not for a server that only this machine reaches.
    pub(crate) any_address: bool,
}

/// Keys of requests, as hashes: neither a log nor a comparison's time shows them.
#[derive(Clone, Default)]
pub struct Keys(Vec<[u8; 32]>);

/// Keys are at least this long, in bytes.
const MIN_KEY: usize = 8;

impl Keys {
    /// Keys separated by commas or white space.
    ///
    /// # Errors
    /// No key, or one that is too short; `name` says where the text is from.
    pub fn parse(name: &str, text: &str) -> Result<Self, ServerError> {
        let refuse = |found: &str| ServerError::Key { name: name.to_owned(), found: found.to_owned() };
        let keys: Vec<&str> =
            text.split(|c: char| c == ',' || c.is_whitespace()).filter(|key| !key.is_empty()).collect();
        match keys.iter().any(|key| key.len() < MIN_KEY) {
            _ if keys.is_empty() => Err(refuse("nothing")),
            true => Err(refuse("a key that is too short")),
            false => Ok(Self(keys.into_iter().map(hash).collect())),
        }
    }

    /// The keys in the environment variable `name`.
    ///
    /// # Errors
    /// As [`Keys::parse`].
    pub fn from_env(name: &str) -> Result<Self, ServerError> {
        Self::parse(name, &std::env::var(name).unwrap_or_default())
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a key with this hash is one of them. There is no early end: which it was takes no time to see.
    fn hold(&self, hash: &[u8; 32]) -> bool {
        self.0.iter().fold(false, |found, known| found | bool::from(hash.ct_eq(known)))
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

impl Guard {
    /// A page of another site that resolves its own name to this machine shows itself by the Host header.
    fn check_host(&self, headers: &HeaderMap) -> ApiResult<()> {
        let foreign = |what: &str| {
            let message = format!("{what}: requests must name this server (--allow-host NAME)");
            Err(ApiError::new(StatusCode::FORBIDDEN, message).coded("foreign_host"))
        };
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else {
            return foreign("no Host header");
        };
        let name = host_name(host);
        let is_local = name.eq_ignore_ascii_case("localhost")
            || address(name).is_some_and(|ip| ip.is_loopback() || self.any_address);
        match is_local || self.hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name)) {
            true => Ok(()),
            false => foreign("foreign Host header"),
        }
    }

    /// A page of another site may not send anything.
    fn check_origin(&self, method: &Method, headers: &HeaderMap) -> ApiResult<()> {
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        if method.is_safe() && method != Method::OPTIONS {
            return Ok(());
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let own = origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_some_and(
            |(scheme, authority)| matches!(scheme, "http" | "https") && authority.eq_ignore_ascii_case(host),
        );
        match own {
            true => Ok(()),
            false => {
                let message = "requests from pages of other sites are not taken";
                Err(ApiError::new(StatusCode::FORBIDDEN, message).coded("foreign_origin"))
            }
        }
    }

    /// Who it is.
    fn caller(&self, headers: &HeaderMap) -> ApiResult<Caller> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = value.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| hash(key.trim()))
        });
        let is_admin = key.is_some_and(|key| self.admin.hold(&key));
        let known = key.is_some_and(|key| self.keys.hold(&key)) | is_admin;
        if self.keys.is_empty() {
            return Ok(Caller { scope: String::new(), is_admin });
        }
        match key.filter(|_| known) {
            Some(key) => {
                let scope = key[..16].iter().map(|byte| format!("{byte:02x}")).collect();
                Ok(Caller { scope, is_admin })
            }
            None => {
                let message = "this server needs a key: Authorization: Bearer KEY";
                Err(ApiError::new(StatusCode::UNAUTHORIZED, message).coded("invalid_api_key"))
            }
        }
    }
}

/// The host of `host:port` or `[address]:port`.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn address(name: &str) -> Option<IpAddr> {
    name.parse().ok()
}

/// What anybody may see: the page asks for the key itself.
fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/health" | "/docs" | "/openapi.json") || path.starts_with("/assets/")
}

/// The checks, the route, and the headers of every reply.
pub(crate) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = match checked(&app, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, assets::POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let ms = began.elapsed().as_secs_f64() * 1e3;
    let line = format!("{method} {} {} {ms:.1} ms", shown(&path), response.status().as_u16());
    (app.log)(Log::Request(&line));
    response
}

/// A path for a log line: no control characters, not too long.
fn shown(path: &str) -> String {
    path.chars().take(200).flat_map(char::escape_debug).collect()
}

async fn checked(app: &App, request: Request) -> ApiResult<Request> {
    let (mut parts, body) = request.into_parts();
    app.guard.check_host(&parts.headers)?;
    app.guard.check_origin(&parts.method, &parts.headers)?;
    let caller = match app.guard.caller(&parts.headers) {
        Ok(caller) => caller,
        Err(_) if is_open(parts.uri.path()) => Caller::default(),
        Err(error) => return Err(error),
    };
    parts.extensions.insert(caller);
    if parts.method == Method::POST
        || (parts.method == Method::PUT && !parts.uri.path().starts_with("/v1/vectors/"))
    {
        check_type(&parts.headers)?;
    }
    let body = tokio::time::timeout(BODY_TIME, read(body)).await.unwrap_or_else(|_| {
        let message = format!("the body did not arrive within {} s", BODY_TIME.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message))
    })?;
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// Forms of other sites can send text/plain without asking; JSON they cannot.
fn check_type(headers: &HeaderMap) -> ApiResult<()> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => {
            let message = "the body must be Content-Type: application/json";
            Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
        }
    }
}

async fn read(body: Body) -> ApiResult<Bytes> {
    let mut frames = body.into_data_stream();
    let mut bytes = Vec::new();
    let mut drained = 0;
    while let Some(frame) = frames.next().await {
        let frame = frame.map_err(|_| ApiError::bad("body", "the body ended early"))?;
        if drained == 0 && bytes.len() + frame.len() <= MAX_BODY {
            bytes.extend_from_slice(&frame);
            continue;
        }
        drained += frame.len();
        if drained > MAX_DRAINED {
            break;
        }
    }
    if drained > 0 {
        let message = format!("the body has more than {MAX_BODY} bytes");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).at("body"));
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_their_ports() {
        for (host, name) in [
            ("a.b:80", "a.b"),
            ("a.b", "a.b"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("[::1]:8", "::1"),
            ("[::1]", "::1"),
        ] {
            assert_eq!(host_name(host), name);
        }
    }

    #[test]
    fn log_lines_stay_lines() {
        assert_eq!(shown("/a\r\nGET \u{1b}[31m"), "/a\\r\\nGET \\u{1b}[31m");
    }
}
