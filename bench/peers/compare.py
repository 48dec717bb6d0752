"""Times BiPO training of steerkit and of the PyTorch peers on the same rows, one after the other, in rounds.

    python compare.py --steerkit target/release/steerkit --model MODEL.gguf --data train.csv [--rounds 3]

Each round runs every contestant once; the table gives the median over rounds of seconds per packed token (rows of the
packed batch: prompt + chosen - 1 + rejected - 1, the same count for all) and its ratio to steerkit. Peers that are not
installed are skipped with a message. Run it on a quiet machine.
"""
import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def last_json(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument("--steerkit", default="target/release/steerkit")
    a.add_argument("--model", required=True, help="GGUF file")
    a.add_argument("--hf-model", help="the same model as a Hugging Face folder (made by dequantize.py when absent)")
    a.add_argument("--data", required=True, help="CSV with question, matching, not_matching")
    a.add_argument("--layer", default="15")
    a.add_argument("--batch", default="4")
    a.add_argument("--steps", default="12")
    a.add_argument("--threads", default="2")
    a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--precisions", default="f32", help="comma-separated: f32, bf16")
    a = a.parse_args()

    common = ["--data", a.data, "--layer", a.layer, "--batch", a.batch, "--steps", a.steps, "--threads", a.threads]
    contestants = {}
    for precision in a.precisions.split(","):
        ours = [a.steerkit, "bench", "train", "--model", a.model, *common, "--precision", precision, "--json"]
        contestants[f"steerkit {precision}"] = (ours, "seconds_per_token")
    if all(importlib.util.find_spec(m) for m in ("torch", "transformers")):
        folder = a.hf_model
        if not folder:
            folder = os.path.join(tempfile.mkdtemp(), "hf")
            subprocess.run([sys.executable, os.path.join(HERE, "dequantize.py"), a.model, folder], check=True, stdout=2)
        for precision in a.precisions.split(","):
            dtype = {"f32": "float32", "bf16": "bfloat16"}[precision]
            for mode in ("official", "cached"):
                peer = [sys.executable, os.path.join(HERE, "torch_bipo.py"), "--model", folder, *common]
                contestants[f"torch {mode} {precision}"] = (peer + ["--dtype", dtype, "--mode", mode], "seconds_per_packed_token")
    else:
        print("torch and transformers are not installed: the PyTorch peers are skipped", file=sys.stderr)

    times = {name: [] for name in contestants}
    for _ in range(a.rounds):
        for name, (command, field) in contestants.items():
            row = last_json(command)
            times[name].append(row[field])
            print(f"{name}: {row[field] * 1e3:.3f} ms per packed token", file=sys.stderr)
    best = statistics.median(times[f"steerkit {a.precisions.split(',')[0]}"])
    print("| trainer | ms per packed token | times steerkit's |\n|---|---|---|")
    for name, each in times.items():
        median = statistics.median(each)
        print(f"| {name} | {median * 1e3:.2f} | {median / best:.2f} |")
    print(json.dumps({name: statistics.median(each) for name, each in times.items()}))


if __name__ == "__main__":
    main()
