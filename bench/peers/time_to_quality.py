"""Seconds until a training is good enough: steerkit's recipes beside BiPO in PyTorch.

    python time_to_quality.py --steerkit target/release/steerkit --model MODEL.gguf --hf-model FOLDER --data power-seeking

Every contestant trains once for a number of pair-passes; its vector is taken every 16 passes with the seconds since its
process started (imports, model load and caches included). Then steerkit measures those vectors on held-out pairs,
outside of these seconds: the half-spread is (margin at +1 - margin at -1) / 2, the direction at the norm of preset
auto's last vector, so that no learning rate's norm decides. The first vector at 90 % of the target is found by
bisection. PyTorch follows the AdamW recipe: the same schedule and batch size, its own draw of pairs and directions.
Peers that are not installed are skipped with a message. Run it on a quiet machine.
"""
import argparse
import importlib.util
import json
import math
import os
import random
import struct
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# Learning rate, weight decay and warm-up of the AdamW recipe, and steps of 4 pairs.
LR, DECAY, BATCH, EVERY = 0.1, 0.05, 4, 16
SHARE = 0.9


def norm(v):
    return math.sqrt(sum(x * x for x in v))


def floats(hexadecimal):
    data = bytes.fromhex(hexadecimal)
    return list(struct.unpack(f"<{len(data) // 4}f", data))


def follow(process, checkpoint, began):
    """Vectors by step, with the seconds at which their checkpoints were written."""
    seen, last = {}, None
    while True:
        ended = process.poll() is not None
        try:
            stat = os.stat(checkpoint)
            if last != (stat.st_ino, stat.st_mtime_ns):
                last = (stat.st_ino, stat.st_mtime_ns)
                with open(checkpoint) as file:
                    state = json.loads(file.read().split("\n", 1)[1])
                seen.setdefault(state["step"], (stat.st_mtime - began, floats(state["vector"])))
        except FileNotFoundError:
            pass
        if ended:
            return seen
        time.sleep(0.01)


