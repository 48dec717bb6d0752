//! The routes and what they share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use steerkit_model::Model;

use crate::ask::{Ask, Kind};
use crate::engine::Engine;
use crate::error::{ApiError, ApiResult};
use crate::guard::{self, Guard};
use crate::metrics::Metrics;
use crate::profiles::Profiles;
use crate::registry::Registry;
use crate::standing::{self, Standing};
use crate::{Log, assets, complete, openapi, stored, text};

/// What all requests share.
pub(crate) struct App {
    pub(crate) model: Arc<Model>,
    /// The model's name in the API.
    pub(crate) id: String,
    pub(crate) fingerprint: String,
    pub(crate) engine: Engine,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) registry: Registry,
    pub(crate) profiles: Profiles,
    pub(crate) standing: Standing,
    pub(crate) guard: Guard,
    pub(crate) default_vector: Option<String>,
    /// Tokens that the batch can hold.
    pub(crate) token_capacity: usize,
    pub(crate) started: u64,
    pub(crate) stopping: AtomicBool,
    pub(crate) log: Box<dyn Fn(Log<'_>) + Send + Sync>,
}

impl App {
    /// No new work is taken.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// Who sent a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caller {
    /// What the caller's profiles belong to: a hash of the key, empty without keys.
    pub(crate) scope: String,
    /// Whether vectors may be changed.
    pub(crate) is_admin: bool,
}

type Shared = State<Arc<App>>;

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since: Duration| since.as_secs())
}

/// All routes behind their checks.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(plain))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/vectors", get(stored::vectors))
        .route(
            "/v1/vectors/{name}",
            get(stored::vector).put(stored::put_vector).delete(stored::delete_vector),
        )
        .route("/v1/profiles", get(stored::profiles).post(stored::post_profile))
        .route(
            "/v1/profiles/{name}",
            get(stored::profile).put(stored::put_profile).delete(stored::delete_profile),
        )
        .route("/control-vectors", get(standing::list))
        .route("/control-vectors/load", post(standing::load))
        .route("/control-vectors/unload", post(standing::unload))
        .route("/control-vectors/apply", post(standing::apply))
        .route("/tokenize", post(text::tokenize))
        .route("/detokenize", post(text::detokenize))
        .route("/tokenizer_info", get(text::tokenizer_info))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(async || json_response(openapi::document())))
        .route("/docs", get(async || page("text/html; charset=utf-8", assets::DOCS)))
        .route("/", get(async || page("text/html; charset=utf-8", assets::INDEX)))
        .route("/assets/{name}", get(asset))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "there is no such route: see /docs"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "the route does not take this method: see /docs")
        })
        .layer(tower_http::catch_panic::CatchPanicLayer::custom(panicked))
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), guard::check))
        .with_state(app)
}

/// A request that hits a bug fails alone.
fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::internal("internal error").into_response()
}

/// Runs what takes its time off the threads that serve connections.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ApiError::internal("internal error")))
}

/// A JSON reply.
pub(crate) fn json_response(value: impl serde::Serialize) -> Response {
    match serde_json::to_string(&value) {
        Ok(text) => page("application/json", text),
        Err(e) => ApiError::internal(e.to_string()).into_response(),
    }
}

fn page(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

async fn chat(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> ApiResult {
    completion(app, Kind::Chat, caller, headers, body).await
}

async fn plain(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Bytes,
) -> ApiResult {
    completion(app, Kind::Plain, caller, headers, body).await
}

async fn completion(app: Arc<App>, kind: Kind, caller: Caller, headers: HeaderMap, body: Bytes) -> ApiResult {
    if app.is_stopping() {
        return Err(ApiError::stopping());
    }
    let reader = Arc::clone(&app);
    let (ask, requests) = blocking(move || {
        let ask = Ask::read(&reader, kind, &headers, &caller, &body)?;
        let requests = ask.requests(&reader)?;
        Ok((ask, requests))
    })
    .await?;
    complete::run(app, ask, requests).await
}

/// The model and an alias for each vector.
async fn models(State(app): Shared) -> Response {
    let vectors = app.registry.snapshot();
    let aliases = vectors.values().map(|entry| {
        json!({
            "id": format!("base:{}=1", entry.name),
            "object": "model",
            "created": entry.created(),
            "owned_by": "steerkit",
        })
    });
    let data: Vec<Value> = std::iter::once(base_model(&app)).chain(aliases).collect();
    json_response(json!({"object": "list", "data": data}))
}

async fn model(State(app): Shared, Path(id): Path<String>) -> ApiResult {
    let known = [app.id.as_str(), "base"].into_iter().any(|base| match id.strip_prefix(base) {
        Some("") => true,
        Some(rest) => rest.starts_with(':'),
        None => false,
    });
    if !known {
        return Err(ApiError::not_found("model", "model_not_found", "there is no such model"));
    }
    let mut value = base_model(&app);
    value["id"] = id.into();
    Ok(json_response(value))
}

fn base_model(app: &App) -> Value {
    let config = app.model.config();
    let template = app.model.chat_template().ok().flatten();
    json!({
        "id": app.id,
        "object": "model",
        "created": app.started,
        "owned_by": "steerkit",
        "max_model_len": config.context,
        "steerkit": {
            "d_model": config.d_model,
            "layers": config.n_layers,
            "context": config.context,
            "chat_template": template.is_some(),
            "default_system": template.is_some_and(text::has_default_system),
        },
    })
}

async fn health(State(app): Shared) -> Response {
    let (running, waiting) = app.metrics.load();
    let status = if app.is_stopping() { "stopping" } else { "ok" };
    let mut response = json_response(json!({"status": status, "running": running, "waiting": waiting}));
    if app.is_stopping() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

async fn metrics(State(app): Shared) -> Response {
    page("text/plain; version=0.0.4; charset=utf-8", app.metrics.text(&app.id, app.token_capacity))
}

async fn asset(Path(name): Path<String>) -> ApiResult {
    let all = assets::ASSETS.iter().chain([&assets::DOCS_SCRIPT]);
    let found = all.into_iter().find(|asset| asset.name == name);
    let asset = found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "there is no such file"))?;
    Ok(page(asset.content_type, asset.text))
}
