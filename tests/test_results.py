"""The README's table is what the committed results say."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_readme_shows_the_committed_results() -> None:
    table = runpy.run_path(str(ROOT / "benchmarks" / "table.py"))
    shown = (ROOT / "README.md").read_text().split(table["START"])[1].split(table["END"])[0]
    assert shown.strip() == table["markdown"]()
