"""The block X-ray: deletion by hand and against nets built without the unit, the numbers, and the
command."""

from __future__ import annotations

import copy
import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from commands import call, draw
from skipway import shipped
from skipway.architecture import architecture
from skipway.card import Card
from skipway.data import Split
from skipway.data.split import ArrayReader, Names
from skipway.detectors import build_detector
from skipway.errors import InputError
from skipway.heads import DetectorConfig
from skipway.images import Preprocess
from skipway.predictor import Predictor, torch_predictor
from skipway.probes import kept, without
from skipway.report.xray_picture import picture, write_picture
from skipway.resnet import PreUnit, ResNet
from skipway.study import block_xray, he2015_cifar, trainings
from skipway.study.form import Cell, Done, Given, Scale
from skipway.weights import save_weights
from skipway.xray import Xray, from_json, measuring
from skipway.xray.measuring import sample, xray

SVG = "{http://www.w3.org/2000/svg}"
NETS: dict[str, dict[str, Any]] = {
    "A": {"shortcut": "A"},
    "A-split": {"shortcut": "A-split"},
    "B": {"shortcut": "B"},
    "C": {"shortcut": "C"},
    "D": {"shortcut": "D"},
    "plain": {"shortcut": "none"},
    "plain, narrower": {"shortcut": "none", "widths": (8, 12, 6)},
    "plain max-pool": {"shortcut": "none", "subsample": "max-pool"},
    "pre A": {"order": "pre"},
    "pre B": {"order": "pre", "shortcut": "B"},
    "pre C": {"order": "pre", "shortcut": "C"},
    "pre plain": {"order": "pre", "shortcut": "none"},
    "bottleneck B": {"block": "bottleneck", "shortcut": "B"},
    "bottleneck plain": {"block": "bottleneck", "shortcut": "none"},
    "pre bottleneck A": {"block": "bottleneck", "order": "pre"},
    "pre bottleneck plain": {"block": "bottleneck", "order": "pre", "shortcut": "none"},
    "squeeze": {"shortcut": "B", "squeeze": 4},
    "anti-aliased": {"shortcut": "D", "antialias": True},
    "stochastic depth": {"shortcut": "B", "drop_path": 0.5},
}


def made(seed: int = 0, depths: tuple[int, ...] = (2, 2, 2), **fields: Any) -> ResNet:
    """A small network with random weights and statistics, in evaluation mode."""
    fields = {"widths": (8, 12, 16), "stem_width": 8, "num_classes": 3, "input_size": 9} | fields
    torch.manual_seed(seed)
    net = ResNet(architecture("resnet20", depths=depths, **fields))
    for _ in range(3):
        net.train()(torch.randn(8, 3, 9, 9))
    return net.eval()


def batch(n: int = 4) -> Tensor:
    return torch.randn(n, 3, 9, 9, generator=torch.Generator().manual_seed(7))


def by_hand(net: ResNet, deleted: str, x: Tensor) -> Tensor:
    """Logits without a unit, from the definition."""
    x = net.maxpool(net.stem(x))
    for name, unit in net.units().items():
        if name != deleted:
            x = unit(x)
            continue
        wanted = unit(x)  # for its shape alone
        if isinstance(unit, PreUnit) and unit.shared:
            x = unit.bn1(x).relu()
        if not unit.plain:
            x = unit.downsample(x)
        elif wanted.shape != x.shape:
            step = 2 if wanted.shape[2] != x.shape[2] else 1
            x = x[:, : wanted.shape[1], ::step, ::step]
            missing = max(wanted.shape[1] - x.shape[1], 0)
            zeros = torch.zeros(len(x), missing, *x.shape[2:])
            x = torch.cat([x, zeros], dim=1)
        assert x.shape == wanted.shape
        if not isinstance(unit, PreUnit):
            x = x.relu()
    if net.arch.order == "pre":
        x = net.norm(x).relu()
    return net.fc(x.mean((2, 3)))


# --- deletion ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", NETS.values(), ids=NETS)
@torch.no_grad()
def test_a_unit_is_deleted_as_by_hand(fields: dict[str, Any]) -> None:
    net, x = made(**fields), batch()
    whole = net(x)
    for name in net.units():
        with without(net, name):
            found = net(x)
        torch.testing.assert_close(found, by_hand(net, name, x))
        assert not torch.equal(found, whole)
    assert torch.equal(net(x), whole)


