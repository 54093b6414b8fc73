"""ResNet-20 on CIFAR-10 with every setting left to its default: accuracy on the test images.

An unfinished run in OUT is gone on with, a finished one is recorded as it is. The weights and the
log of the recorded run are kept in ``results/cifar10-resnet20``.

    python benchmarks/cifar10_resnet20.py --data CIFAR10 --out RUN
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recorded import keep, record, skipway, tested, trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run, rows = trained(options.out, options.data)
    answer = skipway("eval", options.out, options.data, "--split", "test")
    keep(options.out, "cifar10-resnet20", Path(options.data).parent)
    record("cifar10_resnet20", tested(run, rows, answer) | {"bar": 0.905})


if __name__ == "__main__":
    main()
