"""How the training went: the curves, and the numbers by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from skipway.report.markup import (
    Html,
    details,
    joined,
    mebibytes,
    percent,
    plural,
    rate,
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
    "val_ap": Quantity("Validation AP", "validation", "average precision", ".1%"),
    "val_ap50": Quantity("Validation AP50", "validation", "AP at IoU 0.5", ".1%"),
    "val_mask_ap": Quantity("Validation mask AP", "validation", "average precision", ".1%"),
    "val_mask_ap50": Quantity("Validation mask AP50", "validation", "AP at IoU 0.5", ".1%"),
    "val_miou": Quantity("Validation mean IoU", "validation", "mean IoU", ".1%"),
    "lr": Quantity("Learning rate", "rate", "step size", ".3g"),
    "images_per_second": Quantity("Speed", "speed", "training images a second", ",.1f", 3),
    "waiting": Quantity("Waiting for data", "waiting", "of the training time", ".1%"),
    "memory_mib": Quantity("Peak memory", "memory", "MiB of this process", ",.0f"),
}
"""By key of `metrics.jsonl`."""


def training_loss(kind: str) -> Quantity:
    """The training loss where it is of that kind (`Run.training_loss`), and no longer of the unit
    of the validation loss."""
    own = QUANTITIES["train_loss"]
    return replace(own, title=f"{own.title}: {kind}", unit="mean over the images")


Marks = Sequence[tuple[float, str]]
Column = tuple[str, str, str]
"""Of the table of epochs: its head, the key in `metrics.jsonl`, and the format."""
EVERY_RUN: tuple[Column, ...] = (("Learning rate", "lr", ".3g"), ("Seconds", "seconds", ".1f"))


def course(run: Run) -> Html | None:
    """The section, or None where no epoch is recorded."""
    if not run.epochs:
        return None
    epochs, marks = along(run)
    plots = (*_losses(run, epochs, marks), _accuracies(run, epochs, marks), *of_every_run(run))
    columns = (
        ("Training loss", "train_loss", ".4g"),
        ("Validation loss", "val_loss", ".4g"),
        ("Training accuracy", "train_accuracy", ".2%"),
        ("Validation accuracy", "val_accuracy", ".2%"),
    )
    note = None
    if run.training_loss:
        note = f"Training loss: {run.training_loss}. Validation loss: cross-entropy."
    return joined([tag("div", *plots, class_="plots"), by_epoch(run, columns, note)])


def along(run: Run) -> tuple[Axis, Marks]:
    """The axis of the epochs, of which there is one at least, and the best one marked."""
    epochs = linear("epoch", run.epochs[-1]["epoch"], whole=True)
    best = number(dig(run.record, "result", "best_epoch"))
    return epochs, [(best, "best")] if best is not None and 0 <= best <= epochs.high else []


def of_every_run(run: Run) -> list[Html | None]:
    """Plots of what each task's run has: learning rate, speed, waiting and memory."""
    keys = ("lr", "images_per_second", "waiting", "memory_mib")
    return [_single(run, along(run)[0], key) for key in keys]


def by_epoch(run: Run, columns: Sequence[Column], note: str | None = None) -> Html:
    """The numbers as a table, closed; a note below."""
    columns = (*columns, *EVERY_RUN)
    step = math.ceil(len(run.epochs) / SHOWN_EPOCHS)
    rows = [
        (f"{row['epoch']:g}", *(shown(row.get(key), form) for _, key, form in columns))
        for row in run.epochs[::-step][::-1]  # the last epoch is always among them
    ]
    notes = []
    if step > 1:
        notes.append(f"1 in {step} of {len(run.epochs):,} epochs; metrics.jsonl has all.")
    if note:
        notes.append(note)
    head = ("Epoch", *(name for name, _, _ in columns))
    return details("The numbers by epoch", table(head, rows, caption=" ".join(notes) or None))


def _pair(run: Run, what: str) -> list[Line]:
    lines = (
        Line("training", run.series(f"train_{what}"), "training"),
        Line("validation", run.series(f"val_{what}")),
    )
    return [line for line in lines if line.points]


