"""The import doctor. Labels are what a network itself says of the images under the reading that is
true by construction; the file is then labelled otherwise, and the doctor must find the truth."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from commands import QUICK, call, draw
from skipway import doctor
from skipway.architecture import Architecture
from skipway.card import Card
from skipway.cli.doctoring import as_value, finding, lines
from skipway.data import open_split
from skipway.doctor import bench as searching
from skipway.doctor.bench import Bench, _moments
from skipway.doctor.evidence import tempered
from skipway.doctor.readings import Reading, normalisations
from skipway.errors import InputError
from skipway.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from skipway.resnet import ResNet
from skipway.weights import read_state, save_weights

CLASSES = ("ant", "bee", "cat", "dog")
BASIC: dict[str, Any] = {"block": "basic", "depths": (1, 1), "widths": (8, 16), "shortcut": "A"}
NECK: dict[str, Any] = {"block": "bottleneck", "depths": (1, 1), "widths": (8, 16)}
N = 120


@dataclass
class Truth:
    """A network, its card, and the folder of images that it labelled."""

    card: Card
    state: dict[str, torch.Tensor]
    data: Path

    def write(self, path: Path, *, classes: tuple[str, ...] = CLASSES, **wrong: Any) -> Path:
        """The weights, `wrong` in the card: fields of the architecture or of the preprocessing."""
        arch, preprocess = dataclasses.asdict(self.card.architecture), self.card.preprocess
        pixels = {k: v for k, v in wrong.items() if k in Preprocess.model_fields}
        fields = self.card.model_dump() | {
            "architecture": arch | {k: v for k, v in wrong.items() if k not in pixels},
            "preprocess": preprocess.model_dump() | pixels,
            "classes": classes,
        }
        save_weights(path, self.state, Card.model_validate(fields))
        return path


def pictures(rng: np.random.Generator, n: int, shape: tuple[int, int], channels: int) -> list[Any]:
    """Smooth patches, each with a tint: uint8 [*shape, channels]."""
    found = []
    for _ in range(n):
        rough = rng.normal(0, 50, (6, 6, channels)) + rng.normal([140, 115, 90][:channels], 30)
        small = rough.clip(0, 255).astype(np.uint8)
        layers = [
            Image.fromarray(small[..., c]).resize(shape[::-1], Image.Resampling.BICUBIC)
            for c in range(channels)
        ]
        found.append(np.stack([np.asarray(layer) for layer in layers], axis=-1))
    return found


def make(
    root: Path,
    fields: dict[str, Any],
    *,
    preprocess: dict[str, Any] | None = None,
    bgr: bool = False,
    shape: tuple[int, int] = (16, 16),
    weak: float = 1.0,
) -> Truth:
    """A network with statistics of its own images, and those images sorted by what it says.

    weak: factor of the convolutions' weights; the smaller, the more epsilon matters.
    """
    channels = fields.get("in_channels", 3)
    arch = Architecture(
        **{"stem": "cifar", "stem_width": 8, "num_classes": len(CLASSES), "input_size": 16} | fields
    )
    own = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if channels == 1:
        own = {"mean": (0.5,), "std": (0.25,)}
    settled = Preprocess.model_validate(
        {"size": (16, 16), "channels": channels, "short_side": 16} | own | (preprocess or {})
    )
    images = pictures(np.random.default_rng(0), N, shape, channels)
    x = torch.from_numpy(np.stack([settled(image) for image in images]))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = ResNet(arch)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight *= weak
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        net.train()(x.flip(1) if bgr else x)
        e = net.eval().embed(x.flip(1) if bgr else x)
        # A classifier that parts the images into classes of about one size.
        centred = e - e.mean(0)
        axes = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
        plane = centred @ axes.T
        corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
        net.fc.weight.copy_(8 * corners / plane.std(0) @ axes)
        net.fc.bias.copy_(-net.fc.weight @ e.mean(0))
        said = net(x.flip(1) if bgr else x).argmax(1).tolist()
    assert min(np.bincount(said, minlength=len(CLASSES))) >= 10
    for i, (image, label) in enumerate(zip(images, said, strict=True)):
        folder = root / "data" / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(folder / f"{i:03}.png")
    card = Card(model="custom", architecture=arch, classes=CLASSES, preprocess=settled)
    return Truth(card, net.state_dict(), root / "data")


HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
LEVELS = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
CAFFE = {"mean": (123.68 / 255, 116.779 / 255, 103.939 / 255), "std": (1 / 255,) * 3}

Case = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]
# What `make` gets, what the card says instead, and what must be found, by trait.
MISTAKES: dict[str, Case] = {
    "stride 1x1": (NECK | {"stride_in": "1x1"}, {}, {"stride_in": "3x3"}, {"stride_in": "1x1"}),
    "stride 3x3": (NECK, {}, {"stride_in": "1x1"}, {"stride_in": "3x3"}),
    "A": (BASIC, {}, {"shortcut": "A-split"}, {"shortcut": "A"}),
    "A-split": (BASIC | {"shortcut": "A-split"}, {}, {"shortcut": "A"}, {"shortcut": "A-split"}),
    "plain": (BASIC | {"shortcut": "none"}, {}, {"shortcut": "A"}, {"shortcut": "none"}),
    "not plain": (BASIC, {}, {"shortcut": "none"}, {"shortcut": "A"}),
    "bgr": (BASIC, {"bgr": True}, {}, {"colour": "BGR"}),
    "levels": (BASIC, {"preprocess": LEVELS}, PLAIN, {"scaling": "0..255"}),
    "not levels": (BASIC, {"preprocess": PLAIN}, LEVELS, {"scaling": "0..1"}),
    "half": (BASIC, {"preprocess": HALF}, PLAIN, {"normalisation": "0.5 and 0.5"}),
    "none": (BASIC, {"preprocess": PLAIN}, HALF, {"normalisation": "none"}),
    "epsilon": (BASIC, {"weak": 0.1}, {"bn_eps": 0.01}, {"bn_eps": 1e-5}),
    "large epsilon": (
        BASIC | {"bn_eps": 0.01}, {"weak": 0.1}, {"bn_eps": 1e-5}, {"bn_eps": 0.01}
    ),
    "blur": (BASIC | {"antialias": True}, {}, {"antialias": False}, {"antialias": True}),
    "squash": (
        BASIC, {"shape": (16, 32), "preprocess": {"resize": "squash"}}, {"resize": "crop"},
        {"resize": "squash 16x16"},
    ),
    "caffe": (
        NECK | {"stride_in": "1x1"}, {"preprocess": CAFFE, "bgr": True},
        {"stride_in": "3x3", "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        {"stride_in": "1x1", "colour": "BGR", "scaling": "0..255", "normalisation": "Caffe's mean"},
    ),
    "bgr and levels": (
        BASIC, {"preprocess": PLAIN, "bgr": True}, LEVELS, {"colour": "BGR", "scaling": "0..1"}
    ),
    "grey": (BASIC | {"in_channels": 1}, {}, {"mean": (0.5 / 255,), "std": (0.25 / 255,)},
             {"scaling": "0..1"}),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_and_mended(tmp_path: Path, name: str) -> None:
    fields, made, wrong, expected = MISTAKES[name]
    truth = make(tmp_path, fields, **made)
    file, mended = truth.write(tmp_path / "w.safetensors", **wrong), tmp_path / "m.safetensors"
    answer = call(
        "check-weights", file, "--on", truth.data, "--threads=1", "--json", "--out", mended
    )
    assert answer.code == 1, answer.err
    told = answer.value
    assert told["verdict"] == "wrong"
    found = {t["trait"]: t for t in told["traits"] if t["state"] == "wrong"}
    assert {trait: t["found"] for trait, t in found.items()} == expected
    assert told["assumed"]["accuracy"] < told["diagnosed"]["accuracy"]
    assert told["diagnosed"]["accuracy"] >= 0.99  # the network's own answers
    assert told["diagnosed"]["n"] == N
    for t in found.values():
        assert t["comparison"]["low"] > 0
    again = call("eval", mended, truth.data, "--split=all", "--threads=1", "--json").value
    assert again["metrics"]["accuracy"] == told["diagnosed"]["accuracy"]
    assert again["n"] == N


@pytest.mark.parametrize("fields", [BASIC, NECK], ids=["basic", "bottleneck"])
def test_what_is_right_is_called_right(tmp_path: Path, fields: dict[str, Any]) -> None:
    truth = make(tmp_path, fields)
    file = truth.write(tmp_path / "w.safetensors")
    answer = call("check-weights", file, "--on", truth.data, "--threads=1")
    assert answer.code == 0, (answer.out, answer.err)
    assert "WRONG" not in answer.out
    assert "right: no other reading is better" in answer.out
    traits = [line.split()[0] for line in answer.out.splitlines()[2:-2]]
    own = ["shortcut"] if fields is BASIC else ["stride"]
    others = ["blur", "epsilon", "colour", "scaling", "normalisation", "framing"]
    assert traits == own + others


@pytest.mark.parametrize("fields", [BASIC, NECK], ids=["basic", "bottleneck"])
@pytest.mark.parametrize(
    ("share", "seed"),
    [
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in ((0.1, 0), (0.15, 1), (0.2, 2))
        ),
        (0.2, 3),
    ],
)
def test_what_is_right_stays_right_where_labels_are_wrong(
    tmp_path: Path, fields: dict[str, Any], share: float, seed: int
) -> None:
    """With the network's own answers as labels no other reading can be better; with noise some
    are, by chance."""
    truth = make(tmp_path, fields)
    rng = np.random.default_rng(seed)
    images = sorted(truth.data.glob("*/*.png"))
    for i in rng.choice(N, round(share * N), replace=False):
        others = [name for name in CLASSES if name != images[i].parent.name]
        images[i].rename(truth.data / str(rng.choice(others)) / images[i].name)
    found = doctor.check(truth.write(tmp_path / "w.safetensors"), str(truth.data))
    assert found.assumed.accuracy == pytest.approx(1 - share, abs=1e-9)
    assert found.verdict == "right"
    assert not any(f.state == "wrong" for f in found.findings)


@pytest.mark.parametrize("kind", ["huggingface", "timm"])
def test_class_names_that_were_assumed_are_those_of_the_data(tmp_path: Path, kind: str) -> None:
    truth = make(tmp_path, BASIC)
    file, mended = truth.write(tmp_path / "w.safetensors", shortcut="A-split"), tmp_path / "m"
    state, card = read_state(file)
    assert card is not None
    names = [f"LABEL_{i}" if kind == "huggingface" else str(i) for i in range(len(CLASSES))]
    assumed = {"classes": names, "provenance": {"assumed": ["classes", "preprocess"]}}
    save_weights(file, state, Card.model_validate(card.model_dump() | assumed))
    answer = call("check-weights", file, "--on", truth.data, "--json", "--out", mended)
    assert answer.code == 1, answer.err
    assert answer.value["diagnosed"]["accuracy"] == 1
    card = read_state(mended)[1]
    assert card is not None
    assert card.classes == CLASSES
    assert card.classes_known
    assert card.provenance["assumed"] == ["preprocess"]


def test_an_order_of_classes_that_was_not_asked_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = make(tmp_path, BASIC)
    file = truth.write(tmp_path / "w.safetensors", classes=("dog", "ant", "bee", "cat"))
    found = doctor.check(file, str(truth.data), 32)
    assert found.names == CLASSES
    assert as_value(found)["class_order_asked"] is True
    assert "class order" not in "\n".join(lines(found))
    monkeypatch.setattr(searching, "A_CLASS", 9)
    found = doctor.check(file, str(truth.data), 32)
    assert found.order is None
    assert as_value(found)["class_order_asked"] is False
    assert "class order    not asked: it needs 9 images a class, 36 in all" in lines(found)


@pytest.mark.slow
def test_without_a_card_what_was_assumed_is_judged(tmp_path: Path) -> None:
    fields = dataclasses.asdict(wide()) | {"num_classes": len(CLASSES), "shortcut": "none"}
    larger = {"size": (32, 32), "short_side": 32}
    truth = make(tmp_path, fields, preprocess=larger, shape=(32, 32))
    bare, mended = tmp_path / "bare.safetensors", tmp_path / "m.safetensors"
    save_weights(bare, truth.state, None)
    answer = call("check-weights", bare, "--on", truth.data, "--images=64", "--out", mended)
    assert answer.code == 1
    assert "read no card: as Skipway assumes: accuracy" in answer.out
    assert "shortcut       WRONG: none, not A" in answer.out
    assert "64 of 120 images" in answer.out
    _, card = read_state(mended)
    assert card is not None
    assert card.model == "plain20"
    assert card.classes == CLASSES
    again = call("eval", mended, truth.data, "--split=all", "--threads=1", "--json").value
    assert again["metrics"]["accuracy"] == 1


def test_an_epsilon_without_effect_is_undecided(tmp_path: Path) -> None:
    truth = make(tmp_path, BASIC)
    file = truth.write(tmp_path / "w.safetensors", bn_eps=2e-5)
    found = doctor.check(file, str(truth.data))
    assert found.verdict == "right"
    epsilon = next(f for f in found.findings if f.trait == "bn_eps")
    assert epsilon.state == "undecided"
    assert epsilon.found == 2e-5
    assert {1e-6, 1e-5} <= set(epsilon.undecided)
    text = call("check-weights", file, "--on", truth.data).out
    assert "epsilon        2e-05: not told from " in text


def test_classes_in_another_order_are_found(tmp_path: Path) -> None:
    truth = make(tmp_path, BASIC)
    shuffled = ("dog", "ant", "bee", "cat")
    file, mended = truth.write(tmp_path / "w.safetensors", classes=shuffled), tmp_path / "m"
    answer = call("check-weights", file, "--on", truth.data, "--out", mended)
    assert answer.code == 1
    assert (
        "classes        WRONG: the outputs follow another order: ant, bee, cat, dog" in answer.out
    )
    _, card = read_state(mended)
    assert card is not None
    assert card.classes == CLASSES
    right = call("eval", mended, truth.data, "--split=all", "--json").value
    assert right["metrics"]["accuracy"] == 1


def test_classes_in_another_order_and_a_wrong_trait(tmp_path: Path) -> None:
    truth = make(tmp_path, BASIC, bgr=True)
    file = truth.write(
        tmp_path / "w.safetensors", classes=("dog", "ant", "bee", "cat"), shortcut="A-split"
    )
    found = doctor.check(file, str(truth.data))
    assert found.names == CLASSES
    assert found.diagnosed.accuracy == 1
    wrong = {f.trait: f.found for f in found.findings if f.state == "wrong"}
    assert wrong == {"shortcut": "A", "colour": "BGR"}


def test_classes_that_are_not_told_apart_are_not_named(tmp_path: Path) -> None:
    """Every other image of cat and dog is labelled as of the other; ant and bee are turned."""
    truth = make(tmp_path, BASIC)
    for one, other in (("cat", "dog"), ("dog", "cat")):
        for image in sorted((truth.data / one).glob("[0-9]*.png"))[::2]:
            image.rename(truth.data / other / f"moved-{image.name}")
    shuffled = ("bee", "ant", "cat", "dog")
    file, mended = truth.write(tmp_path / "w.safetensors", classes=shuffled), tmp_path / "m"
    answer = call("check-weights", file, "--on", truth.data, "--out", mended)
    assert answer.code == 1
    assert "WRONG: the outputs follow another order: ant, bee, ?, ?" in answer.out
    assert "not told which outputs stand for 2 of 4 classes: cat, dog" in answer.out
    refusal = f"{mended}: not written: 2 of 4 classes are not told from others: that takes about 60"
    assert refusal in answer.err
    assert "Give data with more labelled images." in answer.err
    assert not mended.exists()
    found = doctor.check(file, str(truth.data), 80)
    value = as_value(found)
    assert value["classes"] == ["ant", "bee", None, None]
    assert value["classes_not_told"] == ["cat", "dog"]
    assert found.withheld.endswith("\nGive --images 160.")
    with pytest.raises(InputError, match="not written"):
        doctor.correct(found, mended)


class Answered(Bench):
    """A bench of answers that are given."""

    def __init__(self, predicted: np.ndarray, labels: np.ndarray, classes: int) -> None:
        self.said = np.eye(classes)[predicted]
        self.images: Any = SimpleNamespace(labels=labels)
        self.arch: Any = SimpleNamespace(num_classes=classes)

    def __len__(self) -> int:
        return len(self.said)

    def run(self, reading: Reading, n: int) -> np.ndarray:
        return self.said[:n]


# classes, images of each, accuracy; the share of the classes that is told, at least and at most
ORDERS = [(20, 4, 0.75, 0.2, 0.6), (50, 4, 0.75, 0.2, 0.6), (10, 8, 0.6, 0.1, 0.5),
          (10, 25, 0.6, 0.98, 1), (20, 16, 0.75, 0.98, 1)]  # fmt: skip


@pytest.mark.parametrize(("classes", "each", "accuracy", "least", "most"), ORDERS)
def test_classes_that_are_told_are_named_rightly(
    classes: int, each: int, accuracy: float, least: float, most: float
) -> None:
    """Outputs in any order, errors among three similar classes."""
    rng = np.random.default_rng(0)
    reading: Any = None
    labels = np.tile(np.arange(classes), each)
    told, misnamed, over = [], 0, []
    for _ in range(20):
        right = rng.permutation(classes)
        wrong = (labels + rng.integers(1, 4, len(labels))) % classes
        answers = np.where(rng.random(len(labels)) < accuracy, labels, wrong)
        bench = Answered(right[answers], labels, classes)
        order = bench.order(reading)
        if order is None:
            continue
        sure = bench.told(reading, order)
        told.append(sure.mean())
        misnamed += bool((sure & (np.array(order) != right)).any())
        held = bench.cross_matched(reading, len(labels)) == right[answers]
        over.append(held.mean() - accuracy)
    assert len(told) >= 18
    assert misnamed == 0
    assert least <= np.mean(told) <= most
    assert np.mean(over) < 0.01  # what chose an order does not praise it


def test_one_output_for_two_classes_is_told_of_neither() -> None:
    labels = np.tile(np.arange(4), 10)
    bench = Answered(np.array([1, 1, 3, 2])[labels], labels, 4)
    reading: Any = None
    assert bench.told(reading, (1, 0, 3, 2)).tolist() == [False, False, True, True]
    few = Answered(np.array([1, 0, 3, 2])[labels[:15]], labels[:15], 4)
    assert few.told(reading, (1, 0, 3, 2)).tolist() == [True, True, True, False]


@pytest.mark.slow
def test_labels_that_no_reading_fits_are_unclear(tmp_path: Path) -> None:
    truth = make(tmp_path, BASIC)
    other = draw(tmp_path / "other", CLASSES, n=20)
    rng = np.random.default_rng(3)
    for i in range(20):
        for name in CLASSES:  # the same kind of noise in every class
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(other / name / f"{i:02}.png")
    file, mended = truth.write(tmp_path / "w.safetensors"), tmp_path / "m.safetensors"
    answer = call("check-weights", file, "--on", other, "--out", mended, "--json")
    assert answer.code == 1
    assert answer.value["verdict"] == "unclear"
    assert "not written" in answer.err
    assert not mended.exists()
    text = call("check-weights", file, "--on", other).out
    assert "unclear: none of the readings that were tried does better than guessing" in text


def test_a_value_called_wrong_is_not_called_undecided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A heavy network's rivals are looked at on few images, what is declared on all of them: here
    BGR is as good as RGB on the few, and better on the others."""
    truth = make(tmp_path, BASIC)
    monkeypatch.setattr(searching, "_LIGHT", 0)
    monkeypatch.setattr(searching, "_FEW", 16)
    images = open_split(str(truth.data), "all", CLASSES, 0, "auto")[1]
    bench = Bench(ResNet(truth.card.architecture), truth.card, images, (), 1, lambda *_: None)

    def said(reading: Reading, n: int) -> np.ndarray:
        logits = 4 * np.eye(len(CLASSES))[images.labels[:n]]
        if reading.colour == "RGB":
            logits[16:] = 0
        return logits

    monkeypatch.setattr(bench, "run", said)
    found = bench.findings(dataclasses.replace(bench.declared, colour="BGR"))
    colour = next(f for f in found if f.trait == "colour")
    assert (colour.state, colour.declared, colour.undecided) == ("wrong", "RGB", ())
    assert colour.comparison is not None
    assert colour.comparison.n == N
    assert colour.comparison.low > 0
    # of the many normalisations the nearest alone are compared
    pixels = next(f for f in found if f.trait == "normalisation")
    compared = {pixels.rival, *pixels.undecided}
    assert len(pixels.untried) >= 3
    assert compared.isdisjoint(pixels.untried)
    assert pixels.found not in pixels.untried
    assert finding(pixels).endswith(f"; {len(pixels.untried)} further values not compared")
    assert not colour.untried
    assert "not compared" not in finding(colour)


