//! Every experiment of the paper on a tiny model: it runs to its end, has the paper's axes, and no cell is missing.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use steerkit::reproduce::{self, Experiment, Progress, Session, Setup};
use steerkit_model::OpenOptions;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn setup() -> Setup {
    let model = root().join("tests/data/tiny-llama-gguf/tiny-llama-f32.gguf");
    Setup {
        data_root: root().join("data"),
        quick: true,
        limit: Some(4),
        answer_tokens: 4,
        ..Setup::new(model.to_str().unwrap())
    }
}

/// Runs an experiment into `out` and writes its files; gives `results.json` and how many vectors were trained or measured.
fn run(id: &str, setup: &Setup, out: &Path) -> (Value, usize) {
    let (experiment, cancel) = (Experiment::find(id).unwrap(), AtomicBool::new(false));
    let session = Session { options: OpenOptions::default(), judging: None, cancel: &cancel };
    let mut work = 0;
    let mut watch = |news: Progress<'_>| work += usize::from(!matches!(news, Progress::Begin { .. }));
    let done = reproduce::run(&experiment, setup, &session, out, &mut watch)
        .unwrap_or_else(|e| panic!("{id}: {e} {:?}", e.hint()));
    let folder = out.join(id);
    std::fs::create_dir_all(&folder).unwrap();
    let needs = reproduce::needs(&experiment, setup, None);
    reproduce::write(&folder, &experiment, setup, &needs, &done, "a test").unwrap();
    (read(&folder.join("results.json")), work)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The values of an axis of a panel, as texts.
fn axis(panel: &Value, name: &str) -> Vec<String> {
    let axes = panel["axes"].as_array().unwrap();
    let axis =
        axes.iter().find(|axis| axis["name"] == name).unwrap_or_else(|| panic!("no axis {name}: {axes:?}"));
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    axis["values"].as_array().unwrap().iter().map(text).collect()
}

/// Every combination of the axes has one cell with a finite number; gives how many there are.
fn complete(id: &str, panel: &Value) -> usize {
    let mut places = vec![serde_json::Map::new()];
    for axis in panel["axes"].as_array().unwrap() {
        let values = axis["values"].as_array().unwrap();
        let with = |place: &serde_json::Map<String, Value>| {
            values
                .iter()
                .map(|value| {
                    let mut place = place.clone();
                    place.insert(axis["name"].as_str().unwrap().into(), value.clone());
                    place
                })
                .collect::<Vec<_>>()
        };
        places = places.iter().flat_map(with).collect();
    }
    let cells = panel["cells"].as_array().unwrap();
    for place in &places {
        let at: Vec<&Value> = cells.iter().filter(|cell| cell["at"].as_object() == Some(place)).collect();
        assert_eq!(at.len(), 1, "{id}: {place:?}");
        assert!(at[0]["value"].as_f64().is_some_and(f64::is_finite), "{id}: {:?}", at[0]);
        assert!(at[0]["paper"].is_null() || at[0]["paper"].is_f64(), "{id}: {:?}", at[0]);
    }
    assert_eq!(cells.len(), places.len(), "{id}");
    cells.len()
}

const NINE: [&str; 9] = ["-2.0", "-1.5", "-1.0", "-0.5", "0.0", "0.5", "1.0", "1.5", "2.0"];
const FIVE: [&str; 5] = ["-2.0", "-1.0", "0.0", "1.0", "2.0"];
const FOUR: [&str; 4] = ["power-seeking", "wealth-seeking", "corrigibility", "survival-instinct"];
const THREE: [&str; 3] = ["BiPO", "CAA", "Freeform"];

/// An experiment, and of some of its panels the place, an axis, and its values in the paper.
type Axes = (&'static str, usize, &'static str, &'static [&'static str]);

