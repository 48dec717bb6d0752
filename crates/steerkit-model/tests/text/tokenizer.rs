//! The tokeniser against the Hugging Face implementation, on SmolLM2's vocabulary, on small ones and on broken ones.

use std::path::Path;
use std::sync::OnceLock;

use super::support::{self, ids};
use proptest::prelude::*;
use steerkit_model::ModelError;
use steerkit_model::gguf::Gguf;
use steerkit_model::tokenizer::{GgufVocab, Specials, Tokenizer};

fn smollm2() -> Option<&'static Tokenizer> {
    static TOKENIZER: OnceLock<Option<Tokenizer>> = OnceLock::new();
    let read = || Tokenizer::from_gguf(&support::smollm2("a test of the tokeniser and prompts")?).unwrap();
    TOKENIZER.get_or_init(read).as_ref()
}

/// A byte-level vocabulary: control tokens, the 256 bytes, then the words that these merges make.
fn small(merges: &[&str]) -> GgufVocab {
    let alphabet = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
        _ => {
            let before = (0..byte).filter(|b| !matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)).count();
            char::from_u32(256 + before as u32).unwrap()
        }
    };
    let mut tokens = vec!["<|end|>".to_owned(), "<|user|>".to_owned()];
    tokens.extend((0..=255).map(|byte| alphabet(byte).to_string()));
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let token_types = (0..tokens.len()).map(|id| if id < 2 { 3 } else { 1 }).collect();
    GgufVocab {
        path: "small.gguf".into(),
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens,
        token_types,
        merges: merges.iter().map(|&merge| merge.to_owned()).collect(),
        eos: Some(0),
        ..GgufVocab::default()
    }
}

#[test]
fn golden_ids_equal_the_hugging_face_tokeniser() {
    let Some(tokenizer) = smollm2() else { return };
    let cases: serde_json::Value = serde_json::from_str(include_str!("../data/smollm2_tokens.json")).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() > 250);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let parsed = ids(&case["ids"]);
        let as_text = case.get("as_text").map_or_else(|| parsed.clone(), ids);
        assert_eq!(tokenizer.encode(text, Specials::Parse).unwrap(), parsed, "{text:?}");
        assert_eq!(tokenizer.encode(text, Specials::AsText).unwrap(), as_text, "{text:?}");
        let mut stream = tokenizer.decode_stream();
        let mut shown: String = parsed.iter().filter_map(|&id| stream.push(id)).collect();
        shown.extend(stream.finish());
        assert_eq!(shown, tokenizer.decode(&parsed), "{text:?}");
    }
}

#[test]
fn smollm2_knows_its_own_tokens() {
    let Some(tokenizer) = smollm2() else { return };
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.add_bos()), (Some(1), Some(2), false));
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert!([0, 2].into_iter().all(|id| tokenizer.is_end(id)));
    assert!(![1, 3, 28].into_iter().any(|id| tokenizer.is_end(id)));
    assert_eq!(tokenizer.token_text(2).as_deref(), Some("<|im_end|>"));
    assert_eq!(tokenizer.token_text(28).as_deref(), Some(","));
    assert_eq!(tokenizer.token_text(49152), None);
    assert_eq!(tokenizer.sha256().len(), 64);
}

