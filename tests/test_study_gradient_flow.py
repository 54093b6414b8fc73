"""The study gradient-flow: what it computes, what it concludes, and its pictures."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import draw
from skipway.errors import InputError
from skipway.machine import cpu_name
from skipway.report.document import as_svg
from skipway.report.plot import Axis
from skipway.study import gradient_flow as study
from skipway.study.flow_findings import alike, he_range, later
from skipway.study.flow_nets import NETS, TRAINED, Net, between, last_loss, losses, units
from skipway.study.flow_panels import Panel, Trace, animation, panels
from skipway.study.form import Cell, Done, Finding, Given, Told, verdict

SMALL = study.SCALES[0]


def said(_: str) -> None:
    pass


def test_its_nets_are_of_the_papers_family() -> None:
    from skipway.architecture import architecture, name_of

    assert len({net.key for net in NETS}) == 12
    assert len(set(TRAINED) & set(NETS)) == len(TRAINED) == 7
    names = {net.kind: name_of(architecture("resnet20", **net.fields(110))) for net in TRAINED[3:6]}
    assert names == {
        "plain": "plain110",
        "residual": "resnet110",
        "preactivation": "preresnet110",
    }
    assert [units(depth) for depth in study.DEPTHS] == [9, 27, 54, 144, 498]
    assert between(20) == 16  # 18 convolutions in nine units, two of them in the first
    for net in NETS:
        assert Net.of(net.fields(20)) == net


def test_cells_are_seed_by_seed_and_no_two_alike() -> None:
    cells = study.cells(SMALL, 2, Given())
    settings = [json.dumps(cell.settings, sort_keys=True) for cell in cells]
    assert len(cells) == 2 * (5 + 7) == len(set(settings)) == len({cell.name for cell in cells})
    assert [cell.settings["seed"] for cell in cells] == [0] * 12 + [1] * 12


def test_cost_weighs_nets_by_depth_and_trainings_by_their_steps() -> None:
    for scale, trained in zip(study.SCALES, (56, 110), strict=True):
        given = study._TRAINING[scale.name]
        cells = study.cells(scale, 1, Given())
        shallow, deep, training = cells[0], cells[len(study.DEPTHS) - 1], cells[-1]
        # resnet20 has 40.55 million, resnet110 252.89 million
        assert shallow.cost == pytest.approx(12 * 16 * 0.04055, rel=1e-3)
        a_unit = (0.25289 - 0.04055) / 45
        assert deep.cost == pytest.approx(12 * 16 * (0.04055 + 489 * a_unit), rel=1e-3)
        passes = given["steps"] + given["steps"] // given["every"] + 1
        an_image = (0.04055 + (units(trained) - 9) * a_unit) * (given["size"] / 32) ** 2
        assert training.cost == pytest.approx(64 * passes * an_image, rel=1e-3)


def test_what_is_measured_at_initialisation(tmp_path: Path) -> None:
    cell = Cell("", {"layers": 20, "size": 8, "images": 4, "seed": 0})
    found = study.compute(cell, tmp_path, Given(threads=1), said)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found.pop("environment").startswith(cpu_name())
    assert found.keys() == {net.key for net in NETS}
    for flow in found.values():
        assert {len(values) for values in flow.values()} == {9 + 2}
    # from one draw, Xavier's weights are He's scaled: 14 of the 16 layers between by 2^(-1/2)
    gradients = [found[f"plain none {init}"]["gradient_rms"] for init in ("he", "xavier")]
    he, xavier = (values[1] / values[-2] for values in gradients)
    assert xavier / he == pytest.approx(2**-7 * 2 / 3, rel=2e-3)
    assert found.items() <= study.compute(cell, tmp_path, Given(threads=1), said).items()
    low, high = he_range(20, 8)
    assert low < math.log10(he) < high


def test_a_device_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cell = Cell("", {"layers": 20, "size": 8, "images": 4, "seed": 0})
    with pytest.raises(InputError, match="--device cuda"):
        study.compute(cell, tmp_path, Given(device="cuda", threads=1), said)
    assert Given().chosen_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Given().chosen_device() == "cuda"
    assert Given(device="cpu").chosen_device() == "cpu"


def test_training_is_measured_at_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Net("plain", "none", "he")
    settings = study._training(net, 0, "float32", depth=8, size=8, steps=4, every=2)
    cell = Cell("", settings | {"batch_size": 16})

    def computed() -> dict[str, Any]:
        result: dict[str, Any] = study.compute(cell, tmp_path, Given(threads=1), said)
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert result.pop("seconds") > 0
        return result

    found = computed()
    assert [frame["step"] for frame in found["frames"]] == [0, 2, 4]
    assert [step for step, _ in found["losses"]] == [4]
    assert (found["data"], found["precision"], found["diverged"]) == ("digits", "float32", False)
    first, *_, last = found["frames"]
    assert first["gradient_rms"] != last["gradient_rms"]

    # killed before the result was kept: the same again, and nothing is trained anew
    def trained_anew(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("skipway.training.start", trained_anew)
    assert computed() == found


def test_a_training_that_diverges_is_told_as_far_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skipway.training.loop import Loop

    counted = Loop._count

    def count(self: Loop, terms: Any, images: int) -> None:
        bad = {name: value * math.nan for name, value in terms.items()}
        counted(self, bad if self.step == 3 else terms, images)

    monkeypatch.setattr(Loop, "_count", count)
    net = Net("plain", "none", "he")
    settings = study._training(net, 0, "float32", depth=8, size=8, steps=4, every=2)
    cell = Cell("the net", settings | {"batch_size": 16})
    found = study.compute(cell, tmp_path, Given(threads=1), said)
    assert [frame["step"] for frame in found["frames"]] == [0, 2]
    assert found["diverged"]
    told = study.told([Done(cell, found, 1.0)], SMALL)
    assert told.deviations == ("the net: diverged, so that its numbers are none",)
    assert not any(math.isfinite(finding.mean) for finding in told.findings)
    assert not told.animations


# What is expected, by theory


def test_what_zeros_around_an_image_take() -> None:
    """By the largest eigenvalue of a row's average of three, which deep nets come to."""
    widths, n = (16, 32, 64), 600
    (near, far) = (he_range(6 * n + 2), he_range(12 * n + 2))
    sides = (32, 16, 8)
    padding = sum(2 * n * math.log10((1 + 2 * math.cos(math.pi / (s + 1))) / 3) for s in sides)
    middles, variances = zip(*map(alike, widths), strict=True)
    drift = 2 * n * sum(middles) / (2 * math.log(10))
    assert sum(far) - sum(near) == pytest.approx(2 * padding + drift, rel=1e-6)
    # without its luck the upper end is that of independent pixels
    luck = [2 * math.sqrt(k * 2 * n * sum(variances)) / (2 * math.log(10)) for k in (1, 2)]
    grown = far[1] - near[1] - (luck[1] - luck[0])
    assert grown == pytest.approx(padding, rel=1e-3)


