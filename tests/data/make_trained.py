"""Losses, gradients and trajectories of what is trained beside one vector: adapters, and vectors of several layers.

    pip install torch==2.15.0 transformers==5.23.0 peft==0.19.0 safetensors==0.8.0
    python tests/data/make_trained.py

Writes goldens/dpo_lora.json and goldens/joint_layers.json, on goldens/llama in double precision. PEFT's own layers and
PyTorch's autograd and AdamW made every number; the losses and penalties are written here once more.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent / "goldens"
BETA, EOS, STEPS = 0.1, 2, 3
torch.set_num_threads(1)
rng = torch.Generator().manual_seed(5)


def plain_model():
    model = AutoModelForCausalLM.from_pretrained(HERE / "llama", dtype=torch.float64, attn_implementation="eager")
    return model.eval().requires_grad_(False)


def ids(n):
    return torch.randint(3, 320, (n,), generator=rng).tolist()


pairs = [
    {"prompt": ids(p), "chosen": ids(c) + [EOS], "rejected": ids(r) + [EOS]}
    for p, c, r in [(6, 4, 2), (3, 1, 5), (9, 3, 3)]
]


def start(n, size):
    """Numbers that both sides can make: f32 of size * sin(0.37 i + 0.11)."""
    i = torch.arange(n, dtype=torch.float64)
    return (size * torch.sin(0.37 * i + 0.11)).float().double()


def logp(model, prompt, response):
    logps = F.log_softmax(model(torch.tensor([prompt + response])).logits[0], -1)
    at = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logps[at, torch.tensor(response)].sum()


def both(model, pair):
    return [logp(model, pair["prompt"], pair[side]) for side in ("chosen", "rejected")]


def preference(model, d, refs):
    """Eq. 3 of the paper over the pairs; DPO with d = 1."""
    total = 0
    for pair, ref in zip(pairs, refs):
        c, r = both(model, pair)
        total = total - F.logsigmoid(d * BETA * ((c - ref[0]) - (r - ref[1])))
    return total / len(pairs)


def cosine(lr, k):
    return lr * 0.5 * (1 + math.cos(math.pi * k / STEPS))


def numbers(x):
    return [float(f"{v:.9g}") for v in x.tolist()]


model = plain_model()
refs = [[x.item() for x in both(model, pair)] for pair in pairs]

# Adapters.
ORDER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
cases = []
for targets, r, alpha in [(["q_proj", "v_proj"], 2, 4), (ORDER, 2, 3)]:
    adapted = get_peft_model(plain_model(), LoraConfig(r=r, lora_alpha=alpha, target_modules=targets)).double().eval()
    named = dict(adapted.named_parameters())
    factors = []
    for layer in range(4):
        for name in (n for n in ORDER if n in targets):
            part = "self_attn" if name in ORDER[:4] else "mlp"
            at = f"base_model.model.model.layers.{layer}.{part}.{name}"
            factors += [named[f"{at}.lora_{f}.default.weight"] for f in "AB"]
    flat = start(sum(p.numel() for p in factors), 0.1)
    with torch.no_grad():
        for p, values in zip(factors, flat.split([p.numel() for p in factors])):
            p.copy_(values.reshape(p.shape))
    loss = preference(adapted, 1, refs)
    grad = torch.cat([g.flatten() for g in torch.autograd.grad(loss, factors)])
    case = {"targets": targets, "r": r, "alpha": alpha, "loss": loss.item(), "grad": numbers(grad)}
    if r * len(targets) < 8:
        optimiser = torch.optim.AdamW(factors, lr=0.01, weight_decay=0.05)
        losses = []
        for k in range(STEPS):
            optimiser.param_groups[0]["lr"] = cosine(0.01, k)
            optimiser.zero_grad()
            loss = preference(adapted, 1, refs)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        after = torch.cat([p.detach().flatten() for p in factors])
        case["trajectory"] = {"lr": 0.01, "weight_decay": 0.05, "losses": losses, "after": numbers(after)}
    cases.append(case)
    print(targets, case["loss"], case.get("trajectory", {}).get("losses"))
(HERE / "dpo_lora.json").write_text(json.dumps({"pairs": pairs, "references": refs, "cases": cases}) + "\n")

# Vectors of several layers.
LAYERS, D = [0, 2, 3], 64


def steered(v, d, scope):
    """The preference loss with d·v[i] added after block LAYERS[i] at the scope's positions."""
    total = 0
    for pair, ref in zip(pairs, refs):
        logps = []
        for side in ("chosen", "rejected"):
            t = torch.arange(len(pair["prompt"]) + len(pair[side]))
            mask = (t >= (len(pair["prompt"]) if scope == "generated" else 0)).double()[None, :, None]

            def hook(i):
                def add(_module, _args, out):
                    h = out[0] if isinstance(out, tuple) else out
                    h = h + d * v[i] * mask
                    return (h,) + out[1:] if isinstance(out, tuple) else h

                return add

            handles = [model.model.layers[l].register_forward_hook(hook(i)) for i, l in enumerate(LAYERS)]
            logps.append(logp(model, pair["prompt"], pair[side]))
            for handle in handles:
                handle.remove()
        total = total - F.logsigmoid(d * BETA * ((logps[0] - ref[0]) - (logps[1] - ref[1])))
    return total / len(pairs)


def hoyer(v):
    norms = v.norm(dim=1)
    return norms.sum() / norms.norm()


v0 = start(len(LAYERS) * D, 0.4).reshape(len(LAYERS), D)
cases = []
for scope in ("all", "generated"):
    for d in (1, -1):
        v = v0.clone().requires_grad_(True)
        loss = steered(v, d, scope)
        (grad,) = torch.autograd.grad(loss, v)
        cases.append({"scope": scope, "d": d, "loss": loss.item(), "grad": numbers(grad.flatten())})
penalties = []
for kind, weight in [("group-lasso", 5.0), ("hoyer", 0.5)]:
    v = v0.clone().requires_grad_(True)
    optimiser = torch.optim.AdamW([v], lr=0.05, weight_decay=0.05)
    for k in range(STEPS):
        lr = cosine(0.05, k)
        optimiser.param_groups[0]["lr"] = lr
        optimiser.zero_grad()
        loss = steered(v, 1, "all")
        (loss + weight * hoyer(v) if kind == "hoyer" else loss).backward()
        optimiser.step()
        if kind == "group-lasso":
            with torch.no_grad():
                norms = v.norm(dim=1, keepdim=True)
                v *= torch.clamp(1 - lr * weight / norms, min=0)
    value = weight * (hoyer(v0) if kind == "hoyer" else v0.norm(dim=1).sum())
    penalties.append({"penalty": {"kind": kind, "weight": weight}, "value": value.item(), "lr": 0.05,
                      "weight_decay": 0.05, "after": numbers(v.detach().flatten())})
    print(kind, v.detach().norm(dim=1).tolist())
(HERE / "joint_layers.json").write_text(
    json.dumps({"layers": LAYERS, "pairs": pairs, "references": refs, "cases": cases, "penalties": penalties}) + "\n"
)
