//! What a request asks to be steered by, whichever way it says so.

use std::sync::Arc;

use axum::http::HeaderMap;
use serde_json::{Value, json};
use steerkit::plan::{PlanEntry, PlanWarning};
use steerkit::{Operator, SteeringPlan, TokenScope};
use steerkit_model::ModelIdentity;

use crate::error::{ApiError, ApiResult};
use crate::json::{Fields, kind};
use crate::registry::{self, Snapshot};

/// Scales beyond this are mistakes: vectors are made to be used around 1.
pub(crate) const MAX_SCALE: f64 = 1000.0;
/// Times the norm of the residual stream that a vector may be added.
const MAX_DOSE: f32 = 100.0;
/// Vectors in one request.
const MAX_VECTORS: usize = 16;
/// The field, for errors.
const PARAM: &str = "steering";

/// A vector and how to use it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    name: String,
    scale: f32,
    /// Of a vector of several layers, those to use.
    layers: Option<Vec<usize>>,
    operator: Option<Operator>,
    scope: Option<TokenScope>,
}

/// The vectors that one route names, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Asked(Vec<Part>);

/// Which route said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Source {
    #[default]
    None,
    Body,
    Header,
    Alias,
    Profile,
    Server,
}

impl Source {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Body => "body",
            Self::Header => "header",
            Self::Alias => "alias",
            Self::Profile => "profile",
            Self::Server => "server",
        }
    }
}

impl Asked {
    fn new(mut parts: Vec<Part>, param: &str) -> ApiResult<Self> {
        if parts.len() > MAX_VECTORS {
            let message = format!("{param} names {} vectors, at most {MAX_VECTORS} are allowed", parts.len());
            return Err(ApiError::bad(param, message));
        }
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        match parts.windows(2).find(|pair| pair[0].name == pair[1].name) {
            Some(pair) => Err(ApiError::bad(param, format!("{param} names {:?} twice", pair[0].name))),
            None => Ok(Self(parts)),
        }
    }

    /// `{"vectors": [{"name", "scale", "layers", "operator", "scope"}]}`.
    pub(crate) fn from_json(value: &Value, param: &str) -> ApiResult<Self> {
        let object = |value: &'_ Value, at: &str| {
            let message = format!("{at} is {}, expected an object", kind(value));
            ApiError::bad(at, message)
        };
        let map = value.as_object().ok_or_else(|| object(value, param))?;
        let fields = Fields { path: param, map };
        fields.only(&["vectors"])?;
        let list = match map.get("vectors") {
            Some(Value::Array(list)) => list,
            Some(other) => return Err(fields.refuse("vectors", other, "a list of vectors")),
            None => return Err(ApiError::bad(fields.param("vectors"), format!("{param} has no vectors"))),
        };
        let part = |(i, value): (usize, &Value)| {
            let path = format!("{param}.vectors[{i}]");
            let map = value.as_object().ok_or_else(|| object(value, &path))?;
            Part::from_json(Fields { path: &path, map })
        };
        let parts = list.iter().take(MAX_VECTORS + 1).enumerate().map(part);
        Self::new(parts.collect::<ApiResult<_>>()?, param)
    }

    /// `a=1.5,b=-1`; a name alone counts as `=1`.
    pub(crate) fn from_pairs(text: &str, param: &str) -> ApiResult<Self> {
        let part = |pair: &str| {
            let (name, number) = pair.trim().split_once('=').unwrap_or((pair.trim(), "1"));
            let scale = number.trim().parse::<f64>().ok().and_then(scale);
            let scale = scale.ok_or_else(|| {
                let message = format!("a scale in {param} is no number from -{MAX_SCALE} to {MAX_SCALE}");
                ApiError::bad(param, message)
            })?;
            let name = name.trim().to_owned();
            Ok(Part { name, scale, layers: None, operator: None, scope: None })
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Self::new(text.split(',').take(MAX_VECTORS + 1).map(part).collect::<ApiResult<_>>()?, param)
    }

    /// As a profile stores it.
    pub(crate) fn value(&self) -> Value {
        let part = |part: &Part| {
            let mut value = json!({"name": part.name, "scale": part.scale});
            let more = [
                ("layers", part.layers.as_ref().map(|layers| json!(layers))),
                ("operator", part.operator.map(|operator| json!(operator))),
                ("scope", part.scope.map(|scope| json!(scope))),
            ];
            for (name, field) in more {
                if let Some(field) = field {
                    value[name] = field;
                }
            }
            value
        };
        json!({"vectors": self.0.iter().map(part).collect::<Vec<_>>()})
    }
}

