//! The tokeniser against the Hugging Face implementation, on SmolLM2's real vocabulary and on broken ones.

use std::sync::OnceLock;
use steerkit_model::tokenizer::{GgufVocab, Specials, Tokenizer};

fn smollm2() -> Option<&'static Tokenizer> {
    static T: OnceLock<Option<Tokenizer>> = OnceLock::new();
    T.get_or_init(|| {
        let v: serde_json::Value =
            serde_json::from_slice(&std::fs::read("/tmp/smol_vocab.json").unwrap()).unwrap();
        let texts = |k: &str| {
            v[k].as_array().unwrap().iter().map(|t| t.as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let vocab = GgufVocab {
            model: "gpt2".into(),
            pre: Some("smollm".into()),
            tokens: texts("tokens"),
            merges: texts("merges"),
            token_types: v["types"].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect(),
            bos: Some(1),
            eos: Some(2),
            add_bos: Some(false),
            ..Default::default()
        };
        let t = std::time::Instant::now();
        let tok = Tokenizer::from_vocab(vocab).unwrap();
        println!("built in {:?}", t.elapsed());
        let t = std::time::Instant::now();
        tok.encode("Hello there", Specials::Parse).unwrap();
        println!("first encode {:?}", t.elapsed());
        Some(tok)
    })
    .as_ref()
}

#[test]
fn golden_ids_equal_the_hugging_face_tokeniser() {
    let Some(tokenizer) = smollm2() else { return };
    let cases: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("data/smollm2_tokens.json")).unwrap();
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let ids = |key: &str| {
            case[key].as_array().map(|a| a.iter().map(|i| i.as_u64().unwrap() as u32).collect::<Vec<_>>())
        };
        let parsed = ids("ids").unwrap();
        assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), parsed, "{text:?}");
        assert_eq!(
            tokenizer.encode(text, Specials::AsText).unwrap(),
            ids("as_text").unwrap_or(parsed),
            "{text:?}"
        );
    }
}
