"""The page of a run that tells the class of every pixel: what it shows in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skipway.errors import harmless
from skipway.report.commands import Line, loading, quoted
from skipway.report.confusion import MATRIX_CLASSES, confused, matrix
from skipway.report.course import along, by_epoch, measures, of_every_run
from skipway.report.first_screen import how_good
from skipway.report.gallery import truth_and_found
from skipway.report.losses import loss_columns, loss_plot
from skipway.report.markup import (
    MOST_ROWS,
    OPEN_ROWS,
    Html,
    details,
    joined,
    large,
    percent,
    shown,
    table,
    tag,
    within,
)
from skipway.report.plot import bar
from skipway.report.run import SPLITS, Run
from skipway.report.segmentation_findings import in_words
from skipway.report.task_page import ByClass, TaskPage
from skipway.report.values import dig, ends, mapping, number, objects

MEASURES = (
    ("Mean IoU", "miou"),
    ("Pixel accuracy", "pixel_accuracy"),
    ("Mean accuracy", "mean_accuracy"),
    ("IoU, weighted by pixels", "weighted_iou"),
    ("Boundary F1", "boundary_f1"),
)
"""In words, and by their names in a run (`segmentations.statistics`); the main one first."""


# The first screen


def _what(run: Run) -> list[tuple[str, object]]:
    config = dig(run.record, "config", "segmenter")
    head, stride = dig(config, "head"), number(dig(config, "output_stride"))
    if head and stride and head != "unet":
        head = f"{head}, output stride {stride:g}"
    counts = {name: _pixels(split.get("counts")) for name, split in run.splits.items()}
    said = ", ".join(f"{large(n)} {SPLITS.get(name, name)}" for name, n in counts.items() if n)
    return [("Finds", "the class of every pixel"), ("Head", head), ("Pixels", said or None)]


def _pixels(counts: object) -> float:
    return sum(number(n) or 0 for n in mapping(counts).values())


def _how_good(run: Run) -> list[object]:
    facts = [(name, shown(run.metric(key), ".1%")) for name, key in MEASURES[1:]]
    said = "mean intersection over union (mean IoU)"
    return how_good(run, "miou", "mean IoU", facts, said)


def _next(run: Run) -> list[Line]:
    where = quoted(run.path)
    return [
        ("Measure it, here or on other data", f"skipway eval {where} {quoted(run.data)}"),
        ("Paint images with their classes", f"skipway predict {where} IMAGE… --draw out/"),
        ("Use it in Python", loading(run.path)),
    ]


def _use(run: Run) -> list[Line]:
    where = quoted(run.path)
    return [
        ("Paint images with their classes", f"skipway predict {where} IMAGE… --draw out/"),
        ("Write class maps, as indexed PNG", f"skipway predict {where} IMAGE… --masks out/"),
        ("For programs, as JSON", f"skipway predict {where} IMAGE… --json"),
        ("Measure it on images with masks", f"skipway eval {where} {quoted(run.data)}"),
        ("In Python", f'import skipway; print({loading(run.path)}("image.jpg"))'),
        ("Compare it with other runs", f"skipway compare {where} RUN --out compare.html"),
    ]


# How it went


def _course(run: Run) -> Html | None:
    if not run.epochs:
        return None
    epochs, marks = along(run)
    series = [
        (name, f"val_{key}")
        for name, key in (
            ("mean IoU", "miou"),
            ("pixel acc.", "pixel_accuracy"),
            ("boundary F1", "boundary_f1"),
        )
    ]
    plots = [
        loss_plot(run, epochs, marks),
        measures(run, "Validation scores", "score", series, epochs, marks),
        *of_every_run(run),
    ]
    columns = loss_columns(run) + [
        (name, f"val_{key}", ".2%") for name, key in MEASURES if run.series(f"val_{key}")
    ]
    return joined([tag("div", *plots, class_="plots"), by_epoch(run, columns)])


# Where it errs


def _errors(run: Run) -> Html | None:
    parts = [_pictures(run), _by_class(run), _confusion(run)]
    if not any(parts):
        return None
    pixels = sum(number(row.get("n")) or 0 for row in _classes(run))
    found = f"{large(pixels)} pixels of " if pixels else ""
    count = shown(run.scored, unit=" ") or ""
    said = f"Measured on {found}{count}{run.split} images, {run.seen_in_training}."
    return joined([tag("p", said, class_="quiet"), *parts])


def _pictures(run: Run) -> Html | None:
    """Truth beside what was found, the worst images first."""

    def caption(row: dict[str, Any]) -> str:
        wrong, miou = shown(row.get("wrong"), ".1%"), shown(row.get("miou"), ".1%")
        told = (f"{wrong} wrong" if wrong else None, f"mean IoU {miou}" if miou else None)
        return ", ".join(part for part in told if part)

    note = (
        "The images with the largest share of wrong pixels come first. What is hatched has no "
        "class in the truth, and is not judged."
    )
    rows = objects(run.evaluation.get("pictures"))
    return truth_and_found(rows, note, caption, ("true classes of", "classes found in"))


def _classes(run: Run) -> list[dict[str, Any]]:
    return objects(run.evaluation.get("per_class"))


def _by_class(run: Run) -> Html | None:
    rows = sorted(_classes(run), key=lambda row: number(row.get("iou")) or 0)
    if not rows:
        return None
    trained = mapping(dig(run.splits, "train", "counts"))
    total = _pixels(trained)
    columns = ("iou", "accuracy", "precision", "boundary_f1", "share")
    cells = []
    for row in rows[:MOST_ROWS]:
        seen = number(trained.get(str(row.get("label"))))
        cells.append(
            (
                row.get("label"),
                bar(min(max(number(row.get("iou")) or 0, 0), 1)),
                *(within(number(row.get(key)), row.get(f"{key}_interval")) for key in columns),
                percent(seen / total) if seen is not None and total else None,
            )
        )
    caption = (
        "IoU: of the pixels that are of the class or were given it, those that are both. Accuracy: "
        "of the class's pixels, those found. Precision: of the pixels given the class, those that "
        "are of it. Boundary F1: of its outlines, how much lies within 0.75 % of the image's "
        "diagonal of the true ones, and the reverse. The worst IoU comes first."
    )
    if any(ends(row.get("iou_interval")) for row in rows):
        caption += " In brackets: 95 % intervals, by a bootstrap over images."
    if len(rows) > MOST_ROWS:
        caption += f" The {MOST_ROWS} worst of {len(rows):,} classes."
    head = ("Class", "", "IoU", "Accuracy", "Precision", "Boundary F1", "Share of pixels",
            "In training")  # fmt: skip
    return details("Class by class", table(head, cells, 2, caption), len(cells) <= OPEN_ROWS)


def _confusion(run: Run) -> Html | None:
    counts = run.confusion
    if counts is None or not counts.any():
        return None
    parts = [confused(run.classes, counts, "Pixels", by_share=True)]
    if len(run.classes) <= MATRIX_CLASSES:
        parts.insert(0, matrix(run.classes, counts, "Pixels", in_shares=True))
    return tag("div", *parts, class_="row")


# In comparisons


def _scores(run: Run) -> list[tuple[str, str | None]]:
    spread = "{} to {}".format(*map(percent, run.interval)) if run.interval else None
    first, *others = [(name, shown(run.metric(key), ".1%")) for name, key in MEASURES]
    kept = [other for other in others if other[0] in ("Pixel accuracy", "Boundary F1")]
    return [first, ("95 % interval", spread), *kept]


def _ious(run: Run) -> Sequence[float | None]:
    known = {harmless(row.get("label")): number(row.get("iou")) for row in _classes(run)}
    return [known.get(name) for name in run.classes]


def _seen(row: dict[str, Any]) -> list[Html | None]:
    label = row.get("label")
    return [tag("b", label) if label is not None else None]


PAGE = TaskPage(
    what=_what,
    how_good=_how_good,
    next=_next,
    words=in_words,
    course=_course,
    errors=_errors,
    use=_use,
    seen=_seen,
    scores=_scores,
    measure="mean IoU",
    value=lambda run: run.metric("miou"),
    by_class=ByClass(
        "IoU",
        "iou",
        "of the pixels that are of the class or were given it, those that are both",
        _ious,
    ),
    untested="runs keep no counts of single images; skipway eval RUN DATA --against RUN compares "
    "mean IoU on the same ones",
    counted="Pixels",
    total="All images",
    pictures="pictures larger",
)
