//! Generation on a small random model: batches, streams, limits.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use steerkit_kernels::Matrix;
use steerkit_model::config::{Features, Rope, RopePairing, RopeScaling};
use steerkit_model::weights::{LayerWeights, Weights};
use steerkit_model::{
    Batcher, Completion, DecoderConfig, Edit, EditOp, Event, Finish, Limits, Loaded, Model, ModelError,
    ModelIdentity, OpenOptions, Pack, Positions, PromptToken, Request, Run, Sampling, Tokenizer,
};

const D: usize = 32;
const LAYERS: usize = 3;
const CONTEXT: usize = 128;

/// Bytes of each token: letters, and characters of several bytes in parts. The last token ends a response.
fn pieces() -> Vec<Vec<u8>> {
    let mut pieces: Vec<Vec<u8>> = (b'a'..=b'z').map(|b| vec![b]).collect();
    let more: [&[u8]; 9] =
        [b" ", b"\n", b"ab", b"cde", &[0xC3], &[0xA9], &[0xF0, 0x9F], &[0x98], &[0x80, b'!']];
    pieces.extend(more.map(<[u8]>::to_vec));
    pieces.push(b"<end>".to_vec());
    pieces
}

const VOCAB: usize = 36;
const END: u32 = 35;

fn tokenizer() -> Tokenizer {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let spelt = |bytes: &[u8]| -> String {
        let char_of = |&b: &u8| match printable(b) {
            true => char::from(b),
            false => char::from_u32(256 + (0..b).filter(|&b| !printable(b)).count() as u32).unwrap(),
        };
        bytes.iter().map(char_of).collect()
    };
    let byte_level = serde_json::json!(
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let vocab: serde_json::Map<_, _> =
        pieces()[..END as usize].iter().enumerate().map(|(id, b)| (spelt(b), id.into())).collect();
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{"id": END, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": "<end>"}"#).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

/// A random model; `spoil` may change its embedding.
fn random_model(tokenizer: Option<Tokenizer>, spoil: impl FnOnce(&mut [f32])) -> Model {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut noise =
        |n: usize, scale: f32| -> Vec<f32> { (0..n).map(|_| rng.random_range(-scale..scale)).collect() };
    let (heads, kv_heads, head_dim, f) = (4, 2, 8, 48);
    let mut embed = noise(VOCAB * D, 1.0);
    spoil(&mut embed);
    let mut layer = || LayerWeights {
        attn_norm: Some(vec![1.0; D]),
        qkv: Matrix::from_f32(
            (heads + 2 * kv_heads) * head_dim,
            D,
            &noise((heads + 2 * kv_heads) * head_dim * D, 0.4),
        )
        .into(),
        qk_norms: None,
        attn_out: Matrix::from_f32(D, heads * head_dim, &noise(D * heads * head_dim, 0.4)).into(),
        attn_post_norm: None,
        ffn_norm: Some(vec![1.0; D]),
        gate_up: Matrix::from_f32(2 * f, D, &noise(2 * f * D, 0.4)).into(),
        down: Matrix::from_f32(D, f, &noise(D * f, 0.4)).into(),
        ffn_post_norm: None,
    };
    let layers = (0..LAYERS).map(|_| layer()).collect();
    let weights = Weights {
        embed: Matrix::from_f32(VOCAB, D, &embed),
        layers,
        final_norm: vec![1.0; D],
        head: Matrix::from_f32(VOCAB, D, &noise(VOCAB * D, 0.5)),
    };
    let config = DecoderConfig {
        architecture: "random".to_owned(),
        n_layers: LAYERS,
        d_model: D,
        n_heads: heads,
        n_kv_heads: kv_heads,
        head_dim,
        d_ff: f,
        vocab: VOCAB,
        context: CONTEXT,
        norm_eps: 1e-5,
        rope: Rope { theta: 1e4, pairing: RopePairing::Halves, scaling: RopeScaling::None },
        features: Features::default(),
    };
    let identity = ModelIdentity {
        name: "random".to_owned(),
        architecture: "random".to_owned(),
        d_model: D,
        n_layers: LAYERS,
        vocab: VOCAB,
        file_sha256: String::new(),
        tokenizer_sha256: None,
        template_sha256: None,
    };
    let loaded = Loaded { config, weights, tokenizer, chat_template: None, identity };
    Model::new(loaded, &OpenOptions::default()).unwrap()
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| random_model(Some(tokenizer()), |_| ()))
}

fn add(layer: usize, seed: u64, multiplier: f32) -> Edit {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let v: Arc<[f32]> = (0..D).map(|_| multiplier * rng.random_range(-1.0..1.0f32)).collect();
    Edit::new(layer, EditOp::Add(v))
}

fn prompt(seed: u64, len: usize) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(0..END)).collect()
}

