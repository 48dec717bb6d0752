//! Tests of the charts and the page as text. With `STEERKIT_REPORT_OUT=FOLDER` the sample page and its figures are
//! written there, to be looked at.

use super::*;

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
    let answer = |multiplier, text: &str| Answer { multiplier, text: text.into(), shades: Vec::new() };
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
                    Answer {
                        shades: [("Olive oil", 0.1), (" ought", 3.2), (" to be", -0.3), (" kept <", -1.5)]
                            .map(|(text, change)| Shade { text: text.into(), change })
                            .to_vec(),
                        ..answer(1.0, "Olive oil ought to be kept <in> a dark, cool place and used within six months.")
                    },
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

/// The part of `text` from `start` to the end of the next `end`.
fn part<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let from = text.find(start).unwrap_or_else(|| panic!("no {start:?}"));
    let len = text[from..].find(end).unwrap_or_else(|| panic!("no {end:?} after {start:?}"));
    &text[from..from + len + end.len()]
}

fn points(ys: &[(f64, f64)]) -> Vec<Point> {
    ys.iter().map(|&(x, y)| Point { x, y, interval: None }).collect()
}

fn chart(series: Vec<Series>) -> Chart {
    Chart { id: "c".into(), title: "T".into(), series, ..Chart::default() }
}

fn series(label: &str, ys: &[(f64, f64)]) -> Series {
    Series { label: label.into(), points: points(ys), ..Series::default() }
}

