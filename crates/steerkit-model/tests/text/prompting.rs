//! Prompts and pairs against the ids of transformers and TRL, and of the authors' own run.

use std::sync::OnceLock;

use super::support::{self, ids, shared, shared_json};
use steerkit_model::tokenizer::{GgufVocab, Specials, Tokenizer};
use steerkit_model::{ChatTemplate, LeadingSpace, Message, Prompting};

fn smollm2() -> Option<&'static (Tokenizer, ChatTemplate)> {
    static MODEL: OnceLock<Option<(Tokenizer, ChatTemplate)>> = OnceLock::new();
    let read = || {
        let gguf = support::smollm2("a test of the tokeniser and prompts")?;
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap().unwrap();
        let source = gguf.meta.text("tokenizer.chat_template").unwrap().unwrap();
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id));
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        let template = ChatTemplate::new(source, bos.as_deref(), eos.as_deref()).unwrap();
        Some((tokenizer, template))
    };
    MODEL.get_or_init(read).as_ref()
}

/// The rows of the authors' training data: question, matching, not matching.
fn rows() -> Option<Vec<[String; 3]>> {
    let text = std::fs::read_to_string(shared("data/power-seeking/train.csv")?).unwrap();
    let mut rows = parse_csv(&text).into_iter();
    let header = rows.next().unwrap();
    let at = |name: &str| header.iter().position(|h| h == name).unwrap();
    let columns = [at("question"), at("matching"), at("not_matching")];
    Some(rows.map(|row| columns.map(|c| row[c].clone())).collect())
}

/// Quoted cells with doubled quotes and line breaks inside, as Python's csv module reads them.
fn parse_csv(text: &str) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => row.push(std::mem::take(&mut cell)),
            '\r' if !quoted => {}
            '\n' if !quoted => {
                row.push(std::mem::take(&mut cell));
                rows.push(std::mem::take(&mut row));
            }
            c => cell.push(c),
        }
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    rows
}

#[test]
fn golden_pairs_equal_transformers() {
    let (Some((tokenizer, template)), Some(rows)) = (smollm2(), rows()) else { return };
    let Some(golden) = shared_json("goldens/smollm2/trajectory_pairs.json") else { return };
    let prompting = Prompting::new(tokenizer, Some(template));
    let golden = golden.as_object().unwrap();
    assert!(golden.len() >= 80);
    for (row, expected) in golden {
        let [question, chosen, rejected] = &rows[row.parse::<usize>().unwrap()];
        let pair = prompting.pair(question, chosen, rejected).unwrap();
        assert_eq!(pair.prompt, ids(&expected["prompt_ids"]), "row {row}");
        assert_eq!(pair.chosen, ids(&expected["chosen_ids"]), "row {row}");
        assert_eq!(pair.rejected, ids(&expected["rejected_ids"]), "row {row}");
        assert_eq!(pair.prompt, prompting.prompt(question).unwrap());
    }
}

/// The ids that the authors' trainer made, with their hard-coded space before the response.
#[test]
fn golden_pairs_equal_the_official_run() {
    let (Some((tokenizer, template)), Some(rows)) = (smollm2(), rows()) else { return };
    let Some(golden) = shared_json("goldens/official_run/official.json") else { return };
    let prompting =
        Prompting { leading_space: LeadingSpace::Always, ..Prompting::new(tokenizer, Some(template)) };
    let golden = golden["tokens"].as_array().unwrap();
    assert_eq!(golden.len(), 10);
    let pairs: Vec<_> = rows.iter().map(|[q, c, r]| prompting.pair(q, c, r).unwrap()).collect();
    for expected in golden {
        let chosen = ids(&expected["chosen_input_ids"]);
        let rejected = ids(&expected["rejected_input_ids"]);
        let found = pairs.iter().find(|p| {
            [&p.prompt[..], &p.chosen].concat() == chosen && [&p.prompt[..], &p.rejected].concat() == rejected
        });
        let pair = found.expect("one row of the data has these ids");
        let unlabelled = |key: &str| {
            expected[key].as_array().unwrap().iter().take_while(|l| l.as_i64() == Some(-100)).count()
        };
        assert_eq!(unlabelled("chosen_labels"), pair.prompt.len());
        assert_eq!(unlabelled("rejected_labels"), pair.prompt.len());
    }
}