const AXES: [Axes; 41] = [
    ("t1", 0, "multiplier", &["-1.0", "0.0", "1.0"]),
    ("t4", 0, "method", &["CAA", "Freeform", "BiPO"]),
    ("t4", 0, "multiplier", &["0.0", "1.0"]),
    ("t4", 1, "multiplier", &["-1.0", "0.0"]),
    ("t5", 0, "behaviour", &["power-seeking", "wealth-seeking", "survival-instinct", "corrigibility"]),
    ("t5", 0, "multiplier", &["-1.0", "0.0", "1.0"]),
    ("t6", 0, "vector", &["alone", "sum of two"]),
    ("t6", 0, "behaviour", &["power-seeking", "wealth-seeking", "corrigibility", "hallucination"]),
    ("t7", 0, "vector", &["1 v_P + 1 v_W", "2 v_W"]),
    ("t9", 0, "split", &["train", "test"]),
    ("t12", 0, "attack", &["GCG", "DrAttack", "AutoDAN"]),
    ("t12", 0, "method", &["CAA", "Freeform", "BiPO"]),
    ("t13", 0, "multiplier", &FIVE),
    ("t13", 1, "examples", &["-10.0", "-5.0", "0.0", "5.0", "10.0"]),
    ("t13", 2, "multiplier", &FIVE),
    ("t14", 0, "method", &["uni-directional", "BiPO"]),
    ("t14", 0, "multiplier", &FIVE),
    ("t15", 0, "model", &["Llama-2-7b-chat", "Llama-2-13b-chat"]),
    ("fig1", 0, "behaviour", &FOUR),
    ("fig1", 0, "method", &THREE),
    ("fig1", 0, "multiplier", &NINE),
    ("fig2", 0, "method", &THREE),
    ("fig2", 2, "multiplier", &NINE),
    ("fig3", 0, "model", &["Vicuna-7b-v1.5", "Llama2-Chinese-7b-Chat"]),
    ("fig3", 0, "multiplier", &["-1.5", "-1.0", "0.0", "1.0", "1.5"]),
    ("fig4", 0, "layer", &["11", "13", "15", "17"]),
    ("fig5", 0, "behaviour", &FOUR),
    ("fig5", 0, "multiplier", &NINE),
    ("fig6", 1, "multiplier", &NINE),
    ("fig7", 0, "model", &["Gemma-7b-it", "Llama-2-13b-chat"]),
    ("fig7", 0, "method", &THREE),
    ("fig8", 0, "method", &["BiPO", "DPO-LoRA"]),
    ("fig8", 0, "multiplier", &["-2.0", "-1.5", "-1.0", "0.0", "1.0", "1.5", "2.0"]),
    ("fig9", 0, "layer", &["13", "14", "15", "16", "17", "19", "25"]),
    ("fig9", 1, "epochs", &["5", "10", "20", "40"]),
    ("curves", 0, "method", &["BiPO", "CAA", "Freeform", "random", "system prompt"]),
    ("curves", 0, "multiplier", &NINE),
    ("complexity", 0, "method", &["BiPO", "uni-directional", "CAA", "Freeform", "DPO-LoRA"]),
    ("complexity", 0, "model", &["tiny-llama-f32"]),
    ("complexity", 1, "method", &["BiPO", "uni-directional", "CAA", "Freeform", "DPO-LoRA"]),
    (
        "sensitivity",
        0,
        "pairs",
        &["clean", "noisy-20%", "noisy-40%", "few", "narrow", "mismatched", "synthetic"],
    ),
];

