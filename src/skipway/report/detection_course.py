"""How the training of a detector went: its losses, its average precision, and the rest."""

from __future__ import annotations

from skipway.report.average_precision import Kind, kinds
from skipway.report.course import Marks, along, by_epoch, measures, of_every_run
from skipway.report.losses import loss_columns, loss_plot
from skipway.report.markup import Html, joined, tag
from skipway.report.plot import Axis
from skipway.report.run import Run


def course(run: Run) -> Html | None:
    """The section, or None where no epoch is recorded."""
    if not run.epochs:
        return None
    epochs, marks = along(run)
    plots = [loss_plot(run, epochs, marks)]
    plots += [_precision(run, kind, epochs, marks) for kind in kinds(run)]
    columns = loss_columns(run) + [
        (f"AP{level}{kind.of}", f"val_{kind.key('ap' + level)}", ".2%")
        for kind in kinds(run)
        for level in ("", "50")
    ]
    return joined([tag("div", *plots, *of_every_run(run), class_="plots"), by_epoch(run, columns)])


def _precision(run: Run, kind: Kind, epochs: Axis, marks: Marks) -> Html | None:
    """AP and AP50 of the validation images."""
    series = [(name, f"val_{kind.key(key)}") for name, key in (("AP", "ap"), ("AP50", "ap50"))]
    return measures(run, f"Validation {kind.ap}", "average precision", series, epochs, marks)
