"""Choices, accuracies and divergences on a tiny Llama, by lm-evaluation-harness and transformers.

    pip install torch==2.15.0 transformers==5.23.0 lm_eval==0.4.9.1
    python tests/data/make_choices.py

Writes choices/golden.json. The prompts, the token pairs and the metrics are lm-evaluation-harness's own code (its MMLU and
TruthfulQA definitions with our questions in place of theirs), the log-probabilities are transformers' forward pass in
double precision; nothing of steerkit runs. The model is tiny-llama-hf; under steering, multiplier times v is added to the
output of block LAYER at every position.
"""

import importlib.util
import json
import sys
from pathlib import Path

import datasets
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import lm_eval.api.model
from lm_eval.api.task import ConfigurableTask

HERE = Path(__file__).parent
TASKS = Path(lm_eval.__file__).parent / "tasks"
LAYER, SEED, MULTIPLIERS = 1, 7, [-1.0, 0.0, 1.0]

torch.manual_seed(SEED)
torch.set_num_threads(1)


class Reference(lm_eval.api.model.TemplateLM):
    """The least that lm-evaluation-harness asks of a model; plain text gets no BOS, as its `hf` model does by default."""

    def __init__(self, model, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    @property
    def eot_token_id(self):
        return self.tokenizer.eos_token_id

    def tok_encode(self, string, **kwargs):
        return self.tokenizer.encode(string, add_special_tokens=False)

    def _loglikelihood_tokens(self, requests, **kwargs):
        results = []
        with torch.no_grad():
            for _, context, continuation in requests:
                ids = torch.tensor([context + continuation])
                logps = self.model(ids[:, :-1]).logits[0, len(context) - 1 :].log_softmax(-1)
                picked = logps.gather(1, torch.tensor(continuation)[:, None])
                results.append((picked.sum().item(), False))
        return results

    def loglikelihood_rolling(self, requests, **kwargs):
        raise NotImplementedError

    def generate_until(self, requests, **kwargs):
        raise NotImplementedError


def load(path):
    """A task's YAML without its functions, which need their own module."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    return yaml.load(path.read_text(), Loader=Loader)


def truthful_mc2():
    spec = importlib.util.spec_from_file_location("truthfulqa_utils", TASKS / "truthfulqa/utils.py")
    module = importlib.util.module_from_spec(spec)
    # Only the metrics of generated answers need these.
    for name in ("evaluate", "sacrebleu", "rouge_score"):
        sys.modules.setdefault(name, type(sys)(name))
    sys.modules["rouge_score"].rouge_scorer = sys.modules["rouge_score"].scoring = None
    spec.loader.exec_module(module)
    return module.process_results_mc2


def tasks(questions, shown, truths, shots):
    """Each task with its documents: MMLU by subject, MC1, MC2."""
    mmlu = load(TASKS / "mmlu/default/_default_template_yaml")
    for key in ("dataset_path", "test_split", "fewshot_split", "fewshot_config"):
        mmlu.pop(key, None)
    for subject in dict.fromkeys(q["subject"] for q in questions):
        docs = [q for q in questions if q["subject"] == subject]
        example = load(TASKS / "mmlu/default/mmlu_abstract_algebra.yaml")
        config = {
            **mmlu,
            "task": f"mmlu_{subject}",
            "description": example["description"].replace("abstract algebra", subject.replace("_", " ")),
            "custom_dataset": lambda docs=docs, **_: {"test": datasets.Dataset.from_list(docs)},
            "test_split": "test",
            "fewshot_config": {"sampler": "first_n", "samples": [q for q in shown if q["subject"] == subject]},
            "num_fewshot": shots,
        }
        yield "mmlu", subject, ConfigurableTask(config=config), docs
    mc1 = load(TASKS / "truthfulqa/truthfulqa_mc1.yaml")
    mc2 = {**mc1, **load(TASKS / "truthfulqa/truthfulqa_mc2.yaml"), "process_results": truthful_mc2()}
    for name, config in (("mc1", mc1), ("mc2", mc2)):
        for key in ("dataset_path", "dataset_name", "tag", "include", "training_split", "should_decontaminate"):
            config.pop(key, None)
        config.update(task=name, custom_dataset=lambda **_: {"validation": datasets.Dataset.from_list(truths)})
        yield name, "", ConfigurableTask(config=config), truths


def answered(lm, task, docs, shots):
    rows = []
    for row, doc in enumerate(docs):
        context = task.fewshot_context(doc, num_fewshot=shots)
        requests = task.construct_requests(doc=doc, ctx=context, metadata=("t", row, 1))
        results = lm.loglikelihood(requests, disable_tqdm=True)
        acc = task.process_results(doc, results)["acc"]
        rows.append({"context": context, "logps": [r[0] for r in results], "acc": float(acc)})
    return rows


def truthful_docs(path):
    """TruthfulQA's CSV in the form of its multiple-choice data set."""
    import csv

    docs = []
    for row in csv.DictReader(path.open(encoding="utf-8-sig", newline="")):
        split = lambda text: [a.strip() for a in text.split(";") if a.strip()]
        best, wrong = row["Best Answer"].strip(), split(row["Incorrect Answers"])
        right = list(dict.fromkeys([best] + split(row["Correct Answers"])))
        wrong = [a for a in dict.fromkeys(wrong) if a not in right]
        label = lambda n: [1] * n + [0] * len(wrong)
        docs.append(
            {
                "question": row["Question"],
                "mc1_targets": {"choices": [best] + wrong, "labels": label(1)},
                "mc2_targets": {"choices": right + wrong, "labels": label(len(right))},
            }
        )
    return docs


def divergences(model, add, prompt, continuation):
    """KL(steered || plain) at the predictions of the continuation."""
    ids = torch.tensor([prompt + continuation[:-1]])
    with torch.no_grad():
        add["m"] = 0.0
        plain = model(ids).logits[0, len(prompt) - 1 :].log_softmax(-1)
        add["m"] = 1.0
        steered = model(ids).logits[0, len(prompt) - 1 :].log_softmax(-1)
    return (steered.exp() * (steered - plain)).sum(-1).tolist()


def main():
    path = HERE / "tiny-llama-hf"
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager").eval()
    v = (torch.randn(model.config.hidden_size, dtype=torch.float64) * 2).to(torch.float32).to(torch.float64)
    add = {"m": 0.0}
    block = model.model.layers[LAYER]

    def steer(module, inputs, output):
        edited = lambda h: h + add["m"] * v
        return (edited(output[0]), *output[1:]) if isinstance(output, tuple) else edited(output)

    block.register_forward_hook(steer)
    read = lambda name: [json.loads(line) for line in (HERE / "choices" / name).read_text().splitlines()]
    questions, shown = read("questions.jsonl"), read("shown.jsonl")
    truths = truthful_docs(HERE / "choices/truths.csv")
    lm = Reference(model, tokenizer)
    golden = {"layer": LAYER, "v": v.tolist(), "multipliers": MULTIPLIERS, "runs": {}}
    for multiplier in MULTIPLIERS:
        add["m"] = multiplier
        for shots in (0, 2):
            for kind, group, task, docs in tasks(questions, shown, truths, shots):
                if kind != "mmlu" and shots:
                    continue
                name = f"{kind}-{shots}-shot" if kind == "mmlu" else kind
                rows = answered(lm, task, docs, shots if kind == "mmlu" else 0)
                for row in rows:
                    row["group"] = group
                    if multiplier != 0.0:
                        del row["context"]
                golden["runs"].setdefault(name, {}).setdefault(str(multiplier), []).extend(rows)
    prompt, continuation = tokenizer.encode("What is tea?"), tokenizer.encode(" A drink of leaves.")
    kl = divergences(model, add, prompt, continuation)
    golden["divergence"] = {"prompt": prompt, "continuation": continuation, "kl": kl}
    (HERE / "choices/golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
