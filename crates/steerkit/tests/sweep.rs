//! Sweeps on a tiny model: what is shared changes no byte, jobs are run once, failures stay apart, shards merge, and the
//! test pairs are not read while choosing.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use steerkit::recipe::{Draft, Recipe};
use steerkit::sweep::{self, Part, Progress, Results, Shard, Spec, Split};
use steerkit::train::{Event, train, train_layers};
use steerkit_model::prompting::Prompting;
use steerkit_model::{Message, Model, OpenOptions, Pack};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn model() -> Model {
    let path = root().join("tests/data/tiny-llama-gguf/tiny-llama-f32.gguf");
    Model::open(&path, &OpenOptions::default()).unwrap()
}

/// A folder with a few formality pairs in `data`.
fn sandbox() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for (name, n) in [("train", 8), ("valid", 4), ("test", 4)] {
        let all = std::fs::read_to_string(root().join(format!("data/formality/{name}.jsonl"))).unwrap();
        let lines: String = all.lines().take(n).map(|line| format!("{line}\n")).collect();
        std::fs::write(data.join(format!("{name}.jsonl")), lines).unwrap();
    }
    dir
}

fn spec(dir: &Path, text: &str) -> Spec {
    let base = format!(
        "model = \"tiny\"\nlayer = 1\nbatch = 4\nsteps = 2\ndata.train = {:?}\ncache.folder = {:?}\n",
        dir.join("data"),
        dir.join("cache")
    );
    Spec::parse(&text.replace("[base]\n", &format!("[base]\n{base}")), "test.toml").unwrap()
}

/// Runs a sweep; gives the methods of the jobs that were run.
fn run(spec: &Spec, out: &Path, part: &Part) -> (Results, Vec<String>) {
    let mut begun = Vec::new();
    let mut watch = |news: Progress<'_>| {
        if let Progress::Begin { job, .. } = news {
            begun.push(job.method.clone());
        }
    };
    let mut open = |_: &Recipe| Ok(model());
    let results =
        sweep::run(spec, "test.toml", out, part, &mut open, &mut watch, &AtomicBool::new(false)).unwrap();
    (results, begun)
}