/// Twenty requests of mixed lengths, vectors, multipliers and sampling.
fn mixed() -> Vec<Request> {
    (0..20)
        .map(|i| {
            let edits = match i % 4 {
                0 => vec![],
                1 => vec![add(1, i, 1.5)],
                2 => vec![add(0, i, -0.5), add(2, i, 2.0)],
                _ => vec![add(LAYERS - 1, i, -3.0)],
            };
            let temperature = [0.0, 0.8, 1.5][i as usize % 3];
            let sampling = Sampling {
                temperature,
                top_k: [0, 10][i as usize % 2],
                top_p: [1.0, 0.9][i as usize / 2 % 2],
                min_p: [0.0, 0.02][i as usize / 4 % 2],
                repetition_penalty: [1.0, 1.3][i as usize / 3 % 2],
                presence_penalty: [0.0, 0.4][i as usize / 5 % 2],
                frequency_penalty: [0.0, 0.3][i as usize / 7 % 2],
                seed: i,
            };
            let (prompt, max_tokens) = (prompt(i, 1 + (i as usize * 37) % 70), 1 + (i as usize * 13) % 40);
            Request { prompt, edits, sampling, max_tokens, ..Request::default() }
        })
        .collect()
}

fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request { prompt, max_tokens, ..Request::default() }
}

/// Runs to the end; an error where a request failed.
fn finish(batcher: &mut Batcher<'_>, n: usize) -> Vec<Result<Completion, ModelError>> {
    let mut all: Vec<Result<Completion, ModelError>> = (0..n).map(|_| Ok(Completion::default())).collect();
    while !batcher.is_idle() {
        for Event { id, news } in batcher.step().unwrap() {
            let one = &mut all[id.0 as usize];
            match (news, one.as_mut()) {
                (Ok(new), Ok(completion)) => completion.push(&new),
                (Err(e), Ok(_)) => *one = Err(e),
                (_, Err(_)) => panic!("an event after the end"),
            }
        }
    }
    all
}

fn run(model: &Model, requests: &[Request], max_batch: usize, prompt_tokens: usize) -> Vec<Completion> {
    let limits = Limits { prompt_tokens, ..Limits::default() };
    let mut batcher = Batcher::new(model, max_batch, limits).unwrap();
    for request in requests {
        batcher.submit(request.clone()).unwrap();
    }
    finish(&mut batcher, requests.len()).into_iter().map(Result::unwrap).collect()
}

#[test]
fn a_text_does_not_depend_on_what_else_is_in_the_batch() {
    let requests = mixed();
    let alone: Vec<Completion> =
        requests.iter().map(|r| run(model(), std::slice::from_ref(r), 1, 256).remove(0)).collect();
    assert!(alone.iter().map(|c| &c.tokens).collect::<std::collections::HashSet<_>>().len() > 15);
    for (max_batch, prompt_tokens) in [(1, 256), (3, 256), (20, 256), (20, 7), (3, 1)] {
        let together = run(model(), &requests, max_batch, prompt_tokens);
        for (i, (a, b)) in alone.iter().zip(&together).enumerate() {
            assert_eq!(a, b, "request {i}, batch {max_batch}, {prompt_tokens} prompt tokens a step");
            let bits = |c: &Completion| c.logprobs.iter().map(|p| p.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(a), bits(b));
        }
    }
}

