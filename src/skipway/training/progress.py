"""What a person sees while training: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from skipway.shares import percent
from skipway.training.clock import Clock
from skipway.training.forecast import Forecast
from skipway.training.loop import Tally

PLAIN_EVERY = 10.0
"""Seconds between lines within an epoch, where the output is not a terminal."""


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


SHARES = (
    "train_accuracy",
    "train_pixel_accuracy",
    "val_accuracy",
    "val_ap",
    "val_ap50",
    "val_mask_ap",
    "val_mask_ap50",
    "val_miou",
    "val_pixel_accuracy",
    "val_boundary_f1",
    "val_recall_at_1",
    "val_map_at_r",
)
SHOWN = ("val_loss", *SHARES)
"""Of a row, beside what is of training, and which of them are shares."""


class TrainingProgress:
    """Lines on stderr; everything that a user named is shown without markup."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=quiet, highlight=False)
        self._bar: Progress | None = None
        self._begun = self._told = time.monotonic()
        self._first_step = 0

    def say(self, text: str = "") -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def expect(self, forecast: Forecast) -> None:
        """What the training to come will take."""
        left, until = forecast.seconds - forecast.preparing, ""
        with contextlib.suppress(OverflowError):  # past the end of the calendar
            ends = datetime.datetime.now() + datetime.timedelta(seconds=left)
            until = f", until {ends:%H:%M}"
        self.say(
            f"  about {duration(forecast.seconds)} in all{until}, and "
            f"{forecast.memory_mib:,.0f} MiB"
        )

    def begin(self, clock: Clock, step: int) -> None:
        """Training starts, or goes on, at `step`."""
        self._clock, self._first_step = clock, step
        self._begun = self._told = time.monotonic()
        if self.console.is_terminal:
            columns = (BarColumn(24), TextColumn("{task.description}", markup=False))
            self._bar = Progress(*columns, console=self.console, transient=True)
            self._task = self._bar.add_task("", total=clock.total, completed=step)
            self._bar.start()

    def step(self, step: int, tally: Tally) -> None:
        """After every step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=self._line(step, tally))
        elif time.monotonic() - self._told > PLAIN_EVERY:
            self._told = time.monotonic()
            self.say("  " + self._line(step, tally))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A row of the metrics table."""
        self._told = time.monotonic()
        parts = [f"epoch {row['epoch']:>3}/{self._clock.epochs}"]
        for key, value in row.items():
            if key.startswith("train_") or key in SHOWN:
                shown = percent(value) if key in SHARES else f"{value:.4f}"
                parts.append(f"{key.removeprefix('train_').replace('_', ' ')} {shown}")
        parts += [speed(row["images_per_second"]), f"waiting {row['waiting']:.0%}"]
        parts += [f"ETA {self._left(row['step'])}"]
        self.say("  ".join(parts))

    def end(self) -> None:
        """Training is over, however it ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, step: int, tally: Tally) -> str:
        epoch = min(step // self._clock.steps_per_epoch + 1, self._clock.epochs)
        means = tally.means()
        parts = [f"epoch {epoch}/{self._clock.epochs}", f"step {step:,}/{self._clock.total:,}"]
        parts += [f"{name} {value:.4f}" for name, value in means.items()]
        if tally.seconds:
            parts += [speed(tally.images / tally.seconds)]
            parts += [f"waiting {tally.waiting / tally.seconds:.0%}"]
        return "  ".join([*parts, f"ETA {self._left(step)}"])

    def _left(self, step: int) -> str:
        done = step - self._first_step
        elapsed = time.monotonic() - self._begun
        return duration(elapsed / done * (self._clock.total - step)) if done else "?"


def speed(images_per_second: float) -> str:
    """A pace in words; of slow ones the first decimal too."""
    decimals = 0 if images_per_second >= 10 else 1
    return f"{images_per_second:,.{decimals}f} images/s"
