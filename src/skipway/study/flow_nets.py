"""The nets of the study of gradient flow, and the numbers read from what was measured of one."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Number = float | None
"""A value that is not negative; None where it overflowed."""
Flow = Mapping[str, Sequence[Number]]
"""By statistic of `probes.flow` the values of a net's parts: stem, each unit, classifier."""
Initial = Mapping[int, Mapping[int, Mapping[str, Flow]]]
"""By layers and seed, the nets at their first weights, by `Net.key`."""
Trained = Mapping[str, Sequence[Mapping[str, Any]]]
"""By `Net.key`, the result of each seed that did not diverge: ``frames`` (a `Flow` each, with its
``step``) and ``losses``, each the (step, mean since the one before) of an epoch."""

KINDS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"plain": {"shortcut": "none"}, "residual": {}, "preactivation": {"order": "pre"}}
)
"""Fields of the architecture by kind, which is its class in the style sheet too."""
NORMS = ("none", "batch")
INITS = ("xavier", "he")
SMALLEST, LARGEST = 1.2e-38, 3.4e38
"""What float32 holds: what is smaller is flushed to 0, what is larger overflows."""


@dataclass(frozen=True)
class Net:
    """One of the nets that are compared, at any depth."""

    kind: str
    """Of `KINDS`."""
    norm: str
    init: str

    @property
    def key(self) -> str:
        """As "plain none he"."""
        return f"{self.kind} {self.norm} {self.init}"

    @property
    def called(self) -> str:
        """The kind in words."""
        return "pre-activation" if self.kind == "preactivation" else self.kind

    @property
    def named(self) -> str:
        """As "plain, no norm, He"."""
        norm = "no norm" if self.norm == "none" else "batch norm"
        return f"{self.called}, {norm}, {self.init.title()}"

    @property
    def style(self) -> str:
        """Classes of the style sheet: Xavier is dashed."""
        return self.kind if self.init == "he" else f"{self.kind} training"

    def fields(self, layers: int) -> dict[str, Any]:
        """Fields of the architecture over the row resnet20, for 6n + 2 layers."""
        n = (layers - 2) // 6
        return {"depths": [n, n, n], "norm": self.norm, "init": self.init, **KINDS[self.kind]}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Net:
        """The net that has those fields."""
        own = {name: fields[name] for name in ("shortcut", "order") if name in fields}
        kind = next(kind for kind, its in KINDS.items() if its == own)
        return cls(kind, fields["norm"], fields["init"])


NETS = tuple(Net(kind, norm, init) for norm in NORMS for init in INITS for kind in KINDS)
TRAINED = (
    *(Net(kind, norm, "he") for norm in NORMS for kind in KINDS),
    Net("plain", "none", "xavier"),
)
"""Those that are trained too."""


def units(layers: int) -> int:
    """Residual units, or plain ones, of so many layers."""
    return (layers - 2) // 2


def between(layers: int) -> int:
    """Convolutions between the outputs of the first unit and of the last one."""
    return 2 * (units(layers) - 1)


def common(initial: Initial, depths: Iterable[int]) -> list[int]:
    """The seeds whose nets of all those depths are measured."""
    return sorted(set.intersection(*(set(initial.get(depth, ())) for depth in depths)))


def held(value: Number) -> float:
    """What is 0 as the smallest number, what overflowed as the largest."""
    return LARGEST if value is None else min(max(value, SMALLEST), LARGEST)


def ratio(flow: Flow) -> float:
    """The gradient at the first unit's output over that at the last one's, as a power of ten, of
    what is `held`."""
    first, last = (held(flow["gradient_rms"][place]) for place in (1, -2))
    return math.log10(first / last)


def left(flow: Flow) -> Number:
    """What is left of the gradient at the first unit, over that at the last one; 0 where it is
    exactly 0, None where it overflowed."""
    first = flow["gradient_rms"][1]
    return 10 ** ratio(flow) if first else first


def middle(values: Iterable[Number]) -> Number:
    """The geometric mean over seeds; 0 or None where that is the median."""
    rising = sorted(values, key=held)
    median = rising[len(rising) // 2]
    return math.exp(statistics.fmean(math.log(held(v)) for v in rising)) if median else median


def last_loss(rows: Sequence[tuple[int, float]]) -> float:
    """The mean of a result's ``losses`` over the last steps, as many as a whole epoch has. A
    training may end soon after an epoch, whose own mean is then that of few batches."""
    left = whole = rows[0][0]
    total = 0.0
    for (before, _), (step, loss) in reversed([*itertools.pairwise([(0, 0.0), *rows])]):
        steps = min(step - before, left)
        total, left = total + steps * loss, left - steps
    return total / whole


def losses(rows: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """A result's ``losses`` by step, each the mean over as many steps as a whole epoch has: the
    last is `last_loss`, in place of an epoch's that was cut short."""
    whole = rows[0][0]
    return [
        *[(step, loss) for step, loss in rows if step % whole == 0 and step < rows[-1][0]],
        (rows[-1][0], last_loss(rows)),
    ]