#[test]
fn texts_with_one_prompt_are_as_if_alone() {
    // Multipliers of one vector, plans that part at different blocks, plans that are the same, and another prompt.
    let plans = [
        vec![],
        vec![add(1, 1, 1.0)],
        vec![add(1, 1, -1.0)],
        vec![add(1, 1, 1.0), add(2, 2, 1.0)],
        vec![add(1, 1, 1.0), add(2, 2, -1.0)],
        vec![add(0, 3, 1.0)],
        vec![add(1, 1, 1.0)],
        vec![],
        vec![add(LAYERS - 1, 1, 2.0)],
    ];
    let mut requests: Vec<Request> =
        plans.iter().map(|edits| Request { edits: edits.clone(), ..greedy(prompt(9, 50), 12) }).collect();
    requests.insert(3, greedy(prompt(10, 50), 12));
    let alone: Vec<Completion> =
        requests.iter().map(|r| run(model(), std::slice::from_ref(r), 1, 256).remove(0)).collect();
    assert!(alone.iter().map(|c| &c.tokens).collect::<std::collections::HashSet<_>>().len() > 5);
    for (max_batch, prompt_tokens) in [(10, 1000), (10, 256), (10, 30), (10, 3), (4, 64)] {
        let together = run(model(), &requests, max_batch, prompt_tokens);
        for (i, (a, b)) in alone.iter().zip(&together).enumerate() {
            assert_eq!(a, b, "request {i}, batch {max_batch}, {prompt_tokens} prompt tokens a step");
            let bits = |c: &Completion| c.logprobs.iter().map(|p| p.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(a), bits(b));
        }
    }
}

#[test]
fn cached_decoding_is_the_same_as_running_the_whole_text() {
    for request in mixed() {
        let request = Request { sampling: Sampling::default(), ..request };
        let found = run(model(), std::slice::from_ref(&request), 1, 5).remove(0);
        let mut text = request.prompt.clone();
        for (&token, &logprob) in found.tokens.iter().zip(&found.logprobs) {
            let mut whole = model().new_sequence(request.edits.clone()).unwrap();
            let logits = model().advance(&mut [Run { sequence: &mut whole, tokens: &text }]).unwrap();
            let logits = logits[0].as_ref().unwrap();
            let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            assert_eq!(best as u32, token);
            let lse = steerkit_kernels::logprob::log_sum_exp(logits);
            assert_eq!((logits[best] - lse).to_bits(), logprob.to_bits());
            text.push(token);
        }
    }
}

#[test]
fn log_probabilities_are_those_of_scoring() {
    let request = Request {
        sampling: Sampling { temperature: 1.0, repetition_penalty: 1.2, ..Sampling::default() },
        ..greedy(prompt(3, 20), 30)
    };
    let found = run(model(), std::slice::from_ref(&request), 1, 256).remove(0);
    let mut pack = Pack::default();
    pack.push_pair(&request.prompt, &found.tokens, &[END]);
    let scored = model().score(&pack).unwrap();
    assert_eq!(found.logprobs, scored[..found.tokens.len()]);
}

#[test]
fn a_vector_of_zeros_is_the_plain_model_bit_for_bit() {
    for plain in mixed() {
        let plain = Request { edits: vec![], ..plain };
        let zero = Request { edits: vec![add(0, 1, 0.0), add(2, 2, -0.0)], ..plain.clone() };
        assert_eq!(run(model(), &[plain], 1, 256), run(model(), &[zero], 1, 256));
    }
}

#[test]
fn edits_act_at_their_own_layers_and_add_up() {
    let base = greedy(prompt(8, 12), 20);
    let with = |edits: Vec<Edit>| run(model(), &[Request { edits, ..base.clone() }], 1, 256).remove(0);
    let (a, b) = (add(0, 1, 1.0), add(2, 2, 1.0));
    let both = with(vec![a.clone(), b.clone()]);
    assert_eq!(both, with(vec![b.clone(), a.clone()]));
    let swapped = [Edit { layer: 2, ..a.clone() }, Edit { layer: 0, ..b.clone() }];
    for other in [vec![], vec![a.clone()], vec![b], swapped.to_vec()] {
        assert_ne!(both.logprobs[0], with(other).logprobs[0]);
    }
    let twice = with(vec![a.clone(), a]);
    let double = with(vec![add(0, 1, 2.0)]);
    assert!((twice.logprobs[0] - double.logprobs[0]).abs() < 1e-5);
}

/// The pieces of the stream, put together.
fn streamed(model: &Model, request: &Request) -> (Completion, String) {
    let mut text = String::new();
    let mut pieces = |event: &Event| {
        text.push_str(event.news.as_ref().unwrap().text.as_deref().unwrap_or_default());
        ControlFlow::Continue(())
    };
    let completion = model.generate(vec![request.clone()], 1, &mut pieces).unwrap().remove(0);
    (completion, text)
}