fn read(path: PathBuf) -> Vec<u8> {
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

const FILES: [&str; 6] =
    ["results.json", "results.csv", "results.md", "results.txt", "heat-map.svg", "report.html"];

const GRID: &str = r#"
[base]
[[grid]]
method = ["bipo", "mean-diff"]
layer = [1, 2]
[[grid]]
method = ["icl", "random", "icl+mean-diff"]
seed = [1, 2]
icl.shots = 2
[measure]
kl = 0
resamples = 20
"#;

#[test]
fn shards_merge_into_the_bytes_of_one_process_and_finished_jobs_are_not_run_again() {
    let dir = sandbox();
    let spec = spec(dir.path(), GRID);
    let whole = dir.path().join("whole");
    let (results, begun) = run(&spec, &whole, &Part::All);
    let table = results.valid.as_ref().unwrap();
    assert_eq!((begun.len(), table.done, table.failed, table.missing), (10, 10, 0, 0));
    assert_eq!(results.columns, ["icl.shots", "layer", "method"]);
    // Two methods at two layers, and three methods whose seeds are one group.
    assert_eq!(table.groups.len(), 7);
    let icl = table.groups.iter().find(|g| g.keys["method"] == "icl").unwrap();
    assert_eq!((icl.jobs.len(), icl.keys["layer"].as_str(), icl.points.len()), (2, "-", 1));
    let bipo = &table.groups[0];
    assert_eq!((bipo.points.len(), bipo.points[1].at.as_str()), (2, "equal norm"));
    assert!(bipo.points[0].two_sided.interval.is_some());
    assert!(run(&spec, &whole, &Part::All).1.is_empty(), "everything was finished");

    let lost = results.valid.as_ref().unwrap().jobs[3].id.clone();
    let file = whole.join("jobs").join(&lost).join("valid.json");
    let before = read(file.clone());
    std::fs::write(&file, b"{ half a fi").unwrap();
    assert_eq!(run(&spec, &whole, &Part::All).1, ["mean-diff"], "the damaged one is run again");
    assert_eq!(read(file), before);

    let parts: Vec<PathBuf> = (0..3).map(|i| dir.path().join(format!("part-{i}"))).collect();
    for (index, part) in parts.iter().enumerate() {
        let (results, begun) = run(&spec, part, &Part::Shard(Shard { index, count: 3 }));
        assert!(begun.len() < 5 && results.valid.unwrap().missing > 5);
    }
    let merged = dir.path().join("merged");
    sweep::merge(&parts, &merged).unwrap();
    for name in FILES {
        assert_eq!(read(merged.join(name)), read(whole.join(name)), "{name}");
    }
    assert!(run(&spec, &merged, &Part::All).1.is_empty(), "a merged sweep is finished");
    let other = self::spec(dir.path(), "[base]\n[[grid]]\nmethod = \"random\"\n");
    run(&other, &dir.path().join("other"), &Part::All);
    let error = sweep::merge(&[parts[0].clone(), dir.path().join("other")], &merged).unwrap_err();
    assert!(error.to_string().contains("another sweep"), "{error}");
}

#[test]
fn a_failed_job_stands_in_the_table_and_is_tried_again() {
    let dir = sandbox();
    let text = "[base]\n[[grid]]\nmethod = [\"mean-diff\", \"caa\"]\nlayer = [1, 77]\n[measure]\nkl = 0\n";
    let (spec, out) = (spec(dir.path(), text), dir.path().join("out"));
    let (results, begun) = run(&spec, &out, &Part::All);
    assert_eq!(begun.len(), 2, "a layer that is not there fails before");
    let table = results.valid.as_ref().unwrap();
    assert_eq!((table.done, table.failed), (2, 2));
    let failed = results.failures();
    assert!(failed[0].error.as_ref().unwrap().contains("77"), "{:?}", failed[0].error);
    let shown = String::from_utf8(read(out.join("results.md"))).unwrap();
    assert!(shown.contains("failed: ") && shown.contains("mean-diff"), "{shown}");
    assert!(String::from_utf8(read(out.join("report.html"))).unwrap().contains("failed: "));
}

#[test]
fn the_test_pairs_are_not_read_while_choosing() {
    let dir = sandbox();
    let test = dir.path().join("data/test.jsonl");
    let pairs = read(test.clone());
    std::fs::write(&test, b"not JSON").unwrap();
    let text = "report_on = \"valid\"\n[choose]\nover = [\"layer\"]\n[base]\n[[grid]]\nmethod = [\"mean-diff\", \
                \"random\"]\nlayer = [0, 1, 2]\n[measure]\nkl = 0\n";
    let (choosing, out) = (spec(dir.path(), text), dir.path().join("out"));
    let (results, _) = run(&choosing, &out, &Part::All);
    assert_eq!((results.valid.as_ref().unwrap().done, results.chosen.len()), (6, 2));
    assert!(results.test.is_none());

    let reporting = Spec { report_on: Split::Test, ..choosing };
    let (results, begun) = run(&reporting, &out, &Part::All);
    assert_eq!(begun.len(), 0, "an unreadable test file fails the chosen jobs, and nothing else");
    assert_eq!(results.test.as_ref().unwrap().failed, 2);
    std::fs::write(&test, &pairs).unwrap();
    let (results, mut begun) = run(&reporting, &out, &Part::All);
    begun.sort();
    assert_eq!(begun, ["mean-diff", "random"], "only the chosen jobs are measured");
    let (split, table) = results.reported();
    assert_eq!((split, table.done, table.failed), (Split::Test, 2, 0));
    for chosen in &results.chosen {
        let best = results.valid.as_ref().unwrap().groups.iter();
        let best = best.filter(|g| g.keys["method"] == chosen.keys["method"]);
        let best = best.map(|g| g.points[1].two_sided.value).fold(f64::NEG_INFINITY, f64::max);
        assert_eq!(chosen.two_sided.value, best);
    }
}

fn recipe(dir: &Path, out: &str, more: &[(&str, &str)]) -> Recipe {
    let mut draft = Draft::default();
    draft.set_text("model", "tiny");
    draft.set_text("data.train", dir.join("data").to_str().unwrap());
    draft.set_text("out", dir.join(out).to_str().unwrap());
    let fixed = [("layer", "1"), ("batch", "4"), ("steps", "2"), ("cache.enabled", "false")];
    fixed.iter().chain(more).for_each(|(key, value)| draft.set(key, value));
    draft.resolve().unwrap()
}

/// Vectors of a pass that serves all layers, and those of runs by themselves.
#[test]
fn one_pass_for_all_layers_gives_the_bytes_of_single_runs() {
    let (dir, model, cancel) = (sandbox(), model(), AtomicBool::new(false));
    let quiet = &mut |_: Event<'_>| {};
    for method in ["bipo", "mean-diff", "grad0"] {
        let with = |out: &str, layer: &str| recipe(dir.path(), out, &[("method", method), ("layer", layer)]);
        let together = format!("{method}-all");
        let mut passes = 0;
        let mut observer = |event: Event<'_>| {
            passes += usize::from(matches!(event, Event::Caching { done, total, .. } if done == total));
        };
        let recipe = with(&together, "0");
        let runs =
            train_layers(Default::default(), &model, &recipe, &[0, 2], &mut observer, &cancel).unwrap();
        assert_eq!(passes, 1, "{method}: the pairs are run through the model once");
        for run in runs {
            let alone = with(&format!("{method}-alone/layer-{}", run.layer), &run.layer.to_string());
            train(&model, &alone, quiet, &cancel).unwrap();
            let file = "vector.safetensors";
            assert_eq!(read(run.folder.join(file)), read(alone.out.join(file)), "{method}, {}", run.layer);
        }
    }
}