@pytest.mark.parametrize("name", [n for n in NETS if not n.endswith("C")])
@torch.no_grad()
def test_without_a_unit_of_one_shape_a_net_is_one_built_without_it(name: str) -> None:
    """Where a shortcut is x itself, deleting leaves the net of one unit less."""
    net, x = made(**NETS[name]), batch()
    for stage in range(3):
        depths = tuple(2 - (place == stage) for place in range(3))
        small = made(1, depths, **NETS[name])
        state = net.state_dict()
        small.load_state_dict({key: state[key] for key in small.state_dict()})
        with without(net, f"layer{stage + 1}.1"):
            torch.testing.assert_close(net(x), small(x))


@torch.no_grad()
def test_several_units_are_deleted_at_once_and_one_within_another() -> None:
    net, x = made(), batch()
    names = ("layer1.1", "layer2.1")
    small, state = made(1, (1, 1, 2)), net.state_dict()
    small.load_state_dict({key: state[key] for key in small.state_dict()})
    with without(net, *names):
        torch.testing.assert_close(net(x), small(x))
    with without(net, names[0]):
        once = net(x)
        with without(net, *names):
            torch.testing.assert_close(net(x), small(x))
        assert torch.equal(net(x), once)


def as_it_was(net: ResNet) -> Any:
    return (
        {name: p.clone() for name, p in net.state_dict().items()},
        [(p.requires_grad, p.grad) for p in net.parameters()],
        [(sorted(vars(m)), len(m._forward_hooks), m.training) for m in net.modules()],
    )


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(a[0][k], b[0][k]) for k in a[0]) and a[1:] == b[1:]


def test_nothing_is_left_on_the_net_after_an_error() -> None:
    net = made()
    before = as_it_was(net)
    with pytest.raises(ZeroDivisionError), without(net, "layer1.0", "layer2.0"):
        raise ZeroDivisionError
    with pytest.raises(KeyError, match=r"layer9\.0"), without(net, "layer1.0", "layer9.0"):
        pass
    with pytest.raises(RuntimeError), without(net, "layer1.0"):
        net(torch.zeros(1, 4, 9, 9))
    assert same(as_it_was(net), before)


def test_option_a_stands_in_only_where_a_plain_net_changes_the_shape() -> None:
    for name, fields in NETS.items():
        net = made(**fields)
        found = [k for k, m in kept(net).items() if m is not net.units()[k].downsample]
        expected = ["layer2.0", "layer3.0"] if "plain" in name else []
        assert found == (["layer1.0", *expected] if name.endswith("bottleneck plain") else expected)


# --- the numbers ------------------------------------------------------------------------------


def images(n: int = 11, classes: int = 3) -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 9, 9, 3), dtype=np.uint8)
    return Split(ArrayReader(pixels), Names(map(str, range(n))), np.arange(n) % classes)


def predictor_of(net: ResNet, temperature: float = 1.0) -> Predictor:
    card = Card(
        model="custom",
        architecture=net.arch,
        classes=("a", "b", "c"),
        preprocess=Preprocess(size=(9, 9), mean=(0.5,) * 3, std=(0.25,) * 3),
        temperature=temperature,
    )
    return torch_predictor(net, card, "net")


def looked(net: ResNet, split: Split | None = None, **options: Any) -> Xray:
    return xray(net, predictor_of(net), split or images(), **options)


