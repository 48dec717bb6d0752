"""Reads a run's event file with TensorBoard and compares it with the run's metrics.jsonl.

    python tests/slow/tfevents.py RUN_FOLDER

Needs tensorboard. Prints how many scalars agree; fails on the first that does not.
"""
import json, pathlib, struct, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def expected(record):
    if record["type"] == "step":
        for name in ["loss", "margin", "accuracy", "grad_norm", "norm", "lr"]:
            if record[name] is not None:
                yield f"train/{name}", record[name]
    else:
        point = record["point"]
        for name in ["margin", "accuracy", "chosen", "rejected"]:
            yield f"{record['split']}/{name}/m={point['multiplier']:g}", point[name]


def main():
    folder = pathlib.Path(sys.argv[1])
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    read = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    wanted = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for tag, value in expected(record):
            wanted.setdefault(tag, []).append((record["step"], struct.unpack("f", struct.pack("f", value))[0]))
    assert wanted.keys() == read.keys(), wanted.keys() ^ read.keys()
    for tag, points in wanted.items():
        assert points == read[tag], f"{tag}: {points} {read[tag]}"
    print(f"{sum(map(len, wanted.values()))} scalars of {len(wanted)} tags agree")


if __name__ == "__main__":
    main()
