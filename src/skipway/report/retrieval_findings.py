"""What the numbers of a run that makes vectors mean, in sentences; see `findings`."""

from __future__ import annotations

from collections.abc import Iterator

from skipway.bootstrap import FEWEST
from skipway.errors import harmless
from skipway.report.findings import (
    LITTLE,
    Finding,
    as_list,
    broken_loss,
    by_urgency,
    clearly_below,
    leaks,
    unfinished,
    unsteady,
    waiting,
)
from skipway.report.losses import total_loss
from skipway.report.markup import Html, percent, plural
from skipway.report.run import Run
from skipway.report.values import dig, mapping, number, objects

WIDE = 0.1
"""Width of an interval from which it is told."""
LOOSE = 0.4
"""mAP@R below which classes are told to lie apart, where the nearest image is mostly right."""
MOSTLY = 0.8
"""Recall at 1 from which it mostly is."""


def findings(run: Run) -> list[Finding]:
    """Everything that stands out, what asks for an action first."""
    n = number(dig(run.splits, "val", "n"))
    found = [
        *leaks(run, "recall"), *_learned(run), *_few_classes(run), *broken_loss(run),
        *unsteady(total_loss(run)),
        *unfinished(run.series("val_recall_at_1"), "recall@1", int(n) if n and n >= 1 else None),
        *_weakest(run), *_apart(run), *_unseen(run), *waiting(run),
    ]  # fmt: skip
    return by_urgency(found)


def in_words(run: Run) -> Html | None:
    """The findings as a list; None where there is nothing to read them from."""
    if not run.epochs and run.metric("recall_at_1") is None:
        return None
    return as_list(findings(run))


def by_chance(run: Run) -> float | None:
    """The recall at 1 of neighbours that are drawn by lot, over the images that are not alone of
    their class; None where the classes of the split are not known."""
    counts = mapping(dig(run.splits, str(dig(run.record, "result", "split")), "counts"))
    sizes = [number(n) or 0 for n in counts.values()]
    asking, total = sum(n for n in sizes if n > 1), sum(sizes)
    if asking < 2:
        return None
    return sum(n * (n - 1) for n in sizes) / (asking * (total - 1))


def _learned(run: Run) -> Iterator[Finding]:
    recall, chance = run.metric("recall_at_1"), by_chance(run)
    if recall is None or chance is None or chance >= 1:
        return
    if recall < chance + LITTLE * (1 - chance):
        yield Finding(
            "warn",
            f"It learned little: the nearest image is of the same class for {percent(recall)} of "
            f"the {run.split} images; drawn by lot it is for {percent(chance)}. Train longer, "
            "start from --weights, or look whether labels and images fit together.",
        )


def _few_classes(run: Run) -> Iterator[Finding]:
    classes = len(objects(run.evaluation.get("per_class")))
    if run.metric("recall_at_1") is None or not run.scored or not classes:
        return
    if run.interval is None:
        if classes < FEWEST:
            yield Finding(
                "note",
                f"Only {plural(classes, 'class was', 'classes were')} scored: how far recall@1 is "
                f"from that of other classes, {FEWEST} could tell at least.",
            )
        return
    low, high = run.interval
    if high - low > WIDE:
        yield Finding(
            "note",
            f"Only {plural(run.scored, 'image', 'images')} of {plural(classes, 'class', 'classes')}"
            f" were scored: recall@1 on as many others may be anything from {percent(low, 0)} to "
            f"{percent(high, 0)}, and the more there are, the harder it is. More classes tell more "
            "than more images of these.",
        )


def _weakest(run: Run) -> Iterator[Finding]:
    rows = []
    for row in objects(run.evaluation.get("per_class")):
        n, recall = number(row.get("n")), number(row.get("recall_at_1"))
        if n is not None and recall is not None and n >= 1 and 0 <= recall <= 1:
            rows.append((str(row.get("label")), int(n), recall))
    total = sum(n for _, n, _ in rows)
    if len(rows) < 3:
        return
    overall = sum(n * recall for _, n, recall in rows) / total
    hits, queries = [round(n * recall) for _, n, recall in rows], [n for _, n, _ in rows]
    weak = clearly_below(hits, queries, overall)
    if not weak:
        return
    name, _, lowest = min((rows[k] for k in weak), key=lambda row: row[2])
    yield Finding(
        "note",
        f"{harmless(name)} is clearly found less often than others: for {percent(lowest)} of its "
        f"images the nearest is of it too ({percent(overall)} over all classes).",
    )


def _apart(run: Run) -> Iterator[Finding]:
    recall, precision = run.metric("recall_at_1"), run.metric("map_at_r")
    if recall is None or precision is None or recall < MOSTLY or precision >= LOOSE:
        return
    yield Finding(
        "note",
        f"The nearest image is mostly right ({percent(recall)}), but a class does not lie "
        f"together: mAP@R is {percent(precision)}. Longer training helps where all of a class "
        "shall be found.",
    )


def _unseen(run: Run) -> Iterator[Finding]:
    """Classes that were scored and none of whose images was trained on."""
    trained = mapping(dig(run.splits, "train", "counts"))
    scored = mapping(dig(run.splits, str(dig(run.record, "result", "split")), "counts"))
    new = [name for name, n in scored.items() if number(n) and not number(trained.get(name))]
    if new and len(new) == sum(1 for n in scored.values() if number(n)):
        yield Finding(
            "note",
            f"None of the {plural(len(new), 'class', 'classes')} that were scored was trained on: "
            "this is how well it finds what is new to it.",
        )