@pytest.mark.parametrize("name", ["A", "plain", "pre B", "bottleneck B", "squeeze"])
def test_the_numbers_are_those_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_PIXELS", 4 * 81)  # in batches of 4, the last of 3
    net, split = made(**NETS[name]), images()
    net.fc.requires_grad_(False)
    next(net.stages()[1].parameters()).requires_grad_(False)  # has a gradient all the same
    before, temperature = as_it_was(net), 1.7
    found = xray(net, predictor_of(net, temperature), split)
    assert same(as_it_was(net), before)
    prepare = predictor_of(net).card.preprocess
    x = torch.from_numpy(np.stack([prepare(split.image(i, 3)) for i in range(len(split))]))
    labels = torch.from_numpy(split.labels)
    with torch.no_grad():
        logits = net(x) / temperature
    assert found.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    twin = copy.deepcopy(net).requires_grad_(True)
    for block, (key, unit) in zip(found.blocks, twin.units().items(), strict=True):
        assert block.name == key
        sides: dict[str, Tensor] = {}

        def put(_: Any, inputs: Any, y: Tensor, sides: dict[str, Tensor] = sides) -> None:
            y.retain_grad()
            sides.update(x=inputs[0], y=y)

        hook = unit.register_forward_hook(put)
        twin.zero_grad()
        loss = F.cross_entropy(twin(x) / temperature, labels, reduction="sum")
        loss.backward()
        hook.remove()
        gradient = sides["y"].grad
        assert gradient is not None
        assert block.output_gradient == pytest.approx(gradient.square().mean().sqrt().item(), 1e-4)
        squares = sum(p.grad.square().sum() for p in unit.parameters() if p.grad is not None)
        assert block.weight_gradient == pytest.approx(math.sqrt(squares) / len(x), rel=1e-4)
        with torch.no_grad():
            given = sides["x"].detach()
            fed = unit.bn1(given).relu() if isinstance(unit, PreUnit) else given
            branch = unit.residual(fed)
            assert block.branch == pytest.approx(branch.square().mean().sqrt().item(), rel=1e-5)
            if unit.plain:
                assert block.shortcut is None
            else:
                side = unit.downsample(fed if unit.shared else given)
                assert block.shortcut == pytest.approx(side.square().mean().sqrt().item(), rel=1e-5)
            without_it = by_hand(net, key, x) / temperature
        right = (without_it.argmax(1) == labels).double().mean().item()
        assert block.accuracy == pytest.approx(right)
        assert block.cost == pytest.approx(found.accuracy - right)
        assert block.loss == pytest.approx(F.cross_entropy(without_it, labels).item(), rel=1e-4)
        assert block.interval[0] <= block.cost <= block.interval[1]
        assert block.reshapes is (sides["x"].shape != sides["y"].shape)
        assert block.stands_in is (unit.plain and key in ("layer2.0", "layer3.0"))


def test_two_looks_are_equal_and_batches_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    net = made()
    first = looked(net)
    assert looked(net) == first
    assert looked(net, threads=3) == first
    monkeypatch.setattr(measuring, "_PIXELS", 1)
    one_by_one = looked(net)
    for a, b in zip(first.blocks, one_by_one.blocks, strict=True):
        assert a.weight_gradient == pytest.approx(b.weight_gradient, rel=1e-4)
        assert (a.accuracy, a.interval) == (b.accuracy, b.interval)


def test_damaged_images_are_told_or_raised() -> None:
    class Damaged(ArrayReader):
        def read(self, name: str) -> Any:
            return b"no image" if name == "3" else super().read(name)

    split = images()
    split = replace(split, reader=Damaged(split.reader.pixels))  # type: ignore[attr-defined]
    net = made()
    with pytest.raises(InputError, match="3"):
        looked(net, split)
    found = looked(net, split, on_bad="skip")
    assert (found.n, len(found.skipped)) == (10, 1)
    with pytest.raises(InputError, match="3"):
        looked(net, split.take(np.array([3])), on_bad="skip")


def test_a_sample_is_the_same_each_time_and_in_order() -> None:
    split = images(50)
    few = [*sample(split, 20).names]
    assert few == [*sample(split, 20).names] == sorted(few, key=int)
    assert len({*few}) == 20
    assert few != [str(i) for i in range(20)]
    assert [*sample(split, 99).names] == [*split.names]


def test_outputs_that_are_not_finite_are_refused() -> None:
    net = made()
    net.fc.weight.data[0, 0] = math.inf
    with pytest.raises(InputError, match="not finite"):
        looked(net)


def test_json_is_read_again() -> None:
    found = looked(made(shortcut="none"))
    assert from_json(json.loads(json.dumps(found.to_json()))) == found


# --- in words and in pictures -----------------------------------------------------------------


