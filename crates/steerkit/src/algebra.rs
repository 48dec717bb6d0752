//! Vectors added, projected and compared.

use serde::Serialize;

use crate::vector::{Provenance, SteeringVector};
use crate::{Result, SteerError};

/// A term of a sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// What the vector is multiplied by.
    pub weight: f32,
    /// Its name.
    pub name: String,
}

/// Reads `power + 0.5*wealth - halluc`: names with or without a factor, with spaces around `+` and `-` (names may
/// hold a `-`).
///
/// # Errors
/// [`SteerError::Combine`] naming what is not understood.
pub fn parse_sum(text: &str) -> Result<Vec<Term>> {
    let refuse = |what: String| SteerError::Combine {
        what,
        hint: "write names with factors, and spaces around + and -: \"power + 0.5*wealth - halluc\"".into(),
    };
    let mut terms = Vec::new();
    let mut sign = Some(1.0);
    for word in text.split_whitespace() {
        match (word, sign) {
            ("+" | "-", None) => sign = Some(if word == "+" { 1.0 } else { -1.0 }),
            ("-", Some(_)) if terms.is_empty() => sign = Some(-1.0),
            ("+" | "-", Some(_)) => return Err(refuse(format!("found {word:?} where a name was expected"))),
            (_, None) => return Err(refuse(format!("found {word:?}, expected + or -"))),
            (_, Some(s)) => {
                let (factor, name) = match word.split_once('*') {
                    None => (1.0, word),
                    Some((a, b)) => match (a.parse::<f32>(), b.parse::<f32>()) {
                        (Ok(factor), _) => (factor, b),
                        (_, Ok(factor)) => (factor, a),
                        _ => return Err(refuse(format!("found no number beside the * of {word:?}"))),
                    },
                };
                let weight: f32 = s * factor;
                if name.is_empty() || !weight.is_finite() || weight == 0.0 {
                    return Err(refuse(format!(
                        "found {word:?}, expected a name with a factor other than 0"
                    )));
                }
                terms.push(Term { weight, name: name.into() });
                sign = None;
            }
        }
    }
    match sign {
        None => Ok(terms),
        Some(_) => Err(refuse("found no name at the end".into())),
    }
}

/// `Σ weight · v` over vectors of one layer, width and token scope.
///
/// # Errors
/// [`SteerError::Combine`] when they do not go together, [`SteerError::ZeroVector`] when they cancel.
pub fn combine(name: &str, terms: &[(f32, &SteeringVector)]) -> Result<SteeringVector> {
    let Some((_, first)) = terms.first() else {
        return Err(SteerError::Combine { what: "no vectors to combine".into(), hint: "name one".into() });
    };
    for (_, v) in terms {
        same_place(first, v)?;
    }
    let mut sum = vec![0f64; first.direction.len()];
    for (weight, v) in terms {
        sum.iter_mut().zip(&v.direction).for_each(|(s, &x)| *s += f64::from(*weight) * f64::from(x));
    }
    let direction = sum.into_iter().map(|x| x as f32).collect();
    derived(name, first, direction, "combine", terms.iter().map(|t| t.1))
}

/// The part of `v` that is at right angles to all of `others`.
///
/// # Errors
/// As [`combine`].
pub fn orthogonalised(v: &SteeringVector, others: &[&SteeringVector]) -> Result<SteeringVector> {
    let kept = minus(&v.direction, &span_part(v, others)?);
    derived(&v.provenance.name, v, kept, "orthogonalise", others.iter().copied())
}

/// The part of `v` that lies in the span of `others`.
///
/// # Errors
/// As [`combine`].
pub fn projected(v: &SteeringVector, others: &[&SteeringVector]) -> Result<SteeringVector> {
    let part = span_part(v, others)?.into_iter().map(|x| x as f32).collect();
    derived(&v.provenance.name, v, part, "project", others.iter().copied())
}

/// `v` at norm `norm`.
///
/// # Errors
/// [`SteerError::Combine`] for a norm that is not positive and finite.
pub fn normalised(v: &SteeringVector, norm: f64) -> Result<SteeringVector> {
    if !(norm.is_finite() && norm > 0.0) {
        let what = format!("found the norm {norm}, expected a number above 0");
        return Err(SteerError::Combine { what, hint: "give a norm such as 16".into() });
    }
    let scale = norm / f64::from(v.norm());
    let direction = v.direction.iter().map(|&x| (f64::from(x) * scale) as f32).collect();
    Ok(SteeringVector { direction, ..v.clone() })
}

