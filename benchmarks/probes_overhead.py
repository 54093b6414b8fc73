"""What looking at the signal through depth costs: time of an epoch with it over one without.

Steps of training on noise, the optimizer, precision and memory layout that `train` would choose
here, in turn without a look and with one, in one process. From the median of each follows the
time of an epoch of 40, 74 and 352 steps (the digits, Imagenette at batch 128, CIFAR-10 at batch
128) at the loop's own rate of looks, over one without looks.

    python benchmarks/probes_overhead.py
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from recorded import record, spread
from skipway.architecture import architecture
from skipway.config import OptimConfig
from skipway.machine import cores, has_bf16
from skipway.predictor import autocast
from skipway.probes import Signal
from skipway.resnet import ResNet
from skipway.training.loop import probed
from skipway.training.optim import make_optimizer

EPOCHS = (40, 74, 352)
"""Steps of an epoch."""
BAR = 1.03


@dataclass(frozen=True)
class Case:
    model: str
    size: int
    batch: int


CASES = (Case("resnet20", 32, 128), Case("resnet18", 128, 32), Case("resnet20", 16, 32))


def steps(case: Case, precision: str) -> Iterator[tuple[float, float]]:
    """Seconds of a step without and with a look, for ever."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    net = ResNet(architecture(case.model, num_classes=10)).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(net, OptimConfig(nesterov=True))
    x = torch.randn(case.batch, 3, case.size, case.size).to(memory_format=torch.channels_last)
    labels = torch.arange(case.batch) % 10
    signal = Signal(net)

    def step(look: bool) -> float:
        begun = time.perf_counter()
        with signal.forward() if look else contextlib.nullcontext(), autocast(device, precision):
            loss = F.cross_entropy(net(x).float(), labels)
        loss.backward()
        if look:
            signal.backward()
        optimizer.step()
        if look:
            signal.stepped()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    step(False), step(True)  # the first of each allocates
    order = False
    while True:
        seconds = {look: step(look) for look in (order, not order)}
        yield seconds[False], seconds[True]
        order = not order


def measure(case: Case, rounds: int, pairs: int, precision: str) -> dict[str, object]:
    """Rounds of so many pairs of steps; each gives one ratio of medians."""
    timed = steps(case, precision)
    looks = []
    for _ in range(rounds):
        without, with_look = zip(*(next(timed) for _ in range(pairs)), strict=True)
        looks.append(statistics.median(with_look) / statistics.median(without))
    name = f"{case.model}, {case.size} px, batch {case.batch}"
    print(f"{name}: a step with a look takes {statistics.median(looks):.3f} times one without",
          file=sys.stderr)  # fmt: skip
    shares = {n: sum(probed(at, n) for at in range(10 * n)) / (10 * n) for n in EPOCHS}
    return {
        "step_ratio": spread(looks),
        "epoch_ratio": {
            f"{n} steps": spread([1 + share * (look - 1) for look in looks])
            for n, share in shares.items()
        },
        "share_of_steps_looked_at": {f"{n} steps": round(share, 4) for n, share in shares.items()},
        "precision": precision,
        "bar": BAR,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pairs", type=int, default=15, help="pairs of steps in a round")
    parser.add_argument("--threads", type=int, default=cores())
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    precision = "bf16" if has_bf16() else "float32"
    figures = {
        f"{case.model}, {case.size} px, batch {case.batch}": measure(
            case, options.rounds, options.pairs, precision
        )
        for case in CASES
    }
    record("probes_overhead", {"threads": options.threads, "cases": figures})


if __name__ == "__main__":
    main()