def test_the_summary_counts_points() -> None:
    found = looked(made())
    costs = (0.003, 0.081, 0.012, 0.0, -0.0001, 0.02)
    blocks = tuple(replace(b, cost=c) for b, c in zip(found.blocks, costs, strict=True))
    found = replace(found, blocks=blocks, chance=0.1)
    assert (
        found.summary == "deleting one block costs 0.0 to 8.1 points (median 0.8); chance is 10 %"
    )
    assert found.caveat is None
    one = replace(found, blocks=blocks[:1])
    assert one.summary == "deleting one block costs 0.3 points; chance is 10 %"
    plain = looked(made(shortcut="none"))
    assert plain.caveat is not None
    assert "layer2.0, layer3.0" in plain.caveat


def test_the_picture_shows_each_block_of_each_net() -> None:
    one, two = looked(made()), looked(made(shortcut="none"))
    shown = picture("<Two> & more", [("plain20", two), ("a\x1b[0m<b>", one)])
    root = ElementTree.fromstring(shown)
    text = "".join(root.itertext())
    assert "<Two> & more" in text
    assert "\x1b" not in shown
    assert f"chance {100 * two.chance:.3g} %" in text
    bars = [r.get("class") for r in root.iter("rect")]
    assert bars == ["band plain"] * 6 + ["band residual"] * 6
    labels = {node.text for node in root.iter("text")}
    assert {"layer1", "layer2", "layer3", "plain20 F(x)"} <= labels
    assert not any("plain20 shortcut" in str(label) for label in labels)


def test_bars_hang_from_the_accuracy_of_the_whole_net() -> None:
    found = looked(made())
    blocks = tuple(
        replace(b, accuracy=a, cost=0.8 - a, interval=(0.8 - a, 0.8 - a))
        for b, a in zip(found.blocks, (0.8, 0.3, 0.1, 0.9, 0.8, 0.8), strict=True)
    )
    root = ElementTree.fromstring(picture("x", [("", replace(found, accuracy=0.8, blocks=blocks))]))
    heights = [float(r.get("height", "")) for r in root.iter("rect")]
    assert heights == pytest.approx([0, 50, 70, 10, 0, 0], abs=0.11)  # a strip of 100 is 100 %


@pytest.mark.parametrize("units", [1, 50])
def test_dead_nets_and_deep_ones_can_be_drawn(units: int, tmp_path: Path) -> None:
    found = looked(made())
    dead = replace(found.blocks[0], branch=0.0, shortcut=0.0, output_gradient=0, weight_gradient=0)
    blocks = tuple(replace(dead, name=f"layer{1 + i // 20}.{i % 20}") for i in range(units))
    path = write_picture(replace(found, blocks=blocks), tmp_path / "a.svg", "t", [])
    assert ElementTree.parse(path).getroot().tag == f"{SVG}svg"


# --- the command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split, seed in (("train", 0), ("test", 1)):
        draw(root / split, ("red", "green", "blue"), n=8, seed=seed)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    net = made(shortcut="none")
    card = predictor_of(net).card.model_copy(update={"classes": ("red", "green", "blue")})
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_weights(path, net, card)
    return path


