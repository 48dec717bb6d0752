"""Reads our exported vectors with PyTorch, the gguf package and safetensors, and PyTorch's own file with steerkit.

    cargo build -p steerkit-cli
    python tests/slow/vectors.py STEERKIT_BINARY VECTOR.safetensors

Needs torch, gguf and safetensors. Prints what agrees; fails on the first difference.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import gguf
import numpy as np
import torch
from safetensors.numpy import load_file


def convert(binary, source, target, *more):
    out = subprocess.run([binary, "vector", "convert", source, target, "--json", *more], check=True, capture_output=True)
    return json.loads(out.stdout.splitlines()[-1])


def main():
    binary, source = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    ((name, want),) = load_file(source).items()
    layer = int(name.removeprefix("direction."))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        pt, control = folder / f"v_layer{layer}.pt", folder / "v.gguf"
        convert(binary, source, pt)
        got = torch.load(pt, weights_only=True)
        assert got.dtype == torch.float32 and np.array_equal(got.numpy(), want), "torch.load"
        convert(binary, source, control)
        reader = gguf.GGUFReader(control)
        keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF")}
        assert keys["general.architecture"] == "controlvector" and keys["controlvector.layer_count"] == 1
        (tensor,) = reader.tensors
        assert tensor.name == name and np.array_equal(tensor.data, want), "gguf"
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32):
            for wrap in (lambda t: t, lambda t: t[None], torch.nn.Parameter):
                theirs = folder / f"theirs_layer{layer}.pt"
                tensor = wrap(torch.tensor(want).to(dtype))
                torch.save(tensor, theirs)
                back = convert(binary, theirs, folder / "back.safetensors", "--overwrite")
                ours = load_file(folder / "back.safetensors")[name]
                assert back["vectors"][0]["layer"] == layer
                assert np.array_equal(ours, tensor.detach().float().numpy().ravel()), (dtype, wrap)
    print(f"layer {layer}, {want.size} numbers: torch.load and gguf read ours, and steerkit reads 12 files of torch.save")


main()
