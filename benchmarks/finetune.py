"""Fine-tuning a few hundred photographs from own weights, against training from scratch.

Both train the same network at the same size with the defaults of `skipway train`, keep the last
weights (--val none) and are scored once on DATA's validation images. Then the classifier alone is
trained, with features computed once and with features computed in each epoch. Finished runs in OUT
are taken as they are.

    python benchmarks/finetune.py --data ANTS --weights RUN --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from scipy import stats

from recorded import record, spread, trained
from skipway.card import read_card
from skipway.files import weight_file


def train(data: str, out: Path, *flags: object) -> dict[str, Any]:
    """One training; its accuracy on the validation images, and seconds."""
    run, rows = trained(out, data, "--val", "none", *flags)
    return {
        "accuracy": run["result"]["metrics"]["accuracy"],
        "seconds": run["result"]["seconds"],
        "epoch_seconds": statistics.mean(row["seconds"] for row in rows[1:]),
        "epochs": len(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    card = read_card(weight_file(options.weights))
    assert card is not None
    recipe: Any = card.recipe
    size, overrides = ["--set", f"data.size={options.size}"], recipe["model"]["architecture"]
    scratch = ["--model", card.model, "--set", f"model.architecture={json.dumps(overrides)}"]
    finetune = ["--weights", options.weights]
    seeds, out, data = range(options.seeds), options.out, options.data
    runs = {
        kind: [train(data, out / f"{kind}-{s}", *flags, *size, "--seed", s) for s in seeds]
        for kind, flags in (("scratch", scratch), ("finetune", finetune))
    }
    frozen = [*finetune, *size, "--freeze", "all"]
    cached = train(data, out / "cached", *frozen)
    anew = train(data, out / "anew", *frozen, "--set=data.views=0", "--epochs=4")
    gains = [
        100 * (f["accuracy"] - s["accuracy"])
        for s, f in zip(runs["scratch"], runs["finetune"], strict=True)
    ]
    centre = statistics.mean(gains)
    low, high = stats.t.interval(0.95, len(gains) - 1, centre, stats.sem(gains))
    figures = {
        "model": card.model,
        "architecture": overrides,
        "size": options.size,
        "accuracy": {k: spread([r["accuracy"] for r in v]) for k, v in runs.items()},
        "gain_points": {"mean": round(centre, 2), "low": round(low, 2), "high": round(high, 2)},
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