#[test]
fn merges_apply_in_the_order_of_their_rank() {
    let tokenizer = Tokenizer::from_vocab(small(&["b c", "a b", "a bc"])).unwrap();
    let texts = |text: &str| {
        let ids = tokenizer.encode(text, Specials::Parse).unwrap();
        ids.into_iter().map(|id| tokenizer.token_text(id).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(texts("abc"), ["abc"]);
    assert_eq!(texts("ab c"), ["ab", " ", "c"]);
    assert_eq!(texts("<|end|>abc<|user|>"), ["<|end|>", "abc", "<|user|>"]);
}

#[test]
fn control_tokens_in_data_stay_text() {
    let tokenizer = Tokenizer::from_vocab(small(&[])).unwrap();
    let ids = tokenizer.encode("<|end|>", Specials::AsText).unwrap();
    assert_eq!(ids.len(), "<|end|>".len());
    assert_eq!(tokenizer.decode(&ids), "<|end|>");
    let pieces = [("<|user|>", Specials::Parse), ("<|end|>", Specials::AsText), ("<|end|>", Specials::Parse)];
    let ids = tokenizer.encode_pieces(pieces).unwrap();
    assert_eq!((ids[0], ids[ids.len() - 1], ids.len()), (1, 0, 9));
    // Two texts that spell one only together.
    let ids = tokenizer.encode_pieces([("<|e", Specials::AsText), ("nd|>", Specials::AsText)]).unwrap();
    assert_eq!(ids.len(), 7);
}

#[test]
fn a_stream_never_cuts_a_character() {
    let tokenizer = Tokenizer::from_vocab(small(&[])).unwrap();
    let ids = tokenizer.encode("é🚀", Specials::Parse).unwrap();
    assert_eq!(ids.len(), 6);
    let mut stream = tokenizer.decode_stream();
    let shown: Vec<Option<String>> = ids.iter().map(|&id| stream.push(id)).collect();
    let nothing = None::<String>;
    assert_eq!(shown[..2], [nothing.clone(), Some("é".to_owned())]);
    assert_eq!(shown[2..], [nothing.clone(), nothing.clone(), nothing, Some("🚀".to_owned())]);
    let mut stream = tokenizer.decode_stream();
    assert_eq!(stream.push(ids[2]), None);
    assert_eq!(stream.finish().as_deref(), Some("\u{FFFD}"));
    assert_eq!(tokenizer.decode(&[999_999]), "\u{FFFD}");
}

/// Fault 13. Each case is an error that names the key, or, for duplicate tokens, a documented tolerance.
#[test]
fn broken_vocabularies_are_refused_by_name() {
    let refused = |vocab: GgufVocab, place: &str| match Tokenizer::from_vocab(vocab) {
        Err(ModelError::Malformed { place: found, .. }) => {
            assert_eq!(found, format!("tokenizer.ggml.{place}"))
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{place} was accepted"),
    };
    refused(GgufVocab { eos: Some(100_000), ..small(&[]) }, "eos_token_id");
    refused(GgufVocab { bos: Some(u32::MAX), ..small(&[]) }, "bos_token_id");
    refused(GgufVocab { end_of_turn: vec![300], ..small(&[]) }, "eot_token_id");
    refused(GgufVocab { tokens: Vec::new(), token_types: Vec::new(), ..small(&[]) }, "tokens");
    refused(GgufVocab { token_types: vec![1; 3], ..small(&[]) }, "token_type");
    let merges = |merges: &[&str]| GgufVocab {
        merges: merges.iter().map(|&m| m.to_owned()).collect(),
        ..small(&["a b"])
    };
    refused(merges(&["a b", "a c"]), "merges[1]");
    for broken in ["", " ", "a", "ab", "a ", " a", "é", "aa bb", "a b c"] {
        refused(merges(&[broken]), "merges[0]");
    }
}

#[test]
fn duplicate_tokens_are_tolerated() {
    let mut vocab = small(&["a b"]);
    vocab.tokens.push("ab".to_owned());
    vocab.token_types.push(1);
    let last = vocab.tokens.len() as u32 - 1;
    let tokenizer = Tokenizer::from_vocab(vocab).unwrap();
    assert_eq!(tokenizer.encode("ab", Specials::Parse).unwrap(), [last]);
    assert_eq!(tokenizer.decode(&[last, last - 1]), "abab");
}

#[test]
fn other_tokenisers_are_refused_with_what_is_known() {
    let unsupported = |vocab: GgufVocab| match Tokenizer::from_vocab(vocab) {
        Err(e @ ModelError::Unsupported { .. }) => e.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    };
    let message = unsupported(GgufVocab { model: "bert".to_owned(), ..small(&[]) });
    assert!(message.contains("tokeniser \"bert\"") && message.contains("gpt2"), "{message}");
    let message = unsupported(GgufVocab { pre: Some("martian".to_owned()), ..small(&[]) });
    assert!(message.contains("\"martian\"") && message.contains("smollm"), "{message}");
}

#[test]
fn long_texts_are_encoded_in_reasonable_time() {
    let tokenizer = Tokenizer::from_vocab(small(&["a a", "aa aa"])).unwrap();
    for text in
        ["a".repeat(1 << 20), " ".repeat(1 << 20), "\n".repeat(1 << 20), format!("{}x", " ".repeat(1 << 20))]
    {
        let start = std::time::Instant::now();
        let ids = tokenizer.encode(&text, Specials::Parse).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }
}

/// SmolLM2 has no tokens for some bytes (control characters); like the reference it drops them.
fn spelt_by_smollm2(text: &str) -> bool {
    smollm2().is_none_or(|t| {
        text.chars().all(|c| t.decode(&t.encode(&c.to_string(), Specials::AsText).unwrap()) == c.to_string())
    })
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(text in any::<String>()) {
        let tokenizer = Tokenizer::from_vocab(small(&["a b", "t h", "th e"])).unwrap();
        let ids = tokenizer.encode(&text, Specials::AsText).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn decoding_undoes_encoding_with_smollm2(text in "[\\PC \n\t]{0,60}", parse in any::<bool>()) {
        if let Some(tokenizer) = smollm2() {
            prop_assume!(spelt_by_smollm2(&text));
            let specials = if parse { Specials::Parse } else { Specials::AsText };
            prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, specials).unwrap()), text);
        }
    }
}

/// Texts with the ids that an independent tokeniser gives them, beside a `tokenizer.model` or a `vocab.gguf`.
fn same_ids(folder: &Path) {
    let vocab = folder.join("vocab.gguf");
    let tokenizer = match vocab.exists() {
        true => Tokenizer::from_gguf(&Gguf::open(&vocab).unwrap()).unwrap().unwrap(),
        false => Tokenizer::from_folder(folder).unwrap(),
    };
    let cases = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    let cases: serde_json::Value = serde_json::from_str(&cases).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 250);
    let mut different = Vec::new();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let found = tokenizer.encode(text, Specials::AsText).unwrap();
        if found != ids(&case["ids"]) {
            different.push((text, found, ids(&case["ids"])));
        }
        let mut stream = tokenizer.decode_stream();
        let mut shown: String = ids(&case["ids"]).iter().filter_map(|&id| stream.push(id)).collect();
        shown.extend(stream.finish());
        assert_eq!(shown, tokenizer.decode(&ids(&case["ids"])), "{text:?}");
    }
    println!("{}: {} texts, {} differ", folder.display(), cases.len(), different.len());
    assert!(different.is_empty(), "{}: {:?}", folder.display(), &different[..different.len().min(5)]);
}