def test_how_far_it_is_is_told_on_stderr(tmp_path: Path) -> None:
    truth = make(tmp_path, BASIC)
    file = truth.write(tmp_path / "w.safetensors")
    answer = call("check-weights", file, "--on", truth.data, "--images=32", "--json")
    line = re.compile(r"(\d+) readings tried, ([\d,]+) images through the network")
    told = [line.fullmatch(text) for text in answer.err.splitlines()]
    found = [(int(m[1]), int(m[2].replace(",", ""))) for m in told if m is not None]
    assert len(found) == len(told) >= 2
    assert found == sorted(set(found))
    tried = answer.value["tried"]
    assert found[-1][0] <= tried["readings"] < found[-1][0] + 50
    assert found[-1][1] <= tried["images"]
    seen: list[tuple[int, int]] = []
    diagnosis = doctor.check(file, str(truth.data), 32, progress=lambda *at: seen.append(at))
    assert seen[0] == (1, 32)
    assert seen[-1] == (diagnosis.readings, diagnosis.passes)


def test_bad_input_is_told_in_a_line(tmp_path: Path) -> None:
    truth = make(tmp_path, BASIC)
    file = truth.write(tmp_path / "w.safetensors")

    def refused(*arguments: str | Path) -> str:
        answer = call("check-weights", *arguments)
        assert answer.code == 2
        assert answer.out == ""
        assert 1 <= len(answer.error) <= 3
        return answer.err

    assert "8 labelled images say too little; give 32 at least" in refused(
        file, "--on", truth.data, "--images=8"
    )
    assert "--images 2,049: give 2,048 at most" in refused(
        file, "--on", truth.data, "--images=2049"
    )
    few = draw(tmp_path / "few", CLASSES, n=2)
    assert "8 labelled images say too little" in refused(file, "--on", few)
    assert "no such folder" in refused(file, "--on", tmp_path / "absent")
    assert "no such file" in refused(tmp_path / "absent.pt", "--on", truth.data)
    strange = draw(tmp_path / "strange", ["ant", "bee", "cow"])
    assert "cow" in refused(file, "--on", strange)
    (tmp_path / "not.pt").write_bytes(b"hello")
    assert "not a weight file" in refused(tmp_path / "not.pt", "--on", truth.data)
    damaged = next((truth.data / "ant").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:60])
    error = refused(file, "--on", truth.data)
    assert f"ant/{damaged.name}" in error
    save_weights(tmp_path / "bare.safetensors", ResNet(wide()).state_dict(), None)
    error = refused(tmp_path / "bare.safetensors", "--on", few)
    assert "has 7 outputs without class names" in error
    assert "4 classes" in error


