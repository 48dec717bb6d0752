//! Expansions against the Python package `gguf`; `tests/data/make_blocks.py` makes the cases.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

use steerkit_kernels::BlockFormat;
use steerkit_kernels::isa::{Isa, with_isa};

const CASES: &str = include_str!("data/blocks.txt");

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
}

#[test]
fn golden_blocks_expand_to_the_bits_of_the_gguf_package() {
    let mut seen = Vec::new();
    for line in CASES.lines() {
        let [name, id, blocks, numbers] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let format = BlockFormat::from_ggml(id.parse().unwrap()).unwrap();
        assert_eq!(format.name(), name);
        let (blocks, want) = (bytes(blocks), bytes(numbers));
        for isa in Isa::available() {
            let mut got = vec![f32::NAN; want.len() / 4];
            with_isa(isa, || format.expand(&blocks, &mut got));
            for (i, (got, want)) in got.iter().zip(want.as_chunks::<4>().0).enumerate() {
                assert_eq!(got.to_bits(), u32::from_le_bytes(*want), "{name} {isa:?} number {i}");
            }
        }
        seen.push(format);
    }
    assert!(BlockFormat::ALL.iter().all(|f| seen.contains(f)), "a format has no case");
}
