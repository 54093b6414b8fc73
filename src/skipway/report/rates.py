"""A learning-rate range test as a plot."""

from __future__ import annotations

from pathlib import Path

from skipway.errors import InputError, harmless
from skipway.report.document import as_svg, check_place, document, write_document
from skipway.report.markup import Html, code_line, tag
from skipway.report.plot import Line, decades, linear, plot
from skipway.training.finder import RateTest

FORMS = (".html", ".svg")


def check_plot_place(out: str) -> None:
    """Raise InputError where no plot can be written there, before a test is made for it."""
    path = Path(out)
    if path.suffix.lower() not in FORMS:
        raise InputError(f"--out {harmless(out)}: name a file that ends in .html or .svg")
    check_place(path, "plot.html")


def write_rate_plot(test: RateTest, out: str, lines: list[str], command: str | None) -> Path:
    """Write the plot as a page or, by the ending of `out`, as a drawing; the path is returned.

    lines: the test in words. command: what to run next. Raises InputError where it cannot be
    written.
    """
    check_plot_place(out)
    path, figure = Path(out), rate_plot(test)
    if path.suffix.lower() == ".svg":
        text = as_svg(figure)
    else:
        words = [tag("p", line) for line in lines]
        next_ = [tag("p", "Next:"), code_line(command)] if command else []
        text = document(
            "Learning-rate range test", "Learning rates", [figure, *words, *next_], [], "residual"
        )
    return write_document(text, path)


def rate_plot(test: RateTest) -> Html:
    """Loss against the rate, each step a dot, and the smoothed curve."""
    top = max(test.curve)
    x = decades("learning rate", test.rates)
    y = linear("training loss", top)
    points = list(zip(test.rates, test.curve, strict=True))
    dots = [
        (rate, min(loss, y.high), 1.6) for rate, loss in zip(test.rates, test.losses, strict=True)
    ]
    marks = [(test.least, "")]
    caption = f"Least at {test.least:.2g} (dotted line)."
    if test.suggested is not None:
        marks = [(test.suggested, f"{test.suggested:.2g}"), (test.least, "")]
        caption = f"Falls fastest at {test.suggested:.2g} and is least at {test.least:.2g} (lines)."
    if max(test.losses) > y.high:
        caption += f" Losses above {y.high:g} stand at the top."
    return plot("Loss at rising rates", caption, x, y, [Line("smoothed", points)], marks, dots=dots)