#[test]
fn streamed_text_is_the_decoded_tokens_and_stops_before_stop_strings() {
    let tokenizer = model().tokenizer().unwrap();
    let (mut ended, mut stopped, mut cut) = (0, 0, 0);
    for seed in 0..60 {
        let sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
        let free = Request { sampling, ..greedy(prompt(seed, 5), 40) };
        let (whole, text) = streamed(model(), &free);
        assert_eq!(whole.text, text);
        let end = whole.tokens.iter().position(|&t| t == END);
        ended += usize::from(whole.finish == Finish::End);
        assert_eq!(whole.finish, if end.is_some() { Finish::End } else { Finish::Length });
        assert_eq!(whole.tokens.len(), end.map_or(40, |at| at + 1));
        assert_eq!(text, tokenizer.decode(&whole.tokens[..end.unwrap_or(40)]));
        cut += usize::from(text.contains('\u{FFFD}'));

        let chars: Vec<char> = text.chars().collect();
        if chars.len() < 12 {
            continue;
        }
        let stop: String = chars[6..9].iter().collect();
        let held = Request { stop: vec!["never".to_owned(), stop.clone()], ..free.clone() };
        let (short, text) = streamed(model(), &held);
        stopped += 1;
        assert_eq!(short.finish, Finish::Stop);
        assert_eq!(short.text, whole.text[..whole.text.find(&stop).unwrap()]);
        assert_eq!(short.text, text);
        assert_eq!(short.tokens, whole.tokens[..short.tokens.len()]);
        assert!(tokenizer.decode(&short.tokens).contains(&stop));
    }
    assert!(
        ended > 5 && stopped > 10 && cut > 5,
        "{ended} ended, {stopped} stopped, {cut} with parts of characters"
    );
}

#[test]
fn the_context_ends_a_text() {
    let full = greedy(prompt(1, CONTEXT - 8), 1000);
    let plain = random_model(None, |_| ());
    let found = run(&plain, &[full], 1, 256).remove(0);
    assert_eq!((found.tokens.len(), found.finish, found.text.as_str()), (8, Finish::Length, ""));
}

#[test]
fn requests_that_cannot_run_are_refused() {
    let ok = greedy(vec![1, 2], 4);
    let refuse = |request: Request| {
        let mut batcher = Batcher::new(model(), 1, Limits::default()).unwrap();
        let e = batcher.submit(request).unwrap_err();
        assert!(batcher.is_idle());
        e.to_string()
    };
    let with_stop = |stop: Vec<String>| refuse(Request { stop, ..ok.clone() });
    assert_eq!(refuse(greedy(vec![], 4)), "prompt is empty, allowed is one token or more");
    assert_eq!(refuse(greedy(vec![1], 0)), "max_tokens is 0, allowed is 1 or more");
    assert_eq!(refuse(greedy(vec![1, 36], 4)), "token id 36 is outside the vocabulary of 36");
    assert_eq!(refuse(greedy(vec![1; CONTEXT], 4)), "129 tokens do not fit the model's context of 128");
    assert_eq!(with_stop(vec!["a".to_owned(); 17]), "stop is 17 texts, allowed is up to 16");
    assert_eq!(with_stop(vec![String::new()]), "stop is a text of 0 bytes, allowed is 1 to 512");
    let sampling = Sampling { top_p: f32::NAN, ..Sampling::default() };
    assert_eq!(refuse(Request { sampling, ..ok.clone() }), "top_p is NaN, allowed is 0 to 1");
    let edit =
        |layer, v: &[f32]| Request { edits: vec![Edit::new(layer, EditOp::Add(v.into()))], ..ok.clone() };
    assert_eq!(refuse(edit(3, &[0.0; D])), "layer 3 does not exist: the model has blocks 0 to 2");
    assert_eq!(refuse(edit(1, &[f32::NAN; D])), "steering vector: 32 of 32 values are not finite");
    assert!(refuse(edit(1, &[0.0; 8])).starts_with("the vector has 8 numbers"));
    let bare = random_model(None, |_| ());
    let e = Batcher::new(&bare, 1, Limits::default())
        .unwrap()
        .submit(Request { stop: vec!["x".to_owned()], ..ok.clone() })
        .unwrap_err();
    assert_eq!(e.to_string(), "model random has no tokeniser");
    let mut full = Batcher::new(model(), 1, Limits { waiting: 1, ..Limits::default() }).unwrap();
    full.submit(ok.clone()).unwrap();
    assert_eq!(full.submit(ok).unwrap_err().to_string(), "1 requests are waiting already");
    assert!(Batcher::new(model(), 0, Limits::default()).is_err());
}

