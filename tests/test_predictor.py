"""Predictions from any kind of model file and image, and scores of a split."""

from __future__ import annotations

import functools
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import log_loss

from skipway import load
from skipway.answers import Prediction
from skipway.architecture import architecture
from skipway.card import Card
from skipway.data import open_data
from skipway.errors import InputError
from skipway.images import DecodeError, Preprocess
from skipway.predictor import Predictor, score, weight_file
from skipway.resnet import ResNet
from skipway.weights import create_model, save_weights

CLASSES = ("ant", "bee", "caf\u00e9", "dog", "e", "f", "g")
PREPROCESS = Preprocess(size=(16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


@functools.cache
def make_net(classes: int = len(CLASSES)) -> ResNet:
    """Random weights, statistics settled, so that images get different answers."""
    net = create_model("resnet20", num_classes=classes, seed=1)
    with torch.no_grad():
        x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        for _ in range(30):
            net.train()(x)
        net.fc.weight.mul_(5)
    return net.eval()


def card(net: ResNet) -> Card:
    return Card(model="resnet20", architecture=net.arch, classes=CLASSES, preprocess=PREPROCESS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as training leaves it, as far as predicting goes."""
    place = tmp_path_factory.mktemp("run")
    net = make_net()
    save_weights(place / "best.safetensors", net, card(net))
    (place / "run.json").write_text("{}")
    return place


@pytest.fixture
def predictor(run: Path) -> Predictor:
    return load(run, threads=1)


def pixels(i: int, height: int = 20, width: int = 26) -> np.ndarray:
    rng = np.random.default_rng(i)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return coarse.repeat(4, 0).repeat(4, 1)[:height, :width]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def scores(prediction: Prediction) -> dict[str, float]:
    return {s.label: s.score for s in prediction.predictions}


# --- models -----------------------------------------------------------------------------------


def test_a_run_and_its_weights_are_one_model(run: Path) -> None:
    image = pixels(0)
    here, there = load(run), load(str(run / "best.safetensors"))
    assert here(image) == there(image)
    assert here.classes == there.classes == CLASSES
    assert here.classes_known
    assert here.card == there.card
    assert here.origin == str(run / "best.safetensors")


def test_predictions_are_those_of_the_network(predictor: Predictor) -> None:
    """Written out by hand: the specification, the network, softmax, the best first."""
    for i in range(5):
        x = torch.from_numpy(PREPROCESS(pixels(i)))[None]
        with torch.inference_mode():
            expected = make_net()(x).double().softmax(1)[0]
        found = predictor(pixels(i), top=7).predictions
        assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)
        assert {s.label for s in found} == set(CLASSES)
        for s in found:
            assert s.score == pytest.approx(expected[CLASSES.index(s.label)].item(), abs=1e-5)
    best = {predictor(pixels(i)).predictions[0].label for i in range(20)}
    assert len(best) > 1  # else the above says little


def test_weights_without_a_card(
    tmp_path: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bare.pth"
    net = make_net(10)
    torch.save({"state_dict": net.state_dict()}, path)
    with caplog.at_level(logging.WARNING, "skipway"):
        bare = load(path)
    assert caplog.records  # what was assumed is said
    assert not bare.classes_known
    assert bare.classes == tuple("0123456789")
    with torch.inference_mode():
        x = torch.from_numpy(bare.card.preprocess(pixels(0)))[None]
        expected = net(x).softmax(1)[0]
    found = scores(bare(pixels(0), top=10))
    assert [found[str(i)] for i in range(10)] == pytest.approx(expected.tolist(), abs=1e-5)
    assert bare.card.preprocess.size == (32, 32)  # native to the network


def test_what_is_no_model(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "run.json").write_text("{}")
    text = tmp_path / "x.safetensors"
    text.write_text("text")
    for path, said in {
        tmp_path / "missing\x1b": r"missing\x1b: no such file or run",
        empty: "not a run",
        begun: "no best.safetensors yet",
        text: "x.safetensors",
    }.items():
        with pytest.raises(InputError) as error:
            load(path)
        assert said in str(error.value)
        assert len(str(error.value).splitlines()) <= 3


def test_weight_file(run: Path) -> None:
    assert weight_file(run) == weight_file(run / "best.safetensors") == run / "best.safetensors"


# --- images -----------------------------------------------------------------------------------


def test_every_kind_of_image_gives_the_same(predictor: Predictor, tmp_path: Path) -> None:
    image = pixels(3)
    path = tmp_path / "3.png"
    path.write_bytes(png(image))
    kinds = [path, str(path), png(image), Image.fromarray(image), image, np.asfortranarray(image)]
    found = [predictor(kind) for kind in kinds]
    assert len({p.predictions for p in found}) == 1
    assert [p.path for p in found] == [str(path), str(path), "", "", "", ""]
    assert all(p.error is None for p in found)
    for p in predictor.stream(kinds):
        assert scores(p) == pytest.approx(scores(found[0]), abs=1e-5)


def test_grey_alpha_and_sixteen_bits(predictor: Predictor) -> None:
    grey = pixels(4)[..., 0]
    spread = np.repeat(grey[..., None], 3, axis=2)
    opaque = np.dstack([spread, np.full_like(grey, 255)])
    expected = predictor(spread)
    for kind in (grey, grey[..., None], opaque, Image.fromarray(grey)):
        assert predictor(kind).predictions == expected.predictions
    wide = scores(predictor(spread.astype(np.uint16) * 257, top=7))
    assert wide == pytest.approx(scores(predictor(spread, top=7)), abs=0.02)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 11, 64])
def test_the_size_of_batches_does_not_matter(predictor: Predictor, batch_size: int) -> None:
    images = [pixels(i, 16 + i, 30 - i) for i in range(11)]
    alone = [predictor(image, top=7) for image in images]
    found = list(predictor.stream(iter(images), top=7, batch_size=batch_size))
    assert len(found) == 11
    for a, b in zip(alone, found, strict=True):
        assert scores(a) == pytest.approx(scores(b), abs=1e-5)


def test_a_stream_is_lazy(predictor: Predictor) -> None:
    taken = []

    def images() -> Iterator[np.ndarray]:
        for i in range(100):
            taken.append(i)
            yield pixels(i)

    next(predictor.stream(images(), batch_size=4))
    assert len(taken) == 4
    assert list(predictor.stream([])) == []


def test_top(predictor: Predictor) -> None:
    whole = predictor(pixels(1), top=100).predictions
    assert len(whole) == 7
    assert sum(s.score for s in whole) == pytest.approx(1)
    assert len(predictor(pixels(1)).predictions) == 5
    assert predictor(pixels(1), top=2).predictions == whole[:2]


# --- images that cannot be read ---------------------------------------------------------------


def test_unreadable_images_are_entries_of_the_stream(predictor: Predictor, tmp_path: Path) -> None:
    good, cut, text = (tmp_path / n for n in ("good.png", "cut\x1b.png", "text.png"))
    good.write_bytes(png(pixels(0)))
    cut.write_bytes(png(pixels(1))[:60])
    text.write_text("no image")
    missing = tmp_path / "missing.png"
    given = [cut, good, missing, pixels(2), text, b"", np.zeros((2, 2)), good]
    for batch_size in (1, 3, 50):
        found = list(predictor.stream(given, batch_size=batch_size))
        assert [i for i, p in enumerate(found) if p.error is None] == [1, 3, 7]
        assert [p.path for p in found[:3]] == [str(cut), str(good), str(missing)]
        for p in found:
            assert (p.predictions == ()) == (p.error is not None)
        assert r"cut\x1b.png: truncated PNG" in str(found[0].error)
        assert "missing.png: No such file" in str(found[2].error)
        for p in (found[1], found[7]):
            assert scores(p) == pytest.approx(scores(predictor(good)), abs=1e-5)
    assert len(list(predictor.stream([cut, text]))) == 2  # none that can be read


def test_unreadable_images_raise_where_asked(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_text("no image")
    with pytest.raises(DecodeError, match=r"x\.png"):
        predictor(path)
    with pytest.raises(DecodeError, match=r"x\.png"):
        list(predictor.stream([pixels(0), path], skip=False))


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_score_is_what_single_predictions_say(
    predictor: Predictor, tmp_path: Path, batch_size: int
) -> None:
    for i in range(13):
        path = tmp_path / CLASSES[i % 3] / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(pixels(i, 20 + i, 20)))
    data = open_data(str(tmp_path), "none")
    split = data.splits["train"]
    labels = np.array([CLASSES.index(data.classes[y]) for y in split.labels])
    split = type(split)(split.reader, split.names, labels)
    found, skipped = score(predictor, split, threads=2, batch_size=batch_size)
    assert skipped == []
    alone = [predictor(tmp_path / name, top=7) for name in split.names]
    table = np.array([[scores(p)[c] for c in CLASSES] for p in alone])
    assert found.index.tolist() == list(range(13))
    assert found.label.tolist() == labels.tolist()
    assert found.predicted.tolist() == table.argmax(1).tolist()
    assert np.allclose(found.confidence, table.max(1), atol=1e-5)
    metrics = found.metrics()
    assert metrics["accuracy"] == pytest.approx(np.mean(table.argmax(1) == labels))
    assert metrics["loss"] == pytest.approx(log_loss(labels, table, labels=range(7)), abs=1e-3)
    (tmp_path / split.names[5]).write_text("no image")
    with pytest.raises(DecodeError, match=split.names[5]):
        score(predictor, split, threads=2)
    fewer, skipped = score(predictor, split, 2, on_bad="skip", batch_size=batch_size)
    assert len(skipped) == 1
    assert split.names[5] in skipped[0]
    assert fewer.index.tolist() == [i for i in range(13) if i != 5]
    assert fewer.confidence.tolist() == pytest.approx(np.delete(found.confidence, 5), abs=1e-5)


def test_a_card_survives_in_the_predictor(run: Path) -> None:
    found = load(run).card
    assert found == card(make_net())
    assert found.architecture == architecture("resnet20", num_classes=7)
    assert json.loads(found.to_json())["classes"] == list(CLASSES)
