"""How the training of a detector went: its losses, its average precision, and the rest."""

from __future__ import annotations

from collections.abc import Sequence

from skipway.report.average_precision import Kind, kinds
from skipway.report.course import Marks, along, by_epoch, clipped, of_every_run, off_scale
from skipway.report.markup import Html, joined, percent, tag
from skipway.report.plot import Axis, Line, linear, plot, shares
from skipway.report.run import Run

TERMS = {
    "classifier": "classes",
    "classification": "classes",
    "box_reg": "boxes",
    "bbox_regression": "boxes",
    "bbox_ctrness": "centreness",
    "mask": "masks",
    "objectness": "proposals",
    "rpn_box_reg": "their boxes",
}
"""By what follows ``train_loss_``, in words that fit beside a plot."""
TERM = "train_loss_"
WIDEST = 11
"""Characters of a term's name that fit there."""
MOST = 3
"""Times the highest loss after the first tenth of the epochs, at which the axis ends."""


def course(run: Run) -> Html | None:
    """The section, or None where no epoch is recorded."""
    if not run.epochs:
        return None
    epochs, marks = along(run)
    plots = [_losses(run, epochs, marks)]
    plots += [_precision(run, kind, epochs, marks) for kind in kinds(run)]
    columns = [("Training loss", "train_loss", ".4g")] if run.series("train_loss") else []
    columns += [(f"Loss: {term_in_words(key)}", key, ".4g") for key in terms(run)]
    columns += [
        (f"AP{level}{kind.of}", f"val_{kind.key('ap' + level)}", ".2%")
        for kind in kinds(run)
        for level in ("", "50")
    ]
    return joined([tag("div", *plots, *of_every_run(run), class_="plots"), by_epoch(run, columns)])


def terms(run: Run) -> list[str]:
    """The keys of the training loss's parts, in the order in which they are recorded."""
    found = dict.fromkeys(key for row in run.epochs for key in row if key.startswith(TERM))
    return [key for key in found if run.series(key)]


def term_in_words(key: str) -> str:
    part = key.removeprefix(TERM)
    return TERMS.get(part, part.replace("_", " "))


def total_loss(run: Run) -> list[tuple[float, float]]:
    """The training loss by epoch, summed of its parts where it is not recorded itself."""
    recorded = run.series("train_loss")
    parts = [dict(run.series(key)) for key in terms(run)]
    if recorded or not parts:
        return recorded
    common = sorted(set.intersection(*(set(part) for part in parts)))
    return [(epoch, sum(part[epoch] for part in parts)) for epoch in common]


def _losses(run: Run, epochs: Axis, marks: Marks) -> Html | None:
    """The sum and its parts, as long as there is more than one, in shades of one colour."""
    total, parts = total_loss(run), terms(run)
    named = [("in all", total)] if total and len(parts) != 1 else []
    named += [(_short(term_in_words(key)), run.series(key)) for key in parts]
    if not named:
        return None
    values = [value for _, points in named for _, value in points]
    later = [value for _, points in named for _, value in points[len(points) // 10 :]]
    axis = linear("loss", max(min(max(values), MOST * max(later)), 0))
    lines = [
        Line(name, clipped(points, axis), f"training tone{i % 4}")
        for i, (name, points) in enumerate(named)
    ]
    at, lowest = min(named[0][1], key=lambda point: point[1])
    caption = f"Lowest, {named[0][0]}: {lowest:.3g}, at epoch {at:g}.{off_scale(values, axis)}"
    return plot("Training loss and its parts", caption, epochs, axis, lines, marks)


def _short(name: str) -> str:
    return name if len(name) <= WIDEST else f"{name[: WIDEST - 1]}…"


def _precision(run: Run, kind: Kind, epochs: Axis, marks: Marks) -> Html | None:
    """AP and AP50 of the validation images."""
    series: Sequence[tuple[str, str, str]] = (("AP50", "ap50", "tone2"), ("AP", "ap", ""))
    lines = [
        Line(name, points, style)
        for name, key, style in series
        if (points := run.series(f"val_{kind.key(key)}"))
    ]
    if not lines:
        return None
    at, highest = max(lines[-1].points, key=lambda point: point[1])
    caption = f"Highest {lines[-1].name}: {percent(highest)}, at epoch {at:g}."
    title = f"Validation {kind.ap}"
    return plot(title, caption, epochs, shares("average precision"), lines, marks)
