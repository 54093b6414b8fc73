"""Average precision of detectors on small data, a seed of a case at a time.

- blood-cells: `--task detect`, from scratch, at 416 px: AP50 on test, 0.70 at least, in an hour.
- nuclei: `--task instance`, from scratch, at 256 px: mask AP50 on val, 0.55 at least, in an hour.

    python benchmarks/detection.py --case blood-cells --data BLOOD-CELLS --out RUN --seed 0
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recorded import record_case, trained

CASES: dict[str, dict[str, Any]] = {
    "blood-cells": {"task": "detect", "size": 416, "metric": "ap50", "bar": 0.70},
    "nuclei": {"task": "instance", "size": 256, "metric": "mask_ap50", "bar": 0.55},
}
MINUTES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    case = CASES[options.case]
    run, rows = trained(
        options.out, options.data, "--task", case["task"], "--on-bad", "skip",
        "--set", f"data.size={case['size']}", "--seed", options.seed,
    )  # fmt: skip
    result = run["result"]
    figures = {
        "metrics": result["metrics"],
        "metric": case["metric"],
        "split": result["split"],
        "n": result["n"],
        "bar": {case["metric"]: case["bar"], "minutes": MINUTES},
        "minutes": round(result["seconds"] / 60, 1),
        "epochs": len(rows),
        "training_images": run["data"]["splits"]["train"]["n"],
        "model": run["config"]["model"]["name"],
        "size": case["size"],
        "threads": run["environment"]["threads"],
        "seed": options.seed,
    }
    record_case("detection", f"{options.case}, seed {options.seed}", figures)


if __name__ == "__main__":
    main()
