//! Evaluations on a tiny model: properties that hold whatever the numbers are, and goldens of other programs.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use steerkit::eval::scoring::{Prompted, score};
use steerkit::eval::{self, EvalSpec, Steering, Subject, Task};
use steerkit::plan::PlanEntry;
use steerkit::vector::{Provenance, SteeringVector};
use steerkit::{Operator, PromptShape, SteerError, SteeringPlan, TokenScope};
use steerkit_model::{Model, OpenOptions, Pack, Prompting};

static GO_ON: AtomicBool = AtomicBool::new(false);

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

fn model() -> Model {
    Model::open(&data("tiny-llama-hf"), &OpenOptions::default()).unwrap()
}

/// The tiny model with room for the prompts of benchmarks, of which its tokeniser makes many tokens.
fn roomy_model() -> Model {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(data("tiny-llama-hf")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let roomy = text.replace("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 4096");
    assert_ne!(text, roomy);
    std::fs::write(&config, roomy).unwrap();
    Model::open(folder.path(), &OpenOptions::default()).unwrap()
}

fn vector(layer: usize, direction: Vec<f32>) -> Arc<SteeringVector> {
    let provenance = Provenance { name: "v".into(), ..Provenance::default() };
    Arc::new(SteeringVector { direction, layer, provenance })
}

fn some_vector() -> Arc<SteeringVector> {
    vector(1, (0..64).map(|i| ((i * 37 % 19) as f32 - 9.0) * 0.3).collect())
}

fn subject(model: &Model, steerings: Vec<Steering>) -> Subject<'_> {
    Subject {
        model,
        prompting: Prompting::new(model.tokenizer().unwrap(), model.chat_template().unwrap()),
        steerings,
        seed: 3,
        limit: None,
        cancel: &GO_ON,
        judging: None,
    }
}

fn at(vector: &Arc<SteeringVector>, multipliers: &[f64]) -> Vec<Steering> {
    Steering::of_vector(vector, multipliers).unwrap()
}

/// A built-in evaluation of a data file.
fn spec(name: &str, file: &Path) -> EvalSpec {
    let mut spec = EvalSpec::find(name).unwrap();
    *spec.task.data_mut().unwrap() = Some(file.to_owned());
    spec
}

fn measured(spec: &EvalSpec, subject: &Subject<'_>) -> Value {
    eval::run(spec, subject, &mut |_| {}).unwrap().results
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(data("choices/golden.json")).unwrap()).unwrap()
}

/// The golden's vector at its multipliers.
fn golden_steerings(golden: &Value) -> Vec<Steering> {
    let direction = numbers(&golden["v"]).into_iter().map(|x| x as f32).collect();
    at(&vector(golden["layer"].as_u64().unwrap() as usize, direction), &[-1.0, 0.0, 1.0])
}

/// Runs of one name at -1, 0 and 1.
fn golden_runs<'g>(golden: &'g Value, name: &str) -> Vec<&'g Vec<Value>> {
    ["-1.0", "0.0", "1.0"].map(|m| golden["runs"][name][m].as_array().unwrap()).to_vec()
}

/// Question by question: every choice's score, and whether the answer is right.
#[test]
fn golden_mmlu_as_in_lm_evaluation_harness() {
    let (golden, model) = (golden(), roomy_model());
    for (name, shots) in [("mmlu", 0), ("mmlu-5-shot", 2)] {
        let mut spec = spec(name, &data("choices/questions.jsonl"));
        let Task::MultipleChoice(task) = &mut spec.task else { panic!("{name}") };
        task.shots = shots;
        task.dev = Some(data("choices/shown.jsonl"));
        let got = measured(&spec, &subject(&model, golden_steerings(&golden)));
        for (m, want) in golden_runs(&golden, &format!("mmlu-{shots}-shot")).into_iter().enumerate() {
            assert_eq!(want.len(), 8);
            for (item, want) in got["items"].as_array().unwrap().iter().zip(want) {
                assert_eq!(item["group"], want["group"]);
                for (got, want) in numbers(&item["scores"][m]).iter().zip(numbers(&want["logps"])) {
                    assert!((got - want).abs() < 2e-4, "{name} {m}: {got} {want}");
                }
                let right = item["predicted"][m] == item["answer"];
                assert_eq!(f64::from(u8::from(right)), want["acc"].as_f64().unwrap(), "{name} {m}");
            }
            let mean = want.iter().map(|row| row["acc"].as_f64().unwrap()).sum::<f64>() / 8.0;
            assert_eq!(got["points"][m]["accuracy"]["value"], mean);
        }
    }
}

