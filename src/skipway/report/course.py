"""How the training went: the curves, and the numbers by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skipway.report.markup import (
    Html,
    details,
    joined,
    mebibytes,
    percent,
    plural,
    shown,
    table,
    tag,
)
from skipway.report.plot import Axis, Line, linear, plot, shares
from skipway.report.run import CACHED, Run
from skipway.report.values import dig, number

SHOWN_EPOCHS = 60
"""Rows of the table of epochs; longer runs are sampled evenly."""


@dataclass(frozen=True)
class Quantity:
    """What is recorded each epoch, as it stands on an axis."""

    title: str
    name: str
    unit: str
    form: str
    """Of a value in words (`markup.shown`)."""
    most: float = math.inf
    """Times a run's median at which the axis ends: an odd epoch would flatten all others."""

    def axis(self, *runs: Sequence[float], top: float = math.inf) -> Axis:
        """The axis that holds the values of each run, no further than `top`; of shares, always all
        of it."""
        if self.form.endswith("%"):
            return shares(self.unit)
        median = max(float(np.median(values)) for values in runs)
        most = self.most * median if median > 0 else math.inf
        return linear(self.unit, min(max(map(max, runs)), top, most))


QUANTITIES = {
    "val_accuracy": Quantity("Validation accuracy", "validation", "of the images", ".1%"),
    "val_loss": Quantity("Validation loss", "validation", "nats an image", ".3g"),
    "train_loss": Quantity("Training loss", "training", "nats an image", ".3g"),
    "lr": Quantity("Learning rate", "rate", "step size", ".3g"),
    "images_per_second": Quantity("Speed", "speed", "training images a second", ",.0f", 3),
    "waiting": Quantity("Waiting for data", "waiting", "of the training time", ".1%"),
    "memory_mib": Quantity("Peak memory", "memory", "MiB of this process", ",.0f"),
}
"""By key of `metrics.jsonl`."""


def course(run: Run) -> Html | None:
    """The section, or None where no epoch is recorded."""
    if not run.epochs:
        return None
    epochs = linear("epoch", run.epochs[-1]["epoch"], whole=True)
    best = number(dig(run.record, "result", "best_epoch"))
    marks = [(best, "best")] if best is not None and 0 <= best <= epochs.high else []
    plots = (
        _losses(run, epochs, marks),
        _accuracies(run, epochs, marks),
        _single(run, epochs, "lr"),
        _single(run, epochs, "images_per_second"),
        _single(run, epochs, "waiting"),
        _single(run, epochs, "memory_mib"),
    )
    return joined([tag("div", *plots, class_="plots"), _numbers(run)])


def _numbers(run: Run) -> Html:
    columns = (
        ("Training loss", "train_loss", ".4g"),
        ("Validation loss", "val_loss", ".4g"),
        ("Training accuracy", "train_accuracy", ".2%"),
        ("Validation accuracy", "val_accuracy", ".2%"),
        ("Learning rate", "lr", ".3g"),
        ("Seconds", "seconds", ".1f"),
    )
    step = math.ceil(len(run.epochs) / SHOWN_EPOCHS)
    rows = [
        (f"{row['epoch']:g}", *(shown(row.get(key), form) for _, key, form in columns))
        for row in run.epochs[::-step][::-1]  # the last epoch is always among them
    ]
    note = (
        f"1 in {step} of {len(run.epochs):,} epochs; metrics.jsonl has all." if step > 1 else None
    )
    head = ("Epoch", *(name for name, _, _ in columns))
    return details("The numbers by epoch", table(head, rows, caption=note))


def _pair(run: Run, what: str) -> list[Line]:
    lines = (
        Line("training", run.series(f"train_{what}"), "training"),
        Line("validation", run.series(f"val_{what}")),
    )
    return [line for line in lines if line.points]


def _losses(run: Run, epochs: Axis, marks: Sequence[tuple[float, str]]) -> Html | None:
    lines = _pair(run, "loss")
    if not lines:
        return None
    at, lowest = min(lines[-1].points, key=lambda point: point[1])
    caption = f"Lowest {lines[-1].name} loss: {lowest:.3g}, at epoch {at:g}."
    broken = sum("train_loss" in r and number(r["train_loss"]) is None for r in run.epochs)
    if broken:
        caption += f" Training loss was not finite in {plural(broken, 'epoch', 'epochs')}."
    values, top = [value for line in lines for _, value in line.points], math.inf
    if len(lines) == 2:  # averaged weights may begin with a huge validation loss
        top = 3 * max(value for _, value in lines[0].points) or math.inf
    axis = QUANTITIES["val_loss"].axis(values, top=top)
    kept = [Line(line.name, clipped(line.points, axis), line.style) for line in lines]
    caption += off_scale(values, axis)
    return plot("Loss", caption, epochs, axis, kept, marks)


def clipped(points: Sequence[tuple[float, float]], axis: Axis) -> list[tuple[float, float]]:
    """The points, those above the axis brought down to its end."""
    return [(x, min(y, axis.high)) for x, y in points]


def off_scale(values: Sequence[float], axis: Axis) -> str:
    """What a caption says of values above the axis; nothing where there is none."""
    off = sum(value > axis.high for value in values)
    return f" {plural(off, 'value is', 'values are')} off the scale." if off else ""


def _accuracies(run: Run, epochs: Axis, marks: Sequence[tuple[float, str]]) -> Html | None:
    lines = _pair(run, "accuracy")
    if not lines:
        return None
    at, highest = max(lines[-1].points, key=lambda point: point[1])
    caption = f"Highest {lines[-1].name} accuracy: {percent(highest)}, at epoch {at:g}."
    axis = shares(QUANTITIES["val_accuracy"].unit)
    return plot("Accuracy", caption, epochs, axis, lines, marks)


def _single(run: Run, epochs: Axis, key: str) -> Html | None:
    """The plot of one quantity by epoch: learning rate, speed, waiting or memory."""
    points = run.series(key)
    if not points:
        return None
    quantity, values = QUANTITIES[key], [value for _, value in points]
    if key == "lr":
        caption = f"Highest {max(values):.3g}, {values[-1]:.3g} at the end."
    elif key == "waiting":
        caption = f"{percent(float(np.mean(values)))} on average."
    elif key == "memory_mib":
        caption = f"{mebibytes(max(values))} at most since the start; workers and GPU not counted."
    else:
        what = CACHED if run.on_features else "loading and augmentation included"
        caption = f"Median {float(np.median(values)):,.0f} a second, {what}."
    axis = quantity.axis(values)
    caption += off_scale(values, axis)
    line = Line(quantity.name, clipped(points, axis))
    return plot(quantity.title, caption, epochs, axis, [line])
