"""Real clients against a running `steerkit serve`: openai, litellm, langchain-openai, llm, lm-eval, and openai for Node.

tests/clients/run.sh installs them, starts a server and runs this:

    python tests/clients/check.py URL VECTOR.safetensors --steerkit BINARY --model MODEL [--only openai,node]

The server serves MODEL with the vector. Every client asks the same greedy question plainly and steered, by each route that
it can use; the answers of all clients must be the same. lm-evaluation-harness must find what `steerkit eval` finds, question
by question. A client that is not installed is an error.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

HERE = pathlib.Path(__file__).parent
CHOICES = HERE.parent / "data/choices"
QUESTION = "How do I store olive oil?"
TOKENS = 24


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def steering(vector, scale):
    return {"vectors": [{"name": vector, "scale": scale}]}


def expected(args, scale):
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS, "temperature": 0}
    body["steering"] = steering(args.vector.stem, scale)
    return post(args.url, "/v1/chat/completions", body)["choices"][0]["message"]["content"]


def check_openai(args, plain, steered):
    url, vector = args.url, args.vector.stem
    import openai

    client = openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)
    base = client.models.list().data[0].id
    ask = dict(messages=[{"role": "user", "content": QUESTION}], max_tokens=TOKENS, temperature=0)
    create = client.chat.completions.create
    assert create(model=base, **ask).choices[0].message.content == plain
    for more in [
        dict(model=base, extra_body={"steering": steering(vector, 1.0)}),
        dict(model=base, extra_headers={"X-Steer": f"{vector}=1.0"}),
        dict(model=f"base:{vector}=1.0"),
    ]:
        assert create(**more, **ask).choices[0].message.content == steered, more
    chunks = list(create(model=f"base:{vector}=1", stream=True, stream_options={"include_usage": True}, **ask))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == steered
    assert chunks[-1].usage.completion_tokens <= TOKENS
    with_logprobs = create(model=base, logprobs=True, top_logprobs=2, **ask).choices[0].logprobs.content
    assert "".join(t.token for t in with_logprobs) == plain and len(with_logprobs[0].top_logprobs) == 2
    text = client.completions.create(model=base, prompt="Once", max_tokens=4, temperature=0, echo=True, logprobs=1)
    assert text.choices[0].text.startswith("Once") and text.choices[0].logprobs.token_logprobs[0] is None
    for bad, error in [(dict(temperature=-1), openai.BadRequestError), (dict(model="gpt-4"), openai.NotFoundError)]:
        try:
            create(**{"model": base, **ask, **bad})
            raise AssertionError(f"{bad} went through")
        except error as e:
            assert e.body["param"] in bad, e.body


def check_litellm(args, plain, steered):
    url, vector = args.url, args.vector.stem
    # Its prices are otherwise asked for on the network.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    ask = dict(model="openai/base", api_base=url + "/v1", api_key="none", max_tokens=TOKENS, temperature=0,
               messages=[{"role": "user", "content": QUESTION}])
    assert litellm.completion(**ask).choices[0].message.content == plain
    body = {"steering": steering(vector, 1.0)}
    assert litellm.completion(**ask, extra_body=body).choices[0].message.content == steered
    chunks = litellm.completion(**ask, extra_body=body, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == steered


def check_langchain(args, plain, steered):
    url, vector = args.url, args.vector.stem
    from langchain_openai import ChatOpenAI

    ask = dict(model="base", base_url=url + "/v1", api_key="none", max_tokens=TOKENS, temperature=0)
    assert ChatOpenAI(**ask).invoke(QUESTION).content == plain
    chat = ChatOpenAI(**ask, extra_body={"steering": steering(vector, 1.0)})
    assert chat.invoke(QUESTION).content == steered
    assert "".join(part.content for part in chat.stream(QUESTION)) == steered


def check_llm(args, plain, steered):
    url, vector = args.url, args.vector.stem
    with tempfile.TemporaryDirectory() as home:
        models = [
            {"model_id": "plain", "model_name": "base", "api_base": url + "/v1"},
            {"model_id": "steered", "model_name": "base", "api_base": url + "/v1", "headers": {"X-Steer": f"{vector}=1"}},
            {"model_id": "alias", "model_name": f"base:{vector}=1", "api_base": url + "/v1"},
        ]
        # JSON is YAML.
        pathlib.Path(home, "extra-openai-models.yaml").write_text(json.dumps(models))
        for model, text in [("plain", plain), ("steered", steered), ("alias", steered)]:
            for more in [[], ["--no-stream"]]:
                command = [sys.executable, "-m", "llm", "-m", model, "-o", "temperature", "0", "-o", "max_tokens", str(TOKENS)]
                env = {**os.environ, "LLM_USER_PATH": home, "OPENAI_API_KEY": "none"}
                found = subprocess.run([*command, *more, "--no-log", QUESTION], env=env, capture_output=True, text=True, check=True)
                assert found.stdout.strip() == text.strip(), (model, more, found.stdout)


def check_lm_eval(args, plain, steered):
    import harness

    with tempfile.TemporaryDirectory() as folder:
        lines = harness.run(args.url, args.steerkit, args.model, args.vector, args.mmlu, args.truthfulqa, args.per_subject, folder)
    print("\n".join(lines))


def check_node(args, plain, steered):
    url, vector = args.url, args.vector.stem
    command = ["node", str(HERE / "check.mjs"), url, vector, QUESTION, str(TOKENS), plain, steered]
    subprocess.run(command, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("vector", type=pathlib.Path, help="the file; its name without extension is the vector's")
    parser.add_argument("--steerkit", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mmlu", type=pathlib.Path, default=CHOICES / "questions.jsonl", help="JSONL: subject, question, choices, answer")
    parser.add_argument("--truthfulqa", type=pathlib.Path, default=CHOICES / "truths.csv", help="in the layout of TruthfulQA.csv")
    parser.add_argument("--per-subject", type=int, default=4, help="questions of each MMLU subject; TruthfulQA's are 8 times as many")
    checks = {name.removeprefix("check_"): f for name, f in globals().items() if name.startswith("check_")}
    parser.add_argument("--only", type=lambda names: names.split(","), default=list(checks), help=",".join(checks))
    args = parser.parse_args()
    plain, steered = expected(args, 0), expected(args, 1)
    assert plain != steered, "the vector changes nothing at 1"
    failed = 0
    for name in args.only:
        try:
            checks[name](args, plain, steered)
            print(f"ok {name}", flush=True)
        except Exception as error:  # the other clients are still of interest
            failed += 1
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
