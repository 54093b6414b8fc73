"""What the numbers of a run that tells the class of every pixel mean; see `findings`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from skipway.errors import harmless
from skipway.report.findings import (
    Finding,
    as_list,
    broken_loss,
    by_urgency,
    leaks,
    points,
    unfinished,
    unsteady,
    waiting,
)
from skipway.report.losses import total_loss
from skipway.report.markup import Html, percent, plural
from skipway.report.run import Run
from skipway.report.values import dig, mapping, number, objects

LITTLE = 0.1
"""Of the way from giving every pixel the commonest class to no mistake; less is little learned."""
WIDE = 0.1
"""Width of an interval from which it is told."""
WEAK = 0.2
"""Below the mean IoU, from which on a class is told."""
LOST = 0.05
"""IoU up to which a class is as good as not found."""
RARE = 0.01
"""Share of the training pixels below which a class is rare."""
TAKEN = 0.3
"""Share of a class that goes to one other class, from which it is told."""
FEWEST = 100
"""Pixels of a class from which its mistakes tell something."""
LOOSE = 0.75
"""Pixel accuracy from which regions are mostly right."""


def findings(run: Run) -> list[Finding]:
    """Everything that stands out, what asks for an action first."""
    found = [
        *leaks(run, "mean IoU"), *_learned(run), *_few_images(run), *broken_loss(run),
        *unsteady(total_loss(run)), *unfinished(run.series("val_miou"), "mean IoU"), *_lost(run),
        *_weakest(run), *_taken(run), *_outlines(run), *waiting(run),
    ]  # fmt: skip
    return by_urgency(found)


def in_words(run: Run) -> Html | None:
    """The findings as a list; None where there is nothing to read them from."""
    if not run.epochs and run.metric("miou") is None:
        return None
    return as_list(findings(run))


def _rows(run: Run) -> list[tuple[str, float, float]]:
    """Of each class that is there: name, pixels and IoU."""
    rows = []
    for row in objects(run.evaluation.get("per_class")):
        n, iou = number(row.get("n")), number(row.get("iou"))
        if n is not None and iou is not None and n >= 1:
            rows.append((str(row.get("label")), n, iou))
    return rows


def _trained(run: Run) -> dict[str, float]:
    """The share of each class among the training pixels; empty where that is not known."""
    counts = mapping(dig(run.splits, "train", "counts"))
    known = {name: number(n) or 0.0 for name, n in counts.items()}
    total = sum(known.values())
    return {name: n / total for name, n in known.items()} if total > 0 else {}


def _learned(run: Run) -> Iterator[Finding]:
    """Against every pixel of the commonest class, whose IoU is then its share, the others' 0."""
    found, rows = run.metric("miou"), _rows(run)
    if found is None or len(rows) < 2:
        return
    guessing = max(n for _, n, _ in rows) / sum(n for _, n, _ in rows) / len(rows)
    if found < guessing + LITTLE * (1 - guessing):
        yield Finding(
            "warn",
            f"It learned little: the mean IoU is {percent(found)}; giving every pixel the "
            f"commonest class gets {percent(guessing)}. Train longer, start from --weights, or "
            "look at the pictures whether images and masks fit together.",
        )


def _few_images(run: Run) -> Iterator[Finding]:
    if run.interval is None or not run.scored:
        return
    low, high = run.interval
    if high - low > WIDE:
        yield Finding(
            "note",
            f"Only {plural(run.scored, 'image was', 'images were')} scored: the mean IoU on many "
            f"more may be anything from {percent(low, 0)} to {percent(high, 0)}.",
        )


def _lost(run: Run) -> Iterator[Finding]:
    """Classes that are as good as never found."""
    rows, trained = _rows(run), _trained(run)
    lost = sorted((row for row in rows if row[2] <= LOST), key=lambda row: row[1])
    if not lost or len(lost) == len(rows):
        return
    named = [harmless(name) for name, _, _ in lost]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    rare = [name for name, _, _ in lost if trained.get(name, 1) < RARE]
    advice = (
        f" Training saw little of {'it' if len(lost) == 1 else 'them'}: class_weights=balanced, "
        "loss=ce+dice or more images would help."
        if rare
        else ""
    )
    yield Finding(
        "warn",
        f"{', '.join(named[:3])}{more}: as good as never found (IoU {percent(LOST, 0)} at most)."
        f"{advice}",
    )


def _weakest(run: Run) -> Iterator[Finding]:
    rows, trained = _rows(run), _trained(run)
    known = [row for row in rows if row[2] > LOST]
    if len(known) < 3:
        return
    mean = sum(iou for _, _, iou in rows) / len(rows)
    name, _, lowest = min(known, key=lambda row: row[2])
    if lowest > mean - WEAK:
        return
    share = trained.get(name)
    rare = (
        f" It has {percent(share, 2)} of the training pixels: thin and small things need a larger "
        "input, rare ones more images or class_weights=balanced."
        if share is not None and share < RARE
        else ""
    )
    yield Finding(
        "note",
        f"{harmless(name)} is found worst: IoU {percent(lowest)}, {percent(mean)} on average over "
        f"the classes.{rare}",
    )


def _taken(run: Run) -> Iterator[Finding]:
    """The class of which the largest share goes to one other class."""
    counts = run.confusion
    if counts is None or len(run.classes) < 3:
        return
    there = counts.sum(axis=1)
    wrong = counts / np.maximum(there[:, None], 1)
    np.fill_diagonal(wrong, 0)
    truth, answer = np.unravel_index(int(wrong.argmax()), wrong.shape)
    share = float(wrong[truth, answer])
    if share >= TAKEN and there[truth] >= FEWEST:
        yield Finding(
            "note",
            f"{percent(share, 0)} of the pixels of {run.classes[truth]} are taken for "
            f"{run.classes[answer]}.",
        )


def _outlines(run: Run) -> Iterator[Finding]:
    """Regions that are right with outlines that are not."""
    accuracy, f1 = run.metric("pixel_accuracy"), run.metric("boundary_f1")
    if accuracy is None or f1 is None or accuracy < LOOSE or f1 >= accuracy - 0.25:
        return
    yield Finding(
        "note",
        f"Regions are mostly right ({percent(accuracy)} of the pixels), their outlines less: "
        f"boundary F1 is {percent(f1)}, {points(accuracy - f1)} lower. A larger input, a smaller "
        "segmenter.output_stride or the head unet or deeplabv3plus draw them finer.",
    )
