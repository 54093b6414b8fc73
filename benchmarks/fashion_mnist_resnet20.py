"""ResNet-20 on Fashion-MNIST, 20 epochs with Muon: accuracy on the test images.

An unfinished run in OUT is gone on with, a finished one is recorded as it is. The weights and the
log of the recorded run are kept in ``results/fashion-mnist-resnet20``.

    python benchmarks/fashion_mnist_resnet20.py --out RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recorded import keep, record, skipway, tested, trained

FLAGS = ("--model", "resnet20", "--epochs", 20, "--set", "optim.kind=muon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run, rows = trained(options.out, "fashion-mnist", *FLAGS)
    answer = skipway("eval", options.out, "fashion-mnist", "--split", "test")
    keep(options.out, "fashion-mnist-resnet20", options.out.parent)
    record("fashion_mnist_resnet20", tested(run, rows, answer) | {"bar": 0.94})


if __name__ == "__main__":
    main()
