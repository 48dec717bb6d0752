"""Writes crates/steerkit-kernels/tests/data/blocks.txt: random GGUF blocks and their expansion by the `gguf` package.

One case a line: the format's name, its ggml type id, the blocks in hex, and the numbers as little-endian f32 in hex.

    pip install gguf==0.19.0 && python tests/data/make_blocks.py
"""

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

# Where a block holds half-precision numbers: random bits there are replaced by finite values.
HALVES = {
    "F16": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "MXFP4": [],
    "BF16": [],
    "F32": [],
}


def main() -> None:
    rng = np.random.default_rng(20240531)
    lines = []
    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        block_len, block_bytes = GGML_QUANT_SIZES[kind]
        count = {1: 24, 32: 5, 256: 3}[block_len]
        blocks = rng.integers(0, 256, size=(count, block_bytes), dtype=np.uint8)
        for at in halves:
            scales = rng.normal(0.0, 0.02, size=count).astype(np.float16)
            scales[0] = np.float16(3e-6)  # subnormal
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
        if name in ("F32", "BF16"):
            blocks[:, -1] &= 0xBF  # no NaN: the top exponent bit is clear
        if name == "MXFP4":
            blocks[:, 0] = [0, 1, 2, 127, 250]
        raw = blocks.reshape(1, -1)
        numbers = dequantize(raw.view(np.float32) if name == "F32" else raw, kind).astype("<f4").ravel()
        assert numbers.size == count * block_len and np.isfinite(numbers).all()
        lines.append(f"{name} {int(kind)} {blocks.tobytes().hex()} {numbers.tobytes().hex()}\n")
    out = Path(__file__).parents[2] / "crates/steerkit-kernels/tests/data/blocks.txt"
    out.write_text("".join(lines))


main()
