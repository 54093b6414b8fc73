"""Imagenette from scratch at 128 px: accuracy on its validation images after the last epoch.

Nothing is chosen on the validation images: the last weights are scored once (--val none). The
public leaderboard's best after 5 and 20 epochs are 87.43 % and 91.57 % (an XResNeXt-50 with
self-attention). An unfinished run in OUT is gone on with, a finished one is recorded as it is.

    python benchmarks/imagenette.py --data IMAGENETTE --epochs 5 --out RUN
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recorded import record, trained

SETTINGS = {
    5: {"batch_size": 64, "optim.lr": 0.1, "optim.muon_lr": 0.03},
    20: {"batch_size": 128, "optim.lr": 0.2, "optim.muon_lr": 0.06},
}
"""By epochs: more and smaller steps where there are few."""
FLAGS = {
    "data.size": 128,
    "data.preflight": False,
    "optim.kind": "muon",
    "label_smoothing": 0.1,
    "ema.decay": 0.99,
}
MODEL = "resnet50"
ARCHITECTURE = {"stem": "deep", "shortcut": "D", "squeeze": 16}
ARCHITECTURE |= {"zero_init_last": True}
OF_LENGTH = {5: {"width": 0.625}, 20: {"width": 0.5, "drop_path": 0.1}}
"""By epochs: a few leave the smaller net underfitted, many overfit it."""
BARS, LEADERBOARD = {5: 0.84, 20: 0.90}, {5: 0.8743, 20: 0.9157}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, choices=SETTINGS, required=True)
    options = parser.parse_args()
    settings = FLAGS | SETTINGS[options.epochs]
    sets = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    architecture = ARCHITECTURE | OF_LENGTH[options.epochs]
    sets.append(f"--set=model.architecture={json.dumps(architecture)}")
    arguments = ["--model", MODEL, "--epochs", options.epochs, "--val", "none", *sets]
    run, rows = trained(options.out, options.data, *arguments)
    result = run["result"]
    figures = {
        "model": MODEL,
        "architecture": run["config"]["model"]["architecture"],
        "params": run["params"],
        "epochs": len(rows),
        "accuracy": result["metrics"]["accuracy"],
        "interval": result["interval"],
        "n": result["n"],
        "split": result["split"],
        "train_accuracy": rows[-1]["train_accuracy"],
        "minutes": round(result["seconds"] / 60, 1),
        "images_per_second": result["images_per_second"],
        "threads": run["environment"]["threads"],
        "precision": run["config"]["precision"],
        "bar": BARS.get(len(rows)),
        "leaderboard": LEADERBOARD.get(len(rows)),
    }
    record(f"imagenette_{len(rows)}", figures)


if __name__ == "__main__":
    main()
