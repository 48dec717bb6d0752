"""Writes a GGUF file in the shape of Llama-2-7B with Q4_K matrices (Q6_K embedding and head) of seeded random weights and
a byte-level vocabulary, and pairs of about 100 tokens: what memory a 7B model takes, without one.

    pip install gguf==0.19.0
    python tests/slow/make_7b.py OUT [--blocks N]
    /usr/bin/time -v steerkit train --model OUT/random-7b.gguf --data OUT/pairs.csv --layer 15 --steps 2 --batch 4 --out OUT/run

`--blocks 4` makes a small one to try the commands with. The file has 4 GB; every matrix is one block of 1 MB repeated.
"""

import csv
import sys
from pathlib import Path

import gguf
import numpy as np

D, FFN, HEADS, VOCAB = 4096, 11008, 32, 32000
Q = gguf.GGMLQuantizationType


def blocks(rng, kind, rows, cols):
    """Random blocks whose numbers have a standard deviation of about `cols`^-1/2."""
    n, size = gguf.GGML_QUANT_SIZES[kind]
    pool = rng.integers(0, 256, size=(4096, size), dtype=np.uint8)
    std = cols**-0.5
    if kind == Q.Q4_K:
        d = np.float16(std / (32 * 4.6))
        pool[:, 0:2] = np.array([d]).view(np.uint8)
        pool[:, 2:4] = np.array([np.float16(7.5 * d)]).view(np.uint8)
    else:
        pool[:, 208:210] = np.array([np.float16(std / (74 * 18.5))]).view(np.uint8)
    count = rows * cols // n
    return np.resize(pool, (count, size)).reshape(rows, cols // n * size)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    n_blocks = int(sys.argv[sys.argv.index("--blocks") + 1]) if "--blocks" in sys.argv else 32
    rng = np.random.default_rng(20240531)
    w = gguf.GGUFWriter(out / "random-7b.gguf", "llama", use_temp_file=False)
    w.add_name("random 7B")
    w.add_block_count(n_blocks)
    w.add_context_length(4096)
    w.add_embedding_length(D)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    alphabet = [chr(b) if b in printable else chr(256 + rest.index(b)) for b in range(256)]
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(["<s>", "</s>", *alphabet, *(f"<unused{i}>" for i in range(VOCAB - 258))])
    w.add_token_types([3, 3] + [1] * 256 + [5] * (VOCAB - 258))
    w.add_token_merges([])
    w.add_bos_token_id(0)
    w.add_eos_token_id(1)

    def add(name, rows, cols, kind=Q.Q4_K):
        w.add_tensor(name, blocks(rng, kind, rows, cols), raw_dtype=kind)

    add("token_embd.weight", VOCAB, D, Q.Q6_K)
    add("output.weight", VOCAB, D, Q.Q6_K)
    w.add_tensor("output_norm.weight", np.ones(D, np.float32))
    for i in range(n_blocks):
        for role in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{role}.weight", D, D)
        add(f"blk.{i}.ffn_gate.weight", FFN, D)
        add(f"blk.{i}.ffn_up.weight", FFN, D)
        add(f"blk.{i}.ffn_down.weight", D, FFN)
        for role in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"blk.{i}.{role}.weight", np.ones(D, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    with open(out / "pairs.csv", "w", newline="") as f:
        rows = csv.writer(f)
        rows.writerow(["prompt", "chosen", "rejected"])
        text = lambda n: "".join(rng.choice(list("abcdefgh "), n))
        rows.writerows([text(60), text(40), text(40)] for _ in range(16))


main()