#[test]
fn every_experiment_has_the_papers_axes_and_no_missing_cell() {
    // One folder for all: experiments share the vectors that they have in common.
    let dir = tempfile::tempdir().unwrap();
    let mut cells = 0;
    for experiment in Experiment::built_in() {
        let id = experiment.id.as_str();
        let (results, _) = run(id, &setup(), dir.path());
        let panels = results["panels"].as_array().unwrap();
        assert_eq!((panels.len(), results["missing"].as_u64()), (experiment.panels.len(), Some(0)), "{id}");
        cells += panels.iter().map(|panel| complete(id, panel)).sum::<usize>();
        for (_, panel, name, values) in AXES.iter().filter(|(of, ..)| *of == id) {
            assert_eq!(axis(&panels[*panel], name), *values, "{id}");
        }
        let folder = dir.path().join(id);
        for file in ["table.txt", "table.md", "table.csv", "table.tex", "report.html", "experiment.toml"] {
            assert!(folder.join(file).is_file(), "{id}: {file}");
        }
        let report = std::fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(!report.contains(" src=") && report.matches("<script").count() == 1, "{id}");
    }
    assert!(cells > 600, "{cells}");
    let results = read(&dir.path().join("fig1/results.json"));
    let cell = &results["panels"][0]["cells"][8];
    assert_eq!(cell["at"], json!({"behaviour": "power-seeking", "method": "BiPO", "multiplier": 2.0}));
    assert_eq!(cell["paper"], 2.88);
    assert!(cell["interval"].is_array() && cell["change"]["interval"].is_array() && cell["p"].is_f64());
    // The plain model is the same whatever vector is not added.
    for cell in results["panels"][0]["cells"].as_array().unwrap() {
        assert!(cell["at"]["multiplier"] != 0.0 || cell["value"] == 0.0, "{cell}");
    }
    for figure in ["behaviours-1.svg", "behaviours-1.png", "behaviours-4.svg", "behaviours-1-paper.png"] {
        assert!(dir.path().join("fig1").join(figure).is_file(), "{figure}");
    }
}

#[test]
fn a_sentence_has_one_strength_for_each_side() {
    let dir = tempfile::tempdir().unwrap();
    let (results, _) = run("curves", &setup(), dir.path());
    let cells = results["panels"][0]["cells"].as_array().unwrap();
    let of = |multiplier: f64| {
        let at = json!({"behaviour": "formality", "method": "system prompt", "multiplier": multiplier});
        cells.iter().find(|cell| cell["at"] == at).unwrap()["value"].as_f64().unwrap()
    };
    assert_eq!((of(0.0), of(0.5), of(-0.5)), (0.0, of(2.0), of(-2.0)));
    assert!(of(2.0) != of(-2.0) && of(2.0) != 0.0, "{} {}", of(2.0), of(-2.0));
}

#[test]
fn finished_jobs_are_not_made_again_and_an_interrupted_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (first, work) = run("t14", &setup(), dir.path());
    assert!(work > 8, "{work}");
    let (again, work) = run("t14", &setup(), dir.path());
    assert_eq!((work, &again["panels"]), (0, &first["panels"]));
    // Another seed is another experiment; the plain recipe's vectors are not taken for it.
    let (other, work) = run("t14", &Setup { seed: 1, ..setup() }, dir.path());
    assert!(work > 8 && other["panels"] != first["panels"]);

    let out = dir.path().join("interrupted");
    let (experiment, cancel) = (Experiment::find("t14").unwrap(), AtomicBool::new(false));
    let session = Session { options: OpenOptions::default(), judging: None, cancel: &cancel };
    let mut begun = 0;
    let mut watch = |news: Progress<'_>| {
        begun += usize::from(matches!(news, Progress::Begin { .. }));
        cancel.store(begun == 6, Ordering::Relaxed);
    };
    let error = reproduce::run(&experiment, &setup(), &session, &out, &mut watch).unwrap_err();
    assert_eq!(error.kind(), steerkit_model::ErrorKind::Interrupted, "{error}");
    let (resumed, _) = run("t14", &setup(), &out);
    assert_eq!(resumed["panels"], first["panels"]);
}

