"""The study of sizes: counts against other counters, and against what the papers print."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from counting import counted
from skipway.resnet import ResNet
from skipway.study import tables
from skipway.study.form import Done, Given, Told, verdict

(SCALE,) = tables.SCALES
NOTHING = Path()


def sizes() -> Done:
    (cell,) = tables.cells(SCALE, 1, Given())
    return Done(cell, tables.compute(cell, NOTHING, Given(), print), 0.1)


SIZES = sizes()


def of(told: Told, name: str) -> Any:
    (found,) = [finding for finding in told.findings if finding.name.startswith(name)]
    return found


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [*tables.IMAGENET, *tables.CALLED, *tables.CIFAR[:5]])
def test_sizes_are_those_of_the_built_networks(net: tables.Net) -> None:
    size = (SIZES.result["nets"] | SIZES.result["cifar"])[net.name]
    assert (size["parameters"], size["macs"]) == counted(net.arch)
    with torch.device("meta"):
        built = ResNet(net.arch)
    norms = [m for m in built.modules() if isinstance(m, nn.BatchNorm2d)]
    assert size["parameters"] - size["without_norms"] == sum(2 * m.num_features for m in norms)
    shortcuts = [unit.downsample for unit in built.units().values()]
    assert tables._projections(net.arch) == sum(isinstance(s, nn.Sequential) for s in shortcuts)
    assert net.blocks == "-".join(str(len(stage)) for stage in built.stages())


@pytest.mark.parametrize("layers", [18, 34, 50, 101, 152])
def test_sizes_are_those_of_torchvision(layers: int) -> None:
    with torch.device("meta"):
        peer = getattr(torchvision.models, f"resnet{layers}")().eval()
        counter = FlopCounterMode(display=False)
        with counter:
            peer(torch.empty(1, 3, 224, 224))
    name = f"ResNet-{layers}" + (", option B" if layers < 50 else " v1.5, stride in the 3x3")
    size = SIZES.result["nets"][name]
    assert size["parameters"] == sum(p.numel() for p in peer.parameters())
    assert 2 * size["macs"] == counter.get_total_flops()


def test_what_is_printed_is_met() -> None:
    told = tables.told([SIZES], SCALE)
    assert verdict(told.findings) == "reproduced"
    assert len({finding.name for finding in told.findings}) == len(told.findings)
    assert {f.verdict for f in told.findings if f.expected} == {"reproduced"}
    assert of(told, "ResNet-50,").mean == pytest.approx(3.857973248)
    assert "rounded to 3.9" in of(told, "ResNet-50,").note
    assert of(told, "pre-activation 1001").mean == pytest.approx(10.327706)
    assert of(told, "pre-activation 1001").expected is None  # printed as without batch norm's
    assert "without batch norm's: 10.178" in of(told, "pre-activation 1001").note
    assert round(of(told, "“ResNet-18 for CIFAR” over ResNet-20, parameters").mean) == 41
    assert round(of(told, "“ResNet-18 for CIFAR” over ResNet-20, multiply").mean, 1) == 13.7
    json.dumps(SIZES.result)


def test_another_network_is_not_what_is_printed() -> None:
    wrong = json.loads(json.dumps(SIZES.result))
    later = wrong["nets"]["ResNet-50 v1.5, stride in the 3x3"]
    wrong["nets"]["ResNet-50, stride in the 1x1"] = later
    told = tables.told([dataclasses.replace(SIZES, result=wrong)], SCALE)
    assert of(told, "ResNet-50,").verdict == verdict(told.findings) == "contradicted"
    wrong = json.loads(json.dumps(SIZES.result))
    wrong["twins"]["plain20"]["residual"]["parameters"] += 1
    told = tables.told([dataclasses.replace(SIZES, result=wrong)], SCALE)
    assert of(told, "most parameters that option A").verdict == "contradicted"


def test_what_the_notes_say_is_so() -> None:
    value = {net.name: SIZES.result["nets"][net.name]["macs"] for net in tables.IMAGENET}
    fifty, deeper, deepest = (value[f"ResNet-{n}, stride in the 1x1"] for n in (50, 101, 152))
    least = fifty - 3.85e9
    most = min(deeper - 7.55e9, deepest - 11.25e9)
    assert (round(least / 1e6), round(most / 1e6)) == (8, 20)
    assert most / fifty < 0.0055
    assert least > fifty - 3.85e9 - 1  # 3.85 and more would be rounded to 3.9
    for layers, blocks in ((18, "2-2-2-2"), (34, "3-4-6-3"), (101, "3-4-23-3"), (152, "3-8-36-3")):
        net = next(n for n in tables.IMAGENET if n.layers == layers)
        assert net.blocks == blocks


@given(st.integers(0, 3), st.floats(0.01, 100))
def test_a_print_is_met_by_rounding_or_by_cutting(places: int, value: float) -> None:
    rounded = f"{value:.{places}f}"
    cut = f"{int(value * 10**places) / 10**places:.{places}f}"
    assert tables.how_met(value, rounded) == "rounded"
    assert tables.as_printed(rounded).low <= value * (1 + 1e-12)
    if cut != rounded and abs(value * 10**places - round(value * 10**places)) > 1e-6:
        assert tables.how_met(value, cut) == "cut"
        assert tables.as_printed(cut).low <= value <= tables.as_printed(cut).high
    other = f"{float(rounded) + 2 * 10**-places:.{places}f}"
    assert tables.how_met(value, other) == "no"
    assert not tables.as_printed(other).low <= value <= tables.as_printed(other).high


def test_tables_and_pictures_hold_every_network() -> None:
    told = tables.told([SIZES], SCALE)
    for _, head, rows in told.tables:
        assert {len(row) for row in rows} == {len(head)}
    shown = [row[0] for _, _, rows in told.tables for row in rows]
    assert {n.name for n in (*tables.IMAGENET, *tables.CIFAR, *tables.CALLED)} < {*shown}
    deep, named = (str(picture.figure) for picture in told.pictures)
    assert "VGG-16" in deep
    assert named.count("<circle") == len((*tables.CIFAR, *tables.CALLED)) + 3
    assert tables.told([], SCALE).findings == []