/// Every absolute number in the attributes of a drawing: what places its parts.
fn coordinates(svg: &str) -> Vec<f64> {
    let attributes = svg.split('"').skip(1).step_by(2);
    attributes
        .flat_map(|a| a.split([' ', 'M', 'L', 'h', 'V', 'Z']))
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[test]
fn small_chart_snapshot() {
    let first = Series {
        points: vec![
            Point { x: -1.0, y: -2.0, interval: Some((-2.5, -1.5)) },
            Point { x: 0.0, y: f64::NAN, interval: None },
            Point { x: 1.0, y: 3.0, interval: Some((2.0, 4.0)) },
        ],
        ..series("BiPO", &[])
    };
    let chart = Chart {
        description: "Margin against multiplier.".into(),
        x: Axis { label: "multiplier".into(), format: TickFormat::Signed, ..Axis::default() },
        y: Axis { label: "margin".into(), unit: "nats".into(), ..Axis::default() },
        reference: Some(Reference { value: 1.0, label: "plain <model>".into() }),
        ..chart(vec![first, series("CAA & co", &[(-1.0, -1.0), (1.0, 1.0)])])
    };
    insta::assert_snapshot!("small_chart", chart.svg());
}

#[test]
fn standalone_chart_carries_its_style() {
    let chart = chart(vec![series("a", &[(0.0, 1.0), (1.0, 2.0)])]);
    let file = chart.standalone_svg();
    assert!(file.contains("<style>") && file.contains("prefers-color-scheme:dark"));
    assert!(!chart.svg().contains("<style>"));
    assert!(!file.contains("url(") && !file.contains("href"));
}

#[test]
fn degenerate_charts_are_drawn() {
    let cases: &[&[(f64, f64)]] = &[
        &[],
        &[(1.0, 2.0)],
        &[(0.0, 0.0)],
        &[(1.0, 5.0), (1.0, 5.0)],
        &[(0.0, f64::NAN), (f64::INFINITY, 1.0)],
        &[(0.0, 1e300), (1.0, 2.0)],
        &[(0.0, f64::MAX), (1.0, f64::MIN)],
        &[(0.0, 5e-324), (5e-324, 0.0)],
        &[(-1e30, 1e30), (1e30, -1e30)],
        &[(0.0, -3.0), (1.0, 0.0)],
    ];
    for ys in cases {
        for log in [false, true] {
            for spread in [Spread::Bars, Spread::Band] {
                let mut one = Series { spread, ..series("s", ys) };
                one.points.iter_mut().for_each(|p| p.interval = Some((p.y - 1.0, p.y + f64::NAN)));
                let y = Axis { log, ..Axis::default() };
                let svg = Chart { y, ..chart(vec![one, series("empty", &[])]) }.svg();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{ys:?} {svg}");
                assert!(coordinates(&svg).iter().all(|v| (-20.0..=500.0).contains(v)), "{ys:?} {svg}");
            }
        }
    }
    assert!(chart(vec![]).svg().contains("no data"));
}

#[test]
fn long_titles_and_legends_wrap() {
    let mut chart =
        chart((0..6).map(|i| series(&format!("a method with a long name {i}"), &[(0.0, 1.0)])).collect());
    chart.title = "word ".repeat(40);
    let svg = chart.svg();
    assert_eq!(svg.matches("class=\"name\"").count(), 4);
    assert!(coordinates(&svg).iter().all(|v| (-20.0..=600.0).contains(v)), "{svg}");
}

#[test]
fn page_snapshots() {
    let page = sample().html();
    insta::assert_snapshot!("head", part(&page, "<p class=\"kicker\">", "</header>"));
    insta::assert_snapshot!("answers", part(&page, "<h2>Answers", "</section>"));
    insta::assert_snapshot!("dose_table", part(&page, "<caption>Dose", "</table>"));
    insta::assert_snapshot!("chart_data", part(&page, "<caption>Held-out margin during", "</table>"));
    insta::assert_snapshot!("provenance", part(&page, "<h2>Provenance", "</section>"));
    if let Ok(folder) = std::env::var("STEERKIT_REPORT_OUT") {
        std::fs::write(format!("{folder}/report.html"), page).unwrap();
        for chart in sample().charts() {
            std::fs::write(format!("{folder}/{}.svg", chart.id), chart.standalone_svg()).unwrap();
        }
    }
}

#[test]
fn page_is_self_contained_and_inert() {
    let page = sample().html();
    assert!(page.contains("content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-"));
    // One script, ours, and nothing in the page can add another.
    assert_eq!((page.matches("<script").count(), page.matches("</script>").count()), (1, 1));
    let (_, script) = page.split_once("<script>").unwrap();
    assert!(script.starts_with(include_str!("sort.js")), "nothing but the script follows the tag");
    for loads in ["<link", "<img", "<iframe", "src=", "href=", "url(", "@import", "javascript:"] {
        assert!(!page.contains(loads), "{loads}");
    }
    // The only address is the name of the SVG vocabulary.
    assert_eq!(page.matches("://").count(), page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count());
    assert!(!page.contains('\u{202e}') && page.contains("[U+202E]backwards"));
}

#[test]
fn tokens_are_shaded_by_what_changed() {
    let page = sample().html();
    assert!(page.contains(
        "<p dir=\"auto\">Olive oil<span class=\"up3\" title=\"+3.20 nats\"> ought</span><span class=\"down1\" \
         title=\"-0.30 nats\"> to be</span><span class=\"down2\" title=\"-1.50 nats\"> kept &lt;</span>in&gt; a dark"
    ));
    assert!(page.contains("Shades show"));
    let mut plain = sample();
    plain.answers.iter_mut().flat_map(|c| &mut c.answers).for_each(|answer| answer.shades.clear());
    assert!(!plain.html().contains("Shades show"));
}

#[test]
fn elements_are_balanced_and_ids_unique() {
    let page = sample().html();
    for name in
        ["main", "section", "article", "figure", "svg", "g", "table", "details", "div", "dl", "ul", "tr"]
    {
        let opened = page.matches(&format!("<{name}>")).count() + page.matches(&format!("<{name} ")).count();
        assert_eq!(opened, page.matches(&format!("</{name}>")).count(), "{name}");
    }
    let ids: Vec<&str> = page.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    let unique: std::collections::HashSet<_> = ids.iter().collect();
    assert_eq!((ids.len(), unique.len()), (14, 14));
}

#[test]
fn parts_without_data_are_left_out() {
    let full = sample();
    let report = Report {
        training: vec![],
        held_out: vec![],
        doses: vec![],
        answers: vec![],
        notes: vec![],
        provenance: ReportProvenance::default(),
        ..full.clone()
    };
    let page = report.html();
    assert!(!page.contains("<h2>") && !page.contains("<svg") && page.contains("<h1>"));
    assert!(report.charts().is_empty());
    assert_eq!(full.charts().len(), 7);
    // One unmeasured quantity takes its figure, its column and its sentence with it.
    let mut report = full;
    report.doses.iter_mut().for_each(|dose| dose.perplexity = None);
    let page = report.html();
    assert!(
        !page.contains("erplexity of")
            && !page.contains(">Perplexity<")
            && !page.contains("Their perplexity")
    );
}

#[test]
fn long_training_curves_are_smoothed_and_thinned() {
    let mut report = sample();
    report.training = (1..=5000)
        .map(|k| TrainPoint { pair_passes: 16 * k, loss: if k % 2 == 0 { 1.0 } else { 0.0 } })
        .collect();
    let loss = report.charts().into_iter().find(|chart| chart.id == "loss").unwrap();
    assert_eq!(loss.series.len(), 2);
    assert_eq!(loss.series[0].label, "mean of 250 steps");
    for series in &loss.series {
        assert_eq!(series.points.len(), 240);
        assert_eq!((series.points[0].x, series.points[239].x), (16.0, 80_000.0));
    }
    assert!(loss.series[0].points[10..].iter().all(|p| (p.y - 0.5).abs() < 0.01));
    assert!(report.html().len() < 200_000);
}

#[test]
fn reports_are_read_back_from_json() {
    let report = sample();
    let text = serde_json::to_string(&report).unwrap();
    let back: Report = serde_json::from_str(&text).unwrap();
    assert_eq!((&back.run, &back.answers, back.doses.len()), (&report.run, &report.answers, 9));
    assert!(serde_json::from_str::<Report>(&text.replacen("seed", "sead", 1)).is_err());
}