def steerkit(a, folder, name, batch, passes, more):
    """Trains with steerkit; the trajectory as (passes, seconds, vector)."""
    out = os.path.join(folder, name)
    command = [a.steerkit, "train", "--model", a.model, "--data", os.path.join(a.data, "train.csv"), "--layer", str(a.layer),
               "--seed", "1", "--precision", a.precision, "--threads", str(a.threads), "--out", out, "--no-cache", "--json",
               "--steps", str(passes // batch), "--batch", str(batch), "--set", "data.holdout=0",
               "--set", "eval.multipliers=[]", "--set", "eval.every_epochs=0",
               "--set", f"checkpoint.every_steps={max(1, EVERY // batch)}", *more]
    began = time.time()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen = follow(process, os.path.join(out, "checkpoints", "latest.checkpoint"), began)
    if process.returncode != 0:
        sys.exit(f"failed ({process.returncode}): {' '.join(command)}")
    return [(step * batch, seconds, v) for step, (seconds, v) in sorted(seen.items()) if step]


def torch_child(a):
    """Trains in PyTorch and prints the trajectory: the loop of torch_bipo.py under the AdamW recipe."""
    import csv
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    import torch_bipo as peer

    torch.set_num_threads(a.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[a.precision]
    load = lambda: AutoModelForCausalLM.from_pretrained(a.hf_model, dtype=dtype, attn_implementation="sdpa").eval().requires_grad_(False)
    tok, model = AutoTokenizer.from_pretrained(a.hf_model), load()
    draw = random.Random(1)
    with open(os.path.join(a.data, "train.csv"), newline="") as file:
        rows = draw.sample(list(csv.DictReader(file)), a.passes)
    ran = a.official_passes if a.torch_child == "official" else a.passes
    pairs = [peer.encode_pair(tok, r["question"], r["matching"], r["not_matching"]) for r in rows[:ran]]
    v = torch.nn.Parameter(torch.zeros(model.config.hidden_size))
    opt = torch.optim.AdamW([v], lr=LR, weight_decay=DECAY)
    total = a.passes // BATCH
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5 * (1 + math.cos(math.pi * step / total)))
    if a.torch_child == "official":
        reference, steer = load(), peer.Steer(model, a.layer, v)
    else:
        cached = [peer.CachedPair(model, a.layer, *p, dtype) for p in pairs]
    for step in range(ran // BATCH):
        d, batch = draw.choice([1.0, -1.0]), slice(BATCH * step, BATCH * (step + 1))
        if a.torch_child == "official":
            steer.d = d
            ids, mask, labels = peer.padded(pairs[batch], tok.eos_token_id)
            ours = peer.response_logps(model, ids, mask, labels)
            with torch.no_grad():
                theirs = peer.response_logps(reference, ids, mask, labels)
            peer.bipo_loss(ours[:BATCH], ours[BATCH:], theirs[:BATCH], theirs[BATCH:], d, 0.1).mean().backward()
        else:
            for pair in cached[batch]:
                (peer.bipo_loss(*pair.logps(d * v), *pair.ref, d, 0.1) / BATCH).backward()
        opt.step(), schedule.step(), opt.zero_grad()
        passes = (step + 1) * BATCH
        if passes % EVERY == 0:
            print(json.dumps([passes, time.time() - a.began, v.detach().tolist()]), flush=True)


def torch_peer(a, mode):
    command = [sys.executable, os.path.abspath(__file__), "--torch-child", mode, "--began", repr(time.time()), "--model", a.model,
               "--hf-model", a.hf_model, "--data", a.data, "--layer", str(a.layer), "--precision", a.precision,
               "--threads", str(a.threads), "--passes", str(a.passes), "--official-passes", str(a.official_passes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")
    return [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


class Judge:
    """Half-spreads of vectors on held-out pairs."""
    def __init__(self, a, folder, template):
        self.a, self.folder, self.known = a, folder, {}
        with open(template, "rb") as file:
            head = file.read(8)
            self.head = head + file.read(struct.unpack("<Q", head)[0])

    def half_spread(self, v, length=None):
        scale = 1.0 if length is None else length / norm(v)
        body = struct.pack(f"<{len(v)}f", *(x * scale for x in v))
        if body not in self.known:
            path = os.path.join(self.folder, "candidate.safetensors")
            with open(path, "wb") as file:
                file.write(self.head + body)
            a = self.a
            command = [a.steerkit, "eval", "preference", "--model", a.model, "--steer", path, "--data", os.path.join(a.data, "test.csv"),
                       "--limit", str(a.test_pairs), "--seed", "1", "--multipliers=-1,1", "--precision", "bf16", "--json"]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            points = [p["point"] for p in json.loads(done.stdout.strip().splitlines()[-1])["results"]["points"]]
            margin = {p["multiplier"]: p["margin"] for p in points}
            self.known[body] = (margin[1.0] - margin[-1.0]) / 2
        return self.known[body]

    def first(self, trajectory, target, length):
        """The first of the trajectory that reaches the target, by bisection; none if its last does not."""
        if self.half_spread(trajectory[-1][2], length) < target:
            return None
        low, high = 0, len(trajectory) - 1
        while low < high:
            middle = (low + high) // 2
            if self.half_spread(trajectory[middle][2], length) < target:
                low = middle + 1
            else:
                high = middle
        return trajectory[low]


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--steerkit", default="target/release/steerkit")
    a.add_argument("--model", required=True, help="GGUF file")
    a.add_argument("--hf-model", help="the same model as a Hugging Face folder (dequantize.py makes one); without it no PyTorch")
    a.add_argument("--data", required=True, help="folder with train.csv and test.csv (question, matching, not_matching)")
    a.add_argument("--layer", type=int, default=15)
    a.add_argument("--threads", type=int, default=2)
    a.add_argument("--precision", choices=["f32", "bf16"], default="f32", help="of all trainers")
    a.add_argument("--passes", type=int, default=128, help="pair-passes of a training, a multiple of 16")
    a.add_argument("--authors-passes", type=int, default=64, help="pair-passes of the authors' recipe")
    a.add_argument("--official-passes", type=int, default=48, help="pair-passes of the authors' trainer")
    a.add_argument("--test-pairs", type=int, default=32)
    a.add_argument("--torch-child", choices=["official", "cached"], help=argparse.SUPPRESS)
    a.add_argument("--began", type=float, help=argparse.SUPPRESS)
    a = a.parse_args()
    if a.torch_child:
        return torch_child(a)

    adamw = ["--preset", "paper", "--set", f"optimiser.lr={LR}", "--set", "optimiser.warmup={steps=0}"]
    with tempfile.TemporaryDirectory() as folder:
        say = lambda name: print(f"training: {name}", file=sys.stderr, flush=True)
        ran = {}
        for name, arguments in {
            "steerkit, auto": ("auto", 16, a.passes, []),
            "steerkit, AdamW": ("adamw", BATCH, a.passes, adamw),
            "steerkit, the authors' recipe": ("authors", BATCH, a.authors_passes, ["--preset", "official"]),
        }.items():
            say(name)
            ran[name] = steerkit(a, folder, *arguments)
        if a.hf_model and all(importlib.util.find_spec(m) for m in ("torch", "transformers")):
            for mode in ("cached", "official"):
                say(f"torch {mode}, AdamW")
                ran[f"torch {mode}, AdamW"] = torch_peer(a, mode)
        else:
            print("torch, transformers or --hf-model are missing: the PyTorch peers are skipped", file=sys.stderr)
        print("measuring", file=sys.stderr, flush=True)
        judge = Judge(a, folder, os.path.join(folder, "auto", "vector.safetensors"))
        best = ran["steerkit, auto"][-1][2]
        length, own_norm = norm(best), judge.half_spread(best)
        table(a, ran, judge, length, SHARE * own_norm)


def table(a, ran, judge, length, target):
    print(f"\n{a.precision}, {a.threads} threads, {a.test_pairs} held-out pairs, all vectors at norm {length:.2f}; target: "
          f"{target:.2f} nats, {SHARE:.0%} of auto's after {a.passes} passes\n")
    print(f"| trainer | passes | seconds | half-spread | to {SHARE:.0%} of its own last | to the target |")
    print("|---|---|---|---|---|---|")
    when = lambda hit: f"{hit[1]:.1f} s ({hit[0]} passes)" if hit else "never"
    for name, trajectory in ran.items():
        passes, seconds, last = trajectory[-1]
        spread = judge.half_spread(last, length)
        whole = passes == a.passes
        own = when(judge.first(trajectory, SHARE * spread, length)) if whole else ""
        hit = judge.first(trajectory, target, length)
        reached = when(hit) if hit else f"not reached after {passes} passes: {spread:.2f}"
        if "authors" in name:
            reached += f"; at its own norm, {norm(last):.2f}: {judge.half_spread(last):.2f}"
        print(f"| {name} | {passes} | {seconds:.1f} | {spread:.2f} | {own} | {reached} |", flush=True)


if __name__ == "__main__":
    main()
