"""One clock: every duration becomes steps here, and the learning rate is a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from skipway.config import ScheduleConfig, split_duration


@dataclass(frozen=True)
class Clock:
    """Steps of the optimizer: how many make an epoch, and how many the run has."""

    steps_per_epoch: int
    total: int

    @classmethod
    def of(cls, length: str, steps_per_epoch: int) -> Clock:
        """For a run of that length; a percentage has no meaning here. Raises ValueError."""
        number, unit = split_duration(length)
        if unit == "%":
            raise ValueError(f"the length of a run cannot be {length!r}; write epochs or steps")
        if not number:
            raise ValueError(f"a run of {length!r} trains nothing; write epochs or steps above 0")
        total = round(number * (steps_per_epoch if unit == "epoch" else 1))
        return cls(steps_per_epoch, max(total, 1))

    def steps(self, duration: str) -> int:
        """A duration in steps; `10 %` is a tenth of the run."""
        number, unit = split_duration(duration)
        of = {"epoch": self.steps_per_epoch, "step": 1, "%": self.total / 100}[unit]
        return round(number * of)

    @property
    def epochs(self) -> int:
        """Epochs of the run, the last perhaps not whole."""
        return math.ceil(self.total / self.steps_per_epoch)

    def position(self, step: int) -> tuple[int, int]:
        """Epoch (from 0) and batch in it at which step `step` begins."""
        return divmod(step, self.steps_per_epoch)


@dataclass
class Patience:
    """Epochs in a row whose metric (higher is better) was no better than the best."""

    threshold: float = 0.0
    """Share of the best by which another must be above it."""
    best: float = -math.inf
    waited: int = 0

    def count(self, metric: float) -> int:
        """Take the metric of one more epoch; how many have been waited for a better one."""
        if metric > self.best * (1 + self.threshold):
            self.best, self.waited = metric, 0
        else:
            self.waited += 1
        return self.waited


class Schedule:
    """The learning rate at each step, and whether the run ends early.

    Both are functions of the step and, where the validation metric decides, of what `state` gives.
    settled: the steps after which no frozen part is left that will train; the metric counts after
    them and after the warm-up.
    """

    def __init__(
        self, config: ScheduleConfig, clock: Clock, lr: float, *, settled: int = 0
    ) -> None:
        self.config, self.clock, self.lr = config, clock, lr
        self.falls = 0
        """Of plateau: how often the rate was multiplied by `factor`."""
        self.stopped: str | None = None
        """Why the run ends early; None while it does not."""
        self._ignored = max(settled, clock.steps(config.warmup))
        self._fall, self._stop = Patience(config.threshold), Patience()

    def __call__(self, step: int) -> float:
        """The rate of step `step`, counted from 0."""
        c, warmup = self.config, self.clock.steps(self.config.warmup)
        if step < warmup:
            if c.warmup_lr is not None:
                return c.warmup_lr
            if c.kind == "one-cycle":
                return self.lr * (0.04 + 0.96 * (1 - math.cos(math.pi * step / warmup)) / 2)
            return self.lr * (step + 1) / warmup
        if c.kind == "constant":
            return self.lr
        if c.kind == "plateau":
            return self.lr * c.factor**self.falls
        if c.kind == "step":
            passed = sum(step >= self.clock.steps(m) for m in c.milestones)
            return self.lr * c.factor**passed
        done = (step - warmup) / max(self.clock.total - warmup, 1)
        if c.kind in ("linear", "polynomial"):
            return self.lr * (1 - done) ** (c.power if c.kind == "polynomial" else 1)
        return self.lr * (1 + math.cos(math.pi * done)) / 2

    def seen(self, step: int, metric: float) -> list[str]:
        """Take the validation metric after `step` steps, the end of an epoch; what follows from it,
        in words."""
        c, said = self.config, list[str]()
        if step <= self._ignored or step >= self.clock.total:
            return said
        if c.kind == "plateau" and (waited := self._fall.count(metric)) > c.plateau_patience:
            before, self._fall.waited = self(step), 0
            self.falls += 1
            said.append(
                f"the learning rate falls from {before:.3g} to {self(step):.3g}: "
                f"{self._fall.best:.4g} is still the best after {_epochs(waited)} more"
            )
        if c.stop_patience is not None and self._stop.count(metric) >= c.stop_patience:
            self.stopped = (
                f"{self._stop.best:.4g} is still the best after {_epochs(c.stop_patience)} more"
            )
            said.append(f"stopped early: {self.stopped}")
        return said

    def state(self) -> dict[str, Any]:
        """What the metric has decided so far, for a checkpoint."""
        return {
            "falls": self.falls,
            "stopped": self.stopped,
            "fall": asdict(self._fall),
            "stop": asdict(self._stop),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.falls, self.stopped = state["falls"], state["stopped"]
        self._fall, self._stop = Patience(**state["fall"]), Patience(**state["stop"])


def _epochs(n: int) -> str:
    return f"{n} epoch{'s' if n > 1 else ''}"
