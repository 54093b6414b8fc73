"""`skipway eval`: views, temperatures, slices, two models, corruptions; and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error
from torchvision.transforms import TenCrop

from commands import call, draw
from skipway import load, shipped
from skipway.answers import softmax
from skipway.card import Card, read_card
from skipway.cli.evaluating import comparison_lines, told_metrics
from skipway.data import open_data
from skipway.data.split import ArrayReader, Names, Split
from skipway.errors import InputError
from skipway.evaluation import (
    Labelled,
    Views,
    corruptions,
    open_labelled,
    score,
    scores,
    trained_on,
)
from skipway.evaluation.calibrating import apart, calibrate
from skipway.evaluation.comparing import compare
from skipway.evaluation.scoring import frames_of
from skipway.evaluation.slices import Column, slices
from skipway.images import LONGEST, Preprocess, resize
from skipway.metrics import Scored
from skipway.predictor import Predictor
from skipway.resnet import ResNet
from skipway.weights import create_model, save_weights

COLOURS = ("blue", "green", "red", "sand", "sky", "teal")
PLAIN = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)


def card(preprocess: Preprocess = PLAIN, **fields: Any) -> Card:
    net = create_model("resnet20", num_classes=len(COLOURS), depths=(1, 1, 1), width=0.25)
    return Card(
        model="custom", architecture=net.arch, classes=COLOURS, preprocess=preprocess, **fields
    )


def noisy(preprocess: Preprocess = PLAIN, **fields: Any) -> Predictor:
    """A model of the mean of each channel, of any size: no torch, and no two answers alike."""
    weights = np.random.default_rng(0).normal(size=(3, len(COLOURS))).astype(np.float32) * 9

    def engine(x: np.ndarray) -> np.ndarray:
        ramp = np.linspace(0.5, 1.5, x.shape[3], dtype=np.float32)  # mirrored images differ
        return (x * ramp).mean((2, 3)) @ weights

    return Predictor(engine, card(preprocess, **fields), "model", any_size=True)


def images(n: int = 60, height: int = 24, width: int = 30, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (n, height // 6, width // 6, 3), np.uint8)
    pixels = pixels.repeat(6, 1).repeat(6, 2)
    names = Names(f"test/{i}.png" for i in range(n))
    return Split(ArrayReader(pixels), names, rng.integers(0, len(COLOURS), n))


SMALL: dict[str, Any] = {"depths": (1, 1, 1), "width": 0.25}


def knowing(data: Path, seed: int, **fields: Any) -> ResNet:
    """A network whose classifier was fitted to the training images."""
    net = create_model("resnet20", num_classes=len(COLOURS), seed=seed, **fields).eval()
    train = open_data(str(data)).splits["train"]
    x = torch.from_numpy(np.stack([PLAIN(train.image(i, 3)) for i in range(len(train))]))
    kept: list[torch.Tensor] = []
    hook = net.fc.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    with torch.no_grad():
        net(x)
        hook.remove()
        scale = kept[0].std(0) + 1e-6
        fit = LogisticRegression(C=0.3, max_iter=1000).fit((kept[0] / scale).numpy(), train.labels)
        net.fc.weight.copy_(torch.from_numpy(fit.coef_) / scale)
        net.fc.bias.copy_(torch.from_numpy(fit.intercept_))
    return net


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in train, val and test folders, and two weight files whose networks tell three
    colours, which six classes share."""
    root = tmp_path_factory.mktemp("eval")
    for k, name in enumerate(("train", "val", "test")):
        draw(root / "data" / name, COLOURS, n=(4, 8, 6)[k], seed=k)
    for seed, name in enumerate(("a", "b")):
        save_weights(root / f"{name}.safetensors", knowing(root / "data", seed, **SMALL), card())
    return root


