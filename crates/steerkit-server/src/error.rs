//! What can go wrong: at the start of a server, and with one request.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use steerkit::SteerError;
use steerkit_model::{ErrorKind, ModelError};

/// Why a server cannot start or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The file system or the network said no.
    #[error("{place}: {source}")]
    Io {
        /// The file or address.
        place: String,
        /// What the system says.
        source: std::io::Error,
    },

    /// An address that others can reach, without a key.
    #[error("{host} can be reached from other machines, and the server has no key")]
    OpenToAll {
        /// The address.
        host: String,
    },

    /// A key that is missing or too short.
    #[error(
        "the environment variable {name} holds {found}, expected one or more keys of 8 characters or more"
    )]
    Key {
        /// The variable.
        name: String,
        /// What it holds, without the key.
        found: String,
    },

    /// The profiles' database.
    #[error("{place}: {source}")]
    Profiles {
        /// The file.
        place: String,
        /// What SQLite says.
        source: rusqlite::Error,
    },

    /// A database of a newer steerkit.
    #[error("{place}: found profiles of version {found}, expected at most {known}")]
    NewerProfiles {
        /// The file.
        place: String,
        /// Its version.
        found: i64,
        /// The newest that is known.
        known: i64,
    },

    /// A default vector that is not there.
    #[error("there is no vector {name:?} (vectors: {})", known.join(", "))]
    NoVector {
        /// The name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },

    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl ServerError {
    /// What to do, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::OpenToAll { .. } => Some(
                "put a key into an environment variable and name it with --api-key-env, or serve on 127.0.0.1"
                    .to_owned(),
            ),
            Self::Key { name, .. } => Some(format!("export {name}=\"$(openssl rand -hex 16)\"")),
            Self::NewerProfiles { .. } => Some("use the newer steerkit, or another file".to_owned()),
            Self::Model(error) => error.hint(),
            _ => None,
        }
    }

    /// What kind of mistake it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } | Self::Profiles { .. } => ErrorKind::FileSystem,
            Self::OpenToAll { .. } | Self::Key { .. } | Self::NoVector { .. } => ErrorKind::Usage,
            Self::NewerProfiles { .. } => ErrorKind::BadInput,
            Self::Model(error) => error.kind(),
        }
    }
}

/// The answer to a request that cannot be met, in OpenAI's shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    /// Seconds.
    pub(crate) retry_after: Option<u32>,
}

/// Results of handlers.
pub(crate) type ApiResult<T = Response> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry_after: None }
    }

    /// A mistake in the field `param`.
    pub(crate) fn bad(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message).at(param).coded("invalid_value")
    }

    pub(crate) fn not_found(param: &str, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message).at(param).coded(code)
    }

    pub(crate) fn overloaded() -> Self {
        let message = "the queue is full: try again";
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message).coded("queue_full");
        Self { retry_after: Some(1), ..error }
    }

    pub(crate) fn stopping() -> Self {
        let message = "the server is shutting down";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, message).coded("shutting_down");
        Self { retry_after: Some(5), ..error }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub(crate) fn at(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    pub(crate) fn coded(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// A model's error about the request's field `param`, unless the error names one itself.
    pub(crate) fn of_model(param: &str, error: &ModelError) -> Self {
        match error {
            ModelError::OutOfRange { name, .. } => Self::bad(name, error.to_string()),
            ModelError::TooLong { .. } => {
                Self::bad(param, error.to_string()).coded("context_length_exceeded")
            }
            ModelError::Panicked(_) | ModelError::Device(_) => Self::internal(error.to_string()),
            ModelError::Interrupted => Self::stopping(),
            ModelError::NonFinite { place, .. } if place.contains("steering") => {
                Self::bad("steering", error.to_string()).coded("not_finite")
            }
            // The weights or the vectors are to blame, not the request.
            ModelError::NonFinite { .. } => Self::internal(error.to_string()).coded("not_finite"),
            _ => Self::bad(param, error.to_string()),
        }
    }

    pub(crate) fn of_steering(param: &str, error: &SteerError) -> Self {
        Self::bad(param, error.to_string())
    }

    /// As in a body or a stream.
    pub(crate) fn value(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.value().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