def test_the_command_tells_each_block_and_writes_the_picture(
    weights: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call("xray", weights, data, "--limit", "10", "--threads", "1")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert "test: 10 images" in lines[0]
    assert [line.split()[0] for line in lines[3:9]] == [*made().units()]
    assert "option A" in lines[9]
    assert lines[10].startswith("deleting one block costs ")
    assert lines[11] == "the picture: xray.svg"
    assert ElementTree.parse(tmp_path / "xray.svg").getroot().get("class") == "plain"
    one = call("xray", weights, data, "--limit", "1", "--threads", "1")
    assert "chance is 100 %" in one.out  # whoever says that class always is right


def test_json_and_the_page(weights: Path, data: Path, tmp_path: Path) -> None:
    page = tmp_path / "x.html"
    asked = ("xray", weights, data, "--split", "train", "--threads", "1", "--out", page, "--json")
    value = call(*asked).value
    assert call(*asked).value == value
    assert (value["split"], value["n"], value["skipped"]) == ("train", 24, [])
    assert (value["family"], value["chance"], value["picture"]) == ("plain", 1 / 3, str(page))
    assert [block["name"] for block in value["blocks"]] == [*made().units()]
    assert {*value["blocks"][0]} == {
        "name", "reshapes", "branch", "shortcut", "output_gradient", "weight_gradient", "accuracy",
        "loss", "cost", "interval", "stands_in",
    }  # fmt: skip
    text = page.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert text.count("<tr>") == 1 + len(value["blocks"])


def test_names_of_users_are_harmless(data: Path, weights: Path, tmp_path: Path) -> None:
    odd = tmp_path / "<b>\x1b[31m&.safetensors"
    odd.write_bytes(weights.read_bytes())
    for name in ("x.svg", "x.html"):
        answer = call("xray", odd, data, "--threads", "1", "--out", tmp_path / name)
        assert answer.code == 0
        assert "\x1b" not in answer.out
        text = (tmp_path / name).read_text("utf-8")
        assert "\x1b" not in text
        assert "<b>" not in text
    ElementTree.parse(tmp_path / "x.svg")


def test_what_cannot_be_looked_at_is_refused(weights: Path, data: Path, tmp_path: Path) -> None:
    def error(*arguments: str | Path) -> str:
        answer = call("xray", *arguments, "--threads", "1")
        assert answer.code == 2
        assert 1 <= len(answer.error) <= 3
        return "\n".join(answer.error)

    onnx = shipped.file(shipped.NAMES[0], ".onnx")
    assert "no block can be deleted from an ONNX file" in error(onnx, data)
    assert "--split nothing" in error(weights, data, "--split", "nothing")
    assert ".html or .svg" in error(weights, data, "--out", tmp_path / "x.png")
    assert "no such file" in error(tmp_path / "no.safetensors", data)
    row = architecture("resnet18", width=0.125)
    detector = tmp_path / "detector.safetensors"
    config = DetectorConfig(head="fcos", channels=16)
    save_weights(detector, build_detector(row, config, 2), None)
    assert "xray takes those that classify" in error(detector, data)
    assert not list(tmp_path.glob("*.svg"))


# --- the study --------------------------------------------------------------------------------

TINY = {
    "model.architecture": {"depths": [1, 1, 1], "width": 0.25}, "data.val": "none",
    "data.size": 16, "schedule.length": "4 steps", "batch_size": 8, "recipe": "he2015-cifar",
    "schedule.milestones": ("2 steps", "3 steps"), "data.workers": 0,
}  # fmt: skip
SMALL, PAPER = block_xray.SCALES


def test_the_study_trains_and_looks(data: Path, tmp_path: Path) -> None:
    given = Given(data=str(data), threads=1, runs=tmp_path / "runs")
    done = []
    for name in ("plain20", "resnet20"):
        cell = Cell(name, {"model.name": name, "seed": 0, **TINY})
        result = block_xray.compute(cell, tmp_path, given, lambda line: None)
        result = json.loads(json.dumps(result))
        assert len(result["xray"]["blocks"]) == 3
        assert [b["reshapes"] for b in result["xray"]["blocks"]] == [False, True, True]
        assert result["seconds"] > sum(row["seconds"] for row in result["rows"])
        done.append(Done(cell, result, 1.0))
    told = block_xray.told(done, SMALL)
    assert [p.name for p in told.pictures] == ["block-xray"]
    assert len(told.tables) == 2
    assert f"{data} in place of CIFAR-10" in told.deviations[0]
    by_name = {finding.name: finding for finding in told.findings}
    left = by_name["plain20, best accuracy with one block deleted"]
    blocks = done[0].result["xray"]["blocks"]
    assert left.mean == pytest.approx(max(100 * b["accuracy"] for b in blocks))
    assert left.expected is None  # the bounds are CIFAR-10's
    assert not any(finding.values for finding in block_xray.told([], SMALL).findings)


def test_the_time_of_a_cell_counts_its_xray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "training_seconds", lambda cell, given: 1000.0)
    cell = Cell("c", {"model.name": "plain20", "seed": 0, **TINY})
    seconds = block_xray.seconds(cell, Given(threads=1, device="cpu"))
    assert 1000 < seconds < 1100


def test_the_studys_trainings_are_those_of_others() -> None:
    (plain, shallow, deep), seed = block_xray.cells(PAPER, 2, Given())[:3], {"seed": 0}
    others = he2015_cifar.cells(he2015_cifar.SCALES[-1], 1, Given())
    assert [c.settings for c in others if c.settings in (plain.settings, shallow.settings)]
    assert deep.settings in [cell.settings for cell in others]
    assert all(seed.items() <= cell.settings.items() for cell in (plain, shallow, deep))
    names = [cell.settings["model.name"] for cell in block_xray.cells(SMALL, 1, Given())]
    assert names == ["plain20", "resnet20", "resnet56"]


