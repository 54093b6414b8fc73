"""What labelled images say of one reading beside another."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from skipway.doctor.readings import Reading
from skipway.metrics import best_temperature, mcnemar

Array = npt.NDArray[Any]

FEWEST = 32
"""Labelled images below which nothing is said."""
CHANCE = 0.001
"""A claim's chance of being wrong, two-sided, as the bootstrap has it: small, as many readings are
compared on the same images, and as with few of them it promises more than it keeps."""
MATTERS = 0.03
"""Share of the loss by which a reading must be better to be preferred to the declared one."""
MATTERS_IN_SIZE = 0.10
"""The same for cropping and size: many networks like test images a little larger than those of
training (1906.06423), which is no mistake."""
_LEAST = 0.003  # nats; below this no difference matters
_RESAMPLES = 10_000


def tempered(logits: Array, labels: Array) -> Array:
    """The cross-entropy of each image [N] in nats at the best temperature, 0.2 to 100.

    Temperature scaling (1706.04599, section 4.2), fitted to these very images.
    """
    z = (logits - logits.max(axis=1, keepdims=True)) / best_temperature(
        logits, labels, 0.2, 100, 18
    )
    loss: Array = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]
    return loss


@functools.lru_cache(maxsize=8)
def _resamples(n: int) -> Array:
    return np.random.default_rng(n).integers(0, n, (_RESAMPLES, n), dtype=np.int32)


@dataclass(frozen=True)
class Comparison:
    """One reading against the one that is held to be right, on the same images."""

    n: int
    loss: float
    """Mean of the paired differences in nats; positive: this reading is worse."""
    low: float
    """Lower end of the 99.9 % interval of `loss`."""
    high: float
    accuracy: float
    p: float
    """Two-sided sign test of the images that only one of the two gets right."""
    material: float
    """Nats from which a difference matters."""

    @property
    def worse(self) -> bool:
        """Beyond doubt and by an amount that matters."""
        return self.low > 0 and self.loss >= self.material


@dataclass(frozen=True)
class Outcome:
    """What a reading makes of the images."""

    reading: Reading
    n: int
    accuracy: float
    low: float
    """Lower end of the 95 % interval of the accuracy."""
    high: float
    loss: float
    """Mean cross-entropy in nats at the best temperature."""


@dataclass(frozen=True)
class Finding:
    """What the images say of one trait, the others being as diagnosed."""

    trait: str
    declared: Any
    found: Any
    undecided: tuple[Any, ...]
    """Of the values that were compared, those that the images cannot tell from the one found."""
    rival: Any = None
    """The value that was compared: the declared one where it is wrong, else the best other."""
    comparison: Comparison | None = None
    """Of the rival with the reading found; None where there is no other value."""
    untried: tuple[Any, ...] = ()
    """Values not compared with the one found: of a heavy network, those that began worst."""

    @property
    def state(self) -> Literal["right", "wrong", "undecided"]:
        """Of the declared value."""
        if self.declared != self.found:
            return "wrong"
        return "undecided" if self.undecided else "right"


def material(held: Array, share: float) -> float:
    """Nats from which a difference matters beside those losses [N]."""
    return max(_LEAST, share * float(held.mean()))


def compared(
    other: Array, held: Array, other_right: Array, held_right: Array, share: float
) -> Comparison:
    """Losses [N] and hits [N] of two readings."""
    d = other - held
    low, high = np.quantile(d[_resamples(len(d))].mean(axis=1), [CHANCE / 2, 1 - CHANCE / 2])
    wins = int((other_right & ~held_right).sum())
    losses = int((held_right & ~other_right).sum())
    return Comparison(
        n=len(d),
        loss=float(d.mean()),
        low=float(low),
        high=float(high),
        accuracy=float(other_right.mean()),
        p=mcnemar(wins, losses),
        material=material(held, share),
    )
