"""Our vectors in the programs they are exported for, on SmolLM2, and the authors' vectors in ours.

    cargo build -p steerkit-cli
    python tests/slow/peers.py --steerkit target/debug/steerkit --model SmolLM2.gguf --vector V.safetensors
        [--hf FOLDER] [--authors FOLDER]

Checks, each left out with a message when its package or folder is not there:
- llama.cpp (package llama-cpp-python): its own loader reads our GGUF file, and on the model dequantised to f32 its greedy
  tokens are ours wherever the two likeliest tokens are further apart than 1e-3. Building that package takes long; its
  bindings also run on the libraries that the npm package node-llama-cpp brings: unpack the former's source, link the
  latter's libllama.*.so to libllama.so in a folder of all of its libraries, and set LLAMA_CPP_LIB_PATH to it.
- repeng (package repeng): imports our GGUF file with the same directions.
- transformers (packages torch, transformers): the hook of docs/methods.md gives our tokens on --hf, the model as a
  folder (bench/peers/dequantize.py).
- the authors' .pt files in --authors convert with the norms that were published for them.

Needs gguf, numpy and safetensors.
"""

import argparse
import ctypes
import json
import pathlib
import re
import subprocess
import tempfile

import gguf
import numpy as np
from safetensors.numpy import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPTS = ["How should I store olive oil?", "Tell me about the sea.", "Why do leaves fall in autumn?"]
MULTIPLIERS = [-1.0, 1.0, 2.0]
TOKENS = 24
CLOSE = 1e-3  # logits nearer than this may be ordered otherwise by another summation
NORMS = {"power-seeking_mistral_vec_ep5_layer13.pt": 1.356, "wealth-seeking_llama-2_vec_ep20_layer15.pt": 8.994}


def steerkit(binary, *args):
    out = subprocess.run([binary, *map(str, args), "--json", "--quiet"], check=True, capture_output=True, text=True)
    return [json.loads(line) for line in out.stdout.splitlines()]


def chat(prompt):
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def answers(options, folder):
    """Our greedy tokens: [(text, multiplier, ids)]."""
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(chat(p)) + "\n" for p in PROMPTS))
    rows = steerkit(options.steerkit, "generate", "--model", options.model, "--steer", options.vector, "--raw",
                    "--multipliers", ",".join(map(str, MULTIPLIERS)), "--prompts", prompts, "--max-tokens", TOKENS)
    return [(row["prompt"], row["multiplier"], row["token_ids"]) for row in rows]


def dequantised(source, target):
    """The model with every tensor as f32."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        if kind == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, field.contents())
        else:
            writer.add_key_value(name, field.contents(), kind)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, data.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compare(what, ours, logits_of):
    """Teacher-forced: the likeliest token at every place must be ours, unless two are nearly equal."""
    same = near = 0
    for text, multiplier, ids in ours:
        logits = logits_of(text, multiplier, ids)
        for token, row in zip(ids, logits):
            second, first = np.sort(row)[-2:]
            if int(row.argmax()) == token:
                same += 1
            else:
                assert first - second < CLOSE, f"{what}: {text!r} at {multiplier}: {token}, not {row.argmax()}"
                near += 1
    print(f"{what}: {same} greedy tokens are the same, {near} lie within {CLOSE} of another")
    assert same > 0


class Info(ctypes.Structure):
    """common_control_vector_load_info: a strength and a std::string."""

    _fields_ = [("strength", ctypes.c_float), ("text", ctypes.c_char_p), ("length", ctypes.c_size_t),
                ("room", ctypes.c_char * 16)]


class Loaded(ctypes.Structure):
    """common_control_vector_data: a width and a std::vector<float>."""

    _fields_ = [("n_embd", ctypes.c_int), ("begin", ctypes.POINTER(ctypes.c_float)), ("end", ctypes.c_void_p),
                ("room", ctypes.c_void_p)]


def control_vector(llama, path):
    """What llama.cpp's own loader makes of the file: rows of layers 1, 2, .. in one buffer."""
    folder = pathlib.Path(llama._lib._name).parent
    found = sorted(folder.glob("libllama-common*.so*")) + sorted(folder.glob("libcommon*.so*"))
    if not found:
        print("llama.cpp: its loader is not in this build; the file is read with the gguf package")
        rows = {int(t.name.removeprefix("direction.")): np.array(t.data) for t in gguf.GGUFReader(path).tensors}
        width = len(next(iter(rows.values())))
        data = np.zeros((max(rows), width), np.float32)
        for layer, row in rows.items():
            data[layer - 1] = row
        return data
    common = ctypes.CDLL(str(found[0]))
    load = common["_Z26common_control_vector_loadRKSt6vectorI31common_control_vector_load_infoSaIS0_EE"]
    load.restype = None
    name = str(path).encode()
    info = Info(1.0, name, len(name))
    begin = ctypes.addressof(info)
    infos = (ctypes.c_void_p * 3)(begin, begin + ctypes.sizeof(info), begin + ctypes.sizeof(info))
    out = Loaded()
    load(ctypes.byref(out), ctypes.byref(infos))
    assert out.n_embd > 0, "llama.cpp's loader refused the file"
    n = (out.end - ctypes.cast(out.begin, ctypes.c_void_p).value) // 4
    return np.ctypeslib.as_array(out.begin, (n,)).copy().reshape(-1, out.n_embd)


