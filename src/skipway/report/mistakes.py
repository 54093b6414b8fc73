"""Where the network errs: confusion, calibration, the worst mistakes, class by class."""

from __future__ import annotations

import base64
import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.errors import harmless
from skipway.report.markup import (
    OPEN_ROWS,
    Html,
    details,
    joined,
    percent,
    scroll,
    shown,
    table,
    tag,
)
from skipway.report.plot import bar, plot, shares
from skipway.report.run import SPLITS, Run
from skipway.report.values import dig, number, objects

Counts = npt.NDArray[np.float64]

MATRIX_CLASSES = 30
"""Up to this many classes the confusion matrix is shown whole, beyond it the worst pairs."""
SHOWN_MISTAKES = 24
SMALL_IMAGE = 96
"""Pictures with both sides below this many pixels are enlarged without blur."""
PNG = re.compile(r"data:image/png;base64,(iVBORw0KGgo[A-Za-z0-9+/]+={0,2})")
"""The only images the page takes: inline PNGs, told by their signature."""


def mistakes(run: Run) -> Html | None:
    """The section, or None where nothing was evaluated."""
    confusion = _confusion(run)
    pictures = [_matrix(*confusion) if confusion else None, _calibration(run)]
    parts = [
        tag("div", *pictures, class_="row") if any(pictures) else None,
        _worst(run),
        _by_class(*confusion) if confusion else None,
    ]
    if not any(parts):
        return None
    split = str(dig(run.evaluation, "split"))
    count = shown(dig(run.evaluation, "n"), unit=" ") or ""
    said = f"Measured on {count}{SPLITS.get(split, split)} images."
    return joined([tag("p", said, class_="quiet"), *parts])


def _confusion(run: Run) -> tuple[list[str], Counts] | None:
    """Class names and counts [truth, predicted]; None where they are absent or do not fit."""
    names = dig(run.evaluation, "classes")
    classes = [harmless(name) for name in names] if isinstance(names, list) else []
    try:
        counts = np.asarray(dig(run.evaluation, "confusion"), dtype=float)
    except (TypeError, ValueError):
        return None
    if not classes or counts.shape != (len(classes), len(classes)):
        return None
    return (classes, counts) if np.isfinite(counts).all() and (counts >= 0).all() else None


def _matrix(classes: list[str], counts: Counts) -> Html:
    if len(classes) > MATRIX_CLASSES:
        return _confused(classes, counts)
    turned = "tall" if max(map(len, classes)) > 3 else None
    head = [
        tag("th", tag("span", name), scope="col", class_=turned, title=name) for name in classes
    ]
    rows = []
    for truth, name in enumerate(classes):
        cells = []
        for predicted, count in enumerate(counts[truth]):
            share = count / max(counts[truth].sum(), 1)
            # The root lets a mistake of one in a hundred be seen beside the diagonal.
            level = math.ceil(5 * (share if truth == predicted else share**0.5))
            style = f"{'right' if truth == predicted else 'wrong'}{level}" if level else None
            cells.append(tag("td", f"{count:.0f}" if count else "", class_=style))
        rows.append(tag("tr", tag("th", name, scope="row", title=name), *cells))
    grid = tag(
        "table",
        tag("thead", tag("tr", tag("td", "truth ↓ answer →"), *head)),
        tag("tbody", *rows),
        class_="confusion",
    )
    caption = (
        "Images by true class (rows) and answer (columns). Blue is right, pink is wrong; "
        "the stronger, the larger the share of the row."
    )
    title = "Confusion matrix"
    content = (tag("h3", title), scroll(grid, title), tag("figcaption", caption))
    return tag("figure", *content, class_="grow")


def _confused(classes: list[str], counts: Counts) -> Html:
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:20]
    rows = []
    for truth, answer in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if count := wrong[truth, answer]:
            share = count / counts[truth].sum()
            pair = classes[truth], classes[answer]
            rows.append((*pair, bar(share), percent(share), shown(count)))
    head = ("Truth", "Answer", "Share of the class", "", "Images")
    pairs = table(head, rows, words=3)
    return tag("div", tag("h3", "Most confused pairs"), pairs, class_="grow")


def _by_class(classes: list[str], counts: Counts) -> Html:
    hits, truths, answers = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore"):  # a class without images has no recall: it shows a dash
        recall, precision = hits / truths, hits / answers
    rows = [
        (
            classes[index],
            bar(np.nan_to_num(recall[index])),
            shown(recall[index], ".1%"),
            shown(precision[index], ".1%"),
            shown(truths[index]),
        )
        for index in np.argsort(recall, kind="stable")
    ]
    caption = (
        "Recall: of the images of the class, those found. Precision: of the images given this "
        "class, those that are of it. The worst recall comes first."
    )
    head = ("Class", "", "Recall", "Precision", "Images")
    content = table(head, rows, words=2, caption=caption)
    return details("Class by class", content, opened=len(rows) <= OPEN_ROWS)


def _calibration(run: Run) -> Html | None:
    bins = [
        [number(row.get(key)) or 0 for key in ("confidence", "accuracy", "n")]
        for row in objects(run.evaluation.get("calibration"))
        if (number(row.get("n")) or 0) > 0
    ]
    if not bins:
        return None
    largest = max(n for _, _, n in bins)
    dots = [
        (confidence, accuracy, 2 + 8 * math.sqrt(n / largest)) for confidence, accuracy, n in bins
    ]
    ece = shown(run.metric("ece"), ".1%")
    caption = f"Expected calibration error {ece}. " if ece else ""
    caption += "Below the dotted line: surer than right. The larger the dot, the more images."
    x, y = shares("confidence of the answer"), shares("of these answers are right")
    return plot("Calibration", caption, x, y, diagonal=True, dots=dots)


def _worst(run: Run) -> Html | None:
    rows = objects(run.evaluation.get("mistakes"))[:SHOWN_MISTAKES]
    if not rows:
        return None
    pictures = [tag("li", _mistake(row)) for row in rows]
    title = tag("h3", "The worst mistakes: truth → answer")
    return tag("div", title, tag("ul", *pictures, class_="mistakes"))


def _mistake(row: dict[str, Any]) -> Html:
    label, answer, image = row.get("label"), row.get("predicted"), row.get("image")
    sure, truth = shown(row.get("score"), ".0%"), shown(row.get("true_score"), ".0%")
    picture = tag("div", "no picture", class_="missing")
    if isinstance(image, str) and (png := PNG.fullmatch(image)):
        size = np.frombuffer(base64.b64decode(png[1][:32])[16:24], ">u4")  # of the PNG's header
        style = "small" if size.max() < SMALL_IMAGE else None
        picture = tag("img", src=image, alt=f"truth {label}, answer {answer}", class_=style)
    caption = tag(
        "figcaption",
        tag("b", f"{label} → {answer}"),
        tag("span", f"{sure} sure") if sure else None,
        tag("span", f"the truth: {truth}") if truth else None,
        tag("span", row.get("name", "")),
    )
    return tag("figure", picture, caption)