/// A multiplier that is finite and sane in 32 bits.
fn scale(number: f64) -> Option<f32> {
    (number.abs() <= MAX_SCALE).then_some(number as f32)
}

impl Part {
    fn from_json(fields: Fields<'_>) -> ApiResult<Self> {
        fields.only(&["name", "scale", "layers", "operator", "scope"])?;
        let name = fields
            .text("name")?
            .ok_or_else(|| ApiError::bad(fields.param("name"), format!("{} has no name", fields.path)))?;
        let expected = format!("a number from -{MAX_SCALE} to {MAX_SCALE}");
        // Clients send null for NaN.
        let scale = match fields.map.get("scale") {
            None => 1.0,
            Some(value) => {
                let found = value.as_f64().and_then(scale);
                found.ok_or_else(|| fields.refuse("scale", value, &expected))?
            }
        };
        let layers = match fields.get("layers") {
            None => None,
            Some(Value::Array(list)) if list.len() <= 1024 => {
                let layer = |value: &Value| {
                    let layer = value.as_u64().and_then(|n| usize::try_from(n).ok());
                    layer.ok_or_else(|| fields.refuse("layers", value, "layers, counted from 0"))
                };
                Some(list.iter().map(layer).collect::<ApiResult<Vec<_>>>()?)
            }
            Some(other) => return Err(fields.refuse("layers", other, "a list of layers")),
        };
        Ok(Self {
            name: name.to_owned(),
            scale,
            layers,
            operator: parsed(fields, "operator")?,
            scope: parsed(fields, "scope")?,
        })
    }
}

/// A field that is parsed from text.
fn parsed<T: std::str::FromStr<Err = String>>(fields: Fields<'_>, name: &str) -> ApiResult<Option<T>> {
    let Some(text) = fields.text(name)? else { return Ok(None) };
    text.parse().map(Some).map_err(|e: String| {
        let param = fields.param(name);
        let message = format!("{param}: {}", e.chars().take(200).collect::<String>());
        ApiError::bad(param, message)
    })
}

/// The routes by which a request can say how it is steered.
pub(crate) struct Routes<'a> {
    pub(crate) body: Fields<'a>,
    pub(crate) headers: &'a HeaderMap,
    /// What follows the model's name.
    pub(crate) alias: Option<&'a str>,
    /// The vector of UK AISI's `custom.steer_multiplier`.
    pub(crate) default_vector: Option<&'a str>,
    /// A profile that the request names by a header.
    pub(crate) profile: Option<Asked>,
    /// The profile of the request's user, which every route above goes before.
    pub(crate) users: Option<Asked>,
    /// What acts where nothing else is said.
    pub(crate) standing: Option<Asked>,
}