def trained(
    name: str, seed: int, accuracy: float, left: float, worst: float | None = None, **result: Any
) -> Done:
    """As of CIFAR-10. left: without each block; `worst`: without one of them that keeps the
    shape."""
    base = looked(made())
    accuracies = [left, left, left, left if worst is None else worst, left, left]
    blocks = tuple(
        replace(b, accuracy=a, cost=accuracy - a)
        for b, a in zip(base.blocks, accuracies, strict=True)
    )
    assert not blocks[3].reshapes
    whole = {
        "diverged": False,
        "metrics": {"accuracy": accuracy},
        "images": {"train": 50_000, "test": 10_000},
        "classes": 10,
        "precision": "float32",
        "xray": replace(base, accuracy=accuracy, blocks=blocks).to_json(),
    }
    return Done(Cell(name, {"model.name": name, "seed": seed}), whole | result, 1.0)


def judged(scale: Scale, nets: dict[str, tuple[float, ...]]) -> dict[str, str | None]:
    """The verdict on each number of which something is expected, three seeds of each net."""
    done = [
        trained(name, seed, whole + seed / 1000, *left)
        for name, (whole, *left) in nets.items()
        for seed in range(3)
    ]
    return {f.name: f.verdict for f in block_xray.told(done, scale).findings if f.expected}


def test_the_study_judges_by_its_bounds() -> None:
    good = {"plain20": (0.88, 0.11), "resnet20": (0.88, 0.6), "resnet56": (0.88, 0.86)}
    assert {*judged(SMALL, good).values()} == {"reproduced"}
    assert len(judged(SMALL, good)) == 6
    found = judged(SMALL, good | {"plain20": (0.88, 0.11, 0.4)})  # any one block, not the median
    assert found["plain20, best accuracy with one block deleted"] == "contradicted"
    found = judged(SMALL, good | {"resnet56": (0.88, 0.6)})
    assert found["resnet56, accuracy lost per block, median"] == "contradicted"
    found = judged(SMALL, good | {"resnet20": (0.88, 0.12)})
    assert [name for name, verdict in found.items() if verdict == "contradicted"] == [
        "plain20 minus resnet20, accuracy lost per block, median"
    ]
    found = judged(SMALL, good | {"plain20": (0.1, 0.1)})  # nothing to lose
    assert found["plain20, test accuracy, nothing deleted"] == "contradicted"


def test_the_worst_block_is_judged_at_the_papers_scale() -> None:
    name = "most accuracy lost to one block that keeps the shape"
    nets = {"plain20": (0.91, 0.1), "resnet20": (0.91, 0.6), "resnet110": (0.93, 0.925, 0.7)}
    assert judged(PAPER, nets)[f"resnet110, {name}"] == "contradicted"
    nets["resnet110"] = (0.93, 0.925, 0.88)
    assert {*judged(PAPER, nets).values()} == {"reproduced"}
    assert not any(name in told for told in judged(SMALL, {"resnet56": (0.9, 0.89, 0.5)}))


def test_a_net_that_diverged_has_lost_all_it_could() -> None:
    result = {"diverged": True, "metrics": {"accuracy": 0.1}}
    lost = trained("plain20", 0, 0.8, 0.1, **result)
    del lost.result["xray"]  # type: ignore[attr-defined]
    told = block_xray.told([lost], SMALL)
    (whole,) = [finding for finding in told.findings if math.isfinite(finding.mean)]
    assert whole.name == "plain20, test accuracy, nothing deleted"
    assert whole.mean == pytest.approx(10)
    assert told.pictures == []
    assert "diverged" in told.deviations[0]


def test_pictures_stand_beside_what_is_judged() -> None:
    done = [trained(n, 0, 0.9, 0.5) for n in ("plain20", "resnet20", "resnet56")]
    told = block_xray.told(done, SMALL)
    assert [p.name for p in told.pictures] == ["block-xray", "block-xray-deep"]