#[test]
fn golden_truthfulqa_as_in_lm_evaluation_harness() {
    let (golden, model) = (golden(), roomy_model());
    let spec = spec("truthfulqa", &data("choices/truths.csv"));
    let got = measured(&spec, &subject(&model, golden_steerings(&golden)));
    let (mc1, mc2) = (golden_runs(&golden, "mc1"), golden_runs(&golden, "mc2"));
    for m in 0..3 {
        assert_eq!((mc1[m].len(), mc2[m].len()), (5, 5));
        for (at, item) in got["items"].as_array().unwrap().iter().enumerate() {
            let scores = numbers(&item["scores"][m]);
            let want = numbers(&mc2[m][at]["logps"]);
            assert_eq!(scores.len(), want.len());
            for (got, want) in scores.iter().zip(want) {
                assert!((got - want).abs() < 1e-3, "{got} {want}");
            }
            let right = item["predicted"][m] == item["answer"];
            assert_eq!(f64::from(u8::from(right)), mc1[m][at]["acc"].as_f64().unwrap());
            let (got, want) = (item["mass"][m].as_f64().unwrap(), mc2[m][at]["acc"].as_f64().unwrap());
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
    }
}

#[test]
fn golden_divergences_as_in_pytorch() {
    let (golden, model) = (golden(), model());
    let case = &golden["divergence"];
    let ids = |name: &str| -> Vec<u32> { numbers(&case[name]).into_iter().map(|x| x as u32).collect() };
    let mut pack = Pack::default();
    let prompt = pack.push(None, &ids("prompt"));
    pack.push_response(prompt, &ids("continuation"));
    let shape = PromptShape { len: ids("prompt").len(), last_user: 0..0 };
    let plans: Vec<_> = golden_steerings(&golden)
        .iter()
        .map(|steering| vec![steering.plan.edits(model.config(), &shape).unwrap()])
        .collect();
    let scores = model.score_edited(&pack, &plans, true).unwrap();
    for (got, want) in scores[2].divergences.iter().zip(numbers(&case["kl"])) {
        assert!((got - want).abs() < 1e-4 * (1.0 + want), "{got} {want}");
    }
    assert!(scores[2].divergences.iter().all(|&kl| kl > 1e-4));
    assert!(
        scores[1].divergences.iter().all(|&kl| kl == 0.0),
        "the plain model is at no distance from itself"
    );
    assert_eq!(scores[1].logps, model.score(&pack).unwrap(), "multiplier 0 is the plain model, bit for bit");
}

fn prompted(model: &Model) -> Vec<Prompted> {
    let prompting = Prompting::new(model.tokenizer().unwrap(), model.chat_template().unwrap());
    let questions = ["What is tea?", "What is it not?", "Why is the sea salt?", "Tell me a name."];
    let text = |question: &&str| {
        let pair = prompting.pair(question, "A warm drink.", "No idea at all.").unwrap();
        let shape = PromptShape::of_question(&prompting, question, pair.prompt.len(), 0).unwrap();
        Prompted { prompt: pair.prompt, shape, continuations: vec![pair.chosen, pair.rejected] }
    };
    questions.iter().map(text).collect()
}

/// Several vectors, operators and scopes: sharing rows and batching change no bit.
#[test]
fn a_text_scores_the_same_alone_and_in_a_batch() {
    let model = model();
    let other = vector(2, (0..64).map(|i| (i as f32).sin()).collect());
    let entry = |vector: &Arc<SteeringVector>, multiplier, operator, scope| PlanEntry {
        vector: Arc::clone(vector),
        multiplier,
        operator,
        scope,
    };
    for (operator, scope) in [
        (Operator::Add, TokenScope::All),
        (Operator::Ablate, TokenScope::All),
        (Operator::Add, TokenScope::Generated),
        (Operator::Clamp { low: -0.1, high: 0.1 }, TokenScope::LastPrompt),
        (Operator::Add, TokenScope::LastUser),
    ] {
        let of = |multiplier: f64| {
            let plan = SteeringPlan::new().add(some_vector(), multiplier as f32).unwrap();
            let plan = plan.with(entry(&other, multiplier as f32, operator, scope)).unwrap();
            Steering { multiplier, plan }
        };
        let subject = subject(&model, vec![of(-1.0), of(0.0), of(2.0)]);
        let texts = prompted(&model);
        let all = score(&subject, &texts, true, "test", &mut |_| {}).unwrap();
        for (i, text) in texts.iter().enumerate() {
            let alone = score(&subject, std::slice::from_ref(text), true, "test", &mut |_| {}).unwrap();
            for s in 0..3 {
                assert_eq!(all[s][i], alone[s][0], "{operator} {scope}, text {i}, strength {s}");
            }
        }
        assert_ne!(all[0][0][0].logps, all[1][0][0].logps, "{operator} {scope}");
    }
}

/// What a steered text scores is what the model said when it wrote it.
#[test]
fn scores_are_those_of_generation() {
    let model = model();
    let subject = subject(&model, at(&some_vector(), &[0.0, 1.0]));
    let text = &prompted(&model)[0];
    let edits = subject.steerings[1].plan.edits(model.config(), &text.shape).unwrap();
    let request = steerkit_model::Request {
        prompt: text.prompt.clone(),
        edits,
        max_tokens: 12,
        ..steerkit_model::Request::default()
    };
    let written = model.generate(vec![request], 1, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    let text = Prompted { continuations: vec![written[0].tokens.clone()], ..text.clone() };
    let scores = score(&subject, &[text], false, "test", &mut |_| {}).unwrap();
    for (got, want) in scores[1][0][0].logps.iter().zip(&written[0].logprobs) {
        assert!((got - want).abs() < 1e-4, "{got} {want}");
    }
}

fn pairs(folder: &Path) -> PathBuf {
    let path = folder.join("pairs.jsonl");
    let all = std::fs::read_to_string(data("../../data/formality/test.jsonl")).unwrap();
    std::fs::write(&path, all.lines().take(6).map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path
}

#[test]
fn preference_is_zero_at_zero_and_turns_with_the_vector() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let spec = spec("preference", &pairs(folder.path()));
    let small: Vec<f32> = some_vector().direction.iter().map(|x| x * 0.001).collect();
    let subject = subject(&model, at(&vector(1, small), &[-1.0, 0.0, 1.0]));
    let got = measured(&spec, &subject);
    assert_eq!(numbers(&got["margins"][1]), [0.0; 6]);
    assert_eq!(got["points"][1]["sign_test"], 1.0);
    // To first order the margins of +v and -v are opposite.
    for (down, up) in numbers(&got["margins"][0]).iter().zip(numbers(&got["margins"][2])) {
        assert!((down + up).abs() < 0.1 * up.abs().max(1e-3), "{down} {up}");
    }
    let half = got["half_spreads"][0]["margin"]["value"].as_f64().unwrap();
    let ends = [0, 2].map(|m| got["points"][m]["margin"]["value"].as_f64().unwrap());
    assert!((half - (ends[1] - ends[0]) / 2.0).abs() < 1e-9);
    assert_eq!(measured(&spec, &subject), got, "the same seed gives the same numbers");
}

#[test]
fn letters_are_asked_in_turns() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let subject = subject(&model, at(&some_vector(), &[0.0, 1.0]));
    let got = measured(&spec("letters", &pairs(folder.path())), &subject);
    assert_eq!(got["questions"], 6);
    for point in got["points"].as_array().unwrap() {
        let share = |name: &str| point[name]["value"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&share("probability")) && (0.0..=1.0).contains(&share("says_a")));
        assert_eq!(point["words"]["n"], 6);
    }
    assert_eq!(got["points"][0]["words"]["moved_apart"]["value"], 0.0);
}