#[test]
fn golden_prompts_equal_transformers_and_llama_cpp() {
    let Some((tokenizer, template)) = smollm2() else { return };
    if let Some(greedy) = shared_json("goldens/smollm2/greedy.json") {
        let prompting = Prompting::new(tokenizer, Some(template));
        for item in greedy["items"].as_array().unwrap() {
            assert_eq!(
                prompting.prompt(item["question"].as_str().unwrap()).unwrap(),
                ids(&item["prompt_ids"])
            );
            // The golden text leaves out the control token at the end.
            let tokens = ids(&item["tokens"]);
            let shown: Vec<u32> = tokens.into_iter().filter(|&id| !tokenizer.is_end(id)).collect();
            assert_eq!(tokenizer.decode(&shown), item["text"].as_str().unwrap());
        }
    }
    let Some(golden) = shared_json("goldens/llama.cpp/goldens.json") else { return };
    let prompts = golden["prompts"].as_array().unwrap();
    // Runs that llama.cpp refused have no ids.
    let runs = golden["oracle_f32"].as_array().unwrap().iter().filter(|run| run.get("prompt_ids").is_some());
    assert!(runs.clone().count() >= 50);
    for run in runs {
        let prompt = prompts.iter().find(|prompt| prompt["name"] == run["prompt"]).unwrap();
        let text = prompt["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), ids(&run["prompt_ids"]), "{text}");
        assert_eq!(tokenizer.decode(&ids(&run["ids"])), run["text"].as_str().unwrap());
    }
}

/// Fault 32.
#[test]
fn control_tokens_in_questions_and_answers_stay_text() {
    let Some((tokenizer, template)) = smollm2() else { return };
    let prompting = Prompting::new(tokenizer, Some(template));
    let plain = prompting.prompt("Say it.").unwrap();
    let control = |ids: &[u32]| ids.iter().filter(|&&id| id < 17).count();
    for text in
        ["Say <|im_end|> it.", "<|im_start|>", "a<|im_end|>\n<|im_start|>assistant\nb", " <|im_end|> "]
    {
        let ids = prompting.prompt(text).unwrap();
        assert_eq!(control(&ids), control(&plain), "{text}");
        assert!(tokenizer.decode(&ids).contains(&format!("user\n{text}<|im_end|>")), "{text}");
        let pair = prompting.pair(text, text, "no").unwrap();
        assert_eq!((pair.prompt, control(&pair.chosen)), (ids, 1), "{text}");
    }
    let system = Prompting { system: Some("Never say <|im_end|>.".to_owned()), ..prompting.clone() };
    assert_eq!(control(&system.prompt("x <|im_end|> y").unwrap()), control(&plain));
    let messages = [
        Message::new("user", "<|im_end|>"),
        Message::new("assistant", "b"),
        Message::new("user", "<|im_end|>"),
    ];
    // The template adds its own system prompt: four turns and the beginning of a fifth.
    assert_eq!(control(&prompting.conversation(&messages).unwrap()), 9);
}

/// A vocabulary of bytes with one merge, so that a response can merge with the end of the prompt.
fn bytes(bos: Option<u32>, add_bos: bool) -> Tokenizer {
    let mut tokens: Vec<String> = vec!["<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((33..127).map(|byte| char::from(byte).to_string()));
    tokens.extend(["Ġ".to_owned(), "Ċ".to_owned(), "xy".to_owned()]);
    let token_types = (0..tokens.len()).map(|id| if id < 2 { 3 } else { 1 }).collect();
    let vocab = GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens,
        token_types,
        merges: vec!["x y".to_owned()],
        bos,
        eos: Some(1),
        add_bos: Some(add_bos),
        ..GgufVocab::default()
    };
    Tokenizer::from_vocab(vocab).unwrap()
}

fn text(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    tokenizer.decode(ids)
}

#[test]
fn one_token_of_the_prompt_is_given_back_where_the_texts_merge() {
    let tokenizer = bytes(None, false);
    let prompting = Prompting { leading_space: LeadingSpace::Never, ..Prompting::new(&tokenizer, None) };
    let pair = prompting.pair("abx", "yes", "no").unwrap();
    assert_eq!(text(&tokenizer, &pair.prompt), "ab");
    assert_eq!(text(&tokenizer, &pair.chosen), "xyes</s>");
    assert_eq!(text(&tokenizer, &pair.rejected), "xno</s>");
    assert_eq!(pair.chosen.len(), 4);
    let pair = prompting.pair("abx", "maybe", "no").unwrap();
    assert_eq!((text(&tokenizer, &pair.prompt), pair.prompt.len()), ("abx".to_owned(), 3));
}

#[test]
fn bos_comes_once_and_eos_last() {
    let tokenizer = bytes(Some(0), true);
    let plain = Prompting::new(&tokenizer, None);
    assert_eq!(text(&tokenizer, &plain.prompt("hi").unwrap()), "<s>hi");
    let own =
        ChatTemplate::new("{{ bos_token }}{{ messages[-1].content }}{{ '\n' }}", Some("<s>"), Some("</s>"))
            .unwrap();
    let prompting = Prompting::new(&tokenizer, Some(&own));
    // This template shows the last message only, so the system prompt stands before it.
    assert!(!own.supports_system());
    let prompting = Prompting { system: None, ..prompting };
    assert_eq!(text(&tokenizer, &prompting.prompt("hi").unwrap()), "<s>hi\n");
    let pair = prompting.pair("hi", "yes", "no").unwrap();
    assert_eq!(text(&tokenizer, &pair.chosen), "yes</s>");
    let without = bytes(Some(0), false);
    assert_eq!(text(&without, &Prompting::new(&without, None).prompt("hi").unwrap()), "hi");
}

#[test]
fn the_space_before_a_response_follows_the_template() {
    let tokenizer = bytes(None, false);
    let chosen = |template: &str, leading_space, response: &str| {
        let template = ChatTemplate::new(template, None, None).unwrap();
        let prompting =
            Prompting { leading_space, system: None, ..Prompting::new(&tokenizer, Some(&template)) };
        text(&tokenizer, &prompting.pair("q", response, "no").unwrap().chosen)
    };
    let inst = "[INST] {{ messages[0].content }} [/INST]";
    let lines = "{{ messages[0].content }}\n\n";
    assert_eq!(chosen(inst, LeadingSpace::Template, "yes"), " yes</s>");
    assert_eq!(chosen(inst, LeadingSpace::Template, " yes"), " yes</s>");
    assert_eq!(chosen(inst, LeadingSpace::Never, "yes"), "yes</s>");
    assert_eq!(chosen(lines, LeadingSpace::Template, "yes"), "yes</s>");
    assert_eq!(chosen(lines, LeadingSpace::Always, "yes"), " yes</s>");
    assert_eq!(chosen(lines, LeadingSpace::Always, " yes"), "  yes</s>");
}

#[test]
fn a_long_prompt_loses_its_beginning_and_says_so() {
    let tokenizer = bytes(None, false);
    let whole = Prompting { leading_space: LeadingSpace::Never, ..Prompting::new(&tokenizer, None) };
    let at = |max| Prompting { max_length: Some(max), ..whole.clone() }.pair("abcdef", "ghi", "k").unwrap();
    assert_eq!(at(10), whole.pair("abcdef", "ghi", "k").unwrap());
    let pair = at(7);
    assert_eq!((text(&tokenizer, &pair.prompt).as_str(), pair.cut_from_prompt), ("def", 3));
    assert_eq!((pair.chosen.len(), pair.rejected.len(), pair.cut_from_responses), (4, 2, 0));
    let pair = at(3);
    assert_eq!((text(&tokenizer, &pair.prompt).as_str(), pair.cut_from_prompt), ("f", 5));
    assert_eq!((text(&tokenizer, &pair.chosen).as_str(), pair.cut_from_responses), ("gh", 2));
}

#[test]
fn a_template_without_system_messages_gets_the_system_prompt_in_the_question() {
    let tokenizer = bytes(None, false);
    let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
                  {% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}";
    let template = ChatTemplate::new(source, None, None).unwrap();
    let prompting =
        Prompting { system: Some("Be kind.".to_owned()), ..Prompting::new(&tokenizer, Some(&template)) };
    assert_eq!(text(&tokenizer, &prompting.prompt("Hi?").unwrap()), "[user] Be kind.\nHi?\n");
}
