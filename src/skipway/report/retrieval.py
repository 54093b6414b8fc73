"""The page of a run that makes vectors: what it shows in its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from skipway.errors import harmless
from skipway.report.commands import Line, loading, quoted
from skipway.report.course import along, by_epoch, measures, of_every_run
from skipway.report.first_screen import how_good
from skipway.report.gallery import pictures
from skipway.report.losses import loss_columns, loss_plot
from skipway.report.markup import (
    MOST_ROWS,
    OPEN_ROWS,
    Html,
    details,
    joined,
    percent,
    shown,
    table,
    tag,
)
from skipway.report.plot import bar
from skipway.report.retrieval_findings import by_chance, in_words
from skipway.report.run import Run
from skipway.report.task_page import ByClass, TaskPage
from skipway.report.values import dig, mapping, number, objects

MEASURES = (
    ("Recall@1", "recall_at_1"),
    ("Recall@2", "recall_at_2"),
    ("Recall@4", "recall_at_4"),
    ("Recall@8", "recall_at_8"),
    ("mAP@R", "map_at_r"),
)
"""In words, and by their names in a run (`retrieval.Retrieved.statistics`); the main one first."""
LOSSES = {
    "proxy-anchor": "proxy-anchor",
    "arcface": "ArcFace",
    "triplet": "batch-hard triplets",
}
SHOWN_QUERIES = 24


# The first screen


def _what(run: Run) -> list[tuple[str, object]]:
    config = dig(run.record, "config", "embedder")
    loss, pooling = dig(config, "loss"), dig(config, "pooling")
    dim = shown(dig(config, "dim"), unit=" numbers of length 1")
    return [
        ("Makes", f"vectors: {dim}" if dim else "vectors"),
        ("Loss", LOSSES.get(str(loss), loss)),
        ("Pooling", {"gem": "GeM"}.get(str(pooling), pooling)),
    ]


def _how_good(run: Run) -> list[object]:
    chance = by_chance(run)
    facts = [
        ("By guessing", shown(chance, ".1%")),
        *((name, shown(run.metric(key), ".1%")) for name, key in MEASURES[1:]),
    ]
    said = "recall@1, the share whose nearest other is of their class,"
    return how_good(run, "recall_at_1", "recall@1", facts, said, 1, chance, "classes")


def _next(run: Run) -> list[Line]:
    where = quoted(run.path)
    return [
        ("Measure it, here or on other data", f"skipway eval {where} {quoted(run.data)}"),
        ("Write images as vectors", f"skipway embed {where} DATA --out vectors.parquet"),
        ("Use it in Python", loading(run.path)),
    ]


def _use(run: Run) -> list[Line]:
    where = quoted(run.path)
    search = f"skipway search {where} vectors.parquet IMAGE…"
    return [
        ("Write images as vectors", f"skipway embed {where} DATA --out vectors.parquet"),
        ("Find those that are most similar to an image", search),
        ("The same as one picture", f"{search} --sheet found.png"),
        ("Measure it on labelled images, of any classes", f"skipway eval {where} DATA"),
        ("In Python", f'import skipway; print({loading(run.path)}(["image.jpg"]))'),
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
            ("recall@1", "recall_at_1"),
            ("recall@4", "recall_at_4"),
            ("mAP@R", "map_at_r"),
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
    parts = [_queries(run), _by_class(run)]
    if not any(parts):
        return None
    queries, n = number(run.evaluation.get("queries")), run.scored
    count = shown(n, unit=" ") or ""
    said = f"Each of the {count}{run.split} images was looked for among all others of them."
    if queries is not None and n is not None and queries < n:
        said += f" {n - queries:,.0f} are alone of their class, and were not."
    return joined([tag("p", said, class_="quiet"), *parts])


def _queries(run: Run) -> Html | None:
    """The worst queries, each with its nearest images."""
    rows = objects(run.evaluation.get("worst"))[:SHOWN_QUERIES]
    if not rows:
        return None
    note = (
        "Those of the least average precision come first. Each picture stands before the images "
        "that are most similar to it, with the cosine."
    )
    shows = []
    for row in rows:
        rank, precision = shown(row.get("first")), shown(row.get("map_at_r"), ".1%")
        told = [
            f"the first of its class comes at place {rank}" if rank else None,
            f"average precision {precision}" if precision else None,
        ]
        said = "; ".join(part for part in told if part)
        images = [row | {"query": True}, *objects(row.get("neighbours"))]
        head = tag("p", tag("b", row.get("label")), f": {said}" if said else None)
        shows.append(tag("div", head, pictures(images, _caption)))
    return tag("div", tag("h3", "The worst queries"), tag("p", note, class_="quiet"), *shows)


def _caption(row: dict[str, Any]) -> list[Html | None]:
    """A query, or an image that it found."""
    if row.get("query"):
        return [tag("b", "query")]
    cosine = shown(row.get("similarity"), ".3f")
    right = row.get("right")
    mark = {True: "same class", False: "another class"}.get(right) if right in (0, 1) else None
    return [
        tag("b", row.get("label")),
        tag("span", mark, class_="flag" if right is False else None) if mark else None,
        tag("span", f"cosine {cosine}") if cosine else None,
    ]


def _classes(run: Run) -> list[dict[str, Any]]:
    return objects(run.evaluation.get("per_class"))


def _by_class(run: Run) -> Html | None:
    rows = sorted(_classes(run), key=lambda row: number(row.get("recall_at_1")) or 0)
    if not rows:
        return None
    trained = mapping(dig(run.splits, "train", "counts"))
    cells = [
        (
            row.get("label"),
            bar(min(max(number(row.get("recall_at_1")) or 0, 0), 1)),
            shown(row.get("recall_at_1"), ".1%"),
            shown(row.get("map_at_r"), ".1%"),
            shown(row.get("n")),
            shown(trained.get(str(row.get("label")), 0)),
        )
        for row in rows[:MOST_ROWS]
    ]
    caption = (
        "Recall@1: of the images of the class, those whose nearest other is of it too. mAP@R: over "
        "the R nearest, where R others are of the class, the mean of the precision at each that "
        "is; others count 0. The worst comes first."
    )
    if len(rows) > MOST_ROWS:
        caption += f" The {MOST_ROWS} worst of {len(rows):,} classes."
    head = ("Class", "", "Recall@1", "mAP@R", "Queries", "In training")
    return details("Class by class", table(head, cells, 2, caption), len(cells) <= OPEN_ROWS)


# In comparisons


def _scores(run: Run) -> list[tuple[str, str | None]]:
    spread = "{} to {}".format(*map(percent, run.interval)) if run.interval else None
    first, *others = [(name, shown(run.metric(key), ".1%")) for name, key in MEASURES]
    kept = [other for other in others if other[0] in ("Recall@4", "mAP@R")]
    return [first, ("95 % interval", spread), *kept]


def _recalls(run: Run) -> Sequence[float | None]:
    known = {harmless(row.get("label")): number(row.get("recall_at_1")) for row in _classes(run)}
    return [known.get(name) for name in run.classes]


PAGE = TaskPage(
    what=_what,
    how_good=_how_good,
    next=_next,
    words=in_words,
    course=_course,
    errors=_errors,
    use=_use,
    seen=lambda row: [tag("b", row.get("label"))],
    scores=_scores,
    measure="recall@1",
    value=lambda run: run.metric("recall_at_1"),
    by_class=ByClass(
        "Recall@1",
        "recall_at_1",
        "of the images of the class, those whose nearest other is of it too",
        _recalls,
    ),
    untested="a run keeps what its queries found together, not one by one",
    counted="Images",
    total="All",
)