def test_a_layer_whose_pixels_are_alike() -> None:
    """Against draws, and against the first term of Hanin 2018."""
    import numpy as np

    draws = np.random.default_rng(0).normal(size=(200_000, 16))
    open_somewhere = draws[(draws > 0).any(axis=1)]
    logs = np.log(2 * np.mean(np.maximum(open_somewhere, 0) ** 2, axis=1))
    mean, variance = alike(16)
    assert mean == pytest.approx(logs.mean(), abs=0.005)
    assert variance == pytest.approx(logs.var(), rel=0.02)
    assert alike(1000)[0] == pytest.approx(-5 / 2000, rel=0.01)
    assert alike(1000)[1] == pytest.approx(5 / 1000, rel=0.01)


# What follows from results that are made up


def made_up(
    layers: int, seed: int, gradient: Callable[[int], float], share: float
) -> dict[str, Any]:
    """A gradient by unit over that at the last one, and activations that double their power a
    unit, or a share of that."""
    n = units(layers)
    values = [gradient(unit) * 1e-4 * (1 + seed / 100) for unit in range(1, n + 1)]
    held = [g if g < 3e38 else None for g in values]
    held = [0.0 if g is not None and g < 1e-38 else g for g in held]
    activation = [2 ** (share * unit / 2) if unit < 250 else None for unit in range(n)]
    return {
        "activation_rms": [1.0, *activation, 1.0],
        "gradient_rms": [held[0], *held, 1e-3],
        "weight_gradient_norm": [1.0] * (n + 2),
    }


