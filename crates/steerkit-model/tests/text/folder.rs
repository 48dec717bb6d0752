//! Tokenisers of Hugging Face folders.

use std::path::Path;

use serde_json::{Value, json};
use steerkit_model::{ModelError, Specials, Tokenizer};

fn added(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// A byte-level tokeniser of a few letters.
fn byte_level() -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [added(0, "<s>"), added(1, "</s>"), added(8, "<|eot_id|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "Ġ": 5, "Ã": 6, "©": 7},
                  "merges": [["a", "b"]]}
    })
}

/// A SentencePiece-like tokeniser: spaces as U+2581, unknown characters as bytes.
fn byte_fallback() -> Value {
    let mut tokeniser = byte_level();
    tokeniser["normalizer"] = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    tokeniser["pre_tokenizer"] = Value::Null;
    tokeniser["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    tokeniser["added_tokens"] = json!([added(0, "<s>"), added(1, "</s>")]);
    tokeniser["model"]["byte_fallback"] = json!(true);
    tokeniser["model"]["vocab"] =
        json!({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "▁": 5, "<0xC3>": 6, "<0xA9>": 7, "▁ab": 8});
    tokeniser["model"]["merges"] = json!([["a", "b"], ["▁", "ab"]]);
    tokeniser["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}});
    tokeniser
}

fn open(files: &[(&str, Value)]) -> Result<Tokenizer, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in files {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    Tokenizer::from_folder(folder.path())
}

fn stream(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<Option<String>>, Option<String>) {
    let mut stream = tokenizer.decode_stream();
    (ids.iter().map(|&id| stream.push(id)).collect(), stream.finish())
}

#[test]
fn a_byte_level_folder() {
    let config = json!({"bos_token": null, "eos_token": {"content": "</s>", "special": true}});
    let generation = json!({"eos_token_id": [1, 8], "bos_token_id": 0});
    let files = [
        ("tokenizer.json", byte_level()),
        ("tokenizer_config.json", config),
        ("generation_config.json", generation),
    ];
    let tokenizer = open(&files).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (None, Some(1), false));
    assert!(tokenizer.is_end(1) && tokenizer.is_end(8) && !tokenizer.is_end(0));
    assert_eq!(tokenizer.vocab_size(), 9);
    let ids = tokenizer.encode("ab éa</s>", Specials::Parse).unwrap();
    assert_eq!(ids, [4, 5, 6, 7, 2, 1]);
    assert_eq!(tokenizer.decode(&ids), "ab éa</s>");
    let shown = |texts: &[&str]| {
        texts.iter().map(|t| Some((*t).to_owned()).filter(|t| !t.is_empty())).collect::<Vec<_>>()
    };
    assert_eq!(stream(&tokenizer, &ids), (shown(&["ab", " ", "", "é", "a", "</s>"]), None));
}

#[test]
fn a_folder_with_byte_fallback() {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>"});
    let tokenizer = open(&[("tokenizer.json", byte_fallback()), ("tokenizer_config.json", config)]).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.add_bos()), (Some(0), true));
    let ids = tokenizer.encode("ab abé", Specials::AsText).unwrap();
    assert_eq!(ids, [8, 8, 6, 7]);
    assert_eq!(tokenizer.decode(&ids), "ab abé");
    let (texts, rest) = stream(&tokenizer, &ids);
    assert_eq!(texts.into_iter().flatten().chain(rest).collect::<String>(), "ab abé");
    let (texts, rest) = stream(&tokenizer, &ids[..3]);
    let text: String = texts.into_iter().flatten().chain(rest).collect();
    assert_eq!(text, "ab ab\u{FFFD}");
}

#[test]
fn a_configuration_decides_about_bos() {
    for (add, expected) in [(json!(false), false), (json!(true), true), (Value::Null, true)] {
        let config = json!({"bos_token": "<s>", "add_bos_token": add});
        let files = [("tokenizer.json", byte_fallback()), ("tokenizer_config.json", config)];
        assert_eq!(open(&files).unwrap().add_bos(), expected);
    }
    let tokenizer = open(&[
        ("tokenizer.json", byte_fallback()),
        ("config.json", json!({"bos_token_id": 0, "eos_token_id": 1})),
    ]);
    let tokenizer = tokenizer.unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(0), Some(1), true));
}

#[test]
fn broken_folders_name_the_file_and_the_field() {
    let missing = Tokenizer::from_folder(Path::new("/nonexistent")).unwrap_err();
    assert!(missing.to_string().contains("tokenizer.json"), "{missing}");
    let message = |files: &[(&str, Value)]| open(files).unwrap_err().to_string();
    let found = message(&[("tokenizer.json", json!("version https://git-lfs.github.com/spec/v1"))]);
    assert!(found.contains("tokenizer.json"), "{found}");
    for config in [json!({"eos_token": "<nothing>"}), json!({"eos_token": 3}), json!([1])] {
        let found = message(&[("tokenizer.json", byte_level()), ("tokenizer_config.json", config)]);
        assert!(found.contains("tokenizer_config.json"), "{found}");
    }
    let generation = json!({"eos_token_id": -1});
    let found = message(&[("tokenizer.json", byte_level()), ("generation_config.json", generation)]);
    assert!(found.contains("generation_config.json") && found.contains("eos_token_id"), "{found}");
    let mut cyclic = byte_level();
    cyclic["model"]["merges"] = json!([["ab", "ab"], ["a", "a"]]);
    assert!(message(&[("tokenizer.json", cyclic.clone())]).contains("tokenizer.json"));
    for merges in
        [json!([["abab", "abab"]]), json!(["ab"]), json!(["abab abab"]), json!([[1, 2]]), json!([[]])]
    {
        cyclic["model"]["merges"] = merges;
        let found = message(&[("tokenizer.json", cyclic.clone())]);
        assert!(found.contains("merges[0]"), "{found}");
    }
}
