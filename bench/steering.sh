#!/usr/bin/env bash
# What steering costs, and what many different vectors cost, as rows of a table: each in alternating blocks of four steps
# within one process, mean difference in time and its 95 % bootstrap interval. Run it on a quiet machine; about two minutes.
#
#     bench/steering.sh MODEL [STEERKIT]
set -euo pipefail
model=${1:?usage: bench/steering.sh MODEL [STEERKIT]}
steerkit=${2:-target/release/steerkit}

echo "| batch | vectors | against | difference | interval | bar for the upper end |"
echo "|---|---|---|---|---|---|"
row() { # batch, vectors, vectors of the other, pairs of blocks, bar
    "$steerkit" bench decode --model "$model" --precision auto --prompt-tokens 50 \
        --batch "$1" --plans "$2" --against-plans "$3" --blocks "$4" --json 2>/dev/null | tail -n 1 |
        python3 -c '
import json, sys
r = json.load(sys.stdin)
low, high = (f"{100 * x:+.2f}%" for x in r["interval"])
against = r["against_plans"] or "none"
print("| {} | {} | {} | {:+.2f}% | {} to {} | {} |".format(
    r["batch"], r["plans"], against, 100 * r["difference"], low, high, sys.argv[1]))' "$5"
}
row 16 16 0 120 "2%"
row 32 8 1 30 "5%"
row 32 16 1 30 "5%"
row 32 32 1 120 "5%"