#[test]
fn damage_is_nothing_at_zero_and_grows() {
    let model = model();
    let mut spec = EvalSpec::find("damage").unwrap();
    let Task::Damage(task) = &mut spec.task else { panic!("damage") };
    (task.prompts, task.max_tokens) = (3, 8);
    let got = measured(&spec, &subject(&model, at(&some_vector(), &[0.0, 0.1, 1.0])));
    let kl = |name: &str, m: usize| got["damage"][m][name]["value"].as_f64().unwrap();
    for name in ["kl_reference", "kl_own"] {
        assert_eq!(kl(name, 0), 0.0);
        assert!(0.0 < kl(name, 1) && kl(name, 1) < kl(name, 2), "{name}");
    }
    assert_eq!(got["damage"][0]["perplexity_ratio"], 1.0);
}

#[test]
fn a_dose_response_recommends_what_it_measured() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let mut spec = spec("dose-response", &pairs(folder.path()));
    let Task::DoseResponse(task) = &mut spec.task else { panic!("dose-response") };
    (task.damage.prompts, task.damage.max_tokens) = (2, 6);
    let subject = subject(&model, at(&some_vector(), &[-50.0, 0.0, 0.001]));
    let got = measured(&spec, &subject);
    assert_eq!(got["recommended"]["low"], 0.0, "{got}");
    assert!(got["broken"][0].as_array().unwrap().contains(&"KL".into()), "{}", got["damage"]);
}

