"""A run as one self-contained HTML file: what was trained, how good, how long, what next.

It reads only what the run directory holds (`run.json`, `metrics.jsonl`, `evaluation.json`,
`card.json`) and needs no torch. Names of files and classes come from outside, so markup is built
by `markup.tag`, which escapes everything that is not markup itself; the page runs no script and
its content policy refuses every other source.
"""

from __future__ import annotations

from pathlib import Path

from skipway.files import atomic_write
from skipway.report.page import build_page
from skipway.report.run import read_run

__all__ = ["write_report"]


def write_report(run: Path) -> Path:
    """Write `run`/report.html from the files of the run and return its path.

    Parts whose file is absent are left out; only `run.json` must be there. The page appears whole
    or not at all. Raises InputError where a file of the run is damaged or cannot be written.
    """
    run = Path(run)
    text = build_page(read_run(run))
    path = run / "report.html"
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))
    return path
