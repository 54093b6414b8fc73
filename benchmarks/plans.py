"""How well the length and the memory of a training are told before it begins.

Ten trainings of different data, networks, sizes, precisions and lengths. For each, `skipway plan`
says how long it will take and what memory, then `skipway train` does it with the same options; what
`train` itself says before its first step is scored too. The bar: within 15 % in 9 of 10.

    python benchmarks/plans.py --data CIFAR10 --photos IMAGENETTE
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from recorded import record, skipway

WITHIN, BAR = 0.15, 9
NARROW = "--set=model.architecture.width="
RUNS: list[tuple[str, list[str]]] = [
    ("digits", []),
    ("digits", ["--model", "resnet56", "--epochs", "4", "--precision", "float32"]),
    ("digits", ["--model", "preresnet110", "--epochs", "3", "--batch-size", "32"]),
    ("data", ["--epochs", "0.6"]),
    ("data", ["--epochs", "0.3", "--precision", "float32", "--batch-size", "256"]),
    ("data", ["--model", "resnet18_cifar", f"{NARROW}0.5", "--epochs", "0.3"]),
    ("data", ["--recipe", "speedrun-cifar", "--epochs", "0.4"]),
    ("photos", ["--set=data.size=64", "--model", "resnet20", "--epochs", "1"]),
    ("photos", ["--set=data.size=128", f"{NARROW}0.5", "--epochs", "0.5", "--val", "none"]),
    ("photos", ["--model", "resnet50", f"{NARROW}0.25", "--epochs", "0.1", "--batch-size", "16"]),
]


def scored(data: str, flags: list[str], out: Path) -> dict[str, Any]:
    """What was told and what came of it."""
    plan = skipway("plan", data, *flags, "--measure", 30)
    skipway("train", data, *flags, "--out", out)
    run = json.loads((out / "run.json").read_text())
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    seconds, memory = run["result"]["seconds"], max(row["memory_mib"] for row in rows)
    return {
        "data": Path(data).name,
        "flags": flags,
        "seconds": seconds,
        "plan_seconds": plan["seconds"],
        "train_seconds": round(run["expected"]["seconds"], 2),
        "plan_over_got": round(plan["seconds"] / seconds, 4),
        "train_over_got": round(run["expected"]["seconds"] / seconds, 4),
        "memory_mib": memory,
        "plan_memory_over_got": round(plan["memory_mib"] / memory, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--photos", required=True)
    options = parser.parse_args()
    places = {"digits": "digits", "data": options.data, "photos": options.photos}
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for i, (data, flags) in enumerate(RUNS):
            runs.append(scored(places[data], flags, Path(folder) / str(i)))
            print(json.dumps(runs[-1]), file=sys.stderr)
    within = {
        by: sum(abs(run[f"{by}_over_got"] - 1) <= WITHIN for run in runs)
        for by in ("plan", "train")
    }
    memory = sum(abs(run["plan_memory_over_got"] - 1) <= WITHIN for run in runs)
    record("plans", {"within": within | {"memory": memory}, "bar": BAR, "runs": runs})


if __name__ == "__main__":
    main()