#[test]
fn a_text_that_overflows_harms_no_other() {
    let mut requests = mixed();
    let alone = run(model(), &requests, 1, 256);
    let huge = Edit::new(1, EditOp::Add([3e38; D].as_slice().into()));
    requests[7].edits = vec![huge.clone(), huge];
    let mut batcher = Batcher::new(model(), 4, Limits::default()).unwrap();
    for request in &requests {
        batcher.submit(request.clone()).unwrap();
    }
    for (i, (found, alone)) in finish(&mut batcher, 20).into_iter().zip(alone).enumerate() {
        match i {
            7 => assert_eq!(
                found.unwrap_err().to_string(),
                "logits under steering: 36 of 36 values are not finite"
            ),
            _ => assert_eq!(found.unwrap(), alone),
        }
    }
    let e = model().generate(requests, 4, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(e, ModelError::NonFinite { .. }));
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let broken = random_model(None, |embed| embed[5 * D + 1] = f32::NAN);
    let mut batcher = Batcher::new(&broken, 2, Limits::default()).unwrap();
    for token in [5, 6] {
        batcher.submit(greedy(vec![token], 1)).unwrap();
    }
    let found = finish(&mut batcher, 2);
    assert_eq!(
        found[0].as_ref().unwrap_err().to_string(),
        "token embedding, row 5: 1 of 32 values are not finite"
    );
    assert!(found[1].is_ok());
}

#[test]
fn a_cancelled_request_leaves_its_place_to_the_next() {
    let requests = mixed();
    let alone = run(model(), &requests[..5], 1, 256);
    let mut batcher = Batcher::new(model(), 2, Limits::default()).unwrap();
    let ids: Vec<_> = requests[..5].iter().map(|r| batcher.submit(r.clone()).unwrap()).collect();
    batcher.step().unwrap();
    assert_eq!((batcher.running(), batcher.waiting()), (1, 3), "the first wants one token only");
    assert!(batcher.cancel(ids[1]) && batcher.cancel(ids[3]) && !batcher.cancel(ids[0]));
    let found = finish(&mut batcher, 5);
    assert_eq!(found[2].as_ref().unwrap(), &alone[2]);
    assert_eq!(found[4].as_ref().unwrap(), &alone[4]);
    for cancelled in [1, 3] {
        assert_eq!(found[cancelled].as_ref().unwrap(), &Completion::default());
    }
}

#[test]
fn a_long_prompt_does_not_hold_up_running_texts() {
    let limits = Limits { prompt_tokens: 8, ..Limits::default() };
    let bare = random_model(None, |_| ());
    let mut batcher = Batcher::new(&bare, 2, limits).unwrap();
    let short = batcher.submit(greedy(prompt(1, 4), 40)).unwrap();
    batcher.step().unwrap();
    let long = batcher.submit(greedy(prompt(2, 100), 2)).unwrap();
    let mut before = 0;
    loop {
        let ids: Vec<_> = batcher.step().unwrap().iter().map(|e| e.id).collect();
        assert!(ids.contains(&short));
        if ids.contains(&long) {
            break;
        }
        before += 1;
    }
    // 100 tokens in parts of 8: the thirteenth step reads the last.
    assert_eq!(before, 12);
}