def wide() -> Architecture:
    """ResNet-20, as a file without a card is recognised, with seven classes."""
    fields: dict[str, Any] = {"block": "basic", "depths": (3, 3, 3), "widths": (16, 32, 64)}
    return Architecture(**fields, stem="cifar", stem_width=16, shortcut="A", num_classes=7)


@pytest.mark.parametrize("stem", ["cifar", "deep"])
def test_a_network_for_bgr_is_turned_exactly(tmp_path: Path, stem: str) -> None:
    truth = make(tmp_path, BASIC | {"stem": stem}, bgr=True)
    file = truth.write(tmp_path / "w.safetensors")
    doctor.correct(doctor.check(file, str(truth.data)), tmp_path / "m.safetensors")
    state, card = read_state(tmp_path / "m.safetensors")
    assert card is not None
    first = "conv1.0.weight" if stem == "deep" else "conv1.weight"
    torch.testing.assert_close(state[first], truth.state[first][:, [2, 1, 0]], rtol=0, atol=0)
    others = [key for key in state if key != first]
    assert all(torch.equal(state[key], truth.state[key]) for key in others)
    assert card.preprocess == truth.card.preprocess
    assert card.metrics == ()


@pytest.mark.slow
def test_a_trained_network(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = [*QUICK[:-2], "--epochs=12", "--workers=0"]
    assert call("train", "digits", *flags, "--out", run, "--json").code == 0
    assert call("check-weights", run, "--on", "digits", "--threads=1").code == 0
    state, card = read_state(run)
    assert card is not None
    wrong = {k: tuple(v / 255 for v in getattr(card.preprocess, k)) for k in ("mean", "std")}
    fields = card.model_dump() | {"preprocess": card.preprocess.model_dump() | wrong}
    save_weights(tmp_path / "w.safetensors", state, Card.model_validate(fields))
    found = doctor.check(tmp_path / "w.safetensors", "digits")
    assert {f.trait: f.found for f in found.findings if f.state == "wrong"} == {"scaling": "0..1"}


pixels = st.integers(0, 255)


@given(st.lists(pixels, min_size=3, max_size=3))
def test_normalisations_are_what_their_names_say(rgb: list[int]) -> None:
    frame = np.array(rgb, np.uint8).reshape(1, 1, 3)
    declared = Preprocess(size=(1, 1), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    own = (0.3, 0.4, 0.5), (0.2, 0.2, 0.2)
    table, at = normalisations(declared, *own)
    assert at == ("0..1", "the card's")
    v = np.array(rgb, np.float64)
    by_hand = {
        ("0..1", "none"): v / 255,
        ("0..255", "none"): v,
        ("0..1", "0.5 and 0.5"): v / 127.5 - 1,
        ("0..1", "ImageNet"): (v - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375],
        ("0..255", "ImageNet"): (v - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        ("0..255", "Caffe's mean"): v - [123.68, 116.779, 103.939],
        ("0..255", "the data's mean"): v - [76.5, 102, 127.5],
        ("0..1", "the data's mean and std"): (v / 255 - [0.3, 0.4, 0.5]) / 0.2,
        ("0..1", "the card's"): (v / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7],
        ("0..255", "the card's"): (v - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7],
        ("0..1", "the card's, channels reversed"): (v / 255 - [0.3, 0.2, 0.1]) / [0.7, 0.6, 0.5],
    }
    for key, values in by_hand.items():
        made = table[key].normalise(frame)[:, 0, 0]
        np.testing.assert_allclose(made, values, rtol=1e-5, atol=1e-4, err_msg=str(key))


def test_the_declared_constants_go_by_their_name() -> None:
    declared = Preprocess(size=(8, 8), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    table, at = normalisations(declared, (0.3,) * 3, (0.2,) * 3)
    assert at == ("0..1", "ImageNet")
    assert not any("card" in name for _, name in table)
    levels = Preprocess(size=(8, 8), mean=(0.3 / 255,) * 3, std=(0.7 / 255,) * 3)
    table, at = normalisations(levels, (0.3,) * 3, (0.2,) * 3)
    assert at == ("0..255", "the card's")
    assert table["0..1", "the card's"].std == pytest.approx((0.7,) * 3)
    whole = declared.with_pixel_mean(np.full((3, 8, 8), 0.4, np.float32))
    table, at = normalisations(whole, (0.3,) * 3, (0.2,) * 3)
    assert table[at] == whole
    assert table["0..1", "ImageNet"].pixel_mean is None
    grey = np.full((8, 8, 3), 200, np.uint8)
    scaled = table["0..255", "the card's"].normalise(grey)
    np.testing.assert_allclose(scaled, 255 * whole.normalise(grey), rtol=1e-4)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_mean_and_deviation_of_the_images(kind: Any) -> None:
    rng = np.random.default_rng(5)
    top = np.iinfo(kind).max
    frames = rng.integers(0, [top // 3, top, 1], (40, 6, 5, 3), dtype=kind, endpoint=True)
    frames[..., 2] = top  # no deviation at all
    mean, std = _moments([frames[:16], frames[16:32], frames[32:]])
    flat = frames.reshape(-1, 3) / top
    np.testing.assert_allclose(mean, flat.mean(axis=0))
    np.testing.assert_allclose(std, flat.std(axis=0), atol=1e-7)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.5, 20))
def test_the_loss_is_that_at_the_best_temperature(seed: int, factor: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 40)
    logits = rng.normal(0, 1, (40, 5)) + 2 * np.eye(5)[labels]
    temperatures = np.geomspace(0.2, 100, 400)
    grid = [
        F.cross_entropy(torch.tensor(logits) / t, torch.tensor(labels)).item() for t in temperatures
    ]
    loss = tempered(logits, labels)
    assert loss.shape == (40,)
    assert loss.mean() == pytest.approx(min(grid), abs=1e-3)
    assert loss.mean() <= min(grid) + 1e-6
    surer = tempered(factor * logits, labels).mean()
    best = temperatures[np.argmin(grid)]
    if min(best, factor * best) > 0.21 and max(best, factor * best) < 99:  # else a bound is met
        assert surer == pytest.approx(loss.mean(), abs=1e-6)
