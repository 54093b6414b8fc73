"""Studies that train: their cells, what they make of results, their figures; and the command."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import call, draw
from skipway.architecture import ARCHITECTURES
from skipway.config import resolve
from skipway.errors import InputError
from skipway.recipes import RECIPES
from skipway.report.document import as_svg
from skipway.report.plot import LEFT, TOP, Frame
from skipway.study import (
    STUDIES,
    bfloat16,
    block_xray,
    degradation,
    he2015_cifar,
    tables,
    trainings,
)
from skipway.study.curves import Curve, _entering, curves, highest
from skipway.study.form import Done, Given, Told, verdict
from skipway.study.store import Store

NO_TEST = ["--data", "digits"]


def result(train: float, test: float, epochs: int = 5) -> dict[str, Any]:
    """A training whose training error falls from 90 % to `train`."""
    errors = [90 + (train - 90) * epoch / epochs for epoch in range(1, epochs + 1)]
    return {
        "rows": [
            {"step": 100 * place, "train_accuracy": 1 - error / 100}
            for place, error in enumerate(errors, 1)
        ],
        "metrics": {"accuracy": 1 - test / 100},
        "diverged": False,
        "images": {"train": 50_000, "test": 10_000},
        "classes": 10,
        "data": "cifar10",
        "precision": "float32",
    }


def done(study: Any, scale: int, seeds: int, errors: Mapping[str, tuple[float, float]]) -> Told:
    """What a study tells of trainings with these (training, test) errors and a little noise."""
    cells = study.cells(study.SCALES[scale], seeds, Given())
    found = []
    for cell in cells:
        name, seed = cell.settings["model.name"], cell.settings["seed"]
        if name in errors:
            train, test = errors[name]
            noise = 0.05 * ((seed * 7 + sum(map(ord, name))) % 3 - 1)
            images = {"train": cell.settings.get("data.take", 50_000), "test": 10_000}
            whole = result(train + noise, test - noise) | {"images": images}
            found.append(Done(cell, whole, 60.0))
    return study.told(found, study.SCALES[scale])


@pytest.mark.parametrize("study", [degradation, he2015_cifar, bfloat16])
def test_cells_are_trainings_that_can_be_planned(study: Any) -> None:
    for scale in study.SCALES:
        cells = study.cells(scale, 2, Given())
        for cell in cells:
            assert cell.settings["model.name"] in ARCHITECTURES
            recipe = RECIPES[cell.settings["recipe"]].settings
            given = {"data_path": "cifar10", **recipe, **cell.settings}
            resolve({}, given)  # each key is known, each value valid
        seeds = {cell.settings["seed"] for cell in cells}
        assert seeds == {0, 1}
        assert all(cell.cost > 0 for cell in cells)
        assert [c.settings["seed"] for c in cells] == sorted(c.settings["seed"] for c in cells)


def test_the_papers_scale_is_the_papers() -> None:
    """64,000 steps at batch 128; the rate falls at 32,000 and 48,000 (2015, section 4.2)."""
    for study in (STUDIES["degradation"], STUDIES["he2015-cifar"]):
        scale = next(s for s in study.SCALES if s.name == "paper")
        for cell in study.cells(scale, 1, Given()):
            settings = RECIPES["he2015-cifar"].settings | cell.settings
            assert settings["schedule.length"] == "64000 steps"
            assert settings["schedule.milestones"] == ("32000 steps", "48000 steps")
            assert (settings["batch_size"], settings["optim.lr"]) == (128, 0.1)
            assert settings["data.val"] == "none"
            assert "data.size" not in cell.settings


DEGRADED = {"plain20": (9, 12), "plain56": (16, 19), "resnet20": (8, 11), "resnet56": (6, 10)}


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        (DEGRADED, "reproduced"),
        (DEGRADED | {"plain56": (8, 12)}, "contradicted"),
        (DEGRADED | {"resnet56": (14, 16)}, "contradicted"),
        (DEGRADED | {"plain56": (10, 13)}, "inconclusive"),
    ],
)
def test_degradation_is_judged_by_training_errors(
    errors: Mapping[str, tuple[float, float]], expected: str
) -> None:
    told = done(degradation, 0, 3, errors)
    assert verdict(told.findings) == expected
    plain = told.findings[0]
    assert plain.n == 3
    assert plain.mean == pytest.approx(errors["plain56"][0] - errors["plain20"][0], abs=0.2)
    names = ["degradation-plain", "degradation-residual", "degradation-longer"]
    assert [p.name for p in told.pictures] == names


def test_degradation_that_longer_training_ends_is_none() -> None:
    """What is trained three times as long is judged apart, by its own errors."""
    scale = degradation.SCALES[0]
    images = {"images": {"train": 2500, "test": 10_000}}

    def told(plain56: float) -> Told:
        found = []
        for cell in degradation.cells(scale, 3, Given()):
            train, _ = DEGRADED[cell.settings["model.name"]]
            longer = cell.settings["schedule.length"] == "120 epochs"
            assert longer == cell.name.endswith("three times as long")
            if longer:
                train = plain56 if cell.settings["model.name"] == "plain56" else 1.0
            train += 0.01 * cell.settings["seed"]
            found.append(Done(cell, result(train, 15) | images, 60.0))
        return degradation.told(found, scale)

    still, ended = told(4.0), told(1.5)
    for found, worse, said in ((still, 3.0, "reproduced"), (ended, 0.5, "contradicted")):
        longer = next(f for f in found.findings if "three times" in f.name)
        assert longer.values == pytest.approx((worse,) * 3)
        assert (longer.verdict, verdict(found.findings)) == (said, said)
        assert found.findings[0].values == pytest.approx((7.0,) * 3)
    (paper,) = [scale for scale in degradation.SCALES if scale.name == "paper"]
    names = [finding.name for finding in degradation.told([], paper).findings]
    assert len(names) == 2
    assert not any("three times" in name for name in names)


def test_a_difference_is_of_the_same_seed() -> None:
    """Nets of which a seed is missing are compared on those that both have."""
    cells = degradation.cells(degradation.SCALES[0], 2, Given())
    found = [
        Done(cell, result(float(10 * cell.settings["seed"] + len(cell.name)), 20), 1.0)
        for cell in cells
        if cell.name != "plain56, seed 0"
    ]
    plain = degradation.told(found, degradation.SCALES[0]).findings[0]
    assert plain.values == (0.0,)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_resnet20_is_held_to_the_papers_number(seeds: int) -> None:
    """Of so few seeds as are the default too."""
    told = done(he2015_cifar, 1, seeds, {"resnet20": (2, 8.75), "plain20": (4, 9.6)})
    first = next(f for f in told.findings if f.name == "resnet20, test error")
    assert first.expected is not None
    assert (first.expected.low, first.expected.high) == pytest.approx((8.35, 9.15))
    assert first.verdict == "reproduced"
    assert not told.deviations
    far = done(he2015_cifar, 1, seeds, {"resnet20": (2, 10.1)})
    assert verdict(far.findings) == "contradicted"


def test_a_short_training_owes_no_number_of_the_paper() -> None:
    told = done(he2015_cifar, 0, 3, {"resnet20": (2, 8.7)})
    assert all(finding.expected is None for finding in told.findings)
    assert verdict(told.findings) == "inconclusive"


def test_other_data_owe_no_number_of_the_paper_either() -> None:
    scale = he2015_cifar.SCALES[1]
    cells = he2015_cifar.cells(scale, 2, Given(data="svhn"))
    other = {"data": "svhn", "images": {"train": 73257, "test": 26032}}
    found = [Done(cell, result(5, 8.7) | other, 1.0) for cell in cells]
    told = he2015_cifar.told(found, scale)
    assert all(finding.expected is None for finding in told.findings)
    assert told.deviations == [
        "svhn in place of CIFAR-10 (73,257 train, 26,032 test images, 10 classes), of which "
        "nothing is expected"
    ]


@pytest.mark.parametrize(("off", "expected"), [(0.1, "reproduced"), (2.0, "contradicted")])
def test_bfloat16_is_compared_seed_by_seed(off: float, expected: str) -> None:
    (scale,) = bfloat16.SCALES
    cells = bfloat16.cells(scale, 3, Given())
    assert len({c.name for c in cells}) == 6
    found = []
    for cell in cells:
        seed, bf16 = cell.settings["seed"], cell.settings["precision"] == "bf16"
        error = 12 + 3 * seed + (off + 0.01 * seed if bf16 else 0)
        found.append(Done(cell, result(5, error), 1.0))
    told = bfloat16.told(found, scale)
    assert told.findings[0].values == pytest.approx([off + 0.01 * seed for seed in range(3)])
    assert verdict(told.findings) == expected


def test_the_last_error_is_of_a_whole_epoch() -> None:
    """A run that ends within an epoch is not told by its last few images."""
    rows = [{"step": s, "train_accuracy": a} for s, a in ((391, 0.5), (782, 0.6), (818, 0.9))]
    whole = {"rows": rows[:2], "diverged": False}
    assert trainings.last_error(whole) == pytest.approx(40)
    cut = {"rows": rows, "diverged": False}
    assert trainings.last_error(cut) == pytest.approx((391 * 40 + 36 * 10) / 427)
    assert trainings.last_error({"rows": rows[:1], "diverged": False}) == pytest.approx(50)


def test_bfloat16_is_not_asked_for_where_it_is_compared() -> None:
    with pytest.raises(InputError, match="this study compares both"):
        bfloat16.data(Given(data="digits", precision="bf16"))


def test_bounds_are_those_of_cifar10() -> None:
    """Other data may degrade less: nothing is said of them."""
    other = {"data": "svhn", "images": {"train": 73257, "test": 26032}}
    for study in (STUDIES["degradation"], STUDIES["bfloat16"]):
        scale = study.SCALES[0]
        cells = study.cells(scale, 3, Given(data="svhn"))
        told = study.told([Done(cell, result(5, 8) | other, 1.0) for cell in cells], scale)
        assert told.findings
        assert all(finding.expected is None for finding in told.findings)


def test_data_of_the_same_numbers_are_told_by_their_classes() -> None:
    """Fashion-MNIST has ten classes and 10,000 test images too, and all of it may be taken."""
    scale = degradation.SCALES[0]
    cells = degradation.cells(scale, 3, Given(data="fashion-mnist"))
    images = {"train": 2500, "test": 10_000}
    rows = [result(5, 8) | {"images": images, "data": "fashion-mnist"} for _ in cells]
    for names, expected in ((trainings.CLASSES, True), (["Coat", "Shirt"] * 5, False)):
        there = [
            Done(cell, row | {"class_names": sorted(names)}, 1.0)
            for cell, row in zip(cells, rows, strict=True)
        ]
        told = degradation.told(there, scale)
        assert any(finding.expected for finding in told.findings) is expected
        assert any("fashion-mnist in place of" in line for line in told.deviations) is not expected


def test_a_training_that_diverges_is_a_result(tmp_path: Path) -> None:
    settings = {"schedule.length": "8 steps", "data.size": 8, "optim.lr": 1e30, "batch_size": 16}
    given = Given(data="digits", threads=1, device="cpu", runs=tmp_path)
    cell = trainings.training("plain20", 0, settings | {"data.val": "none"}, given)
    said: list[str] = []
    found = trainings.train_cell(cell, given, said.append)
    assert found["diverged"]
    assert trainings.last_error(found) == trainings.tested_error(found) == pytest.approx(90)
    assert (
        "diverged, which counts as the error of chance"
        in trainings.deviations([Done(cell, found, 1.0)])[-1]
    )


def test_the_deep_nets_begin_slowly() -> None:
    """2015, section 4.2: at 110 layers the rate is 0.01 at first."""
    cells = he2015_cifar.cells(he2015_cifar.SCALES[2], 1, Given())
    warm = {c.settings["model.name"] for c in cells if "schedule.warmup" in c.settings}
    assert warm == {"resnet110", "plain110"}
    assert len(cells) == 10


# --- figures --------------------------------------------------------------------------------------


def test_curves_are_means_and_ranges() -> None:
    one = Curve("net", "plain", {0: [(100, 60.0), (200, 20.0)], 1: [(100, 40.0), (200, 10.0)]})
    figure = curves("T", "c", [one], [(15.0, "paper")])
    assert "net" in figure
    assert "paper" in figure
    ElementTree.fromstring(as_svg(figure))
    alone = Curve("net", "plain", {0: [(100, 50.0), (200, 15.0)]})
    line = re.search(r'<path class="line[^"]*" d="([^"]*)"', figure)
    same = re.search(r'<path class="line[^"]*" d="([^"]*)"', curves("T", "c", [alone], top=63.0))
    assert line is not None
    assert same is not None
    assert line[1] == same[1]
    assert 'class="area' in figure
    assert 'class="area' not in curves("T", "c", [alone])


def test_a_line_begins_where_it_enters() -> None:
    steep = Curve("a", "plain", {0: [(10, 90.0), (50, 30.0), (100, 20.0)]})
    figure = curves("T", "c", [steep], top=40.0)
    x, top, *_ = map(float, re.findall(r'class="line plain" d="M([\d.]+) ([\d.]+)L', figure)[0])
    assert top == TOP
    # 50 of the 60 points that it falls from step 10 to 50 are above 40: it enters near step 43.
    assert x == pytest.approx(LEFT + 43.33 / 100 * (Frame().right - LEFT), abs=0.1)
    assert steep.seeds[0][1:] == [*_entering([*steep.seeds[0]], 40.0)][1:]
    assert _entering([(1, 50.0)], 40.0) == [(1, 50.0)]


def test_test_errors_are_dots_at_the_end() -> None:
    net = Curve("net", "plain", {0: [(50, 6.0), (100, 4.0)]}, tested=[9.0, 9.4])
    figure = curves("T", "c", [net])
    dots = re.findall(r'<circle class="dot plain" cx="([\d.]+)" cy="([\d.]+)"', figure)
    assert len(dots) == 3
    assert {x for x, _ in dots} == {f"{Frame().right}.0"}
    assert float(dots[2][1]) < float(dots[1][1]) < float(dots[0][1])
    assert figure.count(">net, test<") == 1


def test_the_axis_ends_above_what_matters() -> None:
    steep = Curve("a", "plain", {0: [(10, 90.0), (50, 40.0), (100, 30.0)]})
    assert highest([steep]) == pytest.approx(42)
    assert highest([Curve("a", "plain", {0: [(100, 99.0)]})]) == 100
    ElementTree.fromstring(as_svg(curves("T", "c", [Curve("a", "plain", {0: [(1, 50.0)]})])))


# --- the command ----------------------------------------------------------------------------------


def test_what_there_is_is_listed() -> None:
    answer = call("study", "list")
    assert answer.code == 0
    for name in STUDIES:
        assert re.search(f"^{name}$", answer.out, re.M)
    rows = call("study", "list", "--json").value
    assert [row["name"] for row in rows] == list(STUDIES)
    assert all({"claim", "source", "scales"} < row.keys() for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["degradatoin"], "no study 'degradatoin'. Did you mean 'degradation'?"),
        (["repot"], "Did you mean 'report'?"),
        (["report"], "no study is there"),
        (["degradation", "--data", "nowhere"], "nowhere"),
        (["degradation", "--part", "3/2", *NO_TEST], "--part 3/2"),
        (["degradation", "--part", "x", *NO_TEST], "--part x"),
        (["degradation", "--budget", "soon", *NO_TEST], "--budget soon"),
        (["degradation", "--resume"], "nothing of degradation"),
        (["degradation", "--weights", "x.pth", *NO_TEST], "--weights"),
        (["report", "--seeds", "2"], "report: takes --out and --json alone"),
        (["list", "--resume"], "list: takes --out and --json alone"),
        (["degradation", "--imagenet", "x", *NO_TEST], "--imagenet"),
    ],
)
def test_bad_input_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call("study", *arguments)
    assert answer.code == 2
    assert 1 <= len(answer.error) <= 3
    assert message in "\n".join(answer.error)
    assert not answer.out
    assert not list(tmp_path.rglob("*.json"))


def test_data_without_test_images_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "data" / "train", ["a", "b"])
    draw(tmp_path / "data" / "val", ["a", "b"])
    with pytest.raises(InputError, match="no test images"):
        trainings.digest(Given(data=str(tmp_path / "data")))


TINY = {
    "schedule.length": "4 steps",
    "data.size": 8,
    "data.take": 200,
    "batch_size": 16,
    "model.architecture": {"depths": [1, 1, 1], "width": 0.25},
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degradation, "SMALL", {**degradation.SMALL, **TINY})
    longer = {**degradation.LONGER, **TINY, "schedule.length": "12 steps"}
    monkeypatch.setattr(degradation, "LONGER", longer)


@pytest.mark.usefixtures("tiny")
def test_a_study_from_the_command_to_the_page(tmp_path: Path) -> None:
    words = ["study", "degradation", "--data", "digits", "--seeds", "2", "--out", str(tmp_path)]
    answer = call(*words, "--threads", "1", "--json")
    value = answer.value
    assert answer.code == (1 if value["verdict"] == "contradicted" else 0)
    assert (value["computed"], value["cells"], value["seeds"]) == (12, 12, 2)
    folder = tmp_path / "degradation" / "small"
    row = json.loads((folder / "study.json").read_text())
    assert row["findings"] == value["findings"]
    assert row["seeds"] == 2
    assert row["deviations"]
    assert all(len(raw["result"]["rows"]) >= 1 for raw in row["raw"])
    for name in ("degradation-plain.svg", "degradation-residual.svg", "degradation-longer.svg"):
        ElementTree.parse(folder / name)
    # again: nothing is computed, the same is told, for people
    told = call(*words)
    assert told.code == answer.code
    assert "not as the paper: 16 px in place of 32" in told.out
    assert re.search(r"not as the paper: digits in place of CIFAR-10 \(\d+ train, 359", told.out)
    assert "plain56 minus plain20, training error" in told.out
    assert "above 1 points" not in told.out  # the bounds are CIFAR-10's
    assert "degradation 1/12" not in told.err
    page = call("study", "report", "--out", str(tmp_path), "--json")
    assert page.code == 0
    assert page.value["studies"][0]["verdict"] == value["verdict"]
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.usefixtures("tiny")
def test_a_budget_is_measured_on_steps_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "_MEASURED", 0.2)
    cell = degradation.cells(degradation.SCALES[0], 1, Given())[0]
    seconds = degradation.seconds(cell, Given(data="digits", threads=1))
    assert 0 < seconds < 120
    words = ["study", "degradation", "--data", "digits", "--threads", "1", "--out", str(tmp_path)]
    answer = call(*words, "--budget", "0.001")
    assert answer.code == 2
    assert "too small; degradation at its smallest scale takes about" in answer.error[0]


def test_studies_share_what_they_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings on the same data are one run, whatever the machine; others are another."""
    given = Given(data="digits", runs=tmp_path)
    paper = degradation.cells(degradation.SCALES[1], 1, given)
    same = he2015_cifar.cells(he2015_cifar.SCALES[1], 1, given)
    shared = {trainings.run_of(c, given) for c in paper} & {
        trainings.run_of(c, given) for c in same
    }
    assert {run.name.rpartition("-")[0] for run in shared} == {"plain20-0", "resnet20-0"}
    cell = degradation.cells(degradation.SCALES[0], 1, given)[0]
    run = trainings.run_of(cell, given)
    assert run.parent == tmp_path
    assert run == trainings.run_of(replace(cell, name="other"), replace(given, threads=2))
    longer = {**cell.settings, "schedule.length": "2000 steps"}
    assert run != trainings.run_of(replace(cell, settings=longer), given)
    monkeypatch.setattr(trainings, "REVISION", trainings.REVISION + 1)
    assert run != trainings.run_of(cell, given)


