#!/usr/bin/env bash
# Training and sweeps over MPI ranks: the same bytes for 1, 2 and 4 ranks, and nothing finished is lost with a dead one.
#
#     cargo build -p steerkit-cli --features mpi && tests/mpi/run.sh target/debug/steerkit
#
# Needs mpirun (Debian: openmpi-bin; libopenmpi-dev and libclang-dev to build).
set -euo pipefail
steerkit=$(realpath "${1:-target/debug/steerkit}")
root=$(cd "$(dirname "$0")/../.." && pwd)
model=$root/tests/data/tiny-llama-gguf/tiny-llama-f32.gguf
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export STEERKIT_HOME=$dir/home
# Containers run as root, often with fewer cores than ranks.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
ranks() { mpirun -n "$@"; }
fail() { echo "error: $*" >&2; exit 1; }

head -n 24 "$root/data/formality/train.jsonl" > pairs.jsonl

# Micro-batches of a pair or two, so that there is work for four ranks in each step.
train() { # OUT RANKS MORE...
    mkdir -p "$1"
    ranks "$2" "$steerkit" train --model "$model" --data pairs.jsonl --layer 1 --batch 8 --steps 6 --threads 1 \
        --set micro_batch_rows=120 --set checkpoint.every_steps=1 --out "$1/run" --quiet "${@:3}"
}
"$steerkit" train --model "$model" --data pairs.jsonl --layer 1 --batch 8 --steps 6 --threads 1 \
    --set micro_batch_rows=120 --set checkpoint.every_steps=1 --out alone/run --quiet > /dev/null
for n in 1 2 4; do
    rm -rf home
    train "n$n" "$n" > "n$n.out"
    cmp "n$n/run/vector.safetensors" alone/run/vector.safetensors || fail "$n ranks: other bytes"
    echo "train, $n ranks: the bytes of one process"
done
[ "$(grep -c '^vector: ' n4.out)" = 1 ] || fail "only rank 0 prints the result"

# A run that lost its ranks goes on from its last checkpoint.
cp -r n2/run killed && rm killed/vector.safetensors
(cd killed/checkpoints && ls | sort | tail -n 1 | xargs rm -rf)
mkdir -p k && mv killed k/run
train k 2 --resume > /dev/null 2>&1
cmp k/run/vector.safetensors alone/run/vector.safetensors || fail "resumed: other bytes"
echo "train, resumed with 2 ranks: the bytes of one process"

cat > sweep.toml <<T
report_on = "test"
[choose]
over = ["layer"]
by = "equal-norm"
[base]
model = "$model"
data.train = "pairs.jsonl"
data.test = "pairs.jsonl"
data.strict = false
batch = 4
steps = 1
[[grid]]
method = ["bipo", "mean-diff", "random"]
layer = [1, 2]
[measure]
resamples = 10
prompts = 2
tokens = 3
T
"$steerkit" sweep sweep.toml --out whole --quiet > /dev/null
for n in 2 4; do
    ranks "$n" "$steerkit" sweep sweep.toml --out "swept$n" --quiet > /dev/null
    cmp "swept$n/results.json" whole/results.json || fail "sweep, $n ranks: other bytes"
    echo "sweep, $n ranks: the results of one process"
done
if ranks 2 "$steerkit" sweep sweep.toml --shard 1/2 --out bad > /dev/null 2>&1; then
    fail "--shard and ranks together should be refused"
fi

# The second rank dies in its first job; what rank 0 and it finished stays, and the sweep goes on from there.
rm -rf home
if ranks 1 "$steerkit" sweep sweep.toml --out dead --quiet : -n 1 bash -c \
    "'$steerkit' sweep sweep.toml --out dead --quiet & p=\$!; while ! ls dead/jobs/*/*.json > /dev/null 2>&1; do sleep 0.02; done; kill -9 \$p; wait \$p" \
    > /dev/null 2>&1; then
    echo "note: the rank was too quick to be killed"
fi
kept=$(find dead/jobs -name '*.json' | wc -l)
[ "$kept" -gt 0 ] || fail "finished jobs were lost with the dead rank"
"$steerkit" sweep sweep.toml --out dead --quiet > /dev/null
cmp dead/results.json whole/results.json || fail "after a dead rank: other results"
echo "sweep, a rank killed: $kept finished jobs kept, the same results in the end"
