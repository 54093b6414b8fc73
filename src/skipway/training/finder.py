"""The learning-rate range test: how high a rate this training bears.

Smith 2015 (1506.01186, section 3.3) lets the rate rise during one short training and looks at which
rates it learns. As in fastai the rate rises exponentially, and the test ends where the loss
diverges. The steps are those of the training itself: its network, images, augmentation, optimizer
and batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.errors import InputError
from skipway.training.clock import Clock, Schedule
from skipway.training.loop import Diverged, Loop, Tally

Array = npt.NDArray[Any]

STEPS = 100
SPAN = 1000.0
"""The rates go from the planned one over this to the planned one times this."""
FEWEST = 10
"""Steps below which no curve can be judged."""
_BEYOND = 4.0
"""Times the least loss at which the loss has diverged; it must also be worse than at the start."""
_MEMORY = 0.8
"""Of the running mean that is watched for it."""
_WIDTH = 0.2
"""Standard deviation, in decades of the rate, of the window that smooths the curve."""
_CAP = 2.0
"""Times the loss of the start to which the curve counts: how far it then explodes says nothing."""
_REDRAWS = 400
_EVIDENT = 4.0
"""Standard errors by which the loss must have fallen."""


class Rising(Schedule):
    """From `low` at the first step to `high` at the last, by the same factor each step."""

    def __init__(self, of: Schedule, clock: Clock, low: float, high: float) -> None:
        super().__init__(of.config, clock, high)
        self.low = low

    def __call__(self, step: int) -> float:
        return self.low * (self.lr / self.low) ** (step / max(self.clock.total - 1, 1))


@dataclass(frozen=True)
class RateTest:
    """What a test came to. All rates are those of the optimizer's `lr`."""

    planned: int
    """Steps that the test would have had without divergence."""
    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Of each step that was made, before it: the mean over its batch."""
    curve: tuple[float, ...]
    """The losses, smoothed, and none above twice the first."""
    diverged: float | None
    """The rate at which the test was ended; None where it went through all its rates."""
    least: float
    """The rate of the least smoothed loss."""
    steepest: float
    """The rate at which the smoothed loss falls fastest with the logarithm of the rate."""
    suggested: float | None
    """The steepest: the highest rate of a schedule, which warms up to it, may lie near the edge. A
    tenth of `least`, the rule for a constant rate, was too careful for it: SGD on ``digits``, where
    the two were 0.04 and 0.006, ended 6 epochs at 97.5 and 76.0 % (one seed). None where the loss
    did not fall beyond its noise."""
    interval: tuple[float, float] | None
    """Where 90 % of the suggestions fall when the noise of the batches is drawn again."""
    muon: float | None = None
    """The rate of Muon's convolutions that goes with the suggestion; None without Muon."""
    rank: int = 0
    """Of this process under torchrun."""

    @property
    def at_the_end(self) -> bool:
        """Whether the loss was still falling at the highest rate."""
        return self.diverged is None and self.least >= self.rates[-1] / 10**_WIDTH


def range_test(loop: Loop, low: float, high: float, steps: int = STEPS, seed: int = 0) -> RateTest:
    """Train at rates from `low` to `high` for so many steps, or until the loss diverges.

    loop: new; its clock and its schedule are replaced, its network is left changed. seed: of the
    redraws behind the interval. Raises InputError where no loss is a number.
    """
    loop.clock = Clock(loop.clock.steps_per_epoch, steps)
    loop.schedule = Rising(loop.schedule, loop.clock, low, high)
    watch, end = _Watch(), None
    try:
        while not (loop.finished or watch.diverged):
            loop.epoch(watch)
        if watch.diverged:
            end = loop.schedule(loop.step - 1)
    except Diverged:  # the loss of this step was no number, and is not among the others
        if not watch.losses:
            raise InputError(
                "the loss is no number before the first step: look for odd images, or take "
                "--precision float32"
            ) from None
        end = loop.schedule(loop.step - 1)
    rates = [loop.schedule(step) for step in range(len(watch.losses))]
    return judged(rates, watch.losses, end, steps, seed)


def _is_loss(name: str) -> bool:
    """Whether a term of `Task.losses` is minimised: loss, loss_box_reg, distill_loss."""
    return name.endswith("loss") or name.startswith("loss_")


class _Watch:
    """Takes the loss of each step, and ends the test where the running mean has diverged."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.diverged = False
        self._sum = 0.0
        self._means: list[float] = []

    def __call__(self, loop: Loop) -> bool:
        terms = loop.tally.means()
        loss = sum(value for name, value in terms.items() if _is_loss(name))
        loop.tally = Tally()  # so that it always holds one step
        self.losses.append(loss)
        self._sum = _MEMORY * self._sum + (1 - _MEMORY) * loss
        mean = self._sum / (1 - _MEMORY ** len(self.losses))
        self._means.append(mean)
        self.diverged = mean > max(_BEYOND * min(self._means), self._means[0])
        return self.diverged


def judged(
    rates: Sequence[float], losses: Sequence[float], diverged: float | None, planned: int, seed: int
) -> RateTest:
    """What the losses at rising rates say."""
    x, y = np.log10(np.array(rates)), np.array(losses)
    if len(x) < FEWEST:  # it diverged at once: nothing to smooth
        least = rates[int(np.argmin(y))]
        return RateTest(
            planned, tuple(rates), tuple(losses), tuple(losses), diverged, least, least, None, None
        )
    y = np.minimum(y, _CAP * y[: max(len(y) // 10, 3)].mean())
    level, slope = _window(x)
    curve = level @ y
    least, steepest = _marks(curve, slope @ y)
    noise = (y - curve) / np.maximum(1 - np.diag(level), 0.1)
    error = float(np.std(noise[: least + 1])) * math.sqrt(float((level[least] ** 2).sum()))
    fallen = curve[0] - curve[least] > _EVIDENT * max(error, 1e-9)
    suggested = interval = None
    if fallen:
        suggested = rates[steepest]
        # signs drawn anew leave each residual its own size: the noise grows with the rate
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), (_REDRAWS, len(y)))
        again = [
            rates[_marks(level @ redrawn, slope @ redrawn)[1]] for redrawn in curve + signs * noise
        ]
        low, high = np.quantile(again, (0.05, 0.95)).tolist()
        interval = (min(low, suggested), max(high, suggested))
    return RateTest(
        planned, tuple(rates), tuple(losses), tuple(curve.tolist()), diverged, rates[least],
        rates[steepest], suggested, interval,
    )  # fmt: skip


def _window(x: Array) -> tuple[Array, Array]:
    """What gives, of values at rising `x` [N], their level and their slope at each: [N, N] both.

    A straight line is fitted around each point with Gaussian weights, so that the ends of the curve
    are not drawn towards its middle.
    """
    away = x[None, :] - x[:, None]
    width = max(_WIDTH, float(2 * (x[-1] - x[0]) / (len(x) - 1)))  # some points in every window
    weight = np.exp(-0.5 * (away / width) ** 2)
    s0, s1, s2 = (np.sum(weight * away**p, axis=1, keepdims=True) for p in range(3))
    area = s0 * s2 - s1**2
    return weight * (s2 - s1 * away) / area, weight * (s0 * away - s1) / area


def _marks(curve: Array, slope: Array) -> tuple[int, int]:
    """Where the curve is least, and where before that it falls fastest."""
    least = int(np.argmin(curve))
    return least, int(np.argmin(slope[: least + 1]))
