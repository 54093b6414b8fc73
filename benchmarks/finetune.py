"""Fine-tuning a few hundred photographs from own weights, against training from scratch.

Both train the same network at the same size with the defaults of `skipway train`, keep the last
weights (--val none) and are scored once on DATA's validation images. Then the classifier alone is
trained, with features computed once and with features computed in each epoch.

    python benchmarks/finetune.py --data ANTS --weights RUN
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from scipy import stats

from recorded import record, skipway, spread
from skipway.card import read_card
from skipway.files import weight_file


def train(data: str, out: Path, *flags: str) -> dict[str, Any]:
    """One training; its accuracy on the validation images, and seconds."""
    answer = skipway("train", data, "--out", out, "--val", "none", *flags)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "accuracy": answer["metrics"]["accuracy"],
        "seconds": answer["seconds"],
        "epoch_seconds": statistics.median(row["seconds"] for row in rows[1:]),
        "epochs": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    card = read_card(weight_file(options.weights))
    assert card is not None
    recipe: Any = card.recipe
    overrides, size = recipe["model"]["architecture"], card.preprocess.size[0]
    model = ["--model", card.model, "--set", f"data.size={size}"]
    model += ["--set", f"model.architecture={json.dumps(overrides)}"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        runs: dict[str, list[dict[str, Any]]] = {"scratch": [], "finetune": []}
        for seed in range(options.seeds):
            for kind, flags in (
                ("scratch", model),
                ("finetune", ["--weights", options.weights]),
            ):
                out = place / f"{kind}-{seed}"
                runs[kind].append(train(options.data, out, *flags, "--seed", str(seed)))
        frozen = ["--weights", options.weights, "--freeze", "all"]
        cached = train(options.data, place / "cached", *frozen)
        anew = train(options.data, place / "anew", *frozen, "--set=data.views=0", "--epochs=4")
    gains = [
        100 * (f["accuracy"] - s["accuracy"])
        for s, f in zip(runs["scratch"], runs["finetune"], strict=True)
    ]
    interval = stats.t.interval(0.95, len(gains) - 1, statistics.mean(gains), stats.sem(gains))
    figures = {
        "model": card.model,
        "architecture": overrides,
        "size": size,
        "accuracy": {k: spread([r["accuracy"] for r in v]) for k, v in runs.items()},
        "gain_points": {"mean": round(statistics.mean(gains), 2), "interval": list(interval)},
        "seconds": {k: spread([r["seconds"] for r in v]) for k, v in runs.items()},
        "epochs": {k: v[0]["epochs"] for k, v in runs.items()},
        "frozen": {
            "accuracy": cached["accuracy"],
            "seconds": cached["seconds"],
            "epoch_seconds_cached": cached["epoch_seconds"],
            "epoch_seconds_anew": anew["epoch_seconds"],
            "ratio": round(anew["epoch_seconds"] / cached["epoch_seconds"], 1),
        },
        "bars": {"gain_points": 10, "seconds": 240, "ratio": 20},
    }
    record("finetune", figures)


if __name__ == "__main__":
    main()
