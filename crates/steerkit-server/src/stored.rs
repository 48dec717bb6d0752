//! Vectors and profiles over HTTP.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::app::{App, Caller, blocking, json_response};
use crate::error::{ApiError, ApiResult};
use crate::json::{self, Fields};
use crate::profiles::Profile;
use crate::registry::{find, is_name};
use crate::steering::{Asked, Source, Steering};

type Shared = State<Arc<App>>;

/// `GET /v1/vectors`.
pub(crate) async fn vectors(State(app): Shared) -> Response {
    let data: Vec<Value> = app.registry.snapshot().values().map(|entry| entry.value()).collect();
    json_response(json!({"object": "list", "data": data}))
}

/// `GET /v1/vectors/{name}`.
pub(crate) async fn vector(State(app): Shared, Path(name): Path<String>) -> ApiResult {
    Ok(json_response(find(&app.registry.snapshot(), &name)?.value()))
}

/// `PUT /v1/vectors/{name}`: the body is the file.
pub(crate) async fn put_vector(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Bytes,
) -> ApiResult {
    check_admin(&app, &caller)?;
    check_name(&name)?;
    let entry = blocking(move || app.registry.put(&name, &body)).await?;
    Ok(json_response(entry.value()))
}

/// `DELETE /v1/vectors/{name}`.
pub(crate) async fn delete_vector(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> ApiResult {
    check_admin(&app, &caller)?;
    let reply = json!({"id": name, "object": "vector", "deleted": true});
    blocking(move || app.registry.delete(&name)).await?;
    Ok(json_response(reply))
}

pub(crate) fn check_admin(app: &App, caller: &Caller) -> ApiResult<()> {
    let message = match app.guard.admin.is_empty() {
        _ if caller.is_admin => return Ok(()),
        false => "vectors are changed with the admin key",
        true => "this server has no admin key (--admin-key-env NAME): its vectors cannot be changed",
    };
    Err(ApiError::new(StatusCode::FORBIDDEN, message).coded("admin_only"))
}

fn check_name(name: &str) -> ApiResult<()> {
    if is_name(name) {
        return Ok(());
    }
    Err(ApiError::bad(
        "name",
        "a name is 1 to 64 of a-z, 0-9, dot, underscore and hyphen, and begins with no dot",
    ))
}

/// `GET /v1/profiles`.
pub(crate) async fn profiles(State(app): Shared, Extension(caller): Extension<Caller>) -> ApiResult {
    let data = blocking(move || app.profiles.list(&caller.scope)).await?;
    Ok(json_response(json!({"object": "list", "data": data})))
}

/// `POST /v1/profiles`: a new one.
pub(crate) async fn post_profile(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> ApiResult {
    let stored = blocking(move || {
        let profile = read(&app, None, &body)?;
        app.profiles.put(&caller.scope, &profile, Some(false))
    });
    Ok((StatusCode::CREATED, json_response(stored.await?)).into_response())
}

/// `GET /v1/profiles/{name}`.
pub(crate) async fn profile(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> ApiResult {
    Ok(json_response(blocking(move || app.profiles.get(&caller.scope, &name)).await?))
}

/// `PUT /v1/profiles/{name}`: new or in place of the one there is.
pub(crate) async fn put_profile(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Bytes,
) -> ApiResult {
    let stored = blocking(move || {
        let profile = read(&app, Some(name), &body)?;
        app.profiles.put(&caller.scope, &profile, None)
    });
    Ok(json_response(stored.await?))
}

/// `DELETE /v1/profiles/{name}`.
pub(crate) async fn delete_profile(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> ApiResult {
    let reply = json!({"id": name, "object": "profile", "deleted": true});
    blocking(move || app.profiles.delete(&caller.scope, &name)).await?;
    Ok(json_response(reply))
}

/// A profile from a body; its vectors must be there.
fn read(app: &App, name: Option<String>, body: &[u8]) -> ApiResult<Profile> {
    let map = json::object(body)?;
    let fields = Fields::new(&map);
    // What a reply shows may be sent back.
    fields.only(&["name", "steering", "user", "created", "updated"])?;
    let given = fields.text("name")?;
    if let (Some(given), Some(name)) = (given, &name)
        && given != name
    {
        return Err(ApiError::bad("name", "the body names another profile than the path"));
    }
    let name =
        name.or(given.map(str::to_owned)).ok_or_else(|| ApiError::bad("name", "the profile has no name"))?;
    check_name(&name)?;
    let user = fields.text("user")?.map(str::to_owned);
    if user.as_ref().is_some_and(|user| user.is_empty() || user.len() > 256) {
        return Err(ApiError::bad("user", "a user is 1 to 256 bytes"));
    }
    let steering =
        map.get("steering").ok_or_else(|| ApiError::bad("steering", "the profile has no steering"))?;
    let steering = Asked::from_json(steering, "steering")?;
    Steering::new(&app.registry.snapshot(), app.registry.identity(), Source::Profile, &steering)?;
    Ok(Profile { name, steering, user })
}
