//! Vectors that act on requests which say nothing of steering: what an administrator of llama.cpp's kin sets at
//! `/control-vectors`. Where those name files, these name vectors of the registry.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Bytes;
use axum::extract::{Extension, State};
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::app::{App, Caller, json_response};
use crate::error::{ApiError, ApiResult};
use crate::json::{self, Fields, kind};
use crate::registry::find;
use crate::steering::{Asked, Source, Steering};
use crate::stored::check_admin;

/// Layers beyond this are mistakes.
const MAX_LAYER: usize = 1 << 16;

/// The vectors that stand, by their numbers.
#[derive(Default)]
pub(crate) struct Standing(Mutex<List>);

#[derive(Clone, Default)]
struct List {
    next: usize,
    vectors: Vec<Vector>,
}

#[derive(Clone)]
struct Vector {
    id: usize,
    name: String,
    scale: Value,
    /// First and last, where the request gave them.
    layers: (Option<usize>, Option<usize>),
}

impl Standing {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What they ask for; none when there are none.
    pub(crate) fn asked(&self, app: &App) -> ApiResult<Option<Asked>> {
        let list = self.lock().clone();
        if list.vectors.is_empty() { Ok(None) } else { list.asked(app).map(Some) }
    }

    /// Changes the list; nothing is changed when the new one is refused.
    fn change<T>(&self, app: &App, change: impl FnOnce(&mut List) -> ApiResult<T>) -> ApiResult<T> {
        let mut list = self.lock();
        let mut changed = list.clone();
        let result = change(&mut changed)?;
        let asked = changed.asked(app)?;
        Steering::new(&app.registry.snapshot(), app.registry.identity(), Source::Server, &asked)?;
        *list = changed;
        Ok(result)
    }
}

impl List {
    fn asked(&self, app: &App) -> ApiResult<Asked> {
        let vectors = self.vectors.iter().map(|vector| {
            let mut value = json!({"name": vector.name, "scale": vector.scale});
            let (first, last) = vector.layers;
            if first.is_some() || last.is_some() {
                let range = first.unwrap_or(0)..=last.unwrap_or(MAX_LAYER);
                let entry = find(&app.registry.snapshot(), &vector.name)?;
                let layers = entry.vectors.iter().map(|v| v.layer);
                let layers: Vec<usize> = layers.filter(|layer| range.contains(layer)).collect();
                if layers.is_empty() {
                    let message = format!("vector {:?} has no layer from {range:?}", vector.name);
                    return Err(ApiError::bad("layer_start", message));
                }
                value["layers"] = json!(layers);
            }
            Ok(value)
        });
        Asked::from_json(&json!({"vectors": vectors.collect::<ApiResult<Vec<Value>>>()?}), "steering")
    }

    fn find(&mut self, id: usize) -> ApiResult<&mut Vector> {
        let known: Vec<usize> = self.vectors.iter().map(|v| v.id).collect();
        let found = self.vectors.iter_mut().find(|v| v.id == id);
        found.ok_or_else(|| ApiError::bad("id", format!("no vector {id} is loaded (loaded: {known:?})")))
    }
}

impl Vector {
    /// Takes over scale and layers where they are given.
    fn set(&mut self, fields: Fields<'_>) -> ApiResult<()> {
        if let Some(scale) = fields.map.get("scale") {
            self.scale = scale.clone();
        }
        self.layers.0 = fields.count("layer_start", 0..=MAX_LAYER)?.or(self.layers.0);
        self.layers.1 = fields.count("layer_end", 0..=MAX_LAYER)?.or(self.layers.1);
        Ok(())
    }
}

type Shared = State<Arc<App>>;

/// `GET /control-vectors`.
pub(crate) async fn list(State(app): Shared, Extension(caller): Extension<Caller>) -> ApiResult {
    check_admin(&app, &caller)?;
    let list = app.standing.lock().clone();
    let value = |v: &Vector| {
        let (first, last) = v.layers;
        json!({"id": v.id, "path": v.name, "scale": v.scale, "layer_start": first, "layer_end": last})
    };
    Ok(json_response(list.vectors.iter().map(value).collect::<Vec<Value>>()))
}

/// `POST /control-vectors/load`: `{"path": NAME, "scale", "layer_start", "layer_end"}`.
pub(crate) async fn load(State(app): Shared, Extension(caller): Extension<Caller>, body: Bytes) -> ApiResult {
    check_admin(&app, &caller)?;
    let map = json::object(&body)?;
    let fields = Fields::new(&map);
    fields.only(&["path", "scale", "layer_start", "layer_end"])?;
    let name = fields.text("path")?.ok_or_else(|| ApiError::bad("path", "path is the vector's name"))?;
    let name = find(&app.registry.snapshot(), name)?.name.clone();
    let id = app.standing.change(&app, |list| {
        let mut vector = Vector { id: list.next, name, scale: 1.0.into(), layers: (None, None) };
        vector.set(fields)?;
        list.next += 1;
        list.vectors.push(vector);
        Ok(list.next - 1)
    })?;
    Ok(json_response(json!({"success": true, "id": id})))
}

/// `POST /control-vectors/unload`: `{"id"}`.
pub(crate) async fn unload(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> ApiResult {
    check_admin(&app, &caller)?;
    let map = json::object(&body)?;
    let id = id(Fields::new(&map))?;
    app.standing.change(&app, |list| {
        list.find(id)?;
        list.vectors.retain(|v| v.id != id);
        Ok(())
    })?;
    Ok(success())
}

/// `POST /control-vectors/apply`: `[{"id", "scale", "layer_start", "layer_end"}]`; all of it or nothing.
pub(crate) async fn apply(
    State(app): Shared,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> ApiResult {
    check_admin(&app, &caller)?;
    let maps = json::list(&body)?;
    let maps: Vec<&Map<String, Value>> = maps
        .iter()
        .map(|value| {
            let message = || format!("found {} in the list, expected objects", kind(value));
            value.as_object().ok_or_else(|| ApiError::bad("body", message()))
        })
        .collect::<ApiResult<_>>()?;
    app.standing.change(&app, |list| {
        maps.into_iter().try_for_each(|map| {
            let fields = Fields::new(map);
            fields.only(&["id", "scale", "layer_start", "layer_end"])?;
            list.find(id(fields)?)?.set(fields)
        })
    })?;
    Ok(success())
}

fn id(fields: Fields<'_>) -> ApiResult<usize> {
    let id = fields.count("id", 0..=usize::MAX)?;
    id.ok_or_else(|| ApiError::bad("id", "the vector's id is missing: see GET /control-vectors"))
}

fn success() -> Response {
    json_response(json!({"success": true}))
}
