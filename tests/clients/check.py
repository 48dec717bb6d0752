"""Real clients against a running `steerkit serve`: openai, litellm, langchain-openai, llm, lm-eval, and openai for Node.

    pip install openai litellm langchain-openai llm 'lm-eval[api]'
    npm install --prefix tests/clients/node openai
    steerkit serve --model smollm2-135m --vectors DIR --port 8080
    python tests/clients/check.py http://127.0.0.1:8080 VECTOR [openai litellm langchain llm lm_eval node]

VECTOR is the name of one of the server's vectors. Every client asks the same greedy question plainly and steered, by
each route that it can use; the answers of all clients must be the same. A client that is not installed is an error.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

HERE = pathlib.Path(__file__).parent
QUESTION = "How do I store olive oil?"
TOKENS = 24


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)


def steering(vector, scale):
    return {"vectors": [{"name": vector, "scale": scale}]}


def expected(url, vector, scale):
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": TOKENS, "temperature": 0}
    return post(url, "/v1/chat/completions", body | {"steering": steering(vector, scale)})["choices"][0]["message"]["content"]


def check_openai(url, vector, plain, steered):
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


def check_litellm(url, vector, plain, steered):
    import litellm

    ask = dict(model="openai/base", api_base=url + "/v1", api_key="none", max_tokens=TOKENS, temperature=0,
               messages=[{"role": "user", "content": QUESTION}])
    assert litellm.completion(**ask).choices[0].message.content == plain
    body = {"steering": steering(vector, 1.0)}
    assert litellm.completion(**ask, extra_body=body).choices[0].message.content == steered
    chunks = litellm.completion(**ask, extra_body=body, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == steered


def check_langchain(url, vector, plain, steered):
    from langchain_openai import ChatOpenAI

    ask = dict(model="base", base_url=url + "/v1", api_key="none", max_tokens=TOKENS, temperature=0)
    assert ChatOpenAI(**ask).invoke(QUESTION).content == plain
    chat = ChatOpenAI(**ask, extra_body={"steering": steering(vector, 1.0)})
    assert chat.invoke(QUESTION).content == steered
    assert "".join(part.content for part in chat.stream(QUESTION)) == steered


def check_llm(url, vector, plain, steered):
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


TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {file}}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{question}}}}{suffix}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def check_lm_eval(url, vector, plain, steered):
    """Multiple choice of two kinds: letters (MMLU) and whole answers (TruthfulQA); against sums of the server's own echoed
    log-probabilities of whole texts, question by question."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    letters = [("Which is a fruit?\nA. stone\nB. apple\nC. cloud\nD. river", 1), ("Which is cold?\nA. fire\nB. sun\nC. ice\nD. lava", 2),
               ("Which flies?\nA. bird\nB. rock\nC. house\nD. root", 0), ("Which is a number?\nA. red\nB. loud\nC. wet\nD. nine", 3)]
    truths = [("Q: What colour is the sky by day?", ["It is blue.", "It is green."], 0),
              ("Q: Can pigs fly?", ["Yes, on Sundays they all do.", "No, pigs cannot fly."], 1),
              ("Q: What do cows drink?", ["They drink milk.", "They drink water."], 1)]
    docs = {
        "letters": ([{"question": q, "choices": list("ABCD"), "answer": a} for q, a in letters], "\\nAnswer:"),
        "truths": ([{"question": q, "choices": c, "answer": a} for q, c, a in truths], "\\nA:"),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (rows, suffix) in docs.items():
            file = pathlib.Path(folder, f"{name}.jsonl")
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            pathlib.Path(folder, f"{name}.yaml").write_text(TASK.format(name=name, file=file, suffix=suffix))
        tasks = TaskManager(include_path=folder, include_defaults=False)
        for model in ["base", f"base:{vector}=1"]:
            arguments = dict(model=model, base_url=url + "/v1/completions", tokenizer_backend="remote", num_concurrent=4,
                             tokenized_requests=True, max_retries=1)
            found = lm_eval.simple_evaluate("local-completions", model_args=arguments, tasks=list(docs), task_manager=tasks,
                                            batch_size=4, bootstrap_iters=0, log_samples=True)
            for name, (rows, suffix) in docs.items():
                for sample in found["samples"][name]:
                    row = rows[sample["doc_id"]]
                    prompt = row["question"] + suffix.replace("\\n", "\n")
                    sums = [own_score(url, model, prompt, " " + choice) for choice in row["choices"]]
                    theirs = [response[0] if isinstance(response, (list, tuple)) else response for response in sample["filtered_resps"]]
                    theirs = [float(x[0] if isinstance(x, (list, tuple)) else x) for x in theirs]
                    assert all(abs(a - b) < 1e-4 for a, b in zip(sums, theirs)), (name, sample["doc_id"], sums, theirs)
                    best = max(range(len(sums)), key=sums.__getitem__)
                    assert sample["acc"] == float(best == row["answer"]), (name, sample["doc_id"])


def own_score(url, model, prompt, answer):
    tokens = lambda text: post(url, "/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
    context, whole = tokens(prompt), tokens(prompt + answer)
    body = {"model": model, "prompt": whole, "echo": True, "logprobs": 0, "max_tokens": 0}
    scores = post(url, "/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
    return sum(scores[len(context):])


def check_node(url, vector, plain, steered):
    command = ["node", str(HERE / "check.mjs"), url, vector, QUESTION, str(TOKENS), plain, steered]
    subprocess.run(command, check=True)


def main():
    url, vector, *wanted = sys.argv[1:]
    plain, steered = expected(url, vector, 0), expected(url, vector, 1)
    assert plain != steered, "the vector changes nothing at 1"
    checks = {name.removeprefix("check_"): f for name, f in globals().items() if name.startswith("check_")}
    failed = 0
    for name in wanted or checks:
        try:
            checks[name](url, vector, plain, steered)
            print(f"ok {name}", flush=True)
        except Exception as error:  # the other clients are still of interest
            failed += 1
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
