"""Runs as self-contained HTML files: one run's report, and the comparison of several.

It reads only what the run directory holds (`run.json`, `metrics.jsonl`, `evaluation.json`,
`samples.json`, `card.json`) and needs no torch. Names of files and classes come from outside, so
markup is built by `markup.tag`, which escapes everything that is not markup itself; the pages run
no script and their content policy refuses every other source.
"""

from __future__ import annotations

from pathlib import Path

from skipway.report.compare_page import build_comparison, verdicts
from skipway.report.comparison import Comparison, compare
from skipway.report.document import check_place, write_document
from skipway.report.page import build_page
from skipway.report.run import read_run

__all__ = ["Comparison", "compare", "verdicts", "write_comparison", "write_report"]


def write_report(run: Path) -> Path:
    """Write `run`/report.html from the files of the run and return its path.

    Parts whose file is absent are left out; only `run.json` must be there. The page appears whole
    or not at all. Raises InputError where a file of the run is damaged or cannot be written.
    """
    run = Path(run)
    return write_document(build_page(read_run(run)), run / "report.html")


def write_comparison(comparison: Comparison, path: Path) -> Path:
    """Write a comparison as one HTML page to `path`, which is returned.

    Raises InputError where it cannot be written, or is a folder.
    """
    check_place(path, "compare.html")
    return write_document(build_comparison(comparison), path)
