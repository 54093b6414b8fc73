"""The tables of README.md and docs/measured.md are what the committed results say."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from skipway.recipes import RECIPES

ROOT = Path(__file__).parents[1]


def tables() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        return runpy.run_path(str(ROOT / "benchmarks" / "table.py"))


def test_the_readme_shows_the_committed_results() -> None:
    table = tables()
    shown = (ROOT / "README.md").read_text().split(table["START"])[1].split(table["END"])[0]
    assert shown.strip() == table["markdown"]()
    assert (ROOT / "docs" / "measured.md").read_text() == table["document"]()
    for begun in table["FIRST"]:
        assert f"\n| {begun}" in shown, begun


def figure(median: float) -> dict[str, float]:
    return {"median": median, "min": median / 2, "max": median * 2, "n": 5}


def test_the_table_shows_the_speed_of_training_as_far_as_it_is_measured(tmp_path: Path) -> None:
    table = tables()
    rows = table["training_rows"]
    rows.__globals__["ROOT"] = tmp_path
    assert rows() == []

    def record(name: str, **cases: Any) -> None:
        place = tmp_path / "results" / f"{name}.json"
        place.parent.mkdir(exist_ok=True)
        place.write_text(json.dumps({"cases": {k: v | {"command": k} for k, v in cases.items()}}))

    record(
        "train_speed",
        resnet50={
            "batch": 8,
            "size": 224,
            "images_per_second": {"skipway": figure(9), "plain": figure(3), "timm": figure(2)},
            "ratio": {"plain": figure(3), "timm": figure(4.5)},
        },
    )
    plain, timm = rows()
    assert plain == (
        "Training `resnet50` (batch 8, 224 px) from class folders, against the plain float32 "
        "PyTorch loop",
        "3.00 times the images/s (median of 5, 1.50 to 6.00; 9.0 against 3.0)",
        "resnet50",
    )
    assert "timm's train.py" in timm[0]
    assert timm[1].startswith("4.50 times")
    goes = {"conv": 0.5, "batch norm": 0.3, "ReLU": 0.1, "add": 0.06, "loss": 0.04}
    record("machine_limit", resnet20={"batch": 128, "share": figure(0.4), "where_it_goes": goes})
    rates = {"1 process, 1 thread": figure(50), "1 process, 2 threads": figure(80)}
    processes = {
        "images_per_second": rates | {"2 processes": figure(90)},
        "two_processes_over_one_thread": figure(1.8),
    }
    curve = [
        {"depth": n, "checkpointing": anew, "peak_memory_mib": m, "step_seconds": s}
        for n, anew, m, s in ((20, False, 400, 1), (20, True, 300, 1.5), (1202, False, 9000, 10),
                              (1202, True, 2500, 14))
    ]  # fmt: skip
    nets = [{"model": "resnet152", "size": 224, "batch": 8, "peak_memory_mib": 3210.4}]
    record(
        "scaling",
        processes={"resnet20": processes},
        depth={"batch": 64, "curve": curve},
        large={"nets": nets},
    )
    limit, two, deep, large = rows()[2:]
    assert limit[1] == (
        "40% (median of 5, 20% to 80%); the rest of a step, profiled: batch norm 30%, ReLU 10%, "
        "add 6%"
    )
    assert two[1].startswith("1.80 times")
    assert "90 against 50; one process of two threads: 80" in two[1]
    assert deep[0].startswith("`resnet1202`, batch 64")
    assert deep[1] == "2,500 MiB at most, not 9,000; 1.40 times the time"
    assert large[1] == "3,210 MiB"


def test_what_recipes_are_said_to_give_was_measured() -> None:
    """What is ours of it: the papers' figures name a paper."""
    measured = (ROOT / "docs" / "measured.md").read_text()
    for name in ("modern", "speedrun-cifar", "detect", "segment"):
        figures = re.findall(r"(\d+\.\d+) %", RECIPES[name].expected)
        assert figures
        assert all(f"{figure}%" in measured for figure in figures), name