Law = tuple[str, float]
LAWS: dict[str, Law] = {
    "plain none xavier": ("exponential", 0.70),
    "plain none he": ("exponential", 0.97),
    "plain batch he": ("exponential", 1.17),
    "residual batch he": ("power", 1.2),
    "preactivation batch he": ("power", 1.6),
}


def flow_of(net: Net, layers: int, seed: int, laws: dict[str, Law], share: float) -> dict[str, Any]:
    """A factor a layer, or a power of the number of units, towards the input."""
    law, number = laws.get(net.key, ("exponential", 1.001))
    n = units(layers)

    def gradient(unit: int) -> float:
        if law == "power":
            return (n / unit) ** (number * share)
        log = 2 * (n - unit) * share * math.log10(number)
        return 10.0 ** min(log, 300)

    return made_up(layers, seed, gradient, share)


def done(laws: dict[str, Law], seeds: int = 2) -> list[Done]:
    found = []
    for seed in range(seeds):
        for layers in study.DEPTHS:
            result: dict[str, Any] = {
                net.key: flow_of(net, layers, seed, laws, 1.0) for net in NETS
            }
            cell = Cell(f"{layers} {seed}", {"layers": layers, "seed": seed})
            found.append(Done(cell, result, 1.0))
        for net in TRAINED:
            frames = [
                {"step": step, **flow_of(net, 56, seed, laws, share)}
                for step, share in ((0, 1.0), (8, 0.8), (16, 0.7))
            ]
            settings = study._training(net, seed, "float32", **study._TRAINING["small"])
            result = {
                "frames": frames,
                "losses": [[8, 2.5], [16, 2.3 + seed / 1000]],
                "diverged": False,
                "seed": seed,
                "classes": 10,
                "data": "digits",
                "precision": "float32",
            }
            found.append(Done(Cell(net.key, settings), result, 1.0))
    return found


def by_name(told: Told, *words: str) -> Any:
    return next(f for f in told.findings if all(word in f.name for word in words))


def test_verdicts_follow_the_gradients() -> None:
    told = study.told(done(LAWS), SMALL)
    assert not told.deviations
    silent = by_name(told, "Xavier, 998 layers")
    # 0.7^n of 1e-4 is below 1e-38 from n = 220 on: 110 units keep something
    assert silent.mean == pytest.approx(100 * (498 - 110) / 498, abs=0.5)
    for words, rate in (
        ("Xavier, 110 layers: share of gradient", 0.70),
        ("He, 110 layers: share of gradient", 0.97),
        ("He, 998 layers: share of gradient", 0.97),
        ("plain, batch norm, He, 110", 1.17),
    ):
        assert by_name(told, words).mean == pytest.approx(rate)
        assert by_name(told, words).verdict == "reproduced"
    assert by_name(told, "pre-activation, no norm, He, 290").mean == pytest.approx(2.0)

    # He's draw that loses what Xavier's does, or nothing
    for rate in (0.70, 1.0):
        wrong = study.told(done(LAWS | {"plain none he": ("exponential", rate)}), SMALL)
        assert by_name(wrong, "He, 998 layers: share of gradient").verdict == "contradicted"
    vanishing = study.told(done(LAWS | {"plain batch he": ("exponential", 0.9)}), SMALL)
    assert by_name(vanishing, "plain, batch norm, He, 110").verdict == "contradicted"
    assert verdict(vanishing.findings) == "contradicted"


def test_a_power_is_told_from_an_exponential() -> None:
    told = study.told(done(LAWS), SMALL)
    for kind, power in (("residual", 1.2), ("pre-activation", 1.6)):
        slope = by_name(told, f"{kind}, batch norm", "units^p")
        assert slope.values == pytest.approx([power, power])
        assert slope.verdict == "reproduced"
        bend = by_name(told, f"{kind}, batch norm", "growth of the gradient")
        assert bend.mean == pytest.approx(math.log(498 / 54) / math.log(54 / 9))
        assert bend.verdict == "reproduced"
    plain = by_name(told, "plain, batch norm", "growth of the gradient")
    assert plain.mean == pytest.approx((290 - 56) / (56 - 20))
    assert plain.verdict == "reproduced"

    # an exponential of two percent a layer is no power, and a power is no exponential
    swapped = LAWS | {"residual batch he": ("exponential", 1.02), "plain batch he": ("power", 3.0)}
    wrong = study.told(done(swapped), SMALL)
    for words in ("units^p", "growth of the gradient"):
        assert by_name(wrong, "residual, batch norm", words).verdict == "contradicted"
    assert by_name(wrong, "plain, batch norm", "growth of the gradient").verdict == "contradicted"


