"""A CIFAR-10 ResNet-20 that someone else trained, loaded as it is, on the 10,000 test images.

Its author's figure, evaluated anew in float32: 91.73 %, 9,173 of 10,000 right.

    python benchmarks/imported_weights.py --weights resnet20-12fca82f.th --data CIFAR10
"""

from __future__ import annotations

import argparse

from recorded import record, skipway


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    answer = skipway("eval", options.weights, options.data, "--split", "test")
    record("imported_weights", answer | {"expected_accuracy": 0.9173})


if __name__ == "__main__":
    main()
