"""Detectors and segmenters on small data, from scratch, in an hour at most; a seed at a time.

- blood-cells: `--task detect` at 416 px: AP50 on test, 0.70 at least.
- nuclei: `--task instance` at 256 px: mask AP50 on val, 0.55 at least.
- street: `--task segment` at 480 px: mIoU of the 11 classes on val, 0.45 at least.

All else is the default, but for --width, --minutes, --crop and --batch-size, for machines on which
the whole would take longer. A command that is given again goes on with the run it began.

    python benchmarks/small_data.py --case blood-cells --data BLOOD-CELLS --out RUN --seed 0
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from recorded import record_case, trained

CASES: dict[str, dict[str, Any]] = {
    "blood-cells": {"task": "detect", "size": 416, "metric": "ap50", "bar": 0.70},
    "nuclei": {"task": "instance", "size": 256, "metric": "mask_ap50", "bar": 0.55},
    "street": {"task": "segment", "size": 480, "metric": "miou", "bar": 0.45},
}
MINUTES = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="plan the run to end in so many")
    parser.add_argument("--width", type=float, help="of the network, over ResNet-18's")
    parser.add_argument("--crop", type=int, help="pixels of a segmenter's training crops")
    parser.add_argument("--batch-size", type=int)
    options = parser.parse_args()
    asked = {
        "model.architecture.width": options.width,
        "augment.size": options.crop,
        "batch_size": options.batch_size,
    }
    chosen = [f"--set={key}={value}" for key, value in asked.items() if value is not None]
    case = CASES[options.case]
    run, rows = trained(
        options.out, options.data, "--task", case["task"], "--on-bad", "skip",
        "--set", f"data.size={case['size']}", "--seed", options.seed,
        *(() if options.minutes is None else ("--minutes", options.minutes)),
        *chosen,
    )  # fmt: skip
    result = run["result"]
    figures = {
        "metrics": result["metrics"],
        "metric": case["metric"],
        "interval": result["interval"],
        "split": result["split"],
        "n": result["n"],
        "bar": {case["metric"]: case["bar"], "minutes": MINUTES},
        "minutes": round(result["seconds"] / 60, 1),
        "epochs": len(rows),
        "training_images": run["data"]["splits"]["train"]["n"],
        "model": run["config"]["model"]["name"],
        "width": run["config"]["model"]["architecture"].get("width", 1),
        "size": case["size"],
        "crop": options.crop,
        "batch": run["config"]["batch_size"],
        "threads": run["environment"]["threads"],
        "precision": run["config"]["precision"],
        "seed": options.seed,
    }
    record_case("small_data", f"{options.case}, seed {options.seed}", figures)


if __name__ == "__main__":
    main()
