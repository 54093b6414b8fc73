"""Illnesses planted in networks that really train, and named; to healthy ones nothing is said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skipway.architecture import architecture
from skipway.config import OptimConfig
from skipway.report.run import Run, read_run
from skipway.report.signal import PICTURES, STATISTICS, Finding, findings, signal
from skipway.resnet import ResNet
from skipway.training.loop import Loop
from skipway.training.optim import freeze
from test_probes import make_loop

Rows = list[dict[str, Any]]


def network(name: str = "resnet20", **fields: Any) -> ResNet:
    torch.manual_seed(0)
    fields = {"width": 0.5, "num_classes": 3, "in_channels": 1} | fields
    return ResNet(architecture(name, **fields))


def trained(
    net: ResNet,
    epochs: int = 1,
    lr: float = 0.1,
    edit: Callable[[Loop], None] = lambda loop: None,
    **options: Any,
) -> Rows:
    """The rows of a training of 17 steps an epoch."""
    optim = OptimConfig(lr=lr, nesterov=True, weight_decay=5e-4, decay_all=False)
    loop = make_loop(net, epochs, 8, optim, **options)
    edit(loop)
    rows: Rows = []
    while not loop.finished:
        loop.epoch(lambda _: False)
        rows.append({"epoch": len(rows) + 1, "signal": loop.signal.means()})
    return rows


def named(rows: Rows) -> dict[str, Finding]:
    found = findings(json.loads(json.dumps(rows)))
    for finding in found:
        assert all((finding.what, finding.where, finding.advice))
    return {finding.name: finding for finding in found}


def without_norms(net: ResNet, scale: float) -> ResNet:
    """No batch norm, and initial convolutions scaled."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.Conv2d):
                nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
                child.weight.data *= scale
    return net


# Healthy


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"name": "resnet32", "width": 0.25},
        {"name": "plain20"},
        {"order": "pre"},
        {"block": "bottleneck", "shortcut": "D", "stem": "deep"},
        {"zero_init_last": True, "shortcut": "B"},
    ],
    ids=lambda fields: ", ".join(map(str, fields.values())) or "resnet20",
)
def test_a_healthy_network_is_told_nothing(fields: dict[str, Any]) -> None:
    assert named(trained(network(**fields), epochs=2)) == {}


