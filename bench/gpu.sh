#!/usr/bin/env bash
# Goldens and the training benchmark on the first NVIDIA GPU.
#
#   bench/gpu.sh build DIR     builds the program and the tests with the feature `cuda` into DIR (needs nvcc; CUDA_COMPUTE_CAP
#                              names the GPU's capability where no GPU is at hand, 90 for an H100 or H200)
#   bench/gpu.sh run DIR OUT   runs them on a machine with a GPU, from the repository's root; needs no network and no Rust
#
# `run` uses Python with gguf and numpy, where there is one, to make models of random weights to time. With
# SMOLLM2=FILE it times that model too and checks it against its goldens.
set -euo pipefail

build() {
    local dir=$1 tests
    mkdir -p "$dir"
    cargo build --release -p steerkit-cli --features cuda
    tests=$(cargo test --release -p steerkit-model --features cuda --no-run --message-format=json |
        grep -o '"executable":"[^"]*"' | cut -d'"' -f4)
    for name in steerkit_model golden_decoder golden_generate; do
        cp "$(grep "/$name-" <<<"$tests" | tail -1)" "$dir/$name"
    done
    cp "${CARGO_TARGET_DIR:-target}/release/steerkit" "$dir/"
    # The tests look for their data below the folder they were built in.
    pwd >"$dir/root"
    strip "$dir"/steerkit "$dir"/steerkit_model "$dir"/golden_*
}

# Folders with CUDA's libraries, for machines that do not list them in ld.so.conf.
libraries() {
    find -L /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib /usr/local/nvidia /opt /usr/lib -maxdepth 8 \
        \( -name 'libcublas.so.*' -o -name 'libcurand.so.*' -o -name 'libcudart.so.*' -o -name 'libnvrtc.so.*' \
        -o -name libcuda.so.1 \) -printf '%h\n' 2>/dev/null | sort -u | paste -sd:
}

run() {
    local dir out root model
    dir=$(realpath "$1")
    mkdir -p "$2"
    out=$(realpath "$2")
    export LD_LIBRARY_PATH="$(libraries):${LD_LIBRARY_PATH:-}" STEERKIT_OFFLINE=1
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.txt"
    ldd "$dir/steerkit" | grep -i 'not found' && exit 1
    root=$(cat "$dir/root")
    if [ "$root" != "$PWD" ] && [ ! -e "$root" ]; then
        mkdir -p "$(dirname "$root")"
        ln -s "$PWD" "$root"
    fi
    for test in steerkit_model golden_decoder golden_generate; do
        local filter=golden
        [ $test = steerkit_model ] && filter=backend
        (cd "$root/crates/steerkit-model" && "$dir/$test" "$filter" --nocapture) >"$out/$test.log" 2>&1 &&
            echo "$test: passed" || echo "$test: FAILED, see $test.log"
    done | tee "$out/goldens.txt"
    grep -h 'within' "$out"/golden_decoder.log | grep -i cuda >"$out/distances.txt" || true
    if python3 tests/slow/make_7b.py /tmp/steerkit-7b 2>"$out/make.log"; then
        for precision in f32 bf16; do
            bench "$dir" /tmp/steerkit-7b/random-7b.gguf /tmp/steerkit-7b/pairs.csv 15 $precision
        done
    fi | tee "$out/bench.jsonl"
    if [ -n "${SMOLLM2:-}" ]; then
        for device in cpu cuda; do
            "$dir/steerkit" bench train --model "$SMOLLM2" --data data/formality/train.jsonl --layer 15 --batch 16 \
                --steps 8 --device $device --json
        done | tee -a "$out/bench.jsonl"
    fi
    "$dir/steerkit" train --model tests/data/tiny-llama-gguf/tiny-llama-f32.gguf --data data/formality/train.jsonl \
        --limit 16 --layer 1 --device cuda --out /tmp/steerkit-run --overwrite --json | tee "$out/train.json"
}

bench() {
    "$1/steerkit" bench train --model "$2" --data "$3" --layer "$4" --batch 4 --steps 4 --device cuda --precision "$5" --json
}

"$@"