/// An adapter has no layer, no norm and no unit dose; at plus and minus 1 it has the margins of its own run.
#[test]
fn adapters_stand_beside_vectors() {
    let dir = sandbox();
    let text = "report_on = \"test\"\n[base]\noptimiser.kind = \"adamw\"\noptimiser.lr = 0.05\noptimiser.warmup = { steps = 0 }\n\
                [[grid]]\nmethod = [\"bipo\", \"dpo-lora\"]\nlayer = [1, 2]\n[measure]\nkl = 0\n";
    let out = dir.path().join("out");
    let (results, mut begun) = run(&spec(dir.path(), text), &out, &Part::All);
    begun.sort();
    assert_eq!(begun, ["bipo", "bipo", "dpo-lora"], "one adapter for all layers");
    let table = results.test.as_ref().unwrap();
    let group = table.groups.iter().find(|g| g.keys["method"] == "dpo-lora").unwrap();
    let at: Vec<&str> = group.points.iter().map(|point| point.at.as_str()).collect();
    assert_eq!((group.keys["layer"].as_str(), at), ("-", vec!["multiplier 1"]));
    assert!(results.table().text().contains("no unit dose"), "{}", results.table().text());

    let settings = [
        ("method", "dpo-lora"),
        ("optimiser.lr", "0.05"),
        ("optimiser.warmup.steps", "0"),
        ("eval.multipliers", "[1, -1]"),
    ];
    let alone = train(
        &model(),
        &recipe(dir.path(), "alone", &settings),
        &mut |_: Event<'_>| {},
        &AtomicBool::new(false),
    );
    let eval = alone.unwrap().eval;
    assert!(eval[0].margin != 0.0 && eval[1].margin != eval[0].margin);
    let point = &group.points[0];
    for (got, want) in [(point.toward.value, eval[0].margin), (point.away.value, eval[1].margin)] {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }
    // Lost numbers come back from what was trained.
    let file = out.join("jobs").join(&group.jobs[0]).join("test.json");
    let before = read(file.clone());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(run(&spec(dir.path(), text), &out, &Part::All).1, ["dpo-lora"]);
    assert_eq!(read(file), before);
}

