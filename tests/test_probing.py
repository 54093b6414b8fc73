"""Probes of features: scikit-learn's classifiers as oracles, and voting by hand where it ties."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from commands import call, draw
from skipway import shipped
from skipway.architecture import architecture
from skipway.card import Card
from skipway.data import Split, open_data
from skipway.data.split import ArrayReader, FolderReader, Names, hold_out
from skipway.detectors import build_detector
from skipway.embedders import build_embedder
from skipway.embedding import Embedder, load_embedder
from skipway.errors import InputError
from skipway.heads import DetectorConfig, EmbedderConfig
from skipway.images import DecodeError, Preprocess, plain_preprocess
from skipway.metrics import wilson_interval
from skipway.probing import (
    HELD_OUT,
    NEIGHBOURS,
    STRENGTHS,
    Probe,
    choose_neighbours,
    choose_strength,
    nearest_classes,
    open_splits,
    probe,
)
from skipway.weights import create_model, save_weights

Array = npt.NDArray[Any]


class Pixels(Embedder):
    """Takes the pixels of a small grey image themselves for its features."""

    def __init__(self, side: int = 8) -> None:
        self.card: Any = type("Card", (), {"preprocess": plain_preprocess(side, 1)})
        self.origin, self.dimensions, self.made = "pixels", side * side, {"normalised": False}
        self._engine = lambda x: x.reshape(len(x), -1)


@pytest.fixture(scope="module")
def digits() -> dict[str, Split]:
    """Parts of the embedded digits."""
    splits = open_data("digits", "none").splits
    return {"train": splits["train"].take(np.arange(0, 1400, 5)), "test": splits["test"]}


def features(split: Split) -> tuple[Array, Array]:
    """Normalised pixels in rows of length 1, float64, and labels, by another way."""
    pixels = np.stack([split.reader.read(name) for name in split.names])[..., 0]
    rows = (pixels.reshape(len(split), -1) / 255 - 0.5) / 0.25
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), split.labels


# k nearest neighbours


@pytest.mark.parametrize("k", [1, 20, 1000])
def test_neighbours_vote_as_scikit_learn_s(k: int, digits: dict[str, Split]) -> None:
    (known, labels), (asked, truth) = features(digits["train"]), features(digits["test"])
    oracle = KNeighborsClassifier(
        min(k, len(labels)), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(known, labels)
    expected = oracle.predict(asked)
    predicted = nearest_classes(known.astype(np.float32), labels, asked.astype(np.float32), k)
    assert predicted.tolist() == expected.tolist()
    found = probe(Pixels(), digits["train"], digits["test"], "knn", neighbours=k, batch_size=50)
    correct = int((expected == truth).sum())
    low, high = wilson_interval(correct, len(truth))
    assert asdict(found) == {
        "kind": "knn",
        "accuracy": correct / len(truth),
        "low": low,
        "high": high,
        "n": len(truth),
        "trained_on": len(labels),
        "neighbours": min(k, len(labels)),
        "strength": None,
        "leaked": 0,
        "skipped": (),
    }


EXACT = [*np.eye(4), *-np.eye(4)] + [
    np.array([*signs, 1]) / 2 for signs in itertools.product((-1, 1), repeat=3)
]
"""Vectors of length 1 whose products have no rounding."""


@given(
    st.lists(st.tuples(st.sampled_from(range(16)), st.integers(0, 3)), min_size=1, max_size=20),
    st.lists(st.sampled_from(range(16)), max_size=5),
    st.integers(1, 25),
)
def test_ties_are_broken_by_order(known: list[tuple[int, int]], asked: list[int], k: int) -> None:
    expected = [by_hand(known, EXACT[a], k) for a in asked]
    predicted = nearest_classes(
        np.array([EXACT[i] for i, _ in known], np.float32),
        np.array([label for _, label in known]),
        np.array([EXACT[a] for a in asked], np.float32).reshape(-1, 4),
        k,
    )
    assert predicted.tolist() == expected


def by_hand(known: Sequence[tuple[int, int]], asked: Array, k: int) -> int:
    similar = [(-float(EXACT[i] @ asked), row, label) for row, (i, label) in enumerate(known)]
    votes = [0.0] * 4
    for distance, _, label in sorted(similar)[:k]:
        votes[label] += math.exp((-distance - 1) / 0.07)
    return votes.index(max(votes))


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_how_many_vote_is_chosen_on_what_was_held_out(noise: float) -> None:
    """Many where labels are noisy; of equals the one that comes first."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8))
    x[:, 0] = np.where(np.arange(600) % 2, 4.0, -4.0)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    truth = np.arange(600) % 2
    labels = np.where(rng.random(600) < noise, 1 - truth, truth)
    known, held = (x[:400], labels[:400]), (x[400:], truth[400:])
    right = {
        k: KNeighborsClassifier(k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
        .fit(*known)
        .score(*held)
        for k in NEIGHBOURS
    }
    chosen = choose_neighbours(known, held)
    assert right[chosen] == max(right.values())
    assert chosen == max(NEIGHBOURS, key=lambda k: right[k])  # max takes the first of equals
    assert chosen == (100 if noise else 20)
    assert choose_neighbours(known, (held[0][:0], held[1][:0])) == NEIGHBOURS[0] == 20
    assert choose_neighbours((x[:3], labels[:3]), held) in NEIGHBOURS


def test_the_probe_chooses_without_the_test_images(digits: dict[str, Split]) -> None:
    learned, held = (features(part) for part in hold_out(digits["train"], HELD_OUT, 5))
    low = learned[0].astype(np.float32), held[0].astype(np.float32)
    expected = choose_neighbours((low[0], learned[1]), (low[1], held[1]))
    found = probe(Pixels(), digits["train"], digits["test"], "knn", seed=5)
    assert found.neighbours == expected
    assert found.trained_on == len(digits["train"])


# Linear


def test_the_linear_probe_is_scikit_learn_s(digits: dict[str, Split]) -> None:
    parts = [features(part) for part in hold_out(digits["train"], HELD_OUT, 3)]
    right = [
        LogisticRegression(C=c, max_iter=1000).fit(*parts[0]).score(*parts[1]) for c in STRENGTHS
    ]
    strength = STRENGTHS[right.index(max(right))]
    known, labels = (np.concatenate(both) for both in zip(*parts, strict=True))
    expected = LogisticRegression(C=strength, max_iter=1000).fit(known, labels)
    asked, truth = features(digits["test"])
    found = probe(Pixels(), digits["train"], digits["test"], "linear", seed=3)
    assert found.strength == strength
    assert found.accuracy == pytest.approx(expected.score(asked, truth), abs=1.5 / len(truth))
    assert (found.n, found.trained_on, found.neighbours) == (len(truth), len(labels), None)
    assert found.low < found.accuracy < found.high
    assert min(right) < max(right)  # there was something to choose


def test_the_penalty_is_chosen_on_what_was_held_out() -> None:
    """Noise with many dimensions asks for a strong penalty, a fine border for a weak one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 2))
    x[:, 0] = np.sign(x[:, 0]) * (0.02 + 0.02 * rng.random(400))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = (x[:, 0] > 0).astype(np.int64)
    assert choose_strength((x[:200], y[:200]), (x[200:], y[200:])) > STRENGTHS[0]
    labels = y.copy()
    labels[:80] = 1 - labels[:80]
    noise = rng.normal(size=(400, 300))
    noise[:, 0] += 3 * (2 * y - 1)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    known, held = (noise[:200], labels[:200]), (noise[200:], y[200:])
    assert choose_strength(known, held) < STRENGTHS[-1]
    assert choose_strength(known, (held[0][:0], held[1][:0])) == 1
    assert choose_strength((noise[:9], np.zeros(9, np.int64)), held) == 1


# Images


@pytest.fixture
def folder(tmp_path: Path) -> Split:
    """Images of two classes, one of them damaged."""
    draw(tmp_path, ["ant", "bee"], n=5, size=8)
    names = [f"{c}/{i:02}.png" for c in ("ant", "bee") for i in range(5)]
    (tmp_path / names[7]).write_bytes(b"no image")
    return Split(FolderReader(tmp_path), Names(names), np.array([0] * 5 + [1] * 5))


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_damaged_images_are_refused_or_left_out(kind: Any, folder: Split) -> None:
    whole = folder.take(np.array([0, 1, 2, 3, 5, 6]))
    with pytest.raises(DecodeError, match=r"bee/02\.png"):
        probe(Pixels(), folder, whole, kind)
    found = probe(Pixels(), folder, folder, kind, on_bad="skip", threads=2, batch_size=3)
    assert (found.n, found.trained_on) == (9, 9)
    assert len(found.skipped) == 2
    assert all("bee/02.png" in reason for reason in found.skipped)
    same = folder.take(np.array([i for i in range(10) if i != 7]))
    assert (
        probe(Pixels(), same, same, "knn", neighbours=3).accuracy
        == probe(Pixels(), folder, folder, "knn", neighbours=3, on_bad="skip").accuracy
    )
    assert (found.leaked, probe(Pixels(), whole, whole, kind).leaked) == (9, 6)


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_what_cannot_be_probed_is_refused(kind: Any, folder: Split) -> None:
    damaged, ants = folder.take(np.array([7])), folder.take(np.arange(5))
    with pytest.raises(InputError, match=r"needs a test image\n.*bee/02\.png"):
        probe(Pixels(), folder, damaged, kind, on_bad="skip")
    with pytest.raises(InputError, match="two classes at least"):
        probe(Pixels(), ants, ants, kind)
    unknown: Any = "quadratic"
    with pytest.raises(InputError, match="--probe quadratic: knn or linear"):
        probe(Pixels(), folder, folder, unknown)
    with pytest.raises(InputError, match="0 neighbours"):
        probe(Pixels(), folder, folder, kind, neighbours=0)


def test_a_class_that_training_lacks_is_never_found(digits: dict[str, Split]) -> None:
    train, test = digits["train"], digits["test"]
    fewer = train.take(np.flatnonzero(train.labels != 9))
    for kind in ("knn", "linear"):
        found: Probe = probe(Pixels(), fewer, test, kind)
        assert found.accuracy <= (test.labels != 9).mean()


def test_copies_of_training_images_are_counted(folder: Split) -> None:
    """By content, whatever their names."""
    root = folder.reader.root  # type: ignore[attr-defined]
    names = ["ant/00.png", "ant/copy.png", "bee/00.png", "bee/new.png"]
    (root / "ant/copy.png").write_bytes((root / "bee/01.png").read_bytes())
    Image.new("RGB", (8, 8), "red").save(root / "bee/new.png")
    test = Split(folder.reader, Names(names), np.array([0, 0, 1, 1]))
    train = folder.take(np.array([1, 2, 3, 5, 6, 8]))
    assert probe(Pixels(), train, test, "knn").leaked == 2
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    pixels[10] = pixels[3]
    arrays = Split(ArrayReader(pixels), Names(f"{i}.png" for i in range(12)), np.arange(12) % 2)
    learned, asked = arrays.take(np.arange(9)), arrays.take(np.arange(9, 12))
    assert probe(Pixels(), learned, asked, "linear").leaked == 1


# The command

COLOURS = ("blue", "green", "red")
OTHERS = ("dusk", "dawn")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Colours in splits, the same as one folder, and a network that never saw them."""
    root = tmp_path_factory.mktemp("probe")
    for k, name in enumerate(("train", "val", "test")):
        draw(root / "data" / name, COLOURS, n=(8, 4, 6)[k], seed=k)
    draw(root / "flat", COLOURS, n=20)
    draw(root / "one", COLOURS[:1])
    for name in ("val", "test"):
        draw(root / "untrained" / name, COLOURS)
    net = create_model("resnet20", num_classes=2, seed=0, depths=(1, 1, 1), width=0.25)
    card = Card(
        model="custom",
        architecture=net.arch,
        classes=OTHERS,
        preprocess=Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    (root / "run").mkdir()
    (root / "run" / "run.json").write_text("{}")
    save_weights(root / "run" / "best.safetensors", net, card)
    torch.save(create_model("resnet20", num_classes=2, seed=0).state_dict(), root / "bare.pth")
    return root


@pytest.mark.parametrize("kind", ["knn", "linear"])
@pytest.mark.parametrize("stage", [None, "c2", "c3", "c4"])
def test_the_command_is_the_probe_of_those_features(
    kind: Any, stage: str | None, places: Path
) -> None:
    """The classes are the data's own; the model knows other ones."""
    flags = [] if stage is None else ["--stage", stage]
    given: list[Any] = [
        "eval",
        places / "run",
        places / "data",
        "--probe",
        kind,
        *flags,
        "--threads=1",
    ]
    told = call(*given, "--json")
    assert told.code == 0, told.err
    embedder = load_embedder(places / "run", stage=stage)
    splits = open_data(str(places / "data")).splits
    expected = probe(embedder, splits["train"], splits["test"], kind)
    assert told.value == {
        "probe": {k: v for k, v in asdict(expected).items() if k != "skipped"},
        "split": "test",
        "classes": 3,
        "stage": stage or "c4",
        "pooling": "average",
        "notes": [],
        "skipped": [],
    }
    assert expected.accuracy > 0.6  # colours are told by random weights
    words = call(*given).out
    low, high = (f"{end:.2%}" for end in (expected.low, expected.high))
    assert f"accuracy {expected.accuracy:.2%}  (95 % interval {low} to {high})" in words
    assert f"stage {stage or 'c4'}" in words


def test_splits_weights_and_neighbours_are_those_that_are_asked(places: Path) -> None:
    given: list[Any] = [
        "eval",
        places / "bare.pth",
        "--probe=knn",
        "--neighbours=3",
        "--json",
        "--threads=1",
    ]
    found = call(*given, places / "data", "--split=val").value
    assert (found["split"], found["probe"]["n"], found["probe"]["neighbours"]) == ("val", 12, 3)
    flat = call(*given, places / "flat")
    assert (flat.value["split"], flat.value["probe"]["n"]) == ("test", 6)
    assert "no split given" in flat.err


def test_an_image_in_both_splits_is_said(places: Path, tmp_path: Path) -> None:
    shutil.copytree(places / "data", tmp_path / "data")
    copied = tmp_path / "data" / "test" / "red" / "again.png"
    shutil.copy(tmp_path / "data" / "train" / "red" / "00.png", copied)
    given: list[Any] = ["eval", places / "run", tmp_path / "data", "--probe=knn", "--threads=1"]
    told = call(*given)
    assert told.code == 0, told.err
    assert "note: 1 of 19 test images are in train too, so the accuracy is too good" in told.err
    assert "too good" not in call(*given, "--split=val").err
    copied.write_bytes(b"no image")
    refused = call(*given)
    assert refused.code == 2
    assert "again.png" in refused.error[0]
    left_out = call(*given, "--on-bad=skip", "--json")
    assert left_out.value["probe"]["n"] == 18
    assert "again.png" in left_out.value["skipped"][0]


@pytest.mark.parametrize(
    ("data", "flags", "words"),
    [
        ("data", ["--probe=kmeans"], "--probe kmeans: knn or linear"),
        ("data", ["--probe=knn", "--split=train"], "--split train: --probe learns from train"),
        ("data", ["--probe=knn", "--stage=c5"], "stage c5: "),
        ("data", ["--probe=knn", "--views=flip"], "--probe: scores features"),
        ("data", ["--probe=knn", "--against=bare.pth"], "--probe: scores features"),
        ("data", ["--probe=linear", "--neighbours=3"], "--neighbours: goes with --probe knn"),
        ("data", ["--stage=c3"], "--stage: goes with --probe"),
        ("data", ["--neighbours=3"], "--neighbours: goes with --probe"),
        ("untrained", ["--probe=knn"], "has test, val but no train folder"),
        ("one", ["--probe=knn"], "one class only ('blue')"),
    ],
)
def test_bad_input(data: str, flags: list[str], words: str, places: Path) -> None:
    told = call("eval", places / "run", places / data, *flags, "--threads=1")
    assert (told.code, told.out) == (2, "")
    assert words in told.error[0]
    assert len(told.error) <= 3


def test_data_of_which_nothing_is_held_out(places: Path) -> None:
    card = load_embedder(places / "run").card.model_copy(
        update={"recipe": {"data": {"val": "none"}}}
    )
    with pytest.raises(InputError, match="has train alone, and no split to score"):
        open_splits(card, str(places / "flat"))


def test_models_without_stages_are_refused(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = shipped.file("cifar10-resnet20", ".onnx")
    told = call("eval", onnx, places / "data", "--probe=knn")
    assert told.code == 2
    assert "an ONNX file gives classes" in told.error[0]
    net = build_detector(
        architecture("resnet18", num_classes=2, width=0.125), DetectorConfig(channels=8), 2
    )
    card = Card(
        task="detect",
        model="custom",
        architecture=architecture("resnet18", num_classes=2, width=0.125),
        classes=OTHERS,
        detector=DetectorConfig(channels=8),
        preprocess=Preprocess(size=(64, 64), resize="fit", mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    save_weights(tmp_path / "detector.safetensors", net, card)
    told = call("eval", tmp_path / "detector.safetensors", places / "data", "--probe=linear")
    assert told.code == 2
    assert "a model of the task detect; --probe takes the features of those" in told.error[0]


def test_vectors_that_were_learned_are_probed(places: Path, tmp_path: Path) -> None:
    arch = architecture("resnet20", num_classes=3, depths=(1, 1, 1), width=0.25)
    config = EmbedderConfig(dim=8)
    card = Card(
        task="embed",
        model="custom",
        architecture=arch,
        classes=COLOURS,
        embedder=config,
        preprocess=Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3),
    )
    save_weights(tmp_path / "net.safetensors", build_embedder(arch, config, 3), card)
    given: list[Any] = ["eval", tmp_path / "net.safetensors", places / "data", "--threads=1"]
    for flags, stage, pooling in (([], "embedding", None), (["--stage=c3"], "c3", "average")):
        told = call(*given, "--probe=knn", *flags, "--json")
        assert told.code == 0, told.err
        assert (told.value["stage"], told.value["pooling"]) == (stage, pooling)
        assert told.value["probe"]["n"] == 18