/// The cosine between two directions of one width; NaN when one is all zero.
pub fn cosine(a: &SteeringVector, b: &SteeringVector) -> f64 {
    let length = |v: &SteeringVector| dot(&v.direction, &v.direction).sqrt();
    dot(&a.direction, &b.direction) / (length(a) * length(b))
}

/// How vectors stand to each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Their names.
    pub names: Vec<String>,
    /// Their layers.
    pub layers: Vec<usize>,
    /// Their norms.
    pub norms: Vec<f32>,
    /// Cosine of each with each, row by row; none where the widths differ.
    pub cosines: Vec<Vec<Option<f64>>>,
}

impl Comparison {
    /// Compares `vectors` as `names`.
    pub fn new(names: &[String], vectors: &[&SteeringVector]) -> Self {
        let cosine_of = |a: &SteeringVector, b: &SteeringVector| {
            (a.direction.len() == b.direction.len()).then(|| cosine(a, b)).filter(|c| c.is_finite())
        };
        let row = |a: &&SteeringVector| vectors.iter().map(|b| cosine_of(a, b)).collect();
        Self {
            names: names.to_vec(),
            layers: vectors.iter().map(|v| v.layer).collect(),
            norms: vectors.iter().map(|v| v.norm()).collect(),
            cosines: vectors.iter().map(row).collect(),
        }
    }
}

/// The part of `v` in the span of `others`, by two rounds of Gram and Schmidt.
fn span_part(v: &SteeringVector, others: &[&SteeringVector]) -> Result<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for other in others {
        same_place(v, other)?;
        let mut rest: Vec<f64> = other.direction.iter().map(|&x| f64::from(x)).collect();
        let length = rest.iter().map(|x| x * x).sum::<f64>().sqrt();
        for _ in 0..2 {
            for unit in &basis {
                let p: f64 = rest.iter().zip(unit).map(|(a, b)| a * b).sum();
                rest.iter_mut().zip(unit).for_each(|(r, u)| *r -= p * u);
            }
        }
        let left = rest.iter().map(|x| x * x).sum::<f64>().sqrt();
        // What is left of a vector inside the span of those before it is rounding.
        if left > 1e-6 * length {
            basis.push(rest.into_iter().map(|x| x / left).collect());
        }
    }
    let mut part = vec![0f64; v.direction.len()];
    for unit in &basis {
        let p: f64 = v.direction.iter().zip(unit).map(|(&a, b)| f64::from(a) * b).sum();
        part.iter_mut().zip(unit).for_each(|(s, u)| *s += p * u);
    }
    Ok(part)
}