/// The sweep's margins of examples in the context, from whole conversations scored one by one.
#[test]
fn golden_examples_in_the_context_are_whole_conversations() {
    let dir = sandbox();
    let text = "[base]\n[[grid]]\nmethod = [\"icl\", \"system-prompt\"]\nicl.shots = 2\n\
                system-prompt = { toward = \"Be formal.\", away = \"Be casual.\" }\n[measure]\nkl = 0\n";
    let out = dir.path().join("out");
    run(&spec(dir.path(), text), &out, &Part::All);
    let model = model();
    let system = "You are a helpful, honest and concise assistant.";
    let pairs = |name: &str| -> Vec<serde_json::Value> {
        let text = String::from_utf8(read(dir.path().join(format!("data/{name}.jsonl")))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let (train, valid) = (pairs("train"), pairs("valid"));
    let prompting = Prompting::new(model.tokenizer().unwrap(), model.chat_template().unwrap());
    let field = |pair: &serde_json::Value, key: &str| pair[key].as_str().unwrap().to_owned();
    let logp = |messages: &[Message], response: &str| -> f64 {
        let prompt = prompting.conversation(messages).unwrap();
        let tokens = prompting.pair("x", response, response).unwrap().chosen;
        let mut pack = Pack::default();
        let segment = pack.push(None, &prompt);
        pack.push_response(segment, &tokens);
        model.score(&pack).unwrap().iter().map(|&x| f64::from(x)).sum()
    };
    let margin = |before: &[Message], pair: &serde_json::Value| {
        let messages = [before, &[Message::new("user", field(pair, "prompt"))]].concat();
        logp(&messages, &field(pair, "chosen")) - logp(&messages, &field(pair, "rejected"))
    };
    for job in std::fs::read_dir(out.join("jobs")).unwrap() {
        let file = job.unwrap().path().join("valid.json");
        let measured: serde_json::Value = serde_json::from_slice(&read(file)).unwrap();
        let toward: Vec<f64> = serde_json::from_value(measured["points"][0]["toward"].clone()).unwrap();
        let plain: Vec<f64> =
            valid.iter().map(|pair| margin(&[Message::new("system", system)], pair)).collect();
        let under = |before: &[Message]| -> Vec<f64> {
            valid.iter().zip(&plain).map(|(pair, plain)| margin(before, pair) - plain).collect()
        };
        let close = |got: &[f64]| got.iter().zip(&toward).all(|(a, b)| (a - b).abs() < 2e-4);
        let asked = under(&[Message::new("system", format!("{system} Be formal."))]);
        // Which two examples were drawn is the sweep's; some two of them, in some order, must give its numbers.
        let examples = |i: usize, j: usize| {
            let mut messages = vec![Message::new("system", system)];
            for pair in [&train[i], &train[j]] {
                messages.push(Message::new("user", field(pair, "prompt")));
                messages.push(Message::new("assistant", field(pair, "chosen")));
            }
            under(&messages)
        };
        let any = (0..8).any(|i| (0..8).any(|j| i != j && close(&examples(i, j))));
        assert!(close(&asked) != any, "{measured}");
    }
}

#[test]
fn sweeps_with_mistakes_are_refused_with_their_place() {
    let refused = |text: &str| {
        let parsed = Spec::parse(text, "s.toml").and_then(|s| s.jobs("s.toml", Path::new("out")));
        let error = parsed.unwrap_err();
        (error.to_string(), error.hint())
    };
    let (message, hint) = refused("grd = 1\n");
    assert!(message.starts_with("s.toml: line 1, column 1: unknown key `grd`"), "{message}");
    assert_eq!(hint.as_deref(), Some("did you mean `grid`?"));
    assert!(refused("[[grid]]\nmethod = ]\n").0.contains("line 2"));
    assert!(refused("grid = []\n").0.contains("no grid"));
    let base = "[base]\nmodel = \"m\"\ndata.train = \"a.csv\"\n";
    let (message, hint) = refused(&format!("{base}[[grid]]\nmethod = [\"bipo\", \"rep\"]\n"));
    assert!(message.contains("job method = rep: unknown variant `rep`"), "{message}");
    assert_eq!(hint.as_deref(), Some("did you mean `reps`?"));
    assert!(refused(&format!("{base}[[grid]]\nsed = [1]\n")).0.contains("unknown key `sed`"));
    let (message, _) = refused(&format!("{base}[[grid]]\nmethod = \"system-prompt\"\n"));
    assert!(message.contains("no sentences"), "{message}");
    let (message, _) = refused(&format!("{base}[[grid]]\nlayers = [[0, 2]]\n"));
    assert!(message.contains("`layers` = [0, 2] are trained together"), "{message}");
    let variants = "[variants.set.a]\nseed = 1\n[[grid]]\nset = [\"b\"]\n";
    assert!(refused(&format!("{base}{variants}")).0.contains("expected one of a"));
    let many =
        format!("seed = {:?}\nlayer = {:?}\n", (0..200).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
    assert!(refused(&format!("{base}[[grid]]\n{many}")).0.contains("more than 10000"));
    let (message, _) = refused(&format!("{base}[choose]\nover = [\"layr\"]\n[[grid]]\nlayer = [1]\n"));
    assert!(message.contains("found `layr`"), "{message}");
    assert!(refused(&format!("{base}[[grid]]\nseed = [1]\n[measure]\nkl = -1\n")).0.contains("measure.kl"));
}

#[test]
fn variants_and_grids_become_recipes() {
    let text = r#"
[base]
model = "m"
layer = 3
[variants.behaviour.tea]
data.train = "tea"
[variants.behaviour.war]
data.train = "war"
[variants.by.adamw]
epochs = 2
optimiser = { kind = "adamw", lr = 0.01 }
[variants.by.auto]
[[grid]]
behaviour = ["tea", "war"]
by = ["auto", "adamw"]
"objective.beta" = [0.1, 0.2]
[[grid]]
behaviour = ["tea", "war"]
method = "icl"
layer = [1, 2, 3]
"#;
    let jobs = Spec::parse(text, "s.toml").unwrap().jobs("s.toml", Path::new("out")).unwrap();
    assert_eq!(jobs.len(), 8 + 2, "a prompt has no layer");
    let adamw = jobs.iter().find(|j| j.keys["by"] == "adamw" && j.keys["behaviour"] == "war").unwrap();
    assert!(matches!(&adamw.recipe.optimiser, steerkit::optim::Optimiser::AdamW(o) if o.lr == 0.01));
    assert_eq!(adamw.recipe.data.train, Path::new("war"));
    let again = Spec::parse(text, "s.toml").unwrap().jobs("s.toml", Path::new("elsewhere")).unwrap();
    let ids = |jobs: &[sweep::Job]| jobs.iter().map(|j| j.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&jobs), ids(&again), "the folder does not matter");
}