def test_depths_are_compared_seed_by_seed() -> None:
    """A seed that lacks one of the depths, as another machine's part may, is left out."""
    every = done(LAWS, seeds=3)
    part = [
        d for d in every if (d.cell.settings.get("layers"), d.cell.settings["seed"]) != (110, 1)
    ]
    told = study.told(part, SMALL)
    assert by_name(told, "residual, batch norm", "growth of the gradient").n == 2
    assert by_name(told, "He, 998 layers: share of gradient").n == 3


def test_losses_are_those_of_whole_epochs() -> None:
    assert losses([(23, 2.0), (46, 1.0)]) == [(23, 2.0), (46, 1.0)]
    assert losses([(4, 2.0)]) == [(4, 2.0)]
    (first, (step, loss)) = losses([(23, 2.0), (46, 1.0), (50, 0.0)])[-2:]
    assert (first, step) == ((46, 1.0), 50)
    assert loss == pytest.approx(19 / 23)


def test_the_last_loss_is_that_of_a_whole_epoch() -> None:
    assert last_loss([(23, 2.0), (46, 1.0)]) == pytest.approx(1.0)
    assert last_loss([(23, 2.0), (46, 1.0), (50, 0.0)]) == pytest.approx(19 / 23)
    assert last_loss([(4, 2.0)]) == pytest.approx(2.0)


@pytest.mark.parametrize("classes", [2, 12])
def test_other_data_have_other_classes(tmp_path: Path, classes: int) -> None:
    """As many as they have, though the batch may lack some; guessing is by their number."""
    data = draw(tmp_path / "data", [f"c{i:02d}" for i in range(classes)])
    given = Given(str(data), threads=1)
    cell = Cell("", {"layers": 8, "size": 8, "images": 4, "seed": 0})
    assert study.compute(cell, tmp_path / "first", given, said).keys() > {NETS[0].key}
    net = Net("plain", "none", "xavier")
    settings = study._training(net, 0, "float32", depth=8, size=8, steps=2, every=2)
    cell = Cell("", settings | {"batch_size": 8})
    found = study.compute(cell, tmp_path / "later", given, said)
    assert found["classes"] == classes
    (loss,) = [f for f in later({net.key: [found]}, {}, 8) if f.values]
    assert loss.expected is not None
    assert loss.expected.low == pytest.approx(math.log(classes) - 0.05)
    assert f"ln {classes}, chance" in loss.expected.words


def test_nothing_is_reproduced_by_those_that_did_not_diverge() -> None:
    """Two of three seeds gave what is expected: the number has three values, one of them none."""
    computed = done(LAWS, 3)
    net = Net("plain", "batch", "he")

    def number(computed: list[Done]) -> Finding:
        found = by_name(study.told(computed, SMALL), f"{net.named}, 56 layers in training")
        assert isinstance(found, Finding)
        return found

    assert number(computed).verdict == "reproduced"
    wild = [d for d in computed if d.cell.name == Net("plain", "none", "xavier").key]
    rest = [d for d in computed if d not in wild]
    for diverged in (1, 3):
        odd = [replace(d, result={**d.result, "diverged": True}) for d in wild[:diverged]]
        told = study.told([*rest, *odd, *wild[diverged:]], SMALL)
        loss = by_name(told, "plain, no norm, Xavier", "training loss")
        assert (loss.n, loss.verdict) == (3, "inconclusive")
    one = next(d for d in computed if d.cell.name == net.key)
    lost = replace(one, result={**one.result, "diverged": True})
    found = number([lost if d is one else d for d in computed])
    assert (found.n, found.verdict) == (3, "inconclusive")
    none = number([d for d in computed if "layers" in d.cell.settings])
    assert (none.n, none.verdict) == (0, "inconclusive")