@pytest.mark.slow
def test_the_digits_are_learned_without_a_finding(tmp_path: Path) -> None:
    """The default recipe, its learning rate and its warm-up."""
    from commands import QUICK, call

    answer = call("train", "digits", *QUICK, "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    run = read_run(tmp_path / "run")
    assert set(run.epochs[-1]["signal"]) == set(STATISTICS)
    assert findings(run.epochs) == []
    assert "Nothing looks unhealthy" in str(signal(run))


# Ill


def test_a_deep_plain_net_with_small_weights_fades_both_ways() -> None:
    found = named(trained(without_norms(network("plain56", width=0.25), 0.5)))
    assert set(found) == {"vanishing activations", "vanishing gradients"}
    assert found["vanishing activations"].where.endswith("layer3.8")
    assert found["vanishing gradients"].where.startswith("conv1 to layer")
    assert "1502.01852" in found["vanishing gradients"].advice


def test_branches_without_norms_and_too_large_explode() -> None:
    rows = trained(without_norms(network(), 3), lr=1, clip=1e-2)
    found = named(rows)
    assert set(found) == {"exploding activations"}
    assert found["exploding activations"].where.endswith("fc")
    assert "zero_init_last" in found["exploding activations"].advice


def test_a_very_deep_plain_net_with_batch_norm_has_exploding_gradients() -> None:
    """As Yang et al. 2019 (1902.08129) derive; the same net with shortcuts has none."""
    found = named(trained(network("plain110", width=0.25), lr=1, clip=1e-2))
    assert set(found) == {"exploding gradients"}
    assert found["exploding gradients"].where.startswith("conv1 to layer")
    assert "shortcut" in found["exploding gradients"].advice.lower()


def test_a_learning_rate_a_hundred_times_too_high() -> None:
    found = named(trained(network(), lr=10))
    assert next(iter(found)) == "updates too large"
    assert found["updates too large"].where.startswith("epoch")
    assert "Lower --lr" in found["updates too large"].advice


def test_a_learning_rate_a_hundred_thousand_times_too_low() -> None:
    found = named(trained(network(), lr=1e-6))
    assert set(found) == {"updates too small"}
    assert found["updates too small"].where == "epoch 1"
    assert "Raise --lr" in found["updates too small"].advice


@pytest.mark.parametrize("order", ["post", "pre"])
def test_biases_far_below_zero_kill_channels(order: str) -> None:
    net = network(order=order)
    with torch.no_grad():
        for unit in net.layer2:  # type: ignore[union-attr]
            getattr(unit, "bn1" if order == "post" else "bn2").bias.fill_(-10)
    found = named(trained(net))
    assert found["dead channels"].where == "layer2.0 to layer2.2"
    assert "100 %" in found["dead channels"].what
    assert set(found) <= {"dead channels", "idle branches"}  # pre: a dead branch adds nothing


def test_branches_that_start_at_zero_and_never_learn() -> None:
    net = network(zero_init_last=True, shortcut="B")

    def stop_units(loop: Loop) -> None:
        stopped = {id(p) for unit in net.units().values() for p in unit.parameters()}
        kept = []
        for group in loop.optimizer.param_groups:
            kept += [p for p in group["params"] if id(p) in stopped]
            group["params"] = [p for p in group["params"] if id(p) not in stopped]
        loop.optimizer.add_param_group({"params": kept, "scale": 0.0})

    found = named(trained(net, edit=stop_units))
    assert set(found) == {"idle branches", "weights that do not move"}
    assert found["idle branches"].where == "layer1.0 to layer3.2"
    assert found["weights that do not move"].where == "layer1.0 to layer3.2"


def test_branches_that_weight_decay_has_emptied() -> None:
    """Decay on the gammas of one stage only, so strong that nothing is left of them."""
    net = network(shortcut="B")

    def decay(loop: Loop) -> None:
        gammas = [p for unit in net.layer2 for p in unit.bn2.parameters()]  # type: ignore[union-attr]
        for group in loop.optimizer.param_groups:
            group["params"] = [p for p in group["params"] if all(p is not g for g in gammas)]
        loop.optimizer.add_param_group({"params": gammas, "scale": 1.0, "weight_decay": 5.0})

    found = named(trained(net, epochs=2, edit=decay))
    assert set(found) == {"idle branches"}
    assert found["idle branches"].where.startswith("layer2.")
    assert "weight_decay" in found["idle branches"].advice


def test_a_branch_that_drowns_its_shortcut() -> None:
    net = network()
    with torch.no_grad():
        net.layer3[2].bn2.weight.fill_(300)  # type: ignore[index,union-attr]
    found = named(trained(net, lr=1e-3))
    assert set(found) == {"drowned shortcuts"}
    assert found["drowned shortcuts"].where == "layer3.2"
    assert "zero_init_last" in found["drowned shortcuts"].advice


def test_frozen_parts_are_noted_not_warned_of() -> None:
    net = network()
    found = named(trained(net, keep_frozen=freeze(net, 2)))
    assert set(found) == {"frozen"}
    assert found["frozen"].kind == "note"
    assert found["frozen"].where == "conv1 to layer1.2"


def rows_of(**by_part: Any) -> Rows:
    return [{"epoch": 1, "signal": by_part}]


def test_numbers_that_are_not_finite_are_named() -> None:
    parts = {"conv1": 1.0, "layer1.0": None, "layer1.1": 1.0, "layer2.0": None, "fc": None}
    found = named(rows_of(activation_rms=parts))
    assert set(found) == {"overflow"}
    assert found["overflow"].where == "layer1.0, layer2.0 to fc"
    # a shortcut that is 0 makes the ratio infinite, and is no overflow
    assert named(rows_of(residual_ratio={"layer1.0": None})) == {}


def test_many_places_are_told_in_short() -> None:
    dead = {f"layer1.{i}": float(i % 2) for i in range(20)}
    found = named(rows_of(dead_channels=dead, activation_rms=dict.fromkeys(dead, 1.0),
                          gradient_norm=dict.fromkeys(dead, 1.0)))  # fmt: skip
    assert found["dead channels"].where == "layer1.1, layer1.3, layer1.5, 7 more"


def test_it_is_judged_at_the_last_epoch() -> None:
    dead = {"dead_channels": {"conv1": 0.9}}
    alive = {"dead_channels": {"conv1": 0.1}}
    first, last = ({"epoch": e, "signal": s} for e, s in ((1, dead), (2, alive)))
    assert named([first, last, {"epoch": 3}]) == {}
    assert set(named([last, first])) == {"dead channels"}


# On the page


def run_of(folder: Path, rows: Rows) -> Run:
    (folder / "run.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_run(folder)


def parsed(section: str | None) -> ElementTree.Element:
    """Raises where the markup is not well-formed."""
    return ElementTree.fromstring(f"<div>{section}</div>")


@pytest.fixture(scope="module")
def healthy() -> Rows:
    return trained(network(), epochs=3)


def test_words_then_five_pictures_then_numbers(tmp_path: Path, healthy: Rows) -> None:
    page = parsed(signal(run_of(tmp_path, healthy)))
    assert [child.tag for child in page] == ["p", "div", "details"]
    assert "Nothing looks unhealthy" in "".join(page[0].itertext())
    figures = page.findall(".//figure")
    assert [figure.findtext("h3") for figure in figures] == [p.title for p in PICTURES]
    for figure in figures:
        label = figure.find("svg").get("aria-label")
        assert label.endswith(figure.findtext("figcaption"))
        names = [text.text for text in figure.iter("text") if text.get("class") == "name"]
        assert sorted(names) == ["epoch 1", "epoch 2", "epoch 3"]
    cells = [[cell.text for cell in row] for row in page.iter("tr")]
    assert [row[0] for row in cells[1:]] == list(healthy[-1]["signal"]["gradient_norm"])
    last = healthy[-1]["signal"]
    row = next(row for row in cells if row[0] == "layer2.1")
    ratio = last["gradient_norm"]["layer2.1"] / last["weight_norm"]["layer2.1"]
    expected = [f"{last['activation_rms']['layer2.1']:.3g}", f"{ratio:.3g}"]
    assert [row[1], row[-1]] == expected
    assert cells[1][3] == "–"  # the stem has no shortcut


def test_findings_stand_first(tmp_path: Path) -> None:
    net = network()
    page = parsed(signal(run_of(tmp_path, trained(net, keep_frozen=freeze(net, 2)))))
    (item,) = page[0].findall("li")
    assert (page[0].tag, item.get("class")) == ("ul", "note")
    assert "Frozen: conv1 to layer1.2." in "".join(item.itertext())


@pytest.mark.parametrize("junk", [None, 7, "x", [], [1], {}, {"a": 1}, {"gradient_norm": 3}, True])
def test_nothing_to_show_is_no_section(tmp_path: Path, junk: Any) -> None:
    assert signal(run_of(tmp_path, [])) is None
    assert signal(run_of(tmp_path, [{"epoch": 1, "signal": junk}])) is None
    assert findings([{"epoch": 1, "signal": junk}]) in ([], [])


HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"


def test_names_from_outside_are_escaped(tmp_path: Path, healthy: Rows) -> None:
    rows = json.loads(json.dumps(healthy))
    for row in rows:
        for key, by_part in row["signal"].items():
            row["signal"][key] = {part + HOSTILE: value for part, value in by_part.items()}
        row["signal"]["dead_channels"]["layer1.0" + HOSTILE] = 0.9
    section = signal(run_of(tmp_path, rows))
    parsed(section)
    assert section is not None
    assert "<script" not in section
    assert "\x1b" not in section
    assert "\u202e" not in section
    assert "Dead channels: layer1.0&lt;script&gt;" in section


part_names = st.sampled_from(
    ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer3.10", "a<b", "fc"]
)
numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 2)
rows_strategy = st.lists(
    st.fixed_dictionaries(
        {"epoch": st.integers(1, 9)},
        optional={
            "signal": st.dictionaries(
                st.sampled_from(list(STATISTICS)), st.dictionaries(part_names, numbers)
            )
        },
    ),
    max_size=4,
)


@settings(max_examples=60)
@given(rows_strategy)
def test_any_numbers_are_told_and_drawn_inside_the_frame(rows: Rows) -> None:
    section = signal(Run(Path(), {}, rows, {}, [], None))
    known = [row for row in rows if any(row.get("signal", {}).values())]
    assert (section is not None) == bool(known)
    page = parsed(section)
    assert "nan" not in (section or "")
    for path in page.iter("path"):
        places = [float(number) for number in re.split("[ML ]+", path.get("d").strip("M "))]
        assert all(0 <= x <= 380 for x in places[::2])
        assert all(34 <= y <= 206 and math.isfinite(y) for y in places[1::2])