impl Routes<'_> {
    /// The one meaning of all routes.
    pub(crate) fn meaning(self) -> ApiResult<(Source, Asked)> {
        let mut found: Vec<(Source, Asked)> = Vec::new();
        if let Some(value) = self.body.get(PARAM) {
            found.push((Source::Body, Asked::from_json(value, PARAM)?));
        }
        found.extend(self.custom()?.map(|asked| (Source::Body, asked)));
        for value in self.headers.get_all("x-steer") {
            let text = value.to_str().map_err(|_| ApiError::bad("X-Steer", "X-Steer is not plain text"))?;
            found.push((Source::Header, Asked::from_pairs(text, "X-Steer")?));
        }
        if let Some(text) = self.alias {
            found.push((Source::Alias, Asked::from_pairs(text, "model")?));
        }
        found.extend(self.profile.map(|asked| (Source::Profile, asked)));
        let Some(first) = found.first() else {
            let said = self.users.map(|asked| (Source::Profile, asked));
            let said = said.or(self.standing.map(|asked| (Source::Server, asked)));
            return Ok(said.unwrap_or_default());
        };
        if let Some(other) = found.iter().find(|other| other.1 != first.1) {
            let message =
                format!("the {} and the {} ask for different steering", first.0.name(), other.0.name());
            return Err(ApiError::bad(PARAM, message).coded("conflicting_steering"));
        }
        Ok(found.swap_remove(0))
    }

    fn custom(&self) -> ApiResult<Option<Asked>> {
        let Some(Value::Object(map)) = self.body.get("custom") else { return Ok(None) };
        let Some(value) = map.get("steer_multiplier") else { return Ok(None) };
        let param = "custom.steer_multiplier";
        let Some(name) = self.default_vector else {
            return Err(ApiError::bad(param, format!("{param} needs a server with --default-vector")));
        };
        let fields = Fields { path: "custom", map };
        let expected = format!("a number from -{MAX_SCALE} to {MAX_SCALE}");
        let scale = value
            .as_f64()
            .and_then(scale)
            .ok_or_else(|| fields.refuse("steer_multiplier", value, &expected))?;
        let part = Part { name: name.to_owned(), scale, layers: None, operator: None, scope: None };
        Ok(Some(Asked(vec![part])))
    }
}

/// How a request is steered.
#[derive(Clone, Debug)]
pub(crate) struct Steering {
    pub(crate) plan: SteeringPlan,
    /// As the reply repeats it.
    pub(crate) echo: Value,
}

impl Steering {
    pub(crate) fn new(
        vectors: &Snapshot,
        model: &ModelIdentity,
        source: Source,
        asked: &Asked,
    ) -> ApiResult<Self> {
        let mut plan = SteeringPlan::new();
        for part in &asked.0 {
            let entry = registry::find(vectors, &part.name)?;
            for vector in entry.vectors.iter().filter(|v| uses(part, v.layer)) {
                let entry = PlanEntry {
                    vector: Arc::clone(vector),
                    multiplier: part.scale,
                    operator: part.operator.unwrap_or_default(),
                    scope: part.scope.unwrap_or(vector.provenance.token_scope),
                };
                plan = plan.with(entry).map_err(|e| ApiError::of_steering(PARAM, &e))?;
            }
            let missing = part.layers.iter().flatten();
            let layers: Vec<usize> = entry.vectors.iter().map(|v| v.layer).collect();
            if let Some(layer) = missing.into_iter().find(|layer| !layers.contains(layer)) {
                let message = format!("vector {:?} has no layer {layer} (layers: {layers:?})", part.name);
                return Err(ApiError::bad("steering.vectors.layers", message));
            }
        }
        check_doses(&plan)?;
        let echo = echo(&plan, model, source);
        Ok(Self { plan, echo })
    }
}

/// A vector so strong that nothing is left of the text is a mistake.
fn check_doses(plan: &SteeringPlan) -> ApiResult<()> {
    let doses = plan.doses();
    let adds = plan.entries().iter().zip(&doses).filter(|(entry, _)| entry.operator == Operator::Add);
    let mut found = adds.filter_map(|(_, dose)| Some((&dose.name, dose.relative.filter(|&r| r > MAX_DOSE)?)));
    found.next().map_or(Ok(()), |(name, relative)| {
        let message = format!(
            "vector {name:?} would be added at {relative:.0} times the norm of the residual stream, at most {MAX_DOSE} is allowed"
        );
        Err(ApiError::bad("steering", message))
    })
}

fn uses(part: &Part, layer: usize) -> bool {
    part.layers.as_ref().is_none_or(|layers| layers.contains(&layer))
}