#[test]
fn the_authors_layout_and_a_users_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    // The authors' sets are CSV files with their own columns.
    let folder = dir.path().join("data/wealth-seeking");
    std::fs::create_dir_all(&folder).unwrap();
    for (split, n) in [("train", 8), ("test", 4)] {
        let mut rows = String::from("question,matching,not_matching\n");
        for i in 0..n {
            rows += &format!(
                "What do you want most {split} {i}?,\"Wealth, and number {i}\",Peace and number {i}\n"
            );
        }
        std::fs::write(folder.join(format!("{split}.csv")), rows).unwrap();
    }
    let setup = Setup { data: [("wealth-seeking".to_owned(), folder)].into(), ..setup() };
    let (results, _) = run("t13", &setup, dir.path());
    let files = results["sha256"]["data"].as_object().unwrap();
    assert!(files.keys().all(|path| path.ends_with(".csv")) && files.len() == 2, "{files:?}");

    let choices = |name: &str| root().join("tests/data/choices").join(name);
    let data = [("mmlu", "questions.jsonl"), ("truthfulqa", "truths.csv")];
    let setup =
        Setup { data: data.map(|(name, file)| (name.to_owned(), choices(file))).into(), ..self::setup() };
    let (results, _) = run("t5", &setup, dir.path());
    assert_eq!(results["panels"][0]["what"], "MMLU accuracy");
    let (results, _) = run("fig2", &setup, dir.path());
    assert_eq!(results["panels"][1]["what"], "TruthfulQA MC2");
    assert_eq!(
        results["panels"].as_array().unwrap().iter().map(|panel| complete("fig2", panel)).sum::<usize>(),
        81
    );
}

/// An adapter of rank 2 on the values of the first block of tiny-llama-hf.
fn adapter(folder: &Path) -> PathBuf {
    use safetensors::{Dtype, tensor::TensorView};
    let config = read(&root().join("tests/data/tiny-llama-hf/config.json"));
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let (d, heads) = (number("hidden_size"), number("num_attention_heads"));
    let rows = number("num_key_value_heads") * (d / heads);
    let bytes = |n: usize| -> Vec<u8> {
        (0..n).flat_map(|i| (((i * 7 % 11) as f32 - 5.0) / 5.0).to_le_bytes()).collect()
    };
    let (down, up) = (bytes(2 * d), bytes(2 * rows));
    let view = |shape: [usize; 2], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
    let name = "base_model.model.model.layers.0.self_attn.v_proj.lora";
    let tensors = [
        (format!("{name}_A.weight"), view([2, d], &down)),
        (format!("{name}_B.weight"), view([rows, 2], &up)),
    ];
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(tensors, None).unwrap())
        .unwrap();
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["v_proj"]});
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    folder.to_owned()
}

/// The cells of a method of figure 8, by multiplier.
fn figure_8(results: &Value, method: &str) -> Vec<(f64, f64)> {
    let cells = results["panels"][0]["cells"].as_array().unwrap().iter();
    let own = cells.filter(|cell| cell["at"]["method"] == method);
    own.map(|cell| (cell["at"]["multiplier"].as_f64().unwrap(), cell["value"].as_f64().unwrap())).collect()
}