/// Small vocabularies trained and read by the sentencepiece package (tests/slow/vocabularies.py --small).
#[test]
fn golden_ids_equal_sentencepiece() {
    for kind in ["bpe", "unigram"] {
        same_ids(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sentencepiece").join(kind));
    }
}

/// The vocabularies that tests/slow/vocabularies.py wrote to the folder `STEERKIT_TOKENISERS`.
#[test]
fn golden_tokenisers_of_packages() {
    let Some(folder) = std::env::var_os("STEERKIT_TOKENISERS") else {
        println!("left out: golden_tokenisers_of_packages (STEERKIT_TOKENISERS names no folder)");
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        same_ids(&entry.unwrap().path());
    }
}

/// A SentencePiece vocabulary in a GGUF file's keys: bytes, then pieces.
fn pieces() -> GgufVocab {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["\u{2581}", "a", "b", "ab", "\u{2581}a", "\n\n"].map(str::to_owned));
    let kinds = |id| match id {
        0 => 2,
        1 | 2 => 3,
        3..=258 => 6,
        264 => 4,
        _ => 1,
    };
    GgufVocab {
        path: "small.gguf".into(),
        model: "llama".to_owned(),
        token_types: (0..tokens.len()).map(kinds).collect(),
        scores: (0..tokens.len()).map(|id| -(id as f32)).collect(),
        tokens,
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        ..GgufVocab::default()
    }
}

#[test]
fn sentencepiece_of_gguf_files() {
    let encode = |t: &Tokenizer, text: &str| t.encode(text, Specials::Parse).unwrap();
    let t = Tokenizer::from_vocab(pieces()).unwrap();
    assert!(t.add_bos());
    // A space comes before the text and after each control token.
    assert_eq!(encode(&t, "ab"), [259, 262]);
    assert_eq!(encode(&t, "b</s>a"), [259, 261, 2, 263]);
    assert_eq!(encode(&t, "é\n\nb"), [259, 3 + 0xC3, 3 + 0xA9, 264, 259, 261]);
    assert_eq!(t.encode("</s>", Specials::AsText).unwrap().len(), 5);
    assert_eq!(t.decode(&encode(&t, "a é b")), "a é b");
    assert_eq!(t.decode(&encode(&t, " a")), " a");
    let t = Tokenizer::from_vocab(GgufVocab { space_prefix: Some(false), ..pieces() }).unwrap();
    assert_eq!(encode(&t, "ab a"), [262, 263]);
    assert_eq!(t.decode(&[263, 262]), " aab");
}

#[test]
fn fault_13_sentencepiece_vocabularies() {
    let refused = |vocab: GgufVocab, part: &str| {
        let error = Tokenizer::from_vocab(vocab).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(GgufVocab { scores: vec![0.0; 3], ..pieces() }, "scores: found 3 scores");
    refused(GgufVocab { scores: vec![f32::NAN; pieces().tokens.len()], ..pieces() }, "scores");
    refused(GgufVocab { unknown: Some(1000), ..pieces() }, "unknown_token_id");
}

#[test]
fn fault_13_broken_sentencepiece_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sentencepiece/bpe");
    let whole = std::fs::read(folder.join("tokenizer.model")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(dir.path().join("tokenizer.model"), bytes).unwrap();
        Tokenizer::from_folder(dir.path()).map(drop)
    };
    assert!(read(&whole).is_ok());
    for bytes in [
        &b""[..],
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xff\xff\xff",
        b"version https://git-lfs",
    ] {
        assert!(read(bytes).is_err(), "{bytes:?}");
    }
    // Cut or changed anywhere: an answer, and no panic.
    for at in (0..whole.len()).step_by(97) {
        let _ = read(&whole[..at]);
        let mut changed = whole.clone();
        changed[at] ^= 0x55;
        let _ = read(&changed);
    }
}
