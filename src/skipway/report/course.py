"""How the training went: the curves, and the numbers by epoch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from skipway.errors import harmless
from skipway.report.markup import Html, details, joined, percent, plural, shown, table, tag
from skipway.report.plot import Axis, Line, decades, linear, plot, shares
from skipway.report.run import Run
from skipway.report.values import dig, mapping, number

SHOWN_EPOCHS = 60
"""Rows of the table of epochs; longer runs are sampled evenly."""


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
        _gradients(run),
        _single(run, epochs, "images_per_second"),
        _single(run, epochs, "waiting"),
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
    top = max(value for line in lines for _, value in line.points)
    return plot("Loss", caption, epochs, linear("nats an image", top), lines, marks)


def _accuracies(run: Run, epochs: Axis, marks: Sequence[tuple[float, str]]) -> Html | None:
    lines = _pair(run, "accuracy")
    if not lines:
        return None
    at, highest = max(lines[-1].points, key=lambda point: point[1])
    caption = f"Highest {lines[-1].name} accuracy: {percent(highest)}, at epoch {at:g}."
    return plot("Accuracy", caption, epochs, shares("of the images"), lines, marks)


def _single(run: Run, epochs: Axis, key: str) -> Html | None:
    """The plot of one quantity by epoch: learning rate, speed or the share of time waiting."""
    points = run.series(key)
    if not points:
        return None
    values = [value for _, value in points]
    if key == "lr":
        title, name, axis = "Learning rate", "rate", linear("step size", max(values))
        caption = f"Highest {max(values):.3g}, {values[-1]:.3g} at the end."
    elif key == "waiting":
        title, name, axis = "Waiting for data", "waiting", shares("of the training time")
        caption = f"{percent(float(np.mean(values)))} on average."
    else:
        title, name, axis = "Speed", "speed", linear("training images a second", max(values))
        caption = f"Median {np.median(values):,.0f} a second, loading and augmentation included."
    return plot(title, caption, epochs, axis, [Line(name, points)])


def _gradients(run: Run) -> Html | None:
    rows = [row for row in run.epochs if mapping(row.get("gradient_norms"))]
    if not rows:
        return None
    chosen = {0: "early", len(rows) // 2: "middle", len(rows) - 1: "late"}
    names = list(rows[-1]["gradient_norms"])
    lines = []
    for position, style in chosen.items():
        norms = [number(rows[position]["gradient_norms"].get(name)) for name in names]
        points = [(block, norm) for block, norm in enumerate(norms) if norm and norm > 1e-300]
        if points:
            lines.append(Line(f"epoch {rows[position]['epoch']:g}", points, style))
    if not lines:
        return None
    blocks = [harmless(name) for name in names]
    smallest, low = min(lines[-1].points, key=lambda point: point[1])
    largest, high = max(lines[-1].points, key=lambda point: point[1])
    caption = (
        f"L2 norm, mean over {lines[-1].name}: largest in {blocks[int(largest)]} ({high:.2g}), "
        f"smallest in {blocks[int(smallest)]} ({low:.2g})."
    )
    ticks, start = [], 0
    for stage, group in itertools.groupby(name.split(".")[0] for name in blocks):
        length = len(list(group))
        ticks.append((start + (length - 1) / 2, stage))
        start += length
    x = Axis("block, from the input to the output", 0, max(start - 1, 1), ticks)
    y = decades("norm, log scale", [norm for line in lines for _, norm in line.points])
    return plot("Gradient by block", caption, x, y, lines)
