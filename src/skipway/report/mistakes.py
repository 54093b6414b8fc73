"""Where the network errs: confusion, calibration, class by class, and the images themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from skipway.metrics import class_scores, wilson_interval
from skipway.report.confusion import MATRIX_CLASSES, confused, matrix
from skipway.report.gallery import gallery, pictures
from skipway.report.markup import (
    MOST_ROWS,
    OPEN_ROWS,
    Html,
    details,
    joined,
    percent,
    plural,
    shown,
    table,
    tag,
)
from skipway.report.plot import bar, plot, shares
from skipway.report.run import SPLITS, Counts, Run
from skipway.report.values import dig, number, objects

SHOWN_MISTAKES = 24
MOSTLY_RIGHT = 0.75
"""Accuracy from which a network may doubt labels."""


def mistakes(run: Run) -> Html | None:
    """The section, or None where nothing was evaluated."""
    counts = run.confusion
    plots = [_matrix(run.classes, counts) if counts is not None else None, _calibration(run)]
    parts = [
        tag("div", *plots, class_="row") if any(plots) else None,
        _worst(run),
        _doubted(run),
        _doubtful(run),
        _by_class(run.classes, counts) if counts is not None else None,
    ]
    if not any(parts):
        return None
    split = str(dig(run.evaluation, "split"))
    count = shown(dig(run.evaluation, "n"), unit=" ") or ""
    said = f"Measured on {count}{SPLITS.get(split, split)} images, {run.seen_in_training}."
    return joined([tag("p", said, class_="quiet"), *parts])


def _matrix(classes: list[str], counts: Counts) -> Html:
    form = confused if len(classes) > MATRIX_CLASSES else matrix
    return form(classes, counts, "Images")


def _by_class(classes: list[str], counts: Counts) -> Html:
    scores = class_scores(counts)
    rows = []
    for k in np.argsort(scores.recall, kind="stable")[:MOST_ROWS]:
        spread = scores.interval(k)
        rows.append(
            (
                classes[k],
                bar(np.nan_to_num(scores.recall[k])),
                shown(scores.recall[k], ".1%"),
                "{} to {}".format(*(percent(end, 0) for end in spread)) if spread else None,
                shown(scores.precision[k], ".1%"),
                shown(scores.f1[k], ".3f"),
                shown(scores.n[k]),
            )
        )
    caption = (
        "Recall: of the images of the class, those found, with its 95 % interval. Precision: of "
        "the images given this class, those that are of it. F1: the harmonic mean of both. The "
        "worst recall comes first."
    )
    if len(classes) > MOST_ROWS:
        caption += f" The {MOST_ROWS} worst of {len(classes):,} classes."
    head = ("Class", "", "Recall", "Interval", "Precision", "F1", "Images")
    content = table(head, rows, words=2, caption=caption)
    return details("Class by class", content, opened=len(rows) <= OPEN_ROWS)


def _calibration(run: Run) -> Html | None:
    bins = [
        [number(row.get(key)) or 0 for key in ("confidence", "accuracy", "n")]
        for row in objects(run.evaluation.get("calibration"))
        if (number(row.get("n")) or 0) >= 1
    ]
    bins = [row for row in bins if all(0 <= value <= 1 for value in row[:2])]
    if not bins:
        return None
    largest = max(n for _, _, n in bins)
    dots = [
        (confidence, accuracy, 2 + 6 * math.sqrt(n / largest)) for confidence, accuracy, n in bins
    ]
    spread = [
        (confidence, *wilson_interval(round(accuracy * n), int(n)))
        for confidence, accuracy, n in bins
    ]
    ece = shown(run.metric("ece"), ".1%")
    caption = f"Expected calibration error {ece}. " if ece else ""
    caption += (
        "Below the dotted line: surer than right. The larger the dot, the more images; upright "
        "lines are 95 % intervals."
    )
    x, y = shares("confidence of the answer"), shares("of these answers are right")
    return plot("Calibration", caption, x, y, diagonal=True, dots=dots, spread=spread)


def _worst(run: Run) -> Html | None:
    doubted = {str(row.get("name")) for row in _doubted_rows(run)} if _may_doubt(run) else set()

    def caption(row: dict[str, Any]) -> list[Html | None]:
        sure, truth = shown(row.get("score"), ".0%"), shown(row.get("true_score"), ".0%")
        flag = "the label may be wrong" if str(row.get("name")) in doubted else None
        return [
            tag("b", f"{row.get('label')} → {row.get('predicted')}"),
            tag("span", f"{sure} sure") if sure else None,
            tag("span", f"the truth: {truth}") if truth else None,
            tag("span", flag, class_="flag") if flag else None,
        ]

    rows = objects(run.evaluation.get("mistakes"))[:SHOWN_MISTAKES]
    note = "Truth → answer. The images whose true class was given the least probability."
    if any(row.get("heat") for row in rows):
        note += " Beside each, in colour: what spoke for the answer (Grad-CAM); dark was cut off."
    return gallery("The worst mistakes", note, rows, caption)


def _may_doubt(run: Run) -> bool:
    counts = run.confusion
    if counts is None or not counts.sum():
        return False
    return bool(counts.diagonal().sum() >= MOSTLY_RIGHT * counts.sum())


def _doubted_rows(run: Run) -> list[dict[str, Any]]:
    return objects(dig(run.evaluation, "doubted_labels", "rows"))


def _doubted(run: Run) -> Html | None:
    """Likely label errors: those not among the worst mistakes as pictures, all of them by name."""
    rows, n = _doubted_rows(run), number(dig(run.evaluation, "doubted_labels", "n"))
    if n is None:
        return None
    title = tag("h3", "Likely label errors")
    if not _may_doubt(run):
        said = "Not looked for: a network must be mostly right before it may doubt labels."
        return tag("div", title, tag("p", said, class_="quiet"))
    if not rows or n < 1:
        return tag("div", title, tag("p", "None was found.", class_="quiet"))
    said = (
        f"{plural(int(n), 'label looks', 'labels look')} wrong on these images, "
        f"{run.seen_in_training}: the answer is another class, and one got at least the "
        "probability that its own images get on average (confident learning). Some are mistakes "
        "of the network; look before you change a label. Those among the worst mistakes are marked "
        "there."
    )
    pictured = [row for row in rows if row.get("image") is not None]

    def caption(row: dict[str, Any]) -> list[Html | None]:
        truth = shown(row.get("true_score"), ".0%")
        return [
            tag("b", f"labelled {row.get('label')}"),
            tag("span", f"rather {row.get('likelier')}"),
            tag("span", f"the label: {truth}") if truth else None,
        ]

    listed = [
        (
            row.get("name"),
            row.get("label"),
            row.get("likelier"),
            shown(row.get("true_score"), ".1%"),
        )
        for row in rows
    ]
    note = f"The clearest {len(rows)} of {n:,.0f}." if n > len(rows) else None
    files = table(("File", "Label", "Rather", "Label's probability"), listed, 3, note)
    return tag(
        "div",
        title,
        tag("p", said),
        pictures(pictured, caption) if pictured else None,
        details("The files", files, opened=False),
    )


def _doubtful(run: Run) -> Html | None:
    def caption(row: dict[str, Any]) -> list[Html | None]:
        pairs = (("predicted", "score"), ("second", "second_score"))
        return [
            tag("b", f"truth: {row.get('label')}"),
            *(tag("span", f"{shown(row.get(p), '.0%') or '?'} {row.get(k)}") for k, p in pairs),
        ]

    rows = objects(run.evaluation.get("doubtful"))[:SHOWN_MISTAKES]
    note = "The images whose two most probable classes are the closest, right or wrong."
    return gallery("Most doubtful", note, rows, caption)