def _losses(run: Run, epochs: Axis, marks: Marks) -> list[Html]:
    """Both losses on one axis where they are one quantity, else each in a plot of its own."""
    lines, kind = _pair(run, "loss"), run.training_loss
    parts = [(replace(QUANTITIES["val_loss"], title="Loss"), lines)]
    if kind is not None:
        trained = [line for line in lines if line.style == "training"]
        held = [line for line in lines if line.style != "training"]
        parts = [(parts[0][0], held), (training_loss(kind), trained)]
    parts = [(quantity, some) for quantity, some in parts if some]
    broken = sum("train_loss" in r and number(r["train_loss"]) is None for r in run.epochs)
    plots = []
    for place, (quantity, some) in enumerate(parts):
        at, lowest = min(some[-1].points, key=lambda point: point[1])
        caption = f"Lowest {some[-1].name} loss: {lowest:.3g}, at epoch {at:g}."
        if broken and place == len(parts) - 1:  # where training stands, if it stands anywhere
            caption += f" Training loss was not finite in {plural(broken, 'epoch', 'epochs')}."
        values = [value for line in some for _, value in line.points]
        top = most_val_loss(run) if some[-1].style != "training" else math.inf
        axis = quantity.axis(values, top=top)
        kept = [Line(line.name, clipped(line.points, axis), line.style) for line in some]
        caption += off_scale(values, axis)
        plots.append(plot(quantity.title, caption, epochs, axis, kept, marks))
    return plots


def measures(
    run: Run,
    title: str,
    unit: str,
    series: Sequence[tuple[str, str]],
    epochs: Axis,
    marks: Marks,
) -> Html | None:
    """Shares by epoch in one plot, (name, key) each, the main one first; None without any."""
    lines = [
        Line(name, points, f"tone{place + 1}" if place else "")
        for place, (name, key) in enumerate(series)
        if (points := run.series(key))
    ]
    if not lines:
        return None
    at, highest = max(lines[0].points, key=lambda point: point[1])
    caption = f"Highest {lines[0].name}: {percent(highest)}, at epoch {at:g}."
    return plot(title, caption, epochs, shares(unit), lines[::-1], marks)


def most_val_loss(run: Run) -> float:
    """Where an axis of the validation loss ends at most, as averaged weights may begin with a huge
    one: three times the highest training loss or, where that is another quantity, three times the
    loss of equal scores for all classes; infinity where neither is known."""
    if run.training_loss is None:
        return 3 * max((value for _, value in run.series("train_loss")), default=0) or math.inf
    classes = dig(run.record, "data", "classes")
    known = isinstance(classes, list) and len(classes) > 1
    return 3 * math.log(len(classes)) if known else math.inf


def clipped(points: Sequence[tuple[float, float]], axis: Axis) -> list[tuple[float, float]]:
    """The points, those above the axis brought down to its end."""
    return [(x, min(y, axis.high)) for x, y in points]


def off_scale(values: Sequence[float], axis: Axis) -> str:
    """What a caption says of values above the axis; nothing where there is none."""
    off = sum(value > axis.high for value in values)
    return f" {plural(off, 'value is', 'values are')} off the scale." if off else ""


def _accuracies(run: Run, epochs: Axis, marks: Marks) -> Html | None:
    lines = _pair(run, "accuracy")
    if not lines:
        return None
    at, highest = max(lines[-1].points, key=lambda point: point[1])
    caption = f"Highest {lines[-1].name} accuracy: {percent(highest)}, at epoch {at:g}."
    if run.mixed and lines[0].style == "training":
        caption += " Training accuracy is on mixed images, by the larger share."
    axis = shares(QUANTITIES["val_accuracy"].unit)
    return plot("Accuracy", caption, epochs, axis, lines, marks)


def _single(run: Run, epochs: Axis, key: str) -> Html | None:
    """The plot of one quantity by epoch: learning rate, speed, waiting or memory."""
    points = run.series(key)
    if not points:
        return None
    quantity, values = QUANTITIES[key], [value for _, value in points]
    if key == "lr":
        caption = f"At the ends of epochs: highest {max(values):.3g}, last {values[-1]:.3g}."
    elif key == "waiting":
        caption = f"{percent(float(np.mean(values)))} on average."
    elif key == "memory_mib":
        caption = f"{mebibytes(max(values))} at most since the start; workers and GPU not counted."
    else:
        what = CACHED if run.on_features else "loading and augmentation included"
        caption = f"Median {rate(float(np.median(values)))} a second, {what}."
    axis = quantity.axis(values)
    caption += off_scale(values, axis)
    line = Line(quantity.name, clipped(points, axis))
    return plot(quantity.title, caption, epochs, axis, [line])