# --- views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(24, 30), (37, 21), (16, 16), (90, 23)])
def test_ten_crop_against_torchvision(height: int, width: int) -> None:
    preprocess = Preprocess(size=(16, 16), short_side=21, mean=(0.5,) * 3, std=(0.25,) * 3)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    short = min(height, width)
    larger = resize(image, (int(21 * height / short), int(21 * width / short)))
    theirs = [np.asarray(crop) for crop in TenCrop(16)(Image.fromarray(larger))]
    ours = frames_of(preprocess, image, Views.ten_crop)
    for a, b in zip(ours, theirs[:5], strict=True):
        assert np.array_equal(a, b)
    mirrored = sorted(crop[:, ::-1].tobytes() for crop in ours[:4])
    assert mirrored == sorted(crop.tobytes() for crop in theirs[5:9])
    if larger.shape[1] % 2 == 0:  # else theirs is of another column
        assert np.array_equal(ours[4][:, ::-1], theirs[9])
    assert np.array_equal(ours[4], preprocess.frame(image)[0])


@pytest.mark.parametrize("batch_size", [3, 128])
@pytest.mark.parametrize("kind", [Views.ten_crop, Views.scales])
def test_scores_of_views_are_the_mean_of_their_logits(kind: Views, batch_size: int) -> None:
    preprocess = Preprocess(size=(16, 16), short_side=20, mean=(0.5,) * 3, std=(0.25,) * 3)
    model, split = noisy(preprocess), images(9)
    found, _ = score(model, split, 1, views=kind, batch_size=batch_size)
    for i in range(9):
        frames = frames_of(preprocess, split.image(i, 3), kind)
        assert len(frames) == 5
        inputs = [preprocess.normalise(frame)[None] for frame in frames]
        if kind is Views.ten_crop:
            inputs += [x[..., ::-1].copy() for x in inputs]
        else:
            assert [min(x.shape[2:]) for x in inputs] == [16, 18, 27, 34, 46]
            assert all(x.shape[3] == round(x.shape[2] * 30 / 24) for x in inputs)
        logits = np.mean([model.run(x)[0] for x in inputs], axis=0, dtype=np.float64)
        p = np.exp(logits - logits.max())
        assert found.confidence[i] == pytest.approx((p / p.sum()).max(), rel=1e-4)
        assert found.predicted[i] == logits.argmax()


def test_scales_take_images_of_different_shapes_and_bound_them() -> None:
    tall = np.zeros((400, 5, 3), np.uint8)
    assert [f.shape[1] for f in frames_of(PLAIN, tall, Views.scales)] == [16, 18, 27, 34, 46]
    assert frames_of(PLAIN, tall, Views.scales)[0].shape[0] == 16 * LONGEST

    class Mixed:
        def read(self, name: str) -> np.ndarray:
            return np.full((20 + int(name), 20, 3), 40 * int(name), np.uint8)

    split = Split(Mixed(), ["0", "1", "2", "3"], np.arange(4))  # type: ignore[arg-type]
    found, _ = score(noisy(), split, 1, views=Views.scales)
    alone = [score(noisy(), split.take(np.array([i])), 1, views=Views.scales)[0] for i in range(4)]
    assert found.confidence == pytest.approx([s.confidence[0] for s in alone], rel=1e-5)


@pytest.mark.parametrize(("side", "short"), [(32, 40), (10, 12), (16, 20)])
def test_another_size_shows_as_much_of_the_image(side: int, short: int) -> None:
    preprocess = Preprocess(size=(16, 16), short_side=20, mean=(0.5,) * 3, std=(0.25,) * 3)
    found = noisy(preprocess).at_size(side).card.preprocess
    assert (found.size, found.short_side) == ((side, side), short)
    assert noisy().at_size(side).card.preprocess.short_side is None
    image = images(1).image(0, 3)
    whole = score(noisy(preprocess).at_size(side), images(5), 1)[0]
    assert whole.confidence == pytest.approx(
        score(noisy(preprocess), images(5), 1)[0].confidence, abs=0.2
    )
    assert found(image).shape == (3, side, side)


def test_views_that_a_model_cannot_be_shown() -> None:
    squash = Preprocess(size=(16, 16), resize="squash", mean=(0.5,) * 3, std=(0.25,) * 3)
    by_pixel = PLAIN.with_pixel_mean(np.zeros((3, 16, 16), np.float32))
    fixed = load("cifar10-resnet20", 1)
    for predictor, views, said in (
        (noisy(squash), Views.ten_crop, "by squash, not by crops"),
        (noisy(), Views.ten_crop, "leaves nothing to crop"),
        (noisy(by_pixel), Views.scales, "mean of each pixel has one size"),
        (fixed, Views.scales, "ONNX, which runs at one size"),
    ):
        with pytest.raises(InputError, match=said):
            score(predictor, images(2), 1, views=views)
    for predictor, said in ((noisy(by_pixel), "has one size"), (fixed, "runs at one size")):
        with pytest.raises(InputError, match=said):
            predictor.at_size(20)