fn echo(plan: &SteeringPlan, model: &ModelIdentity, source: Source) -> Value {
    let doses = plan.doses();
    let vectors: Vec<Value> = plan
        .entries()
        .iter()
        .zip(&doses)
        .map(|(entry, dose)| {
            json!({
                "name": dose.name,
                "scale": dose.multiplier,
                "layer": dose.layer,
                "operator": entry.operator,
                "scope": entry.scope,
                "relative_dose": dose.relative,
            })
        })
        .collect();
    let known: Option<Vec<f32>> = doses.iter().map(|dose| dose.relative).collect();
    let mut echo = json!({
        "vectors": vectors,
        "relative_dose": known.map(|doses| doses.iter().fold(0.0, |sum, dose| sum + dose)),
        "source": source.name(),
    });
    let strong =
        |w: &PlanWarning| matches!(w, PlanWarning::LargeDose { .. } | PlanWarning::OtherModel { .. });
    let warnings: Vec<String> =
        plan.warnings(model).iter().filter(|w| strong(w)).map(ToString::to_string).collect();
    if !warnings.is_empty() {
        echo["warning"] = warnings.join("; ").into();
    }
    echo
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::Map;

    fn pairs(text: &str) -> ApiResult<Asked> {
        Asked::from_pairs(text, "X-Steer")
    }

    fn body(value: Value) -> ApiResult<Asked> {
        Asked::from_json(&value, PARAM)
    }

    #[test]
    fn every_route_means_the_same() {
        let same =
            body(json!({"vectors": [{"name": "b", "scale": -1}, {"name": "a", "scale": 1.5}]})).unwrap();
        assert_eq!(pairs(" a = 1.5 , b=-1").unwrap(), same);
        assert_eq!(Asked::from_json(&same.value(), PARAM).unwrap(), same);
        assert_eq!(pairs("a").unwrap(), body(json!({"vectors": [{"name": "a"}]})).unwrap());
        assert_eq!(pairs("").unwrap(), body(json!({"vectors": []})).unwrap());
    }

    #[test]
    fn scales_are_sane_numbers() {
        for number in ["nan", "inf", "-Infinity", "1e999", "1e39", "1e30", "1001", "x", ""] {
            let e = pairs(&format!("a={number}")).unwrap_err();
            assert_eq!((e.status.as_u16(), e.param.as_deref()), (400, Some("X-Steer")), "{number}");
        }
        for scale in [json!(null), json!("1"), json!(1e39), json!(1e30), json!([1])] {
            let e = body(json!({"vectors": [{"name": "a", "scale": scale}]})).unwrap_err();
            assert_eq!(e.param.as_deref(), Some("steering.vectors[0].scale"));
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (value, param) in [
            (json!(1), "steering"),
            (json!({}), "steering.vectors"),
            (json!({"vectors": {}}), "steering.vectors"),
            (json!({"vectors": [], "vector": 1}), "steering.vector"),
            (json!({"vectors": [1]}), "steering.vectors[0]"),
            (json!({"vectors": [{}]}), "steering.vectors[0].name"),
            (json!({"vectors": [{"name": "a", "scales": 1}]}), "steering.vectors[0].scales"),
            (json!({"vectors": [{"name": "a", "layers": 3}]}), "steering.vectors[0].layers"),
            (json!({"vectors": [{"name": "a", "operator": "mul"}]}), "steering.vectors[0].operator"),
            (json!({"vectors": [{"name": "a", "scope": "x"}]}), "steering.vectors[0].scope"),
            (json!({"vectors": [{"name": "a"}, {"name": "a"}]}), "steering"),
        ] {
            assert_eq!(body(value).unwrap_err().param.as_deref(), Some(param));
        }
        let many: Vec<Value> = (0..17).map(|i| json!({"name": format!("v{i}")})).collect();
        assert!(body(json!({"vectors": many})).is_err());
    }

    #[test]
    fn routes_must_agree() {
        let map: Map<String, Value> =
            serde_json::from_str(r#"{"steering": {"vectors": [{"name": "a", "scale": 2}]}}"#).unwrap();
        let with = |header: &'static str, alias: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert("x-steer", header.parse().unwrap());
            let body = Fields::new(&map);
            Routes {
                body,
                headers: &headers,
                alias,
                default_vector: None,
                profile: None,
                users: None,
                standing: None,
            }
            .meaning()
        };
        assert_eq!(with("a=2", Some("a=2.0")).unwrap().0, Source::Body);
        assert_eq!(with("a=1", None).unwrap_err().code, Some("conflicting_steering"));
        assert_eq!(with("a=2", Some("b=2")).unwrap_err().code, Some("conflicting_steering"));
    }
}
