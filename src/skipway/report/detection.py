"""The page of a run that finds objects, as boxes or as masks: what it shows in its own way."""

from __future__ import annotations

from typing import Any

import numpy as np

from skipway.report.average_precision import kept, kinds, main_kind
from skipway.report.commands import Line, loading, quoted
from skipway.report.detection_course import course
from skipway.report.detection_findings import in_words
from skipway.report.first_screen import how_good
from skipway.report.gallery import truth_and_found
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
    within,
)
from skipway.report.plot import Line as Curve
from skipway.report.plot import bar, plot, shares
from skipway.report.run import SPLITS, Run
from skipway.report.task_page import TaskPage
from skipway.report.values import dig, ends, mapping, number, objects

SHOWN_CURVES = 12
SIZES = {
    "small": "small, up to 32 × 32 px",
    "medium": "medium, up to 96 × 96 px",
    "large": "large",
}
"""COCO's sizes of objects (1405.0312, section 5), by the names that a run has for them."""
SURE = 0.5
"""The score that is marked on the curves."""


# The first screen


def _what(run: Run) -> list[tuple[str, object]]:
    config = dig(run.record, "config", "detector")
    head = [str(value) for key in ("head", "neck") if (value := dig(config, key))]
    counts = {
        name: sum(number(n) or 0 for n in mapping(split.get("counts")).values())
        for name, split in run.splits.items()
    }
    said = ", ".join(f"{n:,.0f} {SPLITS.get(name, name)}" for name, n in counts.items() if n)
    return [("Finds", "masks and boxes" if run.task == "instance" else "boxes"),
            ("Head", ", ".join(head) or None), ("Objects", said or None)]  # fmt: skip


def _how_good(run: Run) -> list[object]:
    kind = main_kind(run)
    levels = (("AP", "ap"), ("At IoU 0.5", "ap50"), ("At IoU 0.75", "ap75"),
              ("Average recall (AR)", "ar"))  # fmt: skip
    facts: list[tuple[str, object]] = [
        (f"{one.name}: {level}" if one.name else level, _figure(run, one.key(key)))
        for one in kinds(run)
        for level, key in levels
        if (one, key) != (kind, "ap")
    ]
    return how_good(run, kind.key("ap"), kind.ap, facts, f"average precision (AP){kind.of}")


def _figure(run: Run, key: str) -> str | None:
    """A metric with its interval, where there is one."""
    return within(run.metric(key), dig(run.evaluation, "intervals", key))


def _next(run: Run) -> list[Line]:
    where = quoted(run.path)
    return [
        ("Measure it, here or on other data", f"skipway eval {where} {quoted(run.data)}"),
        ("Find objects, and see them drawn", f"skipway predict {where} IMAGE… --draw out/"),
        ("Use it in Python", loading(run.path)),
    ]


def _use(run: Run) -> list[Line]:
    where = quoted(run.path)
    return [
        ("Find objects in images, and draw them", f"skipway predict {where} IMAGE… --draw out/"),
        ("The same for programs, as JSON", f"skipway predict {where} IMAGE… --json"),
        ("Measure it on annotated images", f"skipway eval {where} {quoted(run.data)}"),
        ("In Python", f'import skipway; print({loading(run.path)}("image.jpg"))'),
        ("Compare it with other runs", f"skipway compare {where} RUN --out compare.html"),
    ]


# Where it errs


def _errors(run: Run) -> Html | None:
    parts = [_pictures(run), _curves(run), _by_class(run), _by_size(run)]
    if not any(parts):
        return None
    n = sum(number(row.get("n")) or 0 for row in objects(run.evaluation.get("per_class")))
    found = f"{n:,.0f} objects in " if n else ""
    count = shown(run.scored, unit=" ") or ""
    said = f"Measured on {found}{count}{run.split} images, {run.seen_in_training}."
    return joined([tag("p", said, class_="quiet"), *parts])


def _pictures(run: Run) -> Html | None:
    """Truth beside what was found, the worst images first."""

    def counts(row: dict[str, Any]) -> str:
        words = (("right", "right"), ("missed", "missed"), ("extra", "too many"))
        known = [(number(row.get(key)), word) for key, word in words]
        return ", ".join(f"{n:,.0f} {word}" for n, word in known if n is not None)

    note = (
        "The true objects, and those that were found with their scores. The images with the most "
        "objects missed or too many come first."
    )
    rows = objects(run.evaluation.get("pictures"))
    return truth_and_found(rows, note, counts, ("true objects in", "objects found in"))


def _curves(run: Run) -> Html | None:
    """Precision over recall at IoU 0.5: of all classes, then of each, the worst first."""
    found = []
    for row in objects(run.evaluation.get("curves")):
        values = row.get("precision")
        precision = [number(v) for v in values] if isinstance(values, list) else []
        if len(precision) > 1 and all(v is not None and 0 <= v <= 1 for v in precision):
            found.append((str(row.get("label")), np.array(precision, float), row.get("scores")))
    if not found:
        return None
    found.sort(key=lambda curve: float(curve[1].mean()))
    plots = [_curve(*curve, _reached(curve[1])) for curve in found[:SHOWN_CURVES]]
    if len(found) > 1 and len({len(precision) for _, precision, _ in found}) == 1:
        mean = np.mean([precision for _, precision, _ in found], axis=0)
        most = float(np.mean([_reached(precision) for _, precision, _ in found]))
        plots.insert(0, _curve("Mean of all classes", mean, None, most))
    finds = main_kind(run).name.lower() or "boxes"
    note = (
        f"Precision: of the {finds} that were found, the share that is right. Recall: of the "
        f"objects, the share that was found. Both at IoU {SURE:g}, as less and less certain finds "
        f"are counted; where a line ends, nothing more is found {kept(run)}. As COCO has it, "
        "precision is the best at that recall or a higher one."
    )
    if len(found) > SHOWN_CURVES:
        note += f" The {SHOWN_CURVES} worst of {len(found):,} classes."
    return tag(
        "div",
        tag("h3", "Precision and recall"),
        tag("p", note, class_="quiet"),
        tag("div", *plots, class_="plots"),
    )