def test_other_data_and_precision_are_deviations() -> None:
    other = [
        Done(d.cell, {**d.result, "data": "mine", "precision": "bf16"}, 1.0)
        for d in done(LAWS, 1)
        if "layers" not in d.cell.settings
    ]
    assert study.told(other, SMALL).deviations == (
        "mine in place of the handwritten digits",
        "trained in bfloat16, with float32 weights",
    )


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_every_part_of_it_can_be_told(seeds: int) -> None:
    """Also of what is half done. No drawing has a script, nor anything from elsewhere."""
    every = done(LAWS, seeds)
    for n in {0, 1, 3, 6, len(every)}:
        told = study.told(every[:n], SMALL)
        drawings = [as_svg(picture.figure) for picture in told.pictures]
        for drawing in (*drawings, *told.animations.values()):
            root = ET.fromstring(drawing)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert not [e for e in root.iter() if e.tag.endswith(("script", "foreignObject"))]
            assert not [k for e in root.iter() for k in e.attrib if k.startswith("on")]
            assert "href" not in drawing
            assert "url(" not in drawing
    assert len(told.pictures) == (6 if seeds else 0)
    assert told.animations.keys() == (FILMS if seeds else set())


FILMS = {"gradient-flow-training", "gradient-flow-forward"}


@pytest.mark.parametrize("name", sorted(FILMS))
def test_films_show_each_step_of_each_net(name: str) -> None:
    told = study.told(done(LAWS), SMALL)
    drawing = told.animations[name]
    assert all(f">step {step}<" in drawing for step in (0, 8, 16))
    moved = [e for e in ET.fromstring(drawing).iter() if e.get("attributeName") == "d"]
    assert len(moved) == len(TRAINED)
    for element in moved:
        paths = element.attrib["values"].split(";")
        assert {path.count("L") for path in paths} == {units(56) - 1}
        assert len(set(paths)) == 3  # the last one is held


# Panels


def panel(*frames: list[float | None]) -> Panel:
    axis = Axis("unit", 1, 3, [(1, "1"), (3, "3")])
    return Panel("one", axis, [1, 2, 3], [Trace("net", "plain", frames)])


def heights(path: str) -> list[float]:
    return [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]


def test_zeros_and_overflows_lie_beyond_the_axis() -> None:
    figure = panels("t", "c", "gradient", [[panel([1.0, 0.0, None])]])
    one, zero, over = heights(re.findall(r'class="line plain" d="([^"]*)"', figure)[0])
    shares = panels("t", "c", "gradient", [[panel([1e-5, 1e5, 1e-5])]])
    least, most, again = heights(re.findall(r'class="line plain" d="([^"]*)"', shares)[0])
    assert over < most < one < least < zero
    assert one == pytest.approx((least + most) / 2)
    assert again == least
    assert ">0</text>" in figure
    assert ">∞</text>" in figure
    assert ">0</text>" not in shares
    assert ">∞</text>" not in shares


def test_an_animation_moves_by_itself_and_stands_still_where_asked() -> None:
    frames = [f"step {n}" for n in range(3)]
    drawing = animation(
        "t", "c", "gradient", [panel([1.0, 1, 1], [1.0, 10, 100], [0.0, 1, None])], frames
    )
    root = ET.fromstring(drawing)
    moved = [e for e in root.iter() if e.tag.endswith("animate")]
    assert {e.get("attributeName") for e in moved} == {"d", "y", "opacity"}
    for element in moved:
        values, times = (element.attrib[name].split(";") for name in ("values", "keyTimes"))
        assert len(values) == len(times) == len(frames) + 1  # the last one is held
        assert (times[0], times[-1]) == ("0.0000", "1.0000")
        assert element.get("repeatCount") == "indefinite"
    paths = next(e for e in moved if e.get("attributeName") == "d").attrib["values"].split(";")
    assert len({path.count("L") for path in paths}) == 1  # or they could not be moved between
    assert "script" not in drawing
    assert "prefers-reduced-motion: reduce" in drawing
    assert all(f">{name}<" in drawing for name in frames)