#[test]
fn a_prompt_is_scored_as_by_the_scoring_pass() {
    let requests: Vec<Request> = (0..3)
        .map(|i| Request {
            prompt_logprobs: true,
            top_logprobs: 4,
            edits: if i == 1 { vec![add(1, 3, 1.0)] } else { vec![] },
            ..greedy(prompt(40 + i, [1, 90, 90][i as usize]), 2)
        })
        .collect();
    let scored = |requests: &[Request], max_batch: usize, prompt_tokens: usize| -> Vec<Vec<PromptToken>> {
        let limits = Limits { prompt_tokens, ..Limits::default() };
        let mut batcher = Batcher::new(model(), max_batch, limits).unwrap();
        requests.iter().for_each(|r| _ = batcher.submit(r.clone()).unwrap());
        let mut all = vec![Vec::new(); requests.len()];
        while !batcher.is_idle() {
            for event in batcher.step().unwrap() {
                all[event.id.0 as usize].extend(event.news.unwrap().prompt);
            }
        }
        all
    };
    let found = scored(&requests, 3, 256);
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [0, 89, 89]);
    for tokens in [1, 7, 256] {
        assert_eq!(scored(&requests, 2, tokens), found, "{tokens} prompt tokens a step");
    }
    let mut pack = Pack::default();
    let first = pack.push(None, &requests[2].prompt[..1]);
    pack.push_response(first, &requests[2].prompt[1..]);
    let expected = model().score(&pack).unwrap();
    assert_eq!(found[2].iter().map(|t| t.logprob.to_bits()).collect::<Vec<_>>(), bits(&expected));
    for (at, token) in found[2].iter().enumerate() {
        assert_eq!(token.top.len(), 4);
        assert!(token.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        let own = token.top.iter().find(|t| t.token == requests[2].prompt[at + 1]);
        assert!(own.is_none_or(|own| own.logprob.to_bits() == token.logprob.to_bits()));
    }
}

#[test]
fn what_ended_texts_have_read_changes_no_bit() {
    let limits = Limits { cached_tokens: 200, ..Limits::default() };
    let mut batcher = Batcher::new(model(), 2, limits).unwrap();
    let common = prompt(77, 40);
    let after = |tokens: &[u32]| [&common[..], tokens].concat();
    let steer = |multiplier: f32, positions: Positions| vec![Edit { positions, ..add(1, 5, multiplier) }];
    let late = Positions::Ranges([30..usize::MAX].into());
    // Text, edits, and how many tokens of an earlier one it may take.
    let cases = [
        (after(&[1, 2]), vec![], 0),
        (after(&[3]), vec![], 40),
        (after(&[1, 2, 4]), steer(1.0, Positions::All), 0),
        (after(&[5, 6]), steer(1.0, Positions::All), 40),
        (after(&[5, 6]), steer(2.0, Positions::All), 0),
        (after(&[9]), steer(2.0, late.clone()), 30),
        (after(&[9]), steer(3.0, late), 30),
        (common[..20].to_vec(), vec![], 19),
    ];
    let mut expected_found = 0;
    for (i, (prompt, edits, shared)) in cases.into_iter().enumerate() {
        let request = Request { edits, ..greedy(prompt, 6) };
        let alone = run(model(), std::slice::from_ref(&request), 1, 256).remove(0);
        batcher.submit(request).unwrap();
        let mut found = Completion::default();
        while !batcher.is_idle() {
            batcher.step().unwrap().into_iter().for_each(|e| found.push(&e.news.unwrap()));
        }
        assert_eq!((&found, bits(&found.logprobs)), (&alone, bits(&alone.logprobs)), "text {i}");
        expected_found += shared;
        assert_eq!(batcher.prefix_stats().found, expected_found, "text {i}");
    }
}

#[test]
fn an_end_can_be_ignored() {
    let free = (0..200)
        .map(|seed| {
            let sampling = Sampling { temperature: 1.5, seed, ..Sampling::default() };
            Request { sampling, ..greedy(prompt(seed, 5), 40) }
        })
        .find(|r| run(model(), std::slice::from_ref(r), 1, 256)[0].finish == Finish::End)
        .expect("one of two hundred random texts ends");
    let on = run(model(), &[Request { ignore_end: true, ..free }], 1, 256).remove(0);
    assert_eq!((on.tokens.len(), on.finish), (40, Finish::Length));
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn the_caller_can_interrupt() {
    let mut tokens = 0;
    let mut third = |_: &Event| {
        tokens += 1;
        if tokens == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let plain = random_model(None, |_| ());
    let e = plain.generate(vec![greedy(vec![1], 10)], 1, &mut third).unwrap_err();
    assert!(matches!(e, ModelError::Interrupted));
    assert_eq!(tokens, 3);
}