def _reached(precision: Any) -> float:
    """The highest recall that a curve has a precision at."""
    reached = precision.nonzero()[0]
    return float(reached[-1]) / (len(precision) - 1) if len(reached) else 0.0


def _curve(label: str, precision: Any, scores: object, most: float) -> Html:
    """most: the highest recall, of several classes on average: their line ends with the last."""
    last = len(precision) - 1
    end = round(_reached(precision) * last)
    points = [(i / last, float(precision[i])) for i in range(end + 1)]
    ap50 = percent(float(precision.mean()))
    caption = f"AP at IoU 0.5: {ap50}. Highest recall: {percent(most, 0)}."
    marks = []
    levels = [number(v) for v in scores] if isinstance(scores, list) else []
    if len(levels) == len(precision):
        sure = [i for i in range(end + 1) if (levels[i] or 0) >= SURE]
        if sure:
            at = sure[-1]
            marks.append((at / last, f"score {SURE:g}"))
            caption += f" At a score of {SURE:g} the recall is {percent(at / last, 0)}."
    x, y = shares("recall: of the objects, found"), shares("precision: of the found, right")
    return plot(label, caption, x, y, [Curve("", points)], marks)


def _by_class(run: Run) -> Html | None:
    rows = objects(run.evaluation.get("per_class"))
    if not rows:
        return None
    masks = any("mask_ap" in row for row in rows)
    columns = [("AP", "ap"), ("AP50", "ap50")]
    if masks:
        columns = [("Mask AP", "mask_ap"), ("Mask AP50", "mask_ap50"),
                   ("Box AP", "ap"), ("Box AP50", "ap50")]  # fmt: skip
    first = columns[0][1]
    rows = sorted(rows, key=lambda row: number(row.get(first)) or 0)
    trained = mapping(dig(run.splits, "train", "counts"))
    cells = [
        (
            row.get("label"),
            bar(min(max(number(row.get(first)) or 0, 0), 1)),
            *(within(number(row.get(key)), row.get(f"{key}_interval")) for _, key in columns),
            shown(row.get("recall"), ".1%"),
            shown(row.get("n")),
            shown(trained.get(str(row.get("label")))),
        )
        for row in rows[:MOST_ROWS]
    ]
    caption = (
        "AP: average precision over recall, the mean over IoU 0.5 to 0.95. AP50: at IoU 0.5 alone. "
        f"Recall: of the objects, those found at IoU 0.5 {kept(run)}. The worst comes first."
    )
    if any(ends(row.get(f"{first}_interval")) for row in rows):
        caption += " In brackets: 95 % intervals, by a bootstrap over images."
    if len(rows) > MOST_ROWS:
        caption += f" The {MOST_ROWS} worst of {len(rows):,} classes."
    head = ("Class", "", *(name for name, _ in columns), "Recall", "Objects", "In training")
    return details("Class by class", table(head, cells, 2, caption), len(cells) <= OPEN_ROWS)


def _by_size(run: Run) -> Html | None:
    sizes = mapping(run.evaluation.get("sizes"))
    rows = [
        (
            SIZES.get(name, name),
            bar(min(max(number(dig(size, "ap")) or 0, 0), 1)),
            within(
                number(dig(size, "ap")),
                dig(run.evaluation, "intervals", main_kind(run).key(f"ap_{name}")),
            ),
            shown(dig(size, "n")),
        )
        for name, size in sizes.items()
        if number(dig(size, "ap")) is not None
    ]
    if not rows:
        return None
    head = ("Size of the object", "", f"AP{main_kind(run).of}", "Objects")
    return tag("div", tag("h3", "By size"), table(head, rows, 2))


def _scores(run: Run) -> list[tuple[str, str | None]]:
    levels = (("AP", "ap"), ("AP50", "ap50"))
    named = [(kind, *level) for kind in kinds(run) for level in levels]
    return [
        (f"{kind.name} {level}".strip(), shown(run.metric(kind.key(key)), ".1%"))
        for kind, level, key in named
    ]


def _seen(row: dict[str, Any]) -> list[Html | None]:
    n, label = number(row.get("n")), row.get("label")
    said = plural(int(n), "object", "objects") if n is not None else label
    return [tag("b", said) if said is not None else None]


PAGE = TaskPage(
    what=_what,
    how_good=_how_good,
    next=_next,
    words=in_words,
    course=course,
    errors=_errors,
    use=_use,
    seen=_seen,
    scores=_scores,
    measure="average precision",
    value=lambda run: run.metric(main_kind(run).key("ap")),
    untested="runs keep no matches of single images; skipway eval RUN DATA --against RUN compares "
    "average precision on the same ones",
    counted="Objects",
    total="All images",
    pictures="pictures larger",
)
