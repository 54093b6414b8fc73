"""What the numbers of a run that finds objects mean, in sentences; see `findings`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from skipway.detections import OutOfReach
from skipway.errors import harmless
from skipway.report.average_precision import kept, main_kind
from skipway.report.findings import (
    Finding,
    as_list,
    broken_loss,
    by_urgency,
    leaks,
    unfinished,
    unsteady,
    waiting,
)
from skipway.report.losses import total_loss
from skipway.report.markup import Html, percent, plural
from skipway.report.run import Run
from skipway.report.values import dig, mapping, number, objects

NOTHING = 0.05
"""AP50 up to which next to nothing is found."""
FEW = 100
"""Scored objects below which a class more or less tells little."""
WEAK = 0.15
"""Below the mean AP50, from which a class is told."""
FEWEST = 10
"""Objects of a class, or of a size, from which something is told of it alone."""
OVERLOOKED = 0.75
"""Recall at IoU 0.5, at any score that is kept, below which objects are overlooked."""
LOOSE = 0.5
"""AP over AP50 below which boxes are loose."""


def findings(run: Run) -> list[Finding]:
    """Everything that stands out, what asks for an action first."""
    found = [
        *leaks(run, "average precision"), *_nothing(run), *_few_objects(run), *broken_loss(run),
        *unsteady(total_loss(run)), *_unfinished(run), *_overlooked(run), *_weakest(run),
        *_sizes(run), *_loose(run), *waiting(run),
    ]  # fmt: skip
    return by_urgency(found)


def in_words(run: Run) -> Html | None:
    """The findings as a list; None where there is nothing to read them from."""
    if not run.epochs and run.metric(main_kind(run).key("ap")) is None:
        return None
    return as_list(findings(run))


def _ap50(run: Run) -> float | None:
    return run.metric(main_kind(run).key("ap50"))


def _learned(run: Run) -> bool:
    """Whether enough was found that its errors tell something."""
    found = _ap50(run)
    return found is not None and found > NOTHING


def _classes(run: Run) -> list[tuple[str, float, float, float | None]]:
    """Of each class with an object: name, objects, AP50 of the main kind, recall."""
    key = "mask_ap50" if main_kind(run).prefix == "mask_" else "ap50"
    rows = []
    for row in objects(run.evaluation.get("per_class")):
        n, ap50 = number(row.get("n")), number(row.get(key))
        if n is not None and ap50 is not None and n >= 1:
            rows.append((str(row.get("label")), n, ap50, number(row.get("recall"))))
    return rows


def _nothing(run: Run) -> Iterator[Finding]:
    found = _ap50(run)
    if found is not None and found <= NOTHING:
        yield Finding(
            "warn",
            f"It finds next to nothing: AP at IoU 0.5 is {percent(found)}. Train "
            "longer, start from --weights, or look at the pictures whether boxes and objects fit "
            "together.",
        )


def _few_objects(run: Run) -> Iterator[Finding]:
    n = sum(n for _, n, _, _ in _classes(run))
    if 0 < n < FEW:
        objects_were = plural(int(n), "object was", "objects were")
        yield Finding(
            "note",
            f"Only {objects_were} scored: the average precision on many more may differ by several "
            "points.",
        )


def _unfinished(run: Run) -> Iterator[Finding]:
    kind = main_kind(run)
    return unfinished(run.series(f"val_{kind.key('ap')}"), kind.ap)


def _overlooked(run: Run) -> Iterator[Finding]:
    rows = [(n, recall) for _, n, _, recall in _classes(run) if recall is not None]
    total = sum(n for n, _ in rows)
    if total < FEWEST or not _learned(run):
        return
    recall = sum(n * r for n, r in rows) / total
    beyond = _out_of_reach(run)
    if said := beyond.in_words():
        more = " A higher detector.detections finds more of them." if beyond.in_all else ""
        yield Finding("note", f"{said}{more}")
    if recall < OVERLOOKED * max(1 - beyond.objects / total, 0):
        yield Finding(
            "note",
            f"{percent(1 - recall, 0)} of the objects are not found {kept(run)}. Longer training, "
            "a larger input, anchors of their sizes (detector.anchor_scales) or a lower "
            "detector.score_threshold may find more; the --threshold of predict does not.",
        )
    elif recall >= 0.9:
        yield Finding(
            "good",
            f"Almost nothing is overlooked: {percent(recall)} of the objects are found at IoU 0.5 "
            f"{kept(run)}.",
        )


def _out_of_reach(run: Run) -> OutOfReach:
    """As the run kept it."""
    known = mapping(run.evaluation.get("out_of_reach"))
    counts = [max(int(number(known.get(f.name)) or 0), 0) for f in fields(OutOfReach)]
    return OutOfReach(*counts)


def _weakest(run: Run) -> Iterator[Finding]:
    rows = [row for row in _classes(run) if row[1] >= FEWEST]
    if len(rows) < 2 or not _learned(run):
        return
    mean = sum(ap50 for _, _, ap50, _ in rows) / len(rows)
    name, _, lowest, _ = min(rows, key=lambda row: row[2])
    if lowest > mean - WEAK:
        return
    counts = mapping(dig(run.splits, "train", "counts"))
    trained = {label: number(counts.get(label)) or 0 for label, _, _, _ in rows}
    n, most = trained[name], max(trained.values())
    rare = (
        f" Training had {plural(int(n), 'object', 'objects')} of it, {most:,.0f} of the commonest: "
        "more of it would help most."
        if n < most / 3
        else ""
    )
    yield Finding(
        "note",
        f"{harmless(name)} is found worst: AP at IoU 0.5 is {percent(lowest)}, {percent(mean)} on "
        f"average over the classes.{rare}",
    )


def _sizes(run: Run) -> Iterator[Finding]:
    """Small objects that are found much worse than the largest there are."""
    sizes = mapping(run.evaluation.get("sizes"))
    small = number(dig(sizes, "small", "ap"))
    others = [number(dig(sizes, name, "ap")) for name in ("large", "medium")]
    other = next((ap for ap in others if ap is not None), None)
    n = number(dig(sizes, "small", "n"))
    if small is None or other is None or not _learned(run) or (n is not None and n < FEWEST):
        return
    if small < other / 2 and other - small > 0.1:
        yield Finding(
            "note",
            f"Small objects, up to 32 × 32 px, are found much worse than larger ones: AP "
            f"{percent(small)}, against {percent(other)}. A larger input shows more of them.",
        )


def _loose(run: Run) -> Iterator[Finding]:
    kind, ap50 = main_kind(run), _ap50(run)
    ap = run.metric(kind.key("ap"))
    if ap is None or ap50 is None or ap50 < 0.5 or ap >= LOOSE * ap50:
        return
    shape = "masks" if kind.prefix == "mask_" else "boxes"
    yield Finding(
        "note",
        f"Objects are found, but their {shape} are loose: {percent(ap50)} at IoU 0.5, where half "
        f"of the overlap is enough, {percent(ap)} on average up to IoU 0.95.",
    )
