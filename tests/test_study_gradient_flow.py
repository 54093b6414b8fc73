"""The study gradient-flow: what it computes, what it concludes, and its pictures."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from skipway.report.document import as_svg
from skipway.study import gradient_flow as study
from skipway.study.flow_nets import NETS, TRAINED, Net, between, units
from skipway.study.flow_panels import Panel, Trace, animation, panels
from skipway.study.form import Cell, Done, Given, Told, verdict

SMALL = study.SCALES[0]


def said(_: str) -> None:
    pass


def test_its_nets_are_of_the_papers_family() -> None:
    from skipway.architecture import architecture, name_of

    assert [net for net in NETS if net in TRAINED]
    assert len({net.key for net in NETS}) == 12
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


def test_what_is_measured_at_initialisation(tmp_path: Path) -> None:
    cell = Cell("", {"layers": 20, "size": 8, "images": 4, "seed": 0})
    found = study.compute(cell, tmp_path, Given(threads=1), said)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found.keys() == {net.key for net in NETS}
    for flow in found.values():
        assert {len(values) for values in flow.values()} == {9 + 2}
    # from one draw, Xavier's weights are He's scaled: 14 of the 16 layers between by 2^(-1/2)
    gradients = [found[f"plain none {init}"]["gradient_rms"] for init in ("he", "xavier")]
    he, xavier = (values[1] / values[-2] for values in gradients)
    assert xavier / he == pytest.approx(2**-7 * 2 / 3, rel=2e-3)
    assert study.compute(cell, tmp_path, Given(threads=1), said) == found


def test_training_is_measured_at_its_checkpoints(tmp_path: Path) -> None:
    net = Net("plain", "none", "he")
    settings = study._training(net, 0, depth=8, size=8, steps=4, every=2)
    cell = Cell("", settings | {"batch_size": 16})
    found = study.compute(cell, tmp_path, Given(threads=1), said)
    assert [frame["step"] for frame in found["frames"]] == [0, 2, 4]
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    first, *_, last = found["frames"]
    assert first["gradient_rms"] != last["gradient_rms"]
    assert not (tmp_path / "run").exists()
    # killed before the result was kept: the same again
    assert study.compute(cell, tmp_path, Given(threads=1), said) == found


# What follows from results that are made up


def made_up(layers: int, net: Net, seed: int, a_layer: float) -> dict[str, list[float | None]]:
    """A gradient that changes by a factor a layer, towards the input, and activations that double
    their power a unit."""
    n = units(layers)
    gradient = [a_layer ** (2 * (n - unit)) * 1e-4 * (1 + seed / 100) for unit in range(1, n + 1)]
    held = [g if g < 3e38 else None for g in gradient]
    held = [0.0 if g is not None and g < 1e-38 else g for g in held]
    activation = [2 ** (unit / 2) if unit < 250 else None for unit in range(n)]
    return {
        "activation_rms": [1.0, *activation, 1.0],
        "gradient_rms": [held[0], *held, 1e-3],
        "weight_gradient_norm": [1.0] * (n + 2),
    }


A_LAYER = {"plain none xavier": 0.70, "plain none he": 0.985, "plain batch he": 1.17}


def done(a_layer: dict[str, float], seeds: int = 2) -> list[Done]:
    found = []
    for seed in range(seeds):
        for layers in study.DEPTHS:
            result: dict[str, Any] = {
                net.key: made_up(layers, net, seed, a_layer.get(net.key, 1.001)) for net in NETS
            }
            cell = Cell(f"{layers} {seed}", {"layers": layers, "seed": seed})
            found.append(Done(cell, result, 1.0))
        for net in TRAINED:
            frames = [
                {"step": step, **made_up(56, net, seed, a_layer.get(net.key, 1.001) ** share)}
                for step, share in ((0, 1.0), (8, 0.8), (16, 0.7))
            ]
            cell = Cell(net.key, study._training(net, seed, **study._TRAINING["small"]))
            result = {"frames": frames, "losses": [[8, 2.5], [16, 2.3 + seed / 1000]]}
            found.append(Done(cell, result, 1.0))
    return found


def by_name(told: Told, start: str) -> Any:
    return next(f for f in told.findings if f.name.startswith(start))


def test_verdicts_follow_the_gradients() -> None:
    told = study.told(done(A_LAYER), SMALL)
    silent = by_name(told, "plain, no norm, Xavier, 998 layers")
    # 0.7^n of 1e-4 is below 1e-38 from n = 220 on: 110 units keep something
    assert silent.mean == pytest.approx(100 * (498 - 110) / 498, abs=0.5)
    vanishes = by_name(told, "plain, no norm, Xavier, 110 layers: first")
    assert vanishes.mean == pytest.approx(106 * math.log10(0.70))
    assert vanishes.verdict == "reproduced"
    assert by_name(told, "plain, batch norm, 110 layers: power").verdict == "reproduced"
    assert by_name(told, "residual, batch norm, 998").verdict == "reproduced"
    assert by_name(told, "pre-activation, no norm, He, 110").mean == pytest.approx(2.0)

    wrong = study.told(done(A_LAYER | {"plain batch he": 0.9}), SMALL)
    assert by_name(wrong, "plain, batch norm, 110 layers: power").verdict == "contradicted"
    assert verdict(wrong.findings) == "contradicted"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_every_part_of_it_can_be_told(seeds: int) -> None:
    """Also of what is half done."""
    every = done(A_LAYER, seeds)
    for n in {0, 1, 3, 6, len(every)}:
        told = study.told(every[:n], SMALL)
        for picture in told.pictures:
            ET.fromstring(as_svg(picture.figure))
        for drawing in told.animations.values():
            ET.fromstring(drawing)
    assert len(told.pictures) == (4 if seeds else 0)


# Panels


def panel(*frames: list[float | None]) -> Panel:
    return Panel("one", "unit", [1, 2, 3], [(1, "1"), (3, "3")], [Trace("net", "plain", frames)])


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
