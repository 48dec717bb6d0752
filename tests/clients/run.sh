#!/bin/sh
# Installs the clients, serves a model with a vector, and runs check.py against it.
#
#   tests/clients/run.sh STEERKIT MODEL VECTOR.safetensors [options of check.py]
#
# The Python packages go into a virtual environment in the folder CLIENTS (default: target/clients), those for Node into
# tests/clients/node; what is there is used.
set -eu
steerkit=$1 model=$2 vector=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
clients=${CLIENTS:-$here/../../target/clients}
python=$clients/bin/python
[ -x "$python" ] || python3 -m venv "$clients"
"$python" -c 'import openai, litellm, langchain_openai, llm, lm_eval, rouge_score, sacrebleu' 2>/dev/null ||
    "$python" -m pip install --quiet openai litellm langchain-openai llm 'lm_eval[api]>=0.4.9,<0.5'
[ -d "$here/node/node_modules/openai" ] || npm install --silent --no-audit --no-fund --prefix "$here/node" openai

work=$(mktemp -d)
mkdir "$work/vectors"
cp "$vector" "$work/vectors/"
"$steerkit" serve --model "$model" --vectors "$work/vectors" --port 0 --json > "$work/ready.json" &
server=$!
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null; rm -r "$work"' EXIT
until [ -s "$work/ready.json" ]; do
    kill -0 $server || exit 1
    sleep 0.2
done
url=$("$python" -c 'import json, sys; print(json.load(sys.stdin)["url"])' < "$work/ready.json")
"$python" "$here/check.py" "$url" "$vector" --steerkit "$steerkit" --model "$model" "$@"