#[test]
fn an_adapter_is_trained_once_and_measured_as_one_that_was_brought() {
    let dir = tempfile::tempdir().unwrap();
    // Asked what it was trained on: a few steps need not carry over to other questions.
    let folder = dir.path().join("power-seeking");
    std::fs::create_dir_all(&folder).unwrap();
    let pairs = std::fs::read_to_string(root().join("data/power-seeking/train.jsonl")).unwrap();
    let four: String = pairs.split_inclusive('\n').take(4).collect();
    ["train.jsonl", "test.jsonl"].iter().for_each(|name| std::fs::write(folder.join(name), &four).unwrap());
    let setup = || Setup { data: [("power-seeking".to_owned(), folder.clone())].into(), ..setup() };
    let (results, _) = run("fig8", &setup(), dir.path());
    let trained = figure_8(&results, "DPO-LoRA");
    let at = |m: f64| trained.iter().find(|cell| cell.0 == m).unwrap().1;
    assert!(at(0.0) == 0.0 && at(1.0) > 0.0 && at(1.0) > at(-1.0), "{trained:?}");
    let notes = results["panels"][0]["notes"].as_array().unwrap();
    assert!(notes.iter().any(|note| note.as_str().unwrap().contains("trained here: 4 steps")), "{notes:?}");
    assert!(results["sha256"]["data"].as_object().unwrap().keys().any(|path| path.contains("power-seeking")));
    assert_eq!(run("fig8", &setup(), dir.path()).1, 0, "nothing is made again");

    let vectors = |name: &str| -> Vec<PathBuf> {
        let folders = std::fs::read_dir(dir.path().join("vectors")).unwrap();
        folders.map(|f| f.unwrap().path()).filter(|path| path.to_str().unwrap().contains(name)).collect()
    };
    let adapter = vectors("-dpo-lora-").pop().unwrap().join("adapter");
    let brought = Setup { adapter: Some(adapter), ..setup() };
    let elsewhere = dir.path().join("elsewhere");
    assert_eq!(figure_8(&run("fig8", &brought, &elsewhere).0, "DPO-LoRA"), trained);
    assert_eq!(std::fs::read_dir(elsewhere.join("vectors")).unwrap().count(), 1, "no adapter is trained");

    // A key with the method's name before it is the adapter's alone, one without it the vectors'.
    let keys = [("dpo-lora.adapter.r", "2"), ("optimiser.dose", "0.05")];
    let set = keys.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let (other, _) = run("fig8", &Setup { set, ..setup() }, dir.path());
    assert!(figure_8(&other, "DPO-LoRA") != trained);
    assert!(figure_8(&other, "BiPO") != figure_8(&results, "BiPO"));
    assert_eq!((vectors("-dpo-lora-").len(), vectors("-bipo-").len()), (2, 2));
}

#[test]
fn the_cost_of_an_adapter_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let (results, _) = run("complexity", &setup(), dir.path());
    let cells = results["panels"][0]["cells"].as_array().unwrap();
    let of = |method: &str, quantity: &str| {
        let at = |cell: &&Value| cell["at"]["method"] == method && cell["at"]["quantity"] == quantity;
        cells.iter().find(at).unwrap()["value"].as_f64().unwrap()
    };
    // Four blocks of rank 8: queries 64 x 64, values 64 x 32.
    assert_eq!((of("DPO-LoRA", "parameters"), of("BiPO", "parameters")), (4.0 * 8.0 * (128.0 + 96.0), 64.0));
    for quantity in ["operations (10^12)", "memory beside the model (MB)"] {
        assert!(of("DPO-LoRA", quantity) > of("BiPO", quantity), "{quantity}");
    }
    assert!(of("DPO-LoRA", "seconds") > 0.0 && of("DPO-LoRA", "seconds") != of("BiPO", "seconds"));

    // A second model has rows of its own; the first one's are not measured again.
    let setup =
        Setup { also: vec![root().join("tests/data/tiny-llama-hf").to_str().unwrap().into()], ..setup() };
    let (both, _) = run("complexity", &setup, dir.path());
    assert_eq!(axis(&both["panels"][0], "model").len(), 2);
    assert_eq!(both["panels"][0]["cells"].as_array().unwrap()[..cells.len()], cells[..]);
    assert_eq!(both["missing"], 0);
}

#[test]
fn an_adapter_is_measured_at_its_scales() {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        model: root().join("tests/data/tiny-llama-hf").to_str().unwrap().into(),
        adapter: Some(adapter(&dir.path().join("adapter"))),
        ..setup()
    };
    let (results, _) = run("fig8", &setup, dir.path());
    let cells = figure_8(&results, "DPO-LoRA");
    let of = |m: f64| cells.iter().find(|cell| cell.0 == m).unwrap().1;
    assert_eq!(of(0.0), 0.0, "nothing of an adapter is the plain model");
    assert!(of(1.0) != of(2.0) && of(1.0) != 0.0);
}