# --- temperature ----------------------------------------------------------------------------------


def test_the_temperature_of_the_card_is_used_wherever_probabilities_are_made() -> None:
    plain, warm = noisy(), noisy(temperature=2.5)
    split = images(40)
    logits = np.stack([plain.run(PLAIN(split.image(i, 3))[None])[0] for i in range(40)])
    assert np.array_equal(logits[:1], warm.run(PLAIN(split.image(0, 3))[None]))  # as they are
    found = score(warm, split, 1)[0]
    p = torch.from_numpy(logits).double().div(2.5).softmax(1)
    assert found.metrics()["loss"] == pytest.approx(log_loss(split.labels, p, labels=range(6)))
    ece = multiclass_calibration_error(p, torch.from_numpy(split.labels), 6, n_bins=15)
    assert found.metrics()["ece"] == pytest.approx(ece.item(), abs=1e-6)
    assert found.metrics()["accuracy"] == score(plain, split, 1)[0].metrics()["accuracy"]
    for i in range(3):
        told = {s.label: s.score for s in warm(split.image(i, 3), top=6).predictions}
        assert [told[c] for c in COLOURS] == pytest.approx(p[i].tolist(), abs=1e-5)
    both = scores(plain, split, [1.0, 2.5], 1)[0]
    assert both[1].confidence == pytest.approx(found.confidence)


def test_a_temperature_that_is_known_is_found_on_other_images() -> None:
    """Labels drawn from the probabilities at 0.5 and at 4."""
    rng = np.random.default_rng(0)
    for truth in (0.5, 4.0):
        halves = []
        for seed in (1, 2):
            split = images(700, seed=seed)
            inputs = np.stack([PLAIN(split.image(i, 3)) for i in range(700)])
            p = softmax(noisy().run(inputs) / truth)
            labels = np.array([rng.choice(6, p=row) for row in p])
            halves.append(Labelled("x", "val", Split(split.reader, split.names, labels)))
        found, _ = calibrate(noisy(), halves[0], halves[1], 2, "error")
        assert found.n == 700
        assert found.temperature == pytest.approx(truth, rel=0.25)
        before, after = found.before.metrics(), found.after.metrics()
        assert after["loss"] < before["loss"]
        assert after["ece"] < before["ece"]
        assert after["accuracy"] == before["accuracy"]