#[test]
fn bad_input_is_an_error() {
    let (model, folder) = (model(), tempfile::tempdir().unwrap());
    let subject = subject(&model, at(&some_vector(), &[0.0, 1.0]));
    let said = |spec: &EvalSpec| {
        let error = eval::run(spec, &subject, &mut |_| {}).unwrap_err();
        (error.to_string(), error.hint().unwrap_or_default())
    };
    assert!(said(&EvalSpec::find("mmlu").unwrap()).1.contains("--data"));
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (message, hint) = said(&spec("truthfulqa", &put("t.csv", "Question,Best Anwser\nWhy?,So\n")));
    assert!(message.contains("no best answer column") && hint.contains("Best Anwser"), "{message} {hint}");
    let (message, _) = said(&spec("truthfulqa", &put("e.csv", "Question,Best Answer\n")));
    assert!(message.contains("found no rows"), "{message}");
    let (message, _) = said(&spec("mmlu-5-shot", &data("choices/questions.jsonl")));
    assert!(message.contains("found 0 questions to show"), "{message}");
    let (message, hint) = said(&spec("mmlu", &put("m.parquet", "PAR1")));
    assert!(message.contains("whole Parquet file") && hint.contains("fetch"), "{message} {hint}");
    let wide = Steering::of_vector(&vector(1, vec![1.0; 32]), &[0.0, 1.0]).unwrap();
    let subject = Subject { steerings: wide, ..self::subject(&model, Vec::new()) };
    let error = eval::run(&spec("preference", &pairs(folder.path())), &subject, &mut |_| {}).unwrap_err();
    assert!(matches!(error, SteerError::Model(_)), "{error}");
}
