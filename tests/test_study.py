"""The form of studies, what they keep, and what a budget buys."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from commands import call
from skipway.cli import studying
from skipway.errors import InputError, SkipwayError, Terminated
from skipway.report.plot import Line, linear, plot
from skipway.study import STUDIES, he2015_cifar, running, trainings
from skipway.study.form import (
    Cell,
    Done,
    Expected,
    Finding,
    Given,
    Picture,
    Scale,
    Study,
    Told,
    Weights,
    tally,
    verdict,
)
from skipway.study.page import page
from skipway.study.running import Asked, outcomes, run_study
from skipway.study.store import Plan, Store, alone_at, finding_json

NOTHING = Given()
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


# --- numbers and verdicts ------------------------------------------------------------------------


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=12), st.floats(1e-3, 1e3))
def test_the_interval_is_students(whole: list[int], scale: float) -> None:
    assume(len(set(whole)) > 1)
    values = [scale * value for value in whole]
    found = Finding(name="x", values=tuple(values))
    error = scipy.stats.sem(values)
    ends = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), error)
    assert found.interval == pytest.approx(ends, rel=1e-9, abs=1e-6 * error)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    assert found.deviation == pytest.approx(np.std(values, ddof=1))


@given(st.lists(NUMBERS, min_size=1, max_size=6), NUMBERS, st.floats(0, 1e6), st.booleans())
def test_a_verdict_follows_from_the_interval(
    values: list[float], low: float, width: float, drawn: bool
) -> None:
    found = Finding(
        name="x", values=tuple(values), expected=Expected("", low, low + width), drawn=drawn
    )
    ends = found.interval
    if ends is None:
        assert found.verdict == "inconclusive"
        assert drawn
        assert len(values) == 1
    else:
        inside = low <= ends[0] and ends[1] <= low + width
        outside = ends[1] < low or low + width < ends[0]
        assert found.verdict == (
            "reproduced" if inside else "contradicted" if outside else "inconclusive"
        )


def test_of_few_seeds_a_published_deviation_is_taken() -> None:
    """1.96 of its standard errors; from five seeds on their own."""
    paper = Expected("8.75 ± 0.4", 8.35, 9.15)
    for values, half in (((8.7,), 0.3136), ((8.6, 8.8), 0.22175), ((8.48, 8.92), 0.22175)):
        found = Finding(name="x", values=values, expected=paper, known_deviation=0.16)
        assert found.interval == pytest.approx((8.7 - half, 8.7 + half), abs=1e-4)
        assert found.verdict == "reproduced"
    four = Finding(name="x", values=(8.6, 8.7, 8.8, 8.7), known_deviation=0.16)
    assert four.interval == pytest.approx((8.7 - 0.1568, 8.7 + 0.1568), abs=1e-4)
    for values in ((9.6, 8.0, 8.65), (8.25, 9.25), (8.47, 8.93)):
        apart = Finding(name="x", values=values, expected=paper, known_deviation=0.16)
        assert apart.interval == replace(apart, known_deviation=None).interval
        assert apart.verdict == "inconclusive"
    five = replace(four, values=(*four.values, 8.7))
    assert five.interval == replace(five, known_deviation=None).interval


def test_what_is_of_the_users_decides_nothing() -> None:
    claim = Finding(name="x", values=(8.5,), expected=Expected("", 8, 9), drawn=False)
    aside = replace(claim, values=(20.0,), aside=True)
    assert aside.verdict == "contradicted"
    assert verdict([claim, aside]) == "reproduced"
    assert tally([claim, claim, aside]) == "2 of 2 numbers reproduced"
    assert verdict([aside]) == "inconclusive"


def test_a_control_decides_and_is_not_counted() -> None:
    def found(*controls: float) -> list[Finding]:
        learned = Expected("at least 40 %", low=40)
        claims = [Finding(name="x", values=(v,), expected=Expected("", 8, 9)) for v in (8.5, 8.7)]
        claims = [replace(claim, drawn=False) for claim in claims]
        return claims + [
            Finding(name="y", values=(v,), expected=learned, drawn=False, control=True)
            for v in controls
        ]

    assert verdict(found(50, 60)) == "reproduced"
    assert tally(found(50, 60)) == "2 of 2 numbers reproduced"
    assert [finding.judged for finding in found(50)] == ["reproduced", "reproduced", "holds"]
    assert verdict(found(50, 30)) == "contradicted"
    assert tally(found(50, 30)) == "2 of 2 numbers reproduced, 1 of 2 controls hold"
    assert found(30)[-1].judged == "fails"
    assert tally(found(50)[2:]) == ""


def test_what_whoever_ran_it_remarks_is_shown(tmp_path: Path, halves: Halves) -> None:
    run(halves, tmp_path)
    remarks = tmp_path / "halves" / "cheap" / "remarks.txt"
    remarks.write_text("It was\nhot.\n\nAnd \x1b[31mlate.\n")
    found, _ = run(halves, tmp_path)
    assert found.remarks == ("It was hot.", "And \\x1b[31mlate.")
    kept = json.loads((remarks.parent / "study.json").read_text())
    assert kept["remarks"] == [*found.remarks]
    assert "And \\x1b[31mlate." in page([found])
    remarks.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"remarks\.txt: not a text in UTF-8"):
        run(halves, tmp_path)


def test_a_number_of_images_has_their_interval() -> None:
    found = Finding(
        name="x", values=(28.0,), drawn=False, sampled=(20.1, 37.5), expected=Expected("", 24, 25)
    )
    assert found.interval == (20.1, 37.5)
    assert not found.exact
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_decides_nothing(value: float) -> None:
    found = Finding(name="x", values=(value,), expected=Expected("", 0), drawn=False)
    assert found.verdict == "inconclusive"


@pytest.mark.parametrize("values", [(math.inf, math.inf), (1.0, math.nan, 2.0)])
def test_of_what_is_no_number_there_is_no_deviation(values: tuple[float, ...]) -> None:
    found = Finding(name="x", values=values, expected=Expected("", 0))
    assert found.deviation is None
    assert found.verdict == "inconclusive"
    row = json.loads(json.dumps(finding_json(found), allow_nan=False))
    assert row["mean"] is None
    assert row["values"][1] is None


def test_a_study_is_as_good_as_its_worst_number() -> None:
    good = Finding(name="x", values=(1.0,), expected=Expected("", 0, 2), drawn=False)
    bad, open_ = replace(good, values=(3.0,)), replace(good, values=(1.0,), drawn=True)
    silent = replace(good, expected=None)
    assert (good.verdict, bad.verdict, open_.verdict, silent.verdict) == (
        "reproduced", "contradicted", "inconclusive", None,
    )  # fmt: skip
    assert verdict([good, silent]) == "reproduced"
    assert verdict([good, open_]) == "inconclusive"
    assert verdict([good, open_, bad]) == "contradicted"
    assert verdict([silent]) == verdict([]) == "inconclusive"


# --- a study that costs nothing ------------------------------------------------------------------


class Halves:
    """Each cell gives its seed plus a half; a cell of "dear" takes three minutes, it says."""

    NAME = "halves"
    DATA = "halves"
    TITLE, SOURCE, CLAIM, STORY = "Halves", "no paper", "All are halves.", "A story."
    REVISION = 1
    SCALES = (
        Scale(name="cheap", protocol="two cells a seed", seeds=3, minutes=6),
        Scale(name="dear", protocol="one cell a seed", seeds=2, minutes=6),
        Scale(name="paper", protocol="one cell a seed", seeds=2, minutes=6000),
    )

    def __init__(self) -> None:
        self.computed: list[str] = []
        self.timed: list[str] = []
        self.digest = "d1"
        self.stop_at: str | None = None
        self.meanwhile: Callable[[], object] | None = None
        self.done_at_first = 0

    def data(self, given: Given) -> str:
        if given.data == "missing":
            raise InputError("--data missing: not found")
        return "" if given.data == "of weights alone" and not given.weights else self.digest

    def cells(self, scale: Scale, seeds: int, given: Given) -> Sequence[Cell]:
        kinds = ("a", "b") if scale.name == "cheap" else (scale.name,)
        return [
            Cell(f"{kind}{seed}", {"kind": kind, "seed": seed}, 3.0 if kind == "b" else 1.0)
            for seed in range(seeds)
            for kind in kinds
        ]

    def compute(self, cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> Any:
        if cell.name == self.stop_at:
            (place / "half").write_text("done")
            stop = SkipwayError("stopped by a signal")
            stop.exit_code = 130
            raise stop
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        self.computed.append(cell.name)
        return {"value": cell.settings["seed"] + 0.5}

    def seconds(self, cell: Cell, given: Given) -> float:
        self.timed.append(cell.name)
        if cell.settings["seed"] < self.done_at_first:
            return 0.0
        return {"a": 30.0, "b": 30.0, "dear": 180.0, "paper": 60_000.0}[cell.settings["kind"]]

    def reached(self, cell: Cell, place: Path, given: Given, data: str) -> str | None:
        return "half" if cell.name == self.stop_at else None

    def told(self, done: Sequence[Done], scale: Scale) -> Told:
        values = tuple(d.result["value"] for d in done)
        axis = linear("x", 3)
        drawn = plot("T", "c", axis, axis, [Line("l", [(v, v) for v in values] or [(0, 0)])])
        return Told(
            [Finding(name="value", values=values, expected=Expected("at least 0", low=0))],
            [Picture("picture", drawn)],
            ["a note"],
            animations={"moving": "<svg xmlns='http://www.w3.org/2000/svg'/>"},
        )


@pytest.fixture
def halves() -> Halves:
    return Halves()


def run(halves: Halves, out: Path, own: Given = NOTHING, **asked: Any) -> Any:
    said: list[str] = []
    own = replace(own, runs=out / "runs")
    found = run_study(cast("Study", halves), Asked(**asked), own, out, said.append)
    return found, said


def test_what_is_computed_is_kept(tmp_path: Path, halves: Halves) -> None:
    found, said = run(halves, tmp_path)
    assert halves.computed == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert (found.done, found.cells, found.seeds, found.scale.name) == (6, 6, 3, "cheap")
    assert said[0] == "halves 1/6: a0"
    folder = tmp_path / "halves" / "cheap"
    assert {p.name for p in folder.iterdir()} == {
        "plan.json", "study.json", "cells", "work", "picture.svg", "moving.svg",
    }  # fmt: skip
    row = json.loads((folder / "study.json").read_text())
    assert row["verdict"] == found.verdict
    assert row["computed"] == 6
    assert [r["result"]["value"] for r in row["raw"]] == [0.5, 0.5, 1.5, 1.5, 2.5, 2.5]
    (number,) = row["findings"]
    assert number["n"] == 6
    assert number["mean"] == 1.5
    assert number["expected"] == {"words": "at least 0", "low": 0, "high": None}
    again, _ = run(halves, tmp_path, seeds=4)
    assert halves.computed[6:] == ["a3", "b3"]
    assert again.done == 8
    assert (folder / "picture.svg").read_text().startswith("<svg")


def test_how_far_a_cell_is_that_is_not_done_is_told(tmp_path: Path, halves: Halves) -> None:
    halves.stop_at = "a1"
    found, _ = run(halves, tmp_path, part=(1, 2))  # b0 and b2
    assert found.reached == ["a1: half"]
    row = json.loads((tmp_path / "halves" / "cheap" / "study.json").read_text())
    assert row["reached"] == ["a1: half"]
    halves.stop_at = None
    assert run(halves, tmp_path, resume=True)[0].reached == []


def test_parts_of_two_machines_make_a_whole(tmp_path: Path, halves: Halves) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first, _ = run(halves, one, part=(1, 2))
    assert first.verdict == "inconclusive"
    assert (first.done, first.cells) == (len(halves.computed), 6)
    run(halves, two, part=(2, 2))
    assert sorted(halves.computed) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    cells = two / "halves" / "cheap" / "cells"
    shutil.copytree(cells, one / "halves" / "cheap" / "cells", dirs_exist_ok=True)
    whole, _ = run(halves, one, resume=True)
    assert len(halves.computed) == 6
    assert (whole.done, whole.verdict) == (6, "reproduced")


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 5))
def test_parts_are_about_equal_and_leave_nothing(costs: list[float], parts: int) -> None:
    cells = [Cell(str(i), {"i": i}, cost) for i, cost in enumerate(costs)]
    shares = [running._share(cells, (i + 1, parts)) for i in range(parts)]
    assert sorted(int(c.name) for share in shares for c in share) == list(range(len(cells)))
    sums = [sum(cell.cost for cell in share) for share in shares]
    assert max(sums) - min(sums) <= max(costs) + 1e-6
    assert all([int(c.name) for c in s] == sorted(int(c.name) for c in s) for s in shares)


def test_what_another_process_computes_is_left_to_it(tmp_path: Path, halves: Halves) -> None:
    store = Store(tmp_path, cast("Study", halves), "cheap")
    busy = halves.cells(halves.SCALES[0], 1, Given())[0]
    with alone_at(store.place(busy, "d1")):
        found, said = run(halves, tmp_path)
    assert halves.computed == ["b0", "a1", "b1", "a2", "b2"]
    assert (found.done, found.cells) == (5, 6)
    assert f"{busy.name}: another process computes it; left to it" in said


def test_what_another_process_has_computed_meanwhile_is_taken(
    tmp_path: Path, halves: Halves
) -> None:
    """Two processes share the cells: each is computed once."""
    halves.meanwhile = lambda: run(halves, tmp_path)
    found, _ = run(halves, tmp_path)
    assert sorted(halves.computed) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert (found.done, found.verdict) == (6, "reproduced")


def test_seeds_are_added_to_and_never_taken_away(tmp_path: Path, halves: Halves) -> None:
    run(halves, tmp_path, seeds=3)
    found, _ = run(halves, tmp_path, seeds=1)
    assert (found.seeds, found.done) == (3, 6)


def test_no_more_is_computed_than_is_asked_for_now(tmp_path: Path, halves: Halves) -> None:
    halves.stop_at = "b0"
    with pytest.raises(SkipwayError):
        run(halves, tmp_path, seeds=3)
    halves.stop_at = None
    found, said = run(halves, tmp_path, budget="1")
    assert "halves: cheap, 1 seed, about 0 of 1 min" in said
    assert halves.computed == ["a0", "b0"]
    assert (found.seeds, found.done, found.cells) == (3, 2, 6)
    assert found.verdict == "inconclusive"
    run(halves, tmp_path, resume=True)
    assert halves.computed == ["a0", "b0", "a1", "b1", "a2", "b2"]
    other, _ = run(halves, tmp_path, Given(precision="bf16"), seeds=1)
    assert other.seeds == 1  # three were asked for in float32


def test_what_is_done_of_one_seed_is_not_of_another(tmp_path: Path, halves: Halves) -> None:
    halves.done_at_first = 1
    found, _ = run(halves, tmp_path, budget="2.5")
    assert (found.scale.name, found.seeds) == ("cheap", 3)  # dear: 0 and 3 minutes
    again = Halves()
    again.done_at_first = 2
    found, _ = run(again, tmp_path / "other", budget="2.5")
    assert (found.scale.name, found.seeds) == ("paper", 2)


def test_images_that_were_not_given_again_are_looked_at(tmp_path: Path, halves: Halves) -> None:
    """What goes on with the weights and images of before checks that they are what they were."""
    given = Given("of weights alone", (Weights("w.pth", "w"),), "imagenet")
    halves.stop_at = "b1"
    with pytest.raises(SkipwayError):
        run(halves, tmp_path, given)
    halves.stop_at, halves.digest = None, "d2"
    with pytest.raises(InputError, match="imagenet: has other images than when halves began"):
        run(halves, tmp_path, Given("of weights alone"))
    assert halves.computed == ["a0", "b0", "a1"]
    halves.digest = "d1"
    found, _ = run(halves, tmp_path, Given("of weights alone"))
    assert found.done == 6


def test_what_goes_on_names_all_that_was_given(tmp_path: Path, halves: Halves) -> None:
    halves.stop_at = "a0"
    with pytest.raises(SkipwayError) as stopped:
        run(halves, tmp_path, part=(1, 1), budget="cheap")
    again = f"skipway study halves --budget cheap --resume --out {tmp_path}"
    assert again in str(stopped.value)
    halves.stop_at = "dear1"
    with pytest.raises(SkipwayError):
        run(halves, tmp_path, budget="dear")
    with pytest.raises(InputError, match="give --budget cheap or --budget dear"):
        run(halves, tmp_path, resume=True)
    found, _ = run(halves, tmp_path, resume=True, budget="cheap")
    assert found.scale.name == "cheap"
    halves.stop_at = None
    found, _ = run(halves, tmp_path, resume=True)  # the one of which something is left
    assert (found.scale.name, found.done) == ("dear", 2)
    run(halves, tmp_path, budget="paper", seeds=1)
    found, _ = run(halves, tmp_path, resume=True, budget="paper")
    assert found.scale.name == "paper"


def test_a_study_that_draws_nothing_has_no_seeds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tables draws nothing"):
        run_study(STUDIES["tables"], Asked(seeds=5), Given(), tmp_path, print)


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_stop_says_how_to_go_on(
    tmp_path: Path, halves: Halves, stop: type[BaseException], code: int
) -> None:
    def stopped() -> None:
        raise stop

    halves.meanwhile = stopped
    with pytest.raises(SkipwayError, match="skipway study halves --budget cheap --res") as told:
        run(halves, tmp_path)
    assert told.value.exit_code == code


def test_a_signal_leaves_what_is_there(tmp_path: Path, halves: Halves) -> None:
    halves.stop_at = "b1"
    with pytest.raises(SkipwayError, match="skipway study halves --budget cheap") as stopped:
        run(halves, tmp_path)
    assert stopped.value.exit_code == 130
    assert halves.computed == ["a0", "b0", "a1"]
    (half,) = (tmp_path / "halves" / "cheap" / "work").glob("*/half")
    halves.stop_at = None
    found, _ = run(halves, tmp_path, resume=True)
    assert halves.computed[3:] == ["b1", "a2", "b2"]
    assert found.done == 6
    assert not half.exists()  # nothing but results is kept


@pytest.mark.parametrize(
    ("minutes", "scale", "seeds"),
    [
        ("1", "cheap", 1),
        ("2.5", "cheap", 2),
        ("3", "cheap", 3),
        ("6", "dear", 2),
        ("900", "dear", 2),
    ],
)
def test_a_budget_buys_the_most_that_fits(
    tmp_path: Path, halves: Halves, minutes: str, scale: str, seeds: int
) -> None:
    found, said = run(halves, tmp_path, budget=minutes)
    assert (found.scale.name, found.seeds) == (scale, seeds)
    assert said[0] == "halves: measuring how long cheap takes here"
    assert said[-1 - found.done].startswith(f"halves: {scale}, {seeds} seed")
    assert ("paper0" in halves.timed) == (minutes == "900")  # what cannot fit is not measured


def test_what_is_there_costs_nothing(tmp_path: Path, halves: Halves) -> None:
    run(halves, tmp_path, budget="dear")
    found, _ = run(halves, tmp_path, budget="0.5")
    assert (found.scale.name, found.seeds) == ("dear", 2)


def test_a_scale_can_be_named(tmp_path: Path, halves: Halves) -> None:
    found, _ = run(halves, tmp_path, budget="paper", seeds=1)
    assert (found.scale.name, halves.computed, halves.timed) == ("paper", ["paper0"], [])
    assert found.command == f"skipway study halves --budget paper --seeds 1 --out {tmp_path}"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"budget": "0.2"},
            "--budget 0.2: too small; halves at its smallest scale takes about 1.0",
        ),
        ({"budget": "5", "seeds": 9}, "too small"),
        ({"budget": "papr"}, "--budget papr: give minutes, or one of paper, cheap, dear. Did you"),
        ({"budget": "-3"}, "above 0"),
        ({"budget": "nan"}, "above 0"),
        ({"budget": "inf"}, "above 0"),
        ({"resume": True}, "nothing of halves is in"),
        ({"resume": True, "seeds": 2}, "leave out --seeds"),
        ({"resume": True, "budget": "90"}, "leave out --budget 90, or name the scale: cheap, dear"),
        ({"budget": "90", "part": (1, 2)}, "Name the scale: --budget paper or cheap or dear."),
    ],
)
def test_what_cannot_be_asked(
    tmp_path: Path, halves: Halves, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as refused:
        run(halves, tmp_path, **asked)
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 3
    assert halves.computed == []


def test_other_data_is_computed_anew_and_never_mixed(tmp_path: Path, halves: Halves) -> None:
    halves.stop_at = "b2"
    with pytest.raises(SkipwayError):
        run(halves, tmp_path)
    halves.stop_at, halves.digest = None, "d2"
    with pytest.raises(InputError, match="other images than when"):
        run(halves, tmp_path, resume=True)
    run(halves, tmp_path)
    assert len(halves.computed) == 5 + 6


def test_a_cache_of_another_version_is_refused(tmp_path: Path, halves: Halves) -> None:
    run(halves, tmp_path)
    Halves.REVISION = 2
    try:
        for asked in ({}, {"resume": True}, {"budget": "1"}):
            with pytest.raises(InputError) as refused:
                run(halves, tmp_path, **asked)
            assert "computed by another version (revision 1, 2 now)" in str(refused.value)
            folder = tmp_path / "halves" / "cheap"
            assert f"Remove {folder} and run the study again" in str(refused.value)
    finally:
        Halves.REVISION = 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"skipway": 1}'])
def test_a_damaged_plan_is_named(tmp_path: Path, halves: Halves, text: str) -> None:
    run(halves, tmp_path)
    (tmp_path / "halves" / "cheap" / "plan.json").write_text(text)
    with pytest.raises(InputError, match=r"plan\.json"):
        run(halves, tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"result": {}},
        {"result": {"value": 9.5}},
        {"result": None},
        {"seconds": "x"},
        {"name": "b0"},
    ],
)
def test_what_was_changed_is_named(tmp_path: Path, halves: Halves, changed: dict[str, Any]) -> None:
    """Valid JSON too, and before anything is made of it."""
    run(halves, tmp_path)
    folder = tmp_path / "halves" / "cheap"
    for file in (min((folder / "cells").iterdir()), folder / "plan.json"):
        whole = file.read_text()
        file.write_text(json.dumps(json.loads(whole) | changed))
        with pytest.raises(InputError) as refused:
            run(halves, tmp_path)
        assert str(refused.value).splitlines() == [
            f"{file}: was changed after it was written",
            "Remove it and run the study again: all else that it computed stays.",
        ]
        file.write_text(whole)
    assert run(halves, tmp_path)[0].done == 6


def test_data_may_be_elsewhere_when_a_study_goes_on(tmp_path: Path, halves: Halves) -> None:
    halves.stop_at = "b1"
    with pytest.raises(SkipwayError):
        run(halves, tmp_path, Given("here"))
    halves.stop_at = None
    for other in (Given("there", precision="bf16"), Given("there", imagenet="x")):
        with pytest.raises(InputError, match="as it was asked for"):
            run(halves, tmp_path, other, resume=True)
    halves.digest = "d2"
    with pytest.raises(InputError, match="there: has other images"):
        run(halves, tmp_path, Given("there"), resume=True)
    halves.digest = "d1"
    halves.stop_at = "b2"
    with pytest.raises(SkipwayError) as stopped:
        run(halves, tmp_path, Given("there"), resume=True)
    again = f"skipway study halves --budget cheap --resume --data there --out {tmp_path}"
    assert again in str(stopped.value)
    halves.stop_at = None
    found, _ = run(halves, tmp_path, Given("there"), resume=True)
    assert (found.done, len(halves.computed)) == (6, 6)


@settings(max_examples=30)
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_a_key_depends_on_what_is_set_and_on_nothing_else(values: dict[str, Any]) -> None:
    store = Store(Path("nowhere"), cast("Study", Halves()), "cheap")
    turned = dict(reversed(values.items()))
    key = store.key(Cell("one", values), "d")
    assert key == store.key(Cell("two", turned, "group"), "d")
    assert key != store.key(Cell("one", values | {"more of it": 1}), "d")
    assert key != store.key(Cell("one", values), "e")


# --- those that are there -------------------------------------------------------------------------


def test_each_study_has_its_form() -> None:
    assert list(STUDIES) == [
        "gradient-flow", "degradation", "he2015-cifar", "bfloat16", "block-xray", "tables",
    ]  # fmt: skip
    for name, study in STUDIES.items():
        assert name == study.NAME
        assert re.fullmatch(r"[A-Z].*[^.]\.", study.CLAIM)
        assert len(study.STORY) > 100
        assert "201" in study.SOURCE
        names = [scale.name for scale in study.SCALES]
        assert len(set(names)) == len(names)
        for scale in study.SCALES:
            assert scale.protocol
            assert scale.seeds >= 1
            assert scale.minutes > 0
            cells = study.cells(scale, 2, Given(data="digits"))
            json.dumps([dict(cell.settings) for cell in cells])
            assert len({cell.name for cell in cells}) == len(cells)
            assert not any(f.values for f in study.told([], scale).findings)


@pytest.mark.parametrize("study", ["gradient-flow", "degradation", "tables"])
@pytest.mark.parametrize(("device", "said"), [("bla", "give cpu, cuda"), ("cuda:99", "finds")])
def test_a_device_that_is_not_there_is_told_at_once(
    tmp_path: Path, study: str, device: str, said: str
) -> None:
    answer = call("study", study, "--device", device, "--out", tmp_path / "x")
    assert answer.code == 2
    assert f"--device {device}: " in answer.error[0]
    assert said in answer.error[0]
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_used_hides_nothing_else(tmp_path: Path) -> None:
    run_study(STUDIES["tables"], Asked(), NOTHING, tmp_path, print)
    shutil.copytree(tmp_path / "tables" / "paper", tmp_path / "degradation" / "small")
    (found,), (wrong,) = outcomes(tmp_path)
    assert found.study.NAME == "tables"
    assert "computed by another version (study tables, degradation now)" in str(wrong)
    answer = call("study", "report", "--out", tmp_path, "--json")
    assert answer.code == 0
    assert [study["study"] for study in answer.value["studies"]] == ["tables"]
    assert len(answer.value["left_out"]) == 1
    assert "left out: " in answer.err
    assert "Left out: " in (tmp_path / "report.html").read_text()
    shutil.rmtree(tmp_path / "tables")
    alone = call("study", "report", "--out", tmp_path)
    assert alone.code == 2
    assert "computed by another version" in alone.error[0]


@pytest.mark.parametrize(("name", "lacks"), [("report", "scipy"), ("tables", "torch")])
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lacks: str
) -> None:
    """The base install lists studies; running them and their page need more."""
    found = studying.find_spec
    monkeypatch.setattr(studying, "find_spec", lambda part: None if part == lacks else found(part))
    answer = call("study", name, "--out", tmp_path)
    assert answer.code == 2
    assert answer.error == [
        f"skipway: study needs the package '{lacks}', which is not installed.",
        "In Skipway's own folder: pip install '.[train]'",
    ]
    assert call("study", "list", "--out", tmp_path).code == 0


def test_the_page_of_what_is_begun_needs_no_torch(tmp_path: Path) -> None:
    run_study(STUDIES["tables"], Asked(), NOTHING, tmp_path, print)
    scales = [
        ("he2015-cifar", "paper"),
        ("degradation", "small"),
        ("gradient-flow", "small"),
        ("block-xray", "small"),
        ("bfloat16", "short"),
    ]
    for name, scale in scales:
        Store(tmp_path, STUDIES[name], scale).keep(Plan(scale, 1, Given(data="digits"), "d1"))
    given = Given(data="digits", runs=tmp_path / "runs")
    study = he2015_cifar
    begun = trainings.run_of(study.cells(study.SCALES[1], 1, given)[0], given, "d1")
    begun.mkdir(parents=True)
    (begun / "run.json").write_text('{"expected": {"steps": 64000}}')
    (begun / "metrics.jsonl").write_text('{"step": 12000}\n')
    code = "import sys; sys.modules['torch'] = None; from skipway.cli import main; main()"
    words = [sys.executable, "-c", code, "study", "report", "--out", str(tmp_path)]
    answer = subprocess.run(words, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "tables, paper: reproduced (13 of 13 numbers reproduced)" in answer.stdout
    assert "he2015-cifar, paper: nothing is computed yet" in answer.stdout
    coming = (tmp_path / "report.html").read_text().split("Still to come")[1]
    for name, scale in scales:
        assert f"skipway study {name} --budget {scale}" in coming
    assert "resnet20, seed 0: step 12,000 of 64,000" in coming


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    assert outcomes(tmp_path) == ([], [])


# --- trainings as cells ---------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from skipway.study import trainings
from skipway.study.form import Given
from skipway.study.store import Store, alone_at, finding_json
import skipway.study.degradation as study

given = Given(data="digits", device="cpu", threads=1, runs=Path(sys.argv[1]) / "runs")
settings = {"data.val": "none", "schedule.length": "24 steps", "data.size": 8,
            "checkpoint_every": "4 steps", "batch_size": 32}
cell = trainings.training("resnet20", 0, settings, given)
store = Store(Path(sys.argv[1]), study, "small")
(store.folder / "cells").mkdir(parents=True, exist_ok=True)
if store.done(cell, "d") is None:
    found = trainings.train_cell(cell, given, print)
    store.finish(cell, "d", found, 1.0)
"""


def test_a_training_goes_on_after_kill_9(tmp_path: Path) -> None:
    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SCRIPT, str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def result(out: Path) -> Any:
        (cell,) = (out / "degradation" / "small" / "cells").iterdir()
        found = json.loads(cell.read_text())["result"]
        del found["seconds"]
        for row in found["rows"]:
            for key in ("seconds", "images_per_second", "waiting", "memory_mib"):
                row.pop(key)
        return found

    assert start(tmp_path / "whole").wait() == 0
    killed = tmp_path / "killed"
    process = start(killed)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if {p.name for p in killed.glob("runs/*/checkpoints/step-*")} - {"step-0"}:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    assert start(killed).wait() == 0
    assert result(killed) == result(tmp_path / "whole")
    assert result(killed)["images"]["test"] == 359
    assert not list(killed.glob("runs/*/checkpoints"))
