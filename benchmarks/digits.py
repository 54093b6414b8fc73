"""The demo's training on the embedded digits: accuracy on the held-out test images, and time.

python benchmarks/digits.py
"""

from __future__ import annotations

import tempfile

from recorded import record, skipway, spread

SEEDS = range(5)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            skipway("train", "digits", "--seed", seed, "--out", f"{folder}/{seed}")
            for seed in SEEDS
        ]
    accuracies = [run["metrics"]["accuracy"] for run in runs]
    figures = {
        "split": runs[0]["split"],
        "accuracy": spread(accuracies),
        "accuracies": accuracies,
        "seconds": spread([run["seconds"] for run in runs]),
        "bar": {"accuracy": 0.985, "seconds": 90},
    }
    record("digits", figures)


if __name__ == "__main__":
    main()
