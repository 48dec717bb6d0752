use super::*;
use crate::OpenOptions;
use std::path::Path;

fn model(name: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name);
    Model::open(&path, &OpenOptions::default()).unwrap()
}

/// A sequence of another model, which has fewer blocks, stands for a bug: the pass reaches for what is not there.
#[test]
fn a_panic_inside_a_pass_leaves_the_queue_as_it_was() {
    let (model, other) = (model("tiny-llama-gguf/tiny-llama-f32.gguf"), model("families/mistral"));
    let request = Request { prompt: vec![5, 6, 7], max_tokens: 12, ignore_end: true, ..Request::default() };
    let alone = model.generate(vec![request.clone()], 1, &mut |_| ControlFlow::Continue(())).unwrap();
    let mut batcher = Batcher::new(&model, 2, Limits::default()).unwrap();
    for _ in 0..4 {
        batcher.submit(request.clone()).unwrap();
    }
    batcher.step().unwrap();
    batcher.running[1].sequence = other.new_sequence(Vec::new()).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| batcher.step())).is_err());
    assert_eq!((batcher.running(), batcher.waiting()), (0, 2));
    let mut tokens = [Vec::new(), Vec::new()];
    while !batcher.is_idle() {
        for Event { id, news } in batcher.step().unwrap() {
            tokens[id.0 as usize - 2].push(news.unwrap().token);
        }
    }
    assert_eq!([&tokens[0], &tokens[1]], [&alone[0].tokens; 2]);
}
