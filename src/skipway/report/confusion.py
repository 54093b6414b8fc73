"""What is taken for what: a confusion matrix, and its most confused pairs."""

from __future__ import annotations

import math

import numpy as np

from skipway.report.markup import Html, percent, scroll, shown, table, tag
from skipway.report.plot import bar
from skipway.report.run import Counts

MATRIX_CLASSES = 30
"""Up to this many classes a matrix is shown whole."""
SHOWN_PAIRS = 20
LEAST = 0.005
"""Share of a row from which it is told, where shares are."""


def matrix(classes: list[str], counts: Counts, counted: str, in_shares: bool = False) -> Html:
    """Counts [truth, answer] as a table.

    counted: what is counted, with a capital. in_shares: the cells hold per cent of their row.
    """
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
            text = f"{count:.0f}" if count else ""
            if in_shares:
                text = f"{100 * share:.0f}" if share >= LEAST else ""
            cells.append(tag("td", text, class_=style))
        rows.append(tag("tr", tag("th", name, scope="row", title=name), *cells))
    grid = tag(
        "table",
        tag("thead", tag("tr", tag("td", "truth ↓ answer →"), *head)),
        tag("tbody", *rows),
        class_="confusion",
    )
    caption = (
        f"{counted} by true class (rows) and answer (columns)"
        f"{', in per cent of the row' if in_shares else ''}. Blue is right, pink is wrong; "
        "the stronger, the larger the share of the row."
    )
    title = "Confusion matrix"
    content = (tag("h3", title), scroll(grid, title), tag("figcaption", caption))
    return tag("figure", *content, class_="grow")


def confused(classes: list[str], counts: Counts, counted: str, by_share: bool = False) -> Html:
    """The most confused pairs of counts [truth, answer]: those with the largest counts or, where
    classes differ much in size, the largest shares of the true class."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    shares = wrong / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = np.argsort(-(shares if by_share else wrong), axis=None, kind="stable")[:SHOWN_PAIRS]
    rows = []
    for truth, answer in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if count := wrong[truth, answer]:
            share = shares[truth, answer]
            pair = classes[truth], classes[answer]
            rows.append((*pair, bar(share), percent(share), shown(count)))
    head = ("Truth", "Answer", "Share of the class", "", counted)
    pairs = table(head, rows, words=3)
    return tag("div", tag("h3", "Most confused pairs"), pairs, class_="grow")