fn minus(a: &[f32], b: &[f64]) -> Vec<f32> {
    a.iter().zip(b).map(|(&a, b)| (f64::from(a) - b) as f32).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Whether two vectors may be summed.
fn same_place(a: &SteeringVector, b: &SteeringVector) -> Result<()> {
    let (a_name, b_name) = (&a.provenance.name, &b.provenance.name);
    let differ = |what: &str, of_a: String, of_b: String| SteerError::Combine {
        what: format!("vectors {a_name:?} and {b_name:?} differ in {what}: {of_a} and {of_b}"),
        hint: "apply them side by side instead: several --steer options add up, each at its own place".into(),
    };
    if a.direction.len() != b.direction.len() {
        return Err(differ("width", a.direction.len().to_string(), b.direction.len().to_string()));
    }
    if a.layer != b.layer {
        return Err(differ("layer", a.layer.to_string(), b.layer.to_string()));
    }
    let scopes = [a, b].map(|v| v.provenance.token_scope);
    if scopes[0] != scopes[1] {
        return Err(differ("token scope", scopes[0].to_string(), scopes[1].to_string()));
    }
    Ok(())
}

/// A vector at the place of `first`; what its sources agree on stays known.
fn derived<'a>(
    name: &str,
    first: &SteeringVector,
    direction: Vec<f32>,
    method: &str,
    sources: impl Iterator<Item = &'a SteeringVector>,
) -> Result<SteeringVector> {
    let made = &first.provenance;
    let hash = |v: &SteeringVector| v.provenance.base_model.as_ref().map(|m| m.file_sha256.clone());
    let one_model = sources.into_iter().all(|v| hash(v) == hash(first));
    let provenance = Provenance {
        name: name.into(),
        method: method.into(),
        token_scope: made.token_scope,
        base_model: made.base_model.clone().filter(|_| one_model),
        system_prompt: made.system_prompt.clone(),
        chat_template_sha256: made.chat_template_sha256.clone(),
        residual_norm: made.residual_norm,
        steerkit_version: env!("CARGO_PKG_VERSION").into(),
        ..Provenance::default()
    };
    let vector = SteeringVector { direction, layer: first.layer, provenance };
    // What cancels leaves rounding of some 1e-8 of what went in.
    if vector.norm() <= 1e-6 * first.norm() {
        return Err(SteerError::ZeroVector { name: name.into() });
    }
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(name: &str, direction: &[f32]) -> SteeringVector {
        let provenance = Provenance { name: name.into(), ..Provenance::default() };
        SteeringVector { direction: direction.to_vec(), layer: 3, provenance }
    }

    #[test]
    fn sums_are_read() {
        let term = |weight, name: &str| Term { weight, name: name.into() };
        let got = parse_sum("power-seeking + 0.5*wealth - halluc*2").unwrap();
        assert_eq!(got, [term(1.0, "power-seeking"), term(0.5, "wealth"), term(-2.0, "halluc")]);
        assert_eq!(parse_sum("- a").unwrap(), [term(-1.0, "a")]);
        for bad in ["", "a b", "a +", "a + + b", "x*y", "0*a", "nan*a", "2*", "+ +"] {
            assert!(matches!(parse_sum(bad), Err(SteerError::Combine { .. })), "{bad}");
        }
    }

    #[test]
    fn sums_by_hand() {
        let (a, b) = (vector("a", &[1.0, 2.0]), vector("b", &[4.0, 0.0]));
        let sum = combine("a - 0.5*b", &[(1.0, &a), (-0.5, &b)]).unwrap();
        assert_eq!((&sum.direction[..], sum.layer), (&[-1.0, 2.0][..], 3));
        assert_eq!(sum.provenance.method, "combine");
        assert!(matches!(combine("0", &[(1.0, &a), (-1.0, &a)]), Err(SteerError::ZeroVector { .. })));
        let elsewhere = SteeringVector { layer: 4, ..b.clone() };
        let error = combine("x", &[(1.0, &a), (1.0, &elsewhere)]).unwrap_err();
        assert_eq!(error.to_string(), "vectors \"a\" and \"b\" differ in layer: 3 and 4");
        assert!(combine("x", &[(1.0, &a), (1.0, &vector("c", &[1.0]))]).is_err());
    }

    #[test]
    fn parts_by_hand() {
        let a = vector("a", &[1.0, 2.0, 3.0]);
        let (x, y, both) =
            (vector("x", &[2.0, 0.0, 0.0]), vector("y", &[1.0, 1.0, 0.0]), vector("z", &[3.0, 1.0, 0.0]));
        // x, y and their sum span the first two axes.
        assert_eq!(projected(&a, &[&x, &y, &both]).unwrap().direction, [1.0, 2.0, 0.0]);
        assert_eq!(orthogonalised(&a, &[&x, &y, &both]).unwrap().direction, [0.0, 0.0, 3.0]);
        assert!(matches!(orthogonalised(&x, &[&x]), Err(SteerError::ZeroVector { .. })));
        assert_eq!(normalised(&vector("v", &[3.0, 4.0]), 10.0).unwrap().direction, [6.0, 8.0]);
        assert!(normalised(&a, 0.0).is_err());
    }

    #[test]
    fn comparisons() {
        let (a, b, c) = (vector("a", &[1.0, 0.0]), vector("b", &[-1.0, 1.0]), vector("c", &[1.0]));
        let got = Comparison::new(&["a".into(), "b".into(), "c".into()], &[&a, &b, &c]);
        assert_eq!(got.cosines[0][0], Some(1.0));
        assert!((got.cosines[0][1].unwrap() + 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(got.cosines[2][0], None);
    }
}