def test_how_far_a_training_is_needs_no_data(tmp_path: Path) -> None:
    given = Given(data="digits", runs=tmp_path)
    cell = trainings.training("resnet20", 0, {}, given)
    run, data = trainings.run_of(cell, given), trainings.digest(given)
    elsewhere = replace(given, data="nowhere")

    def reached(data: str = data) -> str | None:
        return trainings.reached(cell, tmp_path, elsewhere, data)

    assert reached() is None
    run.mkdir()
    cut = '{"step": 391}\n{"step": 12000}\n{"ste'  # as a kill leaves it
    (run / "metrics.jsonl").write_text(cut)
    for unknown in ("{}", '{"expected": null}'):  # how long it is was not found out
        (run / "run.json").write_text(unknown)
        assert reached() is None
    (run / "run.json").write_text('{"expected": {"steps": 64000}}')
    assert reached() == "step 12,000 of 64,000"
    assert reached("other") is None


def test_what_names_stand_for_decides_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe or a network that is changed is not taken for what it was."""
    given = Given(data="digits", runs=tmp_path)

    def keys() -> list[tuple[str, str]]:
        store = Store(tmp_path, STUDIES["he2015-cifar"], "paper")
        cell = he2015_cifar.cells(he2015_cifar.SCALES[1], 1, given)[0]
        xrayed = block_xray.cells(block_xray.SCALES[1], 1, given)[1]
        sizes = tables.cells(tables.SCALES[0], 1, Given())[0]
        assert trainings.run_of(cell, given) == trainings.run_of(xrayed, given)
        return [
            ("run", trainings.run_of(cell, given).name),
            ("training", store.key(cell, "d")),
            ("x-ray", store.key(xrayed, "d")),
            ("sizes", store.key(sizes, "d")),
        ]

    def changed(before: list[tuple[str, str]]) -> set[str]:
        return {name for name, _ in {*keys()} - {*before}}

    first = keys()
    assert changed(first) == set()
    own = RECIPES["he2015-cifar"]
    slower = replace(own, settings={**own.settings, "optim.lr": 0.05})
    monkeypatch.setitem(RECIPES, "he2015-cifar", slower)
    assert changed(first) == {"run", "training", "x-ray"}
    second = keys()
    monkeypatch.setattr(block_xray, "IMAGES", 1000)
    assert changed(second) == {"x-ray"}
    third = keys()
    told = replace(ARCHITECTURES["resnet20"], source="another paper")
    monkeypatch.setitem(ARCHITECTURES, "resnet20", told)
    assert changed(third) == set()
    other = replace(ARCHITECTURES["resnet20"], bn_eps=1e-3)
    monkeypatch.setitem(ARCHITECTURES, "resnet20", other)
    assert changed(third) == {"run", "training", "x-ray"}


@pytest.mark.parametrize(
    ("record", "log"),
    [
        (b"[]", b'{"step": 1}'),
        (b'{"expected": 3}', b'{"step": 1}'),
        (b'{"expected": {"steps": 9}}', b"\xff"),
        (b'{"expected": {"steps": 9}}', b'{"loss": 1}\n7\n{"step": "x"}'),
    ],
)
def test_damaged_logs_hide_nothing_else(tmp_path: Path, record: bytes, log: bytes) -> None:
    (tmp_path / "run.json").write_bytes(record)
    (tmp_path / "metrics.jsonl").write_bytes(log)
    assert trainings.step_reached(tmp_path) is None


@pytest.mark.parametrize("record", [None, '{"status": "fini'])
def test_what_a_copy_has_damaged_is_not_thrown_away(tmp_path: Path, record: str | None) -> None:
    given = Given(data="digits", threads=1, device="cpu", runs=tmp_path)
    cell = trainings.training("plain20", 0, {"data.val": "none"}, given)
    run = trainings.run_of(cell, given)
    run.mkdir()
    (run / "best.safetensors").write_bytes(b"weights")
    if record is not None:
        (run / "run.json").write_text(record)
    with pytest.raises(InputError, match=r"run\.json"):
        trainings.train_cell(cell, given, lambda line: None)
    assert (run / "best.safetensors").read_bytes() == b"weights"
    (run / "best.safetensors").unlink()
    (run / "run.json").write_text('{"status": "interrupted", "config": {}}')
    (run / "metrics.jsonl").write_text('{"step": 12000}\n')
    with pytest.raises(InputError, match="its checkpoints are missing"):
        trainings.train_cell(cell, given, lambda line: None)
    assert (run / "metrics.jsonl").exists()


def test_a_training_that_was_moved_is_of_both_machines() -> None:
    machine = {"cpu": "A", "cores": 2, "device": "cpu", "torch": "2.11", "skipway": "0.1.0"}
    record = {
        "environment": machine,
        "resumed": [
            {"step": 10},
            {"step": 20, "cpu": "B", "cores": 8},
            {"step": 30, "cpu": "B", "cores": 8},
        ],
    }
    assert trainings._environments(record) == (
        "A, 2 cores, PyTorch 2.11, Skipway 0.1.0; "
        "from step 20 on B, 8 cores, PyTorch 2.11, Skipway 0.1.0"
    )


def test_what_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    from skipway.training.claim import claimed
    from skipway.training.distributed import ALONE

    given = Given(data="digits", runs=tmp_path)
    cell = trainings.training("resnet20", 0, {}, given)
    claim = tmp_path / f".{trainings.run_of(cell, given).name}"
    claim.mkdir()
    with claimed(claim, ALONE), pytest.raises(InputError, match="another process"):
        trainings.train_cell(cell, given, print)
