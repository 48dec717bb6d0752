"""lm-evaluation-harness over HTTP beside `steerkit eval`: the same questions, the same answers to the last one.

Both read one JSONL file of each kind: MMLU's letters and TruthfulQA's whole answers. The harness's own task files and
metrics are used, with our file in place of theirs; the vector is added by the model's name.
"""

import csv
import json
import pathlib
import subprocess

import lm_eval
from lm_eval.tasks import TaskManager

TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"
# They are the same numbers, added up by two programs.
TOLERANCE = 1e-6


def mmlu_rows(path, per_subject):
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    subjects = {}
    for row in rows:
        subjects.setdefault(row["subject"], []).append(row)
    return [row for own in subjects.values() for row in own[:per_subject]]


def truthful_rows(path, count):
    """TruthfulQA's CSV, each row with the lists that its multiple-choice data set has."""
    rows = list(csv.DictReader(path.open(encoding="utf-8-sig", newline="")))
    step = max(1, len(rows) // count)
    for row in rows[::step][:count]:
        split = lambda text: [a.strip() for a in text.split(";") if a.strip()]
        best = row["Best Answer"].strip()
        right = list(dict.fromkeys([best] + split(row["Correct Answers"])))
        wrong = [a for a in dict.fromkeys(split(row["Incorrect Answers"])) if a not in right]
        targets = lambda first: {"choices": first + wrong, "labels": [1] * len(first) + [0] * len(wrong)}
        yield {**row, "question": row["Question"], "mc1_targets": targets([best]), "mc2_targets": targets(right)}


def write_task(folder, name, template, file, more):
    config = {"include": str(template), "task": name, "dataset_path": "json", "dataset_name": None,
              "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test",
              "training_split": None, "validation_split": None, "fewshot_split": None, "tag": None, **more}
    # JSON is YAML.
    pathlib.Path(folder, f"{name}.yaml").write_text(json.dumps(config))


def write_tasks(folder, mmlu, truths):
    """Writes the harness's tasks: MMLU by subject, MC1, MC2. Gives their names with their rows."""
    tasks = {}
    for subject in dict.fromkeys(row["subject"] for row in mmlu):
        rows = [row for row in mmlu if row["subject"] == subject]
        file = pathlib.Path(folder, f"mmlu_{subject}.jsonl")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        about = subject.replace("_", " ")
        description = f"The following are multiple choice questions (with answers) about {about}.\n\n"
        template = TASKS / "mmlu/default/_default_template_yaml"
        write_task(folder, f"own_mmlu_{subject}", template, file, {"description": description, "fewshot_config": None})
        tasks[f"own_mmlu_{subject}"] = rows
    for kind in ("mc1", "mc2"):
        template = TASKS / f"truthfulqa/truthfulqa_{kind}.yaml"
        write_task(folder, f"own_{kind}", template, pathlib.Path(folder, "truths.jsonl"), {})
        tasks[f"own_{kind}"] = truths
    return tasks


def harness(url, model, folder, names):
    arguments = dict(model=model, base_url=url + "/v1/completions", tokenizer_backend="remote", num_concurrent=4,
                     tokenized_requests=True, max_retries=1)
    tasks = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate("local-completions", model_args=arguments, tasks=names, task_manager=tasks,
                                    batch_size=4, bootstrap_iters=0, log_samples=True)
    by_name = {}
    for name in names:
        samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
        by_name[name] = [(sample["acc"], [float(resp[0]) for resp in sample["filtered_resps"]]) for sample in samples]
    return by_name


def evaluated(steerkit, model, vector, name, data, out):
    """`steerkit eval` at multipliers 0 and 1: for each the items of the questions."""
    command = [steerkit, "eval", name, "--model", model, "--steer", str(vector), "--multipliers", "0,1", "--data", str(data),
               "--out", str(out), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = json.loads(pathlib.Path(out, "results.json").read_text())["results"]
    assert [point["multiplier"] for point in results["points"]] == [0, 1]
    return results["items"]


def compare(what, harness_rows, items, at, picked, metric):
    """Log-probabilities of every choice within the tolerance, and the same metric for every question."""
    assert len(harness_rows) == len(items) > 0, (what, len(harness_rows), len(items))
    worst = 0.0
    for (theirs, logps), item in zip(harness_rows, items):
        scores = picked(item)
        assert len(scores) == len(logps), (what, item["row"], scores, logps)
        worst = max([worst] + [abs(a - b) for a, b in zip(scores, logps)])
        assert worst < TOLERANCE, (what, item["group"], item["row"], scores, logps)
        ours = metric(item, at)
        assert abs(theirs - ours) < TOLERANCE, (what, item["group"], item["row"], theirs, ours)
    mean = sum(theirs for theirs, _ in harness_rows) / len(harness_rows)
    return f"{what} {100 * mean:.2f} % of {len(items)}, log-probabilities within {worst:.1e}"


def run(url, steerkit, model, vector, mmlu, truths, per_subject, folder):
    """Raises where the two disagree; gives lines that say what was found."""
    mmlu, truths = mmlu_rows(mmlu, per_subject), list(truthful_rows(truths, 8 * per_subject))
    files = {name: pathlib.Path(folder, f"{name}.jsonl") for name in ("mmlu", "truths")}
    for name, rows in (("mmlu", mmlu), ("truths", truths)):
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = write_tasks(folder, mmlu, truths)
    letters = evaluated(steerkit, model, vector, "mmlu", files["mmlu"], pathlib.Path(folder, "eval-mmlu"))
    answers = evaluated(steerkit, model, vector, "truthfulqa", files["truths"], pathlib.Path(folder, "eval-truths"))
    right = lambda item, at: float(item["predicted"][at] == item["answer"])
    lines = []
    for at, name in enumerate(["base", f"base:{vector.stem}=1"]):
        found = harness(url, name, folder, list(tasks))
        by_subject = [row for task in tasks if task.startswith("own_mmlu_") for row in found[task]]
        everything = lambda item: item["scores"][at]
        # MC1 leaves the right answers out that are not the best.
        labels = [sum(row["mc2_targets"]["labels"]) for row in truths]
        best_and_wrong = lambda item: [s for i, s in enumerate(item["scores"][at]) if i == 0 or i >= labels[item["row"]]]
        lines += [f"{name}: " + line for line in (
            compare("mmlu", by_subject, letters, at, everything, right),
            compare("mc1", found["own_mc1"], answers, at, best_and_wrong, right),
            compare("mc2", found["own_mc2"], answers, at, everything, lambda item, at: item["mass"][at]),
        )]
    return lines
