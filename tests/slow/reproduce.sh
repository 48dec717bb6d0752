#!/usr/bin/env bash
# Every experiment of `steerkit reproduce` with --quick on SmolLM2, to its end; fails on the first that does not get there.
#
#     steerkit model pull smollm2-135m
#     tests/slow/reproduce.sh [OUT]          # STEERKIT=target/release/steerkit, MODEL=smollm2-135m
#
# A second call with the same OUT takes what is finished.
set -euo pipefail
cd "$(dirname "$0")/../.."
steerkit=${STEERKIT:-target/release/steerkit}
model=${MODEL:-smollm2-135m}
out=${1:-$(mktemp -d)}
mkdir -p "$out"
for id in $("$steerkit" reproduce list --json | sed 's/.*"id":"\([a-z0-9]*\)".*/\1/'); do
    began=$SECONDS
    "$steerkit" reproduce "$id" --quick --model "$model" --out "$out/$id" --quiet >"$out/$id.txt"
    grep -q '"missing": 0,' "$out/$id/results.json"
    echo "$id $((SECONDS - began)) s"
done
echo "everything is in $out"
