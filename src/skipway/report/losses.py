"""The training loss of a task whose loss has parts: by which names a run has them, and their
plot."""

from __future__ import annotations

from skipway.report.course import Column, Marks, clipped, off_scale
from skipway.report.markup import Html
from skipway.report.plot import Axis, Line, linear, plot
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
    "ce": "CE",
    "dice": "Dice",
    "aux": "auxiliary",
}
"""By what follows ``train_loss_``, in words that fit beside a plot."""
TERM = "train_loss_"
WIDEST = 11
"""Characters of a term's name that fit there."""
MOST = 3
"""Times the highest loss after the first tenth of the epochs, at which the axis ends."""


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


def loss_columns(run: Run) -> list[Column]:
    """Of the table of epochs: the loss and its parts."""
    columns = [("Training loss", "train_loss", ".4g")] if run.series("train_loss") else []
    return columns + [(f"Loss: {term_in_words(key)}", key, ".4g") for key in terms(run)]


def loss_plot(run: Run, epochs: Axis, marks: Marks) -> Html | None:
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
