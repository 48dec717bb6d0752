//! Tests of the charts and the page as text. `STEERKIT_REPORT_OUT=FOLDER` also writes the sample page there.

use super::*;

#[test]
fn sample_page_writes() {
    if let Ok(folder) = std::env::var("STEERKIT_REPORT_OUT") {
        std::fs::write(format!("{folder}/report.html"), sample().html()).unwrap();
        for chart in sample().charts() {
            std::fs::write(format!("{folder}/{}.svg", chart.id), chart.standalone_svg()).unwrap();
        }
    }
}

fn around(value: f64, half: f64) -> Option<Estimate> {
    Some(Estimate { value, interval: Some((value - half, value + half)) })
}

/// A run with every part of the page, and text that tries to break it.
fn sample() -> Report {
    let doses = [-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0].map(|m: f64| Dose {
        multiplier: m,
        margin: around(10.4 * m - 0.6 * m * m, 0.9 * m.abs()),
        accuracy: around(if m == 0.0 { 0.45 } else { 1.0 - 0.25 / (0.5 + m.abs()) }, 0.05),
        surface: around(0.8 + 3.1 * m - 0.3 * m.powi(3), 0.7),
        perplexity: Some((6.0 + 14.0 * m.abs().powf(2.6)).into()),
        distinct_3: Some((0.93 - 0.09 * m * m).into()),
    });
    let answer = |multiplier, text: &str| Answer { multiplier, text: text.into() };
    Report {
        run: RunFacts {
            behavior: "formality".into(),
            method: "BiPO".into(),
            model: "SmolLM2-135M-Instruct".into(),
            layer: 13,
            n_layers: 30,
            norm: 15.962,
            relative_dose: Some(0.095),
            train_pairs: 150,
            held_out_pairs: 60,
            pair_passes: 128,
            seconds: 41.8,
            seed: 0,
        },
        training: (1..=8)
            .map(|k| TrainPoint { pair_passes: 16 * k, loss: 0.2 + 0.5 / (1.0 + 0.4 * k as f64) })
            .collect(),
        held_out: (0..=8)
            .flat_map(|k| {
                let k = f64::from(k);
                [1.0, -1.0].map(|m| HeldOutPoint {
                    pair_passes: 16 * k as u64,
                    multiplier: m,
                    margin: around(m * 1.3 * k - 0.04 * k * k, 0.12 * k).unwrap(),
                })
            })
            .collect(),
        doses: doses.to_vec(),
        surface: SurfaceMetric::Formality,
        answers: vec![
            Comparison {
                question: "How should I store olive oil after opening the bottle?".into(),
                answers: vec![
                    answer(-1.0, "Okay, so olive oil's pretty chill: just stick it in a dark spot, and don't leave it by the stove or it'll go off."),
                    answer(0.0, "Store olive oil in a cool, dark place, away from heat and light.\n\n1. Keep the lid closed.\n2. Use it within six months."),
                    answer(1.0, "Olive oil ought to be kept in a dark, cool place and used within six months, as light and heat will cause it to turn rancid."),
                ],
            },
            Comparison {
                question: "What does <script>alert(1)</script> do?".into(),
                answers: vec![
                    answer(-1.0, "It pops up a box <script>alert('x')</script> </main>"),
                    answer(0.0, "  "),
                    answer(1.0, "It is displayed \u{202e}backwards\u{202c} & safely."),
                ],
            },
        ],
        notes: vec!["At multiplier \u{2212}2 the relative dose is 0.19: the text begins to suffer.".into()],
        provenance: ReportProvenance {
            command: "steerkit train recipes/formality.toml --set seed=0".into(),
            recipe: "method = \"bipo\"\nbehavior = \"formality\"\n\n[data]\ntrain = \"data/formality/train.jsonl\"\n".into(),
            hashes: vec![
                ("model file".into(), "9c4b2f0c8a4f4d6f1de0a1f3c2a1b09e8f7d6c5b4a39281706f5e4d3c2b1a09f".into()),
                ("data".into(), "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into()),
            ],
            versions: vec![("steerkit".into(), "0.1.0".into())],
        },
    }
}
