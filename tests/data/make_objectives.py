"""Losses and gradients of every objective on a tiny Llama, by PyTorch autograd in double precision.

    pip install torch==2.15.0 transformers==5.23.0 safetensors==0.8.0
    python tests/data/make_objectives.py

Writes goldens/objectives.json. The formulas are written here once more, from the papers: nothing of steerkit runs. The
model is goldens/llama; a vector v acts on the output of block LAYER at the positions of a scope; responses end in EOS.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent / "goldens"
LAYER, SEED = 1, 11
BETA = 0.1

torch.manual_seed(SEED)
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(HERE / "llama", dtype=torch.float64, attn_implementation="eager")
model.eval().requires_grad_(False)
d, vocab = model.config.hidden_size, model.config.vocab_size

rng = torch.Generator().manual_seed(SEED)


def ids(n):
    return torch.randint(3, vocab, (n,), generator=rng).tolist()


EOS = 2
pairs = [
    {"prompt": ids(p), "chosen": ids(c) + [EOS], "rejected": ids(r) + [EOS]}
    for p, c, r in [(6, 4, 2), (3, 1, 5), (9, 3, 3)]
]
v0 = (torch.randn(d, generator=rng, dtype=torch.float64) * 0.4).to(torch.float32).to(torch.float64)

SCOPES = {
    "all": lambda p, t: torch.ones(t),
    "all-but-first": lambda p, t: (torch.arange(t) >= 1).double(),
    "prompt": lambda p, t: (torch.arange(t) < p).double(),
    "generated": lambda p, t: (torch.arange(t) >= p).double(),
    "last-prompt": lambda p, t: (torch.arange(t) == p - 1).double(),
    "first-2+last-2": lambda p, t: ((torch.arange(t) < p) & ((torch.arange(t) < 2) | (torch.arange(t) >= p - 2))).double(),
}


def logp(prompt, response, edit, scope):
    """Summed log-probability of the response with `edit` applied to the block's output at the scope's positions."""
    tokens = prompt + response
    mask = SCOPES[scope](len(prompt), len(tokens)).double()[None, :, None]

    def hook(_module, _args, out):
        h = out[0] if isinstance(out, tuple) else out
        h = h * (1 - mask) + edit(h) * mask
        return (h,) + out[1:] if isinstance(out, tuple) else h

    handle = model.model.layers[LAYER].register_forward_hook(hook)
    try:
        logits = model(torch.tensor([tokens])).logits[0]
    finally:
        handle.remove()
    logps = F.log_softmax(logits, -1)
    at = torch.arange(len(prompt) - 1, len(tokens) - 1)
    return logps[at, torch.tensor(response)].sum()


def added(v, m):
    return lambda h: h + m * v


def nulled(v):
    return lambda h: h - torch.relu(h @ v)[..., None] * v / (v @ v)


def both(pair, edit, scope):
    return [logp(pair["prompt"], pair[side], edit, scope) for side in ("chosen", "rejected")]


def bipo(v, pair, d, scope, factor, ref, anchor=0.0):
    c, r = both(pair, added(v, d), scope)
    loss = -F.logsigmoid(d * BETA * ((c - ref[0]) - (r - ref[1])))
    if anchor:
        loss = loss - anchor * both(pair, added(v, 1.0), scope)[0] / len(pair["chosen"])
    return loss


def nll(v, pair, d, scope, factor, ref):
    side = "chosen" if d > 0 else "rejected"
    return -logp(pair["prompt"], pair[side], added(v, d * factor), scope) / len(pair[side])


def simpo(v, pair, d, scope, factor, ref):
    win, lose = both(pair, added(v, d * factor), scope)
    a, b = len(pair["chosen"]), len(pair["rejected"])
    if d < 0:
        win, lose, a, b = lose, win, b, a
    return -F.logsigmoid(2.0 * win / a - 2.0 * lose / b - 1.0)


def reps(v, pair, d, scope, factor, ref):
    a, b = len(pair["chosen"]), len(pair["rejected"])
    c, r = both(pair, added(v, factor), scope)
    positive = -F.logsigmoid(max(ref[1] - ref[0], 1.0) * c / a - r / b)
    c, r = both(pair, nulled(v), scope)
    return positive - F.logsigmoid(max(ref[0] - ref[1], 1.0) * r / b - c / a)


def split(v, pair, d, scope, factor, ref):
    a, b = len(pair["chosen"]), len(pair["rejected"])
    c, r = both(pair, added(v, 1.0), scope)
    away = both(pair, added(v, -1.0), scope)[1]
    return -c / a + 0.6 * -away / b + 4.0 * torch.relu(0.5 - (-r / b + c / a))


CASES = [
    ("bipo", {"kind": "bipo"}, bipo, "all"),
    ("bipo-anchor", {"kind": "bipo", "anchor": 2.0}, lambda *a: bipo(*a, anchor=2.0), "all"),
    ("nll", {"kind": "nll"}, nll, "first-2+last-2"),
    ("simpo", {"kind": "simpo"}, simpo, "generated"),
    ("reps", {"kind": "reps"}, reps, "all-but-first"),
    ("split", {"kind": "split"}, split, "all"),
    ("bipo on the prompt", {"kind": "bipo"}, bipo, "prompt"),
    ("bipo on the last prompt token", {"kind": "bipo"}, bipo, "last-prompt"),
]

plain = lambda h: h
refs = [[x.item() for x in both(pair, plain, "all")] for pair in pairs]
out = {"layer": LAYER, "v": v0.tolist(), "pairs": pairs, "references": refs, "cases": []}
for name, objective, f, scope in CASES:
    for direction in (1, -1):
        factors = [0.5, 1.0, 1.75] if objective["kind"] == "reps" else [1.0] * 3
        v = v0.clone().requires_grad_(True)
        loss = sum(f(v, pair, direction, scope, a, ref) for pair, a, ref in zip(pairs, factors, refs)) / len(pairs)
        (grad,) = torch.autograd.grad(loss, v)
        out["cases"].append(
            {"name": name, "objective": objective, "scope": scope, "d": direction, "factors": factors,
             "loss": loss.item(), "grad": grad.tolist()}
        )
(HERE / "objectives.json").write_text(json.dumps(out) + "\n")
print(f"{len(out['cases'])} cases, references {refs}")
