"""One clock: every duration becomes steps here, and the learning rate is a function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Schedule:
    """The learning rate at each step."""

    config: ScheduleConfig
    clock: Clock
    lr: float

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
        if c.kind == "step":
            passed = sum(step >= self.clock.steps(m) for m in c.milestones)
            return self.lr * c.factor**passed
        done = (step - warmup) / max(self.clock.total - warmup, 1)
        if c.kind in ("linear", "polynomial"):
            return self.lr * (1 - done) ** (c.power if c.kind == "polynomial" else 1)
        return self.lr * (1 + math.cos(math.pi * done)) / 2