def test_no_image_is_both_fitted_on_and_scored(places: Path) -> None:
    model = load(places / "a.safetensors", 1)
    data = str(places / "data")

    def sets(split: str) -> tuple[Labelled, Labelled]:
        return apart(model, "a", open_labelled(model, "a", data, split))

    scored, fitted = sets("test")
    assert (scored.name, fitted.name, len(scored.split), len(fitted.split)) == (
        "test", "val", 36, 48
    )  # fmt: skip
    scored, fitted = sets("val")
    assert (scored.name, fitted.name) == ("half of val", "half of val")
    names = [{*part.split.names} for part in (scored, fitted)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 48
    assert np.array_equal(*(np.bincount(part.split.labels) for part in (scored, fitted)))
    flat = str(places / "data" / "val")
    scored, fitted = apart(model, "a", open_labelled(model, "a", flat))
    assert not {*scored.split.names} & {*fitted.split.names}
    only = places / "only"
    shutil.copytree(places / "data" / "train", only / "train", dirs_exist_ok=True)
    train = open_labelled(model, "a", str(only), "train")
    with pytest.raises(InputError, match="--calibrate fits on val, and 6 of its images"):
        apart(model, "a", train)


def test_calibrate_writes_a_new_file(places: Path, tmp_path: Path) -> None:
    data, source = places / "data", tmp_path / "net.safetensors"
    shutil.copy(places / "a.safetensors", source)
    before = source.read_bytes()
    found = call("eval", source, data, "--calibrate", "--json", "--threads=1")
    assert found.code == 0, found.err
    told = found.value["calibration"]
    target = tmp_path / "net-calibrated.safetensors"
    assert told["file"] == str(target)
    assert source.read_bytes() == before
    assert found.value["temperature"] == 1
    assert found.value["metrics"]["ece"] == told["before"]["ece"]
    again = call("eval", target, data, "--json", "--threads=1").value
    assert again["temperature"] == told["temperature"]
    assert again["metrics"]["ece"] == pytest.approx(told["after"]["ece"])
    assert again["metrics"]["loss"] == pytest.approx(told["after"]["loss"])
    assert again["metrics"]["accuracy"] == found.value["metrics"]["accuracy"]
    made = read_card(target)
    assert made is not None
    assert made.provenance["calibrated"]["split"] == "val"
    measured = {m.name: m for m in made.metrics}
    assert measured["ece"].value == pytest.approx(told["after"]["ece"])
    assert (measured["ece"].split, measured["ece"].n) == ("test", 36)
    refused = call("eval", source, data, "--calibrate", "--threads=1")
    assert refused.code == 2
    assert "net-calibrated.safetensors: exists already" in refused.err
    elsewhere = tmp_path / "w.safetensors"
    said = call("eval", target, data, "--calibrate", "--out", elsewhere, "--threads=1")
    assert re.search(r"temperature \d+\.\d+, fitted on 48 images of val: ECE .* after", said.out)
    twice = read_card(elsewhere)
    assert twice is not None
    assert twice.temperature == pytest.approx(told["temperature"])


def test_where_a_calibrated_model_goes(places: Path, tmp_path: Path) -> None:
    run, bare = tmp_path / "run", tmp_path / "bare.pth"
    run.mkdir()
    shutil.copy(places / "a.safetensors", run / "best.safetensors")
    found = call("eval", run, places / "data", "--calibrate", "--json", "--threads=1").value
    assert found["calibration"]["file"] == str(run / "calibrated.safetensors")
    assert load(run / "calibrated.safetensors").card.classes == COLOURS
    torch.save(knowing(places / "data", 0).state_dict(), bare)
    found = call("eval", bare, places / "data", "--calibrate", "--json", "--threads=1").value
    made = tmp_path / "bare-calibrated.safetensors"
    assert found["calibration"]["file"] == str(made)
    kept = load(made)
    assert kept.card.temperature == found["calibration"]["temperature"]
    x = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    assert np.array_equal(kept.run(x), load(bare).run(x))


def test_onnx_is_calibrated_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cifar10-resnet20"
    model = load(name)
    classes = model.classes
    for k, split in enumerate(("val", "test")):
        draw(tmp_path / "drawn", classes, n=6, seed=k)
        for i, path in enumerate(sorted((tmp_path / "drawn").rglob("*.png"))):
            answer = classes.index(model(path).predictions[0].label)  # right in two of three
            place = tmp_path / "data" / split / classes[(answer + (i % 3 == 0)) % 10]
            place.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    found = call("eval", name, "data", "--calibrate", "--json")
    assert found.code == 0, found.err
    target = Path(f"{name}-calibrated.onnx")
    here, there = load(name), load(target)
    assert there.card.temperature == found.value["calibration"]["temperature"] != 1
    assert there.card.licence == here.card.licence
    x = np.zeros((1, 3, 32, 32), np.float32)
    assert np.array_equal(here.run(x), there.run(x))
    assert shipped.file(name, ".onnx").exists()


# --- two models -----------------------------------------------------------------------------------


def test_against(places: Path) -> None:
    data, a, b = places / "data", places / "a.safetensors", places / "b.safetensors"
    one = call("eval", a, data, "--json", "--threads=1").value
    two = call("eval", b, data, "--json", "--threads=1").value
    found = call("eval", a, data, "--against", b, "--json", "--threads=1").value
    told = found.pop("against")
    assert found == one
    assert told["metrics"] == two["metrics"]
    for name, value in told["differences"].items():
        assert value == pytest.approx(two["metrics"][name] - one["metrics"][name])
        low, high = told["intervals"][name]
        assert low - 1e-9 <= value <= high + 1e-9
    only = (told["only_first"], told["only_second"])
    expected = stats.binomtest(only[0], sum(only)).pvalue if sum(only) else 1
    assert told["p"] == pytest.approx(expected)
    assert (told["n"], told["model"]) == (36, str(b))
    words = call("eval", a, data, "--against", b, "--threads=1").out.splitlines()
    assert words[-1].startswith(("Not told apart: ", "A is better by ", "B is better by "))
    assert re.search(r"\(95 % interval .+ to .+\), p [=<] ", words[-1])
    same = call("eval", a, data, "--against", a, "--threads=1").out.splitlines()
    assert same[-1] == "A and B are right on the same images."
    refused = call("eval", a, data, "--against", places / "absent", "--threads=1")
    assert (refused.code, refused.out) == (2, "")  # before anything is scored
    assert refused.error[0].startswith("skipway: --against: ")


def test_of_five_classes_no_top_five_is_compared() -> None:
    drawn, labels = np.random.default_rng(1).normal(size=(2, 40, 4)), np.arange(40) % 4
    found = compare(*(Scored.from_logits(logits, labels, np.arange(40)) for logits in drawn))
    few, more = (SimpleNamespace(classes=range(n)) for n in (5, 6))
    assert not any("top-5" in line for line in comparison_lines(found, "b", told_metrics(few)))
    lines = [*comparison_lines(found, "b", told_metrics(more))]
    assert ["top-5" in line for line in lines] == [True, True, False]


def test_corruptions_that_help_are_told_as_that(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("eval", places / "a.safetensors", places / "data", "--corruptions", "--threads=1")
    plain = call(*flags[:3], "--json", "--threads=1").value["metrics"]["accuracy"]
    for mean, side in ((1.0, "above"), (0.0, "below")):
        monkeypatch.setattr(corruptions, "mean_accuracy", lambda _, mean=mean: (mean, None))
        said = call(*flags).out.splitlines()[-1]
        points = 100 * abs(plain - mean)
        assert said.endswith(f", {points:.1f} points {side} that of the images as they are")


def test_two_images_leave_what_is_no_share_without_an_interval(
    places: Path, tmp_path: Path
) -> None:
    for name in ("red", "sky"):
        (tmp_path / "test" / name).mkdir(parents=True)
        shutil.copy(places / "data" / "test" / name / "00.png", tmp_path / "test" / name)
    flags = [
        "eval", places / "a.safetensors", tmp_path, "--against", places / "b.safetensors",
        "--corruptions", "--threads=1",
    ]  # fmt: skip
    found = call(*flags, "--json").value
    assert found["n"] == 2
    for ends in (found["intervals"], found["against"]["intervals"]):
        known = {name for name, interval in ends.items() if interval is not None}
        assert known == {"accuracy", "top5"}
    assert found["corruptions"]["interval"] is None
    words = call(*flags).out
    assert re.search(r"top-5 \S+% \(\S+% to \S+%\)  loss [\d.]+  ECE [\d.]+$", words, re.M)
    assert re.search(r"^B minus A: accuracy .+  loss [-+][\d.]+  ECE [-+][\d.]+$", words, re.M)
    assert re.search(r"^mean accuracy [\d.]+%, ", words, re.M)


def test_classes_in_another_order_are_the_same_images(places: Path) -> None:
    model = load(places / "a.safetensors", 1)
    turned = Card.model_validate(model.card.model_dump() | {"classes": COLOURS[::-1]})
    other = Predictor(lambda x: model.run(x)[:, ::-1], turned, "turned")
    ours = open_labelled(model, "a", str(places / "data"), "test")
    theirs = open_labelled(other, "b", str(places / "data"), "test", model.card)
    assert [*ours.split.names] == [*theirs.split.names]
    a, b = score(model, ours.split, 1)[0], score(other, theirs.split, 1)[0]
    assert a.metrics() == pytest.approx(b.metrics())
    assert np.array_equal(a.correct, b.correct)


def test_images_that_trained_a_model_are_counted(places: Path) -> None:
    data = str(places / "data")
    made = open_data(data)
    model = load(places / "a.safetensors", 1)
    own = model.card.model_copy(update={"provenance": {"data": made.digest()}})
    for split, n in (("train", 24), ("test", 0)):
        labelled = open_labelled(model, "a", data, split)
        assert trained_on(own, labelled) == n
        assert trained_on(model.card, labelled) == 0


# --- slices ---------------------------------------------------------------------------------------


def labelled(split: Split, data: str = "data") -> Labelled:
    return Labelled(data, "test", split)


def scored(correct: list[bool]) -> Scored:
    n = len(correct)
    logits = np.where(np.array(correct)[:, None], [[2.0, 0.0]], [[0.0, 2.0]])
    return Scored.from_logits(logits, np.zeros(n, int), np.arange(n))


def table(path: Path, rows: list[tuple[str, str]], header: str = "path,light") -> str:
    path.write_text("\n".join([header, *(f"{p},{v}" for p, v in rows)]) + "\n", "utf-8")
    return f"{path}:light"


def test_slices_against_scipy(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    split = images(300)
    values = [("day", "night", "dusk")[k] for k in rng.integers(0, 3, 300)]
    values[:4] = ["rare"] * 4
    right = [bool(rng.random() < (0.5 if v == "night" else 0.9)) for v in values]
    rows = [(split.names[i], values[i]) for i in range(290)]
    found = slices(scored(right), labelled(split), Column(table(tmp_path / "t.csv", rows)))
    assert found.left_out == 10
    assert [s.n for s in found.slices] == sorted(s.n for s in found.slices)
    assert sum(s.n for s in found.slices) == 290
    p = {}
    for s in found.slices:
        own = [r for r, v in zip(right[:290], values, strict=False) if v == s.value]
        rest = [r for r, v in zip(right[:290], values, strict=False) if v != s.value]
        assert (s.n, s.accuracy) == (len(own), pytest.approx(np.mean(own)))
        assert s.difference == pytest.approx(np.mean(own) - np.mean(rest))
        ends = stats.binomtest(sum(own), len(own)).proportion_ci(method="wilson")
        assert s.interval == pytest.approx((ends.low, ends.high), abs=1e-6)
        assert s.few == (s.n < 30)
        counts = [[sum(own), len(own) - sum(own)], [sum(rest), len(rest) - sum(rest)]]
        p[s.value] = stats.fisher_exact(counts).pvalue
    assert found.worst.value == "night"
    assert found.worst.clear
    assert found.worst.p == pytest.approx(4 * min(p.values()), rel=1e-6)  # Holm: the least of four


@pytest.mark.parametrize("how", ["name", "beside", "absolute", "in data"])
def test_the_paths_of_a_table(how: str, places: Path, tmp_path: Path) -> None:
    model = load(places / "a.safetensors", 1)
    data = places / "data"
    given = open_labelled(model, "a", str(data), "test")
    written: Callable[[str], str] = {
        "name": lambda name: f"./{name}",
        "beside": lambda name: f"data/{name}",
        "absolute": lambda name: str(data / name),
        "in data": lambda name: name,
    }[how]
    place = places if how == "beside" else tmp_path
    rows = [(written(n), n.split("/")[1][0]) for n in given.split.names]
    column = Column(table(place / f"{how}.csv", rows))
    values = column.of(given, list(range(len(rows))))
    assert values == [v for _, v in rows]


def test_eval_tells_the_worst_slice(places: Path, tmp_path: Path) -> None:
    rows = [
        (f"test/{c}/{i:02}.png", "\x1b[31mdark" if i < 3 else "bright")
        for c in COLOURS
        for i in range(6)
    ]
    given = table(tmp_path / "light.csv", rows)
    flags = ["eval", places / "a.safetensors", places / "data", "--slices", given, "--threads=1"]
    told = call(*flags, "--json").value["slices"]
    assert {row["value"]: row["n"] for row in told["values"]} == {"bright": 18, "\x1b[31mdark": 18}
    found = call(*flags).out
    assert "by light, the fewest images first:" in found
    assert "the worst is " in found
    assert "\x1b" not in found


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("path,light\na.png,1\n", "t.csv", "give FILE.csv:COLUMN"),
        ("path,light\na.png,1\n", "t.csv:", "give FILE.csv:COLUMN"),
        ("path,light\na.png,1\n", "none.csv:light", "none.csv: No such file"),
        ("path,light\na.png,1\n", "t.csv:ligth", "no column 'ligth' among path, light."),
        ("name,light\na.png,1\n", "t.csv:light", "line 1: no column of paths"),
        ("", "t.csv:light", "line 1: no column of paths"),
        ("path,light\n", "t.csv:light", "no lines below the header"),
        ("path,light\na.png\n", "t.csv:light", "line 2: 1 fields where the header has 2"),
        ("path,light\n,day\n", "t.csv:light", "line 2: no path"),
        ("path,light\na,1\na,2\n", "t.csv:light", "line 3: a again, with another value"),
        ("path,light\na.png,1\n", "t.csv:light", "none of its paths is that of an image"),
        ("path,light\n\xff,1\n", "t.csv:light", "not UTF-8"),
        ('path,light\n"a,1\n', "t.csv:light", "t.csv, line"),
        ("path,light\n" + "".join(f"{i},{i}\n" for i in range(1001)), "t.csv:light", "1,001 v"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used(
    text: str, given: str, said: str, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    found = call(
        "eval", places / "a.safetensors", places / "data", "--slices", given, "--threads=1"
    )
    assert found.code == 2
    assert len(found.error) <= 3
    assert "--slices" in found.error[0]
    assert said in found.err


# --- corruptions, and all at once -----------------------------------------------------------------


def test_everything_at_once(places: Path, tmp_path: Path) -> None:
    rows = [(f"test/{c}/{i:02}.png", str(i % 2)) for c in COLOURS for i in range(6)]
    given = table(tmp_path / "t.csv", rows)
    flags = [
        "eval", places / "a.safetensors", places / "data", "--slices", given, "--corruptions",
        "--against", places / "b.safetensors", "--views=flip", "--size=24", "--threads=1",
    ]  # fmt: skip
    found = call(*flags, "--json")
    assert found.code == 0, found.err
    value = found.value
    assert (value["views"], value["size"]) == ("flip", [24, 24])
    assert set(value) >= {"against", "slices", "corruptions", "selective", "intervals"}
    table_of = value["corruptions"]["accuracy"]
    assert set(map(len, table_of.values())) == {5}
    assert value["corruptions"]["mean"] == pytest.approx(np.mean([*table_of.values()]))
    low, high = value["corruptions"]["interval"]
    assert low <= value["corruptions"]["mean"] <= high
    curve = value["selective"]
    assert curve["coverage"][0] == 1
    assert curve["accuracy"][0] == pytest.approx(value["metrics"]["accuracy"])
    for name, (low, high) in value["intervals"].items():
        assert low <= value["metrics"][name] <= high
    assert call(*flags, "--json").value == value  # to the bit
    words = call(*flags).out
    for part in ("views: flip", "AURC", "against B", "by light", "gaussian noise", "jpeg", "mean"):
        assert part in words
    json.dumps(value, allow_nan=False)


def test_damage_is_done_to_each_image_by_its_place() -> None:
    seen = []

    def change(frame: np.ndarray, i: int) -> np.ndarray:
        seen.append((i, frame.shape))
        return frame if i != 2 else np.zeros_like(frame)

    found, _ = score(noisy(), images(5), 1, change=change)
    plain, _ = score(noisy(), images(5), 1)
    assert sorted(seen) == [(i, (16, 16, 3)) for i in range(5)]
    same = found.confidence == plain.confidence
    assert same.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--out", "x.safetensors"], "--out: give it with --calibrate"),
        (["--calibrate", "--views", "flip"], "--calibrate: the card's temperature"),
        (["--calibrate", "--size", "40"], "--calibrate: the card's temperature"),
        (["--calibrate", "--against", "x"], "--calibrate: leave out --against"),
        (["--calibrate", "--out", "x.onnx"], "--out x.onnx: give a name that ends in .safetensors"),
        (["--views", "ten-crop"], "--views ten-crop"),
        (["--size", "4"], "--size"),
        (["--against", "absent"], "absent: no such file or run"),
        (["--against", "cifar10-resnet20"], "unknown classes"),
    ],
)
def test_flags_that_cannot_be_met(flags: list[str], said: str, places: Path) -> None:
    found = call("eval", places / "a.safetensors", places / "data", "--threads=1", *flags)
    assert found.code == 2
    assert len(found.error) <= 3
    assert said in found.err
