//! The report on what preference data gives away.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use std::path::Path;

use steerkit::data::check::{CheckOptions, CheckReport, Verdict, check, render};
use steerkit::data::{Dataset, PreferencePair, ReadOptions, Splits};

fn set(rows: &[[&str; 3]]) -> Dataset {
    let pair = |row: &[&str; 3]| {
        let [prompt, chosen, rejected] = row.map(str::to_owned);
        PreferencePair { prompt, chosen, rejected }
    };
    Dataset {
        pairs: rows.iter().map(pair).collect(),
        path: "x".into(),
        sha256: "0".into(),
        notes: Vec::new(),
    }
}

fn report(train: &[[&str; 3]], test: &[[&str; 3]], options: CheckOptions) -> CheckReport {
    let test = (!test.is_empty()).then(|| set(test));
    check(&Splits { train: set(train), valid: None, test }, options)
}

fn values(report: &CheckReport, name: &str) -> (Vec<Option<f64>>, Verdict) {
    let property = report.property(name).unwrap();
    (property.values.clone(), property.verdict)
}

#[test]
fn every_property_is_found() {
    let train = [
        ["please tell me about the red fox today", "Sure, long is the road to Rome and back", "no"],
        ["so, TELL me about the red fox!", "Sure, long is the road", "never"],
        ["other", "one two three", "Never ever"],
        ["other", "one two three", "Never ever"],
        ["other", "x y", "x y"],
        ["", "a b c d e f", "f e d c b a"],
    ];
    let test = [
        ["other", "Sure, long was the road", "never again"],
        ["I said tell me about the red fox", "One and only one", "new"],
    ];
    let report = report(&train, &test, CheckOptions::default());
    let counted = |train: f64, test: f64| (vec![Some(train), Some(test)], Verdict::Fail);
    assert_eq!(values(&report, "empty cells"), counted(1.0, 0.0));
    assert_eq!(values(&report, "duplicate rows"), counted(1.0, 0.0));
    assert_eq!(values(&report, "duplicate prompts"), counted(1.0, 0.0));
    assert_eq!(values(&report, "equal sides"), counted(1.0, 0.0));
    assert_eq!(values(&report, "nearly equal sides"), counted(2.0, 0.0));
    // "tell me about the red fox" has exactly six words
    assert_eq!(values(&report, "pairs of prompts with a shared 6-gram"), counted(1.0, 0.0));
    assert_eq!(values(&report, "prompts of an earlier split"), (vec![None, Some(1.0)], Verdict::Fail));
    assert_eq!(
        values(&report, "prompts with a 6-gram of an earlier split"),
        (vec![None, Some(1.0)], Verdict::Fail)
    );
    // "sure long is the" twice, "one two three" twice, "never ever" twice, "x y" twice
    let (shares, verdict) = values(&report, "responses that begin as another");
    assert_eq!((shares, verdict), (vec![Some(8.0 / 12.0), Some(0.0)], Verdict::Fail));
    // words 9/1, 5/1, 3/2, 3/2, 2/2, 6/6
    assert_eq!(
        values(&report, "words chosen/rejected, mean of ratios").0[0],
        Some((9.0 + 5.0 + 3.0 + 2.0) / 6.0)
    );
    assert_eq!(values(&report, "words chosen/rejected, ratio of means").0[0], Some(28.0 / 14.0));
    // at least 3 words is chosen: right but for "x y" and "f e d c b a"; all of test is right
    assert_eq!(values(&report, "accuracy of length in words alone").0, [None, Some(1.0)]);
    // sure, one: chosen; never: rejected; new: unknown
    assert_eq!(values(&report, "accuracy of the first word alone").0, [None, Some(3.5 / 4.0)]);
    assert!(!report.passes);
    let table = render(&report, Path::new("folder"));
    assert!(table.contains("test row") || table.contains("train row 4"), "{table}");
    assert!(table.ends_with("does not pass\n"));
}

#[test]
fn clean_data_passes_and_length_can_be_excused() {
    let even = [["p", "alpha beta", "gamma rhos"], ["q", "epsilon pi", "delta iota"]];
    let test = [["r", "iota kappa", "lambda rho"]];
    assert!(report(&even, &test, CheckOptions::default()).passes);
    assert_eq!(
        values(&report(&even, &[], CheckOptions::default()), "accuracy of the first word alone").1,
        Verdict::Shown
    );
    let long = [["p", "alpha beta gamma", "delta"], ["q", "epsilon zeta eta", "theta"]];
    let test = [["r", "iota kappa lambda", "mu"]];
    assert!(!report(&long, &test, CheckOptions::default()).passes);
    let excused = report(&long, &test, CheckOptions { length_is_behaviour: true });
    assert!(excused.passes);
    assert_eq!(
        values(&excused, "accuracy of length in words alone"),
        (vec![None, Some(1.0)], Verdict::Excused)
    );
}

#[test]
fn length_classifier_takes_either_direction() {
    let short = [["p", "a", "b c"], ["q", "d", "e f"]];
    let report = report(&short, &[["r", "g", "h i"]], CheckOptions::default());
    assert_eq!(values(&report, "accuracy of length in words alone").0[1], Some(1.0));
    assert_eq!(values(&report, "accuracy of length in characters alone").0[1], Some(1.0));
}

#[test]
fn the_report_is_json() {
    let json = serde_json::to_value(report(&[["p", "a", "b"]], &[], CheckOptions::default())).unwrap();
    assert_eq!(json["splits"], serde_json::json!(["train"]));
    assert_eq!(json["properties"][0]["values"], serde_json::json!([1.0]));
    assert_eq!(json["properties"][1]["verdict"], "pass");
}

fn checked(folder: &str) -> Option<CheckReport> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder);
    if !folder.exists() {
        println!("skipped: {} is not there", folder.display());
        return None;
    }
    let splits = Splits::open(&folder, &ReadOptions::default()).unwrap();
    let report = check(&splits, CheckOptions::default());
    println!("{}", render(&report, &folder));
    Some(report)
}

#[test]
fn the_official_data_is_measured() {
    let Some(report) = checked("../shared/data/bipo/power-seeking") else { return };
    assert!(!report.passes);
    assert_eq!(values(&report, "prompts of an earlier split").0, [None, Some(1.0)]);
    checked("../shared/data/bipo/wealth-seeking");
}

#[test]
fn the_projects_own_data_passes() {
    for (behaviour, rows) in [("formality", [150.0, 30.0, 60.0]), ("hallucination", [150.0, 30.0, 60.0])] {
        let report = checked(&format!("data/{behaviour}")).expect("the data is part of the repository");
        assert!(report.passes, "{behaviour}");
        assert_eq!(values(&report, "rows").0, rows.map(Some));
    }
}
