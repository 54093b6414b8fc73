"""`skipway compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skipway.cli.shared import Json, app, emit, print_table
from skipway.errors import harmless

if TYPE_CHECKING:
    from skipway.report import Comparison


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Folders of runs, two or more.")],
    out: Annotated[
        str | None, typer.Option(metavar="FILE.html", help="Write the comparison as one page.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare runs on one page.

    Accuracy, whether the difference is more than chance, settings, speed.
    """
    from skipway import report

    comparison = report.compare([Path(run) for run in runs])
    page = report.write_comparison(comparison, Path(out)) if out is not None else None
    if as_json:
        emit(comparison.summary() | {"page": None if page is None else str(page)})
        return
    show_comparison(comparison)
    if page is not None:
        print(f"the page: {harmless(page)}")
    else:
        print("add --out compare.html for curves, classes and images", file=sys.stderr)


def show_comparison(comparison: Comparison) -> None:
    """A small table of the runs, the settings that differ, and a line a pair."""
    from skipway.report import verdicts
    from skipway.report.by_task import page_of
    from skipway.report.comparison import facts, speed_in_words

    rows: list[tuple[str, ...]] = []
    for letter, run in comparison.runs.items():
        known = facts(run)
        scores = page_of(run).scores(run)
        seconds = known["seconds"]
        rows = rows or [
            ("", "run", "network", *(name for name, _ in scores), "images", "time", "images/s")
        ]
        rows.append(
            (
                letter,
                harmless(run.name),
                harmless(run.model),
                scores[0][1] or harmless(known["status"] or "–"),
                *(text or "–" for _, text in scores[1:]),
                f"{run.scored:,} {harmless(run.split)}" if run.scored else "–",
                f"{seconds:,.0f} s" if seconds else "–",
                speed_in_words(run) or "–",
            )
        )
    print_table(rows)
    if comparison.settings:
        print("\nsettings that differ")
        cut = [
            (harmless(key), *(_cut(harmless("–" if v is None else v)) for v in values))
            for key, values in comparison.settings
        ]
        print_table([("", *comparison.runs), *cut])
    print()
    for _, text in verdicts(comparison):
        print(harmless(text))


def _cut(text: str, width: int = 32) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