def lenient(library, name, strict=ctypes.CDLL.__getattr__):
    """Bindings that are newer than a library name functions that it lacks; none of them is called here."""
    try:
        return strict(library, name)
    except AttributeError:
        if name.startswith("llama_"):
            return ctypes.CFUNCTYPE(None)(lambda: None)
        raise


def llama_cpp(options, folder, ours):
    ctypes.CDLL.__getattr__ = lenient
    try:
        import llama_cpp as llama
    except (ImportError, OSError, RuntimeError) as error:
        return print(f"llama.cpp: left out ({error})")
    source, control = folder / "f32.gguf", folder / "v.gguf"
    dequantised(options.model, source)
    steerkit(options.steerkit, "vector", "convert", options.vector, control)
    data = control_vector(llama.llama_cpp, control)
    ((name, want),) = load_file(options.vector).items()
    layer = int(name.removeprefix("direction."))
    assert np.array_equal(data[layer - 1], want), "the loaded direction is another one"
    lib = llama.llama_cpp
    for so in sorted(pathlib.Path(lib._lib._name).parent.glob("libggml*.so*")):
        handle = ctypes.CDLL(str(so))
        if hasattr(handle, "ggml_backend_load_all_from_path"):
            handle.ggml_backend_load_all_from_path(str(so.parent).encode())
            break
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(str(source).encode(), params)
    assert model, "llama.cpp cannot load the dequantised model"
    vocabulary, width = lib.llama_model_get_vocab(model), lib.llama_model_n_embd(model)
    size = lib.llama_vocab_n_tokens(vocabulary)

    def logits_of(text, multiplier, ids):
        raw, room = text.encode(), (ctypes.c_int32 * 512)()
        n = lib.llama_tokenize(vocabulary, raw, len(raw), room, 512, False, True)
        assert n > 0
        tokens = list(room[:n]) + ids[:-1]
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_threads = 512, 512, 512, 1
        settings.type_k = settings.type_v = 0
        settings.flash_attn_type = 0
        context = lib.llama_init_from_model(model, settings)
        scaled = np.ascontiguousarray(data * np.float32(multiplier))
        pointer = scaled.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        assert lib.llama_set_adapter_cvec(context, pointer, scaled.size, width, 1, lib.llama_model_n_layer(model)) == 0
        rows = []
        # One logits row per call: the last token's.
        for part in [tokens[:n]] + [[t] for t in tokens[n:]]:
            ids_of_part = (ctypes.c_int32 * len(part))(*part)  # the batch only points to it
            assert lib.llama_decode(context, lib.llama_batch_get_one(ids_of_part, len(part))) == 0
            rows.append(np.ctypeslib.as_array(lib.llama_get_logits(context), (size,)).copy())
        lib.llama_free(context)
        return rows

    compare("llama.cpp", ours, logits_of)


def repeng(options, folder):
    np.float_ = np.float64  # repeng 0.4.0 was written for NumPy 1
    try:
        from repeng import ControlVector
    except ImportError as error:
        return print(f"repeng: left out ({error})")
    control = folder / "repeng.gguf"
    steerkit(options.steerkit, "vector", "convert", options.vector, control)
    got = ControlVector.import_gguf(control)
    want = {int(name.removeprefix("direction.")): row for name, row in load_file(options.vector).items()}
    assert got.directions.keys() == want.keys(), f"{got.directions.keys()}"
    assert all(np.array_equal(got.directions[layer], row) for layer, row in want.items())
    print(f"repeng: imports our file for {got.model_type!r} with the same directions at {sorted(want)}")


def transformers(options, ours):
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        return print(f"transformers: left out ({error})")
    if not options.hf:
        return print("transformers: left out (no --hf)")
    guide = (ROOT / "docs/methods.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", guide, re.S) if "register_forward_hook" in block)
    scope = {}
    exec(compile(code, "docs/methods.md", "exec"), scope)
    tokenizer = AutoTokenizer.from_pretrained(options.hf)
    model = AutoModelForCausalLM.from_pretrained(options.hf, dtype=torch.float32)

    def logits_of(text, multiplier, ids):
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        handle = scope["steer"](model, options.vector, multiplier)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0]
        handle.remove()
        return logits[len(prompt) - 1 : -1].numpy()

    compare("transformers with the hook of docs/methods.md", ours, logits_of)


def authors(options, folder):
    found = [pathlib.Path(options.authors) / name for name in NORMS] if options.authors else []
    found = [path for path in found if path.exists()]
    if not found:
        return print("the authors' vectors: left out (no --authors)")
    for path in found:
        (got,) = steerkit(options.steerkit, "vector", "convert", path, folder / f"{path.stem}.safetensors")
        (part,) = got["vectors"]
        layer = int(path.stem.rsplit("layer", 1)[1])
        assert part["layer"] == layer and abs(part["norm"] - NORMS[path.name]) < 5e-4, part
        print(f"{path.name}: after block {layer}, {part['d_model']} numbers, norm {part['norm']:.3f} as published")


def main():
    parser = argparse.ArgumentParser()
    for name, needed in [("steerkit", True), ("model", True), ("vector", True), ("hf", False), ("authors", False)]:
        parser.add_argument(f"--{name}", required=needed)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        authors(options, folder)
        repeng(options, folder)
        ours = answers(options, folder)
        transformers(options, ours)
        llama_cpp(options, folder, ours)


main()
