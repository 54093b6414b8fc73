"""ResNet-20 on CIFAR-10 with every setting left to its default: accuracy on the test images.

An unfinished run in OUT is gone on with, a finished one is recorded as it is. The weights and the
log of the recorded run are kept in ``results/cifar10-resnet20``.

    python benchmarks/cifar10_resnet20.py --data CIFAR10 --out RUN
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from recorded import RESULTS, record, skipway
from skipway.card import parse_card
from skipway.weights import read_state, save_weights


def keep(run: Path, place: Path, folder: Path) -> None:
    """Copy weights, card and log of a run; paths lose the folder of this machine."""
    place.mkdir(parents=True, exist_ok=True)

    def bare(text: str) -> str:
        return text.replace(f"{run.parent}/", "").replace(f"{folder}/", "")

    for name in ("card.json", "metrics.jsonl", "run.json"):
        (place / name).write_text(bare((run / name).read_text()))
    state, card = read_state(run / "best.safetensors")
    assert card is not None
    save_weights(place / "best.safetensors", state, parse_card(bare(card.to_json()), "card"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not (options.out / "run.json").exists():
        skipway("train", options.data, "--out", options.out)
    elif json.loads((options.out / "run.json").read_text())["status"] != "finished":
        skipway("train", "--resume", options.out)
    run = json.loads((options.out / "run.json").read_text())
    result, epochs = run["result"], (options.out / "metrics.jsonl").read_text().splitlines()
    answer = skipway("eval", options.out, options.data, "--split", "test")
    keep(options.out, RESULTS / "cifar10-resnet20", Path(options.data).parent)
    figures = {
        "accuracy": answer["metrics"]["accuracy"],
        "interval": result["interval"],
        "n": answer["n"],
        "split": answer["split"],
        "epochs": len(epochs),
        "training_images": run["data"]["splits"]["train"]["n"],
        "seconds_of_training": round(sum(json.loads(e)["seconds"] for e in epochs)),
        "precision": run["config"]["precision"],
        "trained_with_threads": run["environment"]["threads"],
        "seeds": [run["config"]["seed"]],
        "bar": 0.905,
    }
    record("cifar10_resnet20", figures)


if __name__ == "__main__":
    main()
