"""CIFAR-10 with the recipe speedrun-cifar: test accuracy and minutes, one seed a call.

All 50,000 training images, nothing is chosen on the test images: the last weights are scored on
six views of each (mirrored, moved by a pixel), and on one.
Each seed is a case of ``results/speedrun.json``, so that seeds may be spread over sittings. Minutes
are of the whole command, reading the images included. An unfinished run in OUT is gone on with, a
finished one is recorded as it is.

    python benchmarks/speedrun.py --data CIFAR10 --seed 0 --out RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recorded import record_case, skipway, trained

BAR = {"accuracy": 0.94, "minutes": 60, "seeds": 3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    flags = ["--recipe", "speedrun-cifar", "--val", "none", "--seed", options.seed]
    if options.threads is not None:
        flags += ["--threads", options.threads]
    run, rows = trained(options.out, options.data, *flags)
    result = run["result"]
    answer = skipway("eval", options.out, options.data, "--split", "test", "--views", "shift")
    figures = {
        "accuracy": answer["metrics"]["accuracy"],
        "views": answer["views"],
        "accuracy_of_one_view": result["metrics"]["accuracy"],
        "n": answer["n"],
        "split": answer["split"],
        "train_accuracy": rows[-1]["train_accuracy"],
        "epochs": len(rows),
        "minutes": round(result["seconds"] / 60, 1),
        "images_per_second": result["images_per_second"],
        "threads": run["environment"]["threads"],
        "precision": run["config"]["precision"],
        "model": run["config"]["model"]["name"],
        "params": run["params"],
        "macs": run["macs"],
        "bar": BAR,
    }
    record_case("speedrun", f"seed {run['config']['seed']}", figures)


if __name__ == "__main__":
    main()
