"""An adapter that `train --method dpo-lora` made, in PEFT: its log-probabilities are ours at every multiplier.

    cargo build -p steerkit-cli
    python tests/slow/adapters.py --steerkit target/debug/steerkit --hf FOLDER --adapter runs/NAME/adapter

FOLDER is the model as transformers reads it (bench/peers/dequantize.py makes one from a GGUF file). The adapter may have
been trained on the GGUF file or on the folder. Needs torch, transformers and peft.
"""

import argparse
import json
import subprocess

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["How should I store olive oil?", "What would you do with more power?"]
MULTIPLIERS = [1.0, 0.5, 0.0, -1.0]
TOKENS = 16
CLOSE = 1e-4  # nats of one token


def ours(options, prompt, multiplier):
    """Our greedy tokens and their log-probabilities."""
    args = ["generate", "--model", options.hf, "--lora", f"{options.adapter}={multiplier}", "--raw", "--prompt", prompt,
            "--max-tokens", str(TOKENS), "--json", "--quiet"]
    out = subprocess.run([options.steerkit, *args], check=True, capture_output=True, text=True)
    answer = json.loads(out.stdout.splitlines()[-1])
    return answer["token_ids"], answer["logprobs"]


def main():
    parser = argparse.ArgumentParser()
    for name in ["steerkit", "hf", "adapter"]:
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.hf)
    base = AutoModelForCausalLM.from_pretrained(options.hf, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, options.adapter).eval()
    adapted = [m for m in model.modules() if isinstance(getattr(m, "scaling", None), dict) and m.scaling]
    own = [m.scaling["default"] for m in adapted]
    assert adapted, "PEFT put the adapter nowhere"
    numbers = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
    print(f"PEFT adapts {len(adapted)} projections, {numbers} numbers, scaling {own[0]}")
    worst, seen = 0.0, {}
    for multiplier in MULTIPLIERS:
        for module, scaling in zip(adapted, own):
            module.scaling["default"] = scaling * multiplier
        for prompt in PROMPTS:
            ids, logps = ours(options, prompt, multiplier)
            start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([start + ids])).logits[0].double()
            want = torch.log_softmax(logits, -1)[range(len(start) - 1, len(start) + len(ids) - 1), ids].tolist()
            worst = max(worst, *(abs(a - b) for a, b in zip(want, logps)))
            seen[multiplier] = seen.get(multiplier, []) + logps
    assert seen[1.0] != seen[0.0] != seen[-1.0], "the adapter does nothing"
    print(f"{len(MULTIPLIERS)} multipliers, {len(PROMPTS)} prompts of {TOKENS} tokens: log-probabilities differ by {worst:.1e}")
    assert worst < CLOSE


main()
