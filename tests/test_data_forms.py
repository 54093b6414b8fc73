"""What holds for every form of data, and how forms are told apart."""

from __future__ import annotations

import os
import pickle
import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import writers
from skipway.config import AugmentConfig
from skipway.data import DataSet, open_data, open_split
from skipway.data.feed import Batch, DecodedFeed
from skipway.data.forms import NAMED
from skipway.data.preflight import scan
from skipway.data.split import Split, image_sizes
from skipway.images import Preprocess, verify
from skipway.tasks.classify import Classify
from skipway.training.plan import make_plan
from writers import error_of

CLASSES = ("0", "1")
"""Numbers, as forms without names call theirs."""
MADE = writers.content()
FORMS = writers.forms(MADE, CLASSES)
GREY = {"npz", "idx", "idx.gz"}
UNNAMED = GREY | {"npz in colour"}


@pytest.fixture
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """A form's name, and its DATA."""
    form: str = request.param
    return form, str(FORMS[form](tmp_path, monkeypatch))


every = pytest.mark.parametrize("opened", FORMS, indirect=True)


def pixels(split: Split, channels: Any = 1) -> np.ndarray:
    return np.stack([split.image(i, channels) for i in range(len(split))])


@every
def test_pixels_labels_and_classes(opened: tuple[str, str]) -> None:
    form, path = opened
    data = open_data(path, "none")
    assert data.classes == CLASSES
    assert list(data.splits) == ["train", "test"]
    for name, (images, labels) in MADE.items():
        split = data.splits[name]
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == labels.tolist()
        assert np.array_equal(pixels(split)[..., 0], images)
        assert np.array_equal(pixels(split, 3), np.repeat(images[..., None], 3, 3))
        assert len(set(split.names)) == len(split)
        assert scan(split, 2, verify).failed == []
        assert image_sizes(split).tolist() == [[32, 32]] * len(split)
    assert data.channels == (1 if form in GREY else 3)
    assert data.mirror == (form not in UNNAMED)
    assert any("numbers" in note for note in data.notes) == (form in UNNAMED)


def batches(data: DataSet, workers: int) -> list[Batch]:
    task = Classify(
        Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.25,) * 3),
        AugmentConfig(flip=True, pad_crop=4),
        0.0,
    )
    feed = DecodedFeed(data.splits["train"], 3, task.augment, task.collate, 4, 7, workers)
    return list(feed.epoch(2))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """The data as class folders."""
    place = tmp_path_factory.mktemp("folders")
    return open_data(str(writers.folder(place, writers.files(MADE, CLASSES))), seed=5)


def same_batches(found: list[Batch], wanted: list[Batch]) -> bool:
    return len(found) == len(wanted) and all(
        np.array_equal(a.index, b.index)
        and torch.equal(a.images, b.images)
        and torch.equal(a.targets, b.targets)
        for a, b in zip(found, wanted, strict=True)
    )


@every
def test_training_batches_are_those_of_class_folders(
    opened: tuple[str, str], expected: DataSet
) -> None:
    """The validation that is held out too: by position, not by name."""
    data = open_data(opened[1], seed=5)
    assert {n: s.labels.tolist() for n, s in data.splits.items()} == {
        n: s.labels.tolist() for n, s in expected.splits.items()
    }
    for name, split in data.splits.items():
        assert np.array_equal(pixels(split), pixels(expected.splits[name]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that cannot be written
        found = batches(data, 0)
    assert same_batches(found, batches(expected, 0))


@pytest.mark.parametrize("opened", ["tar", "parquet of images"], indirect=True)
def test_workers_read_the_same(opened: tuple[str, str], expected: DataSet) -> None:
    data = open_data(opened[1], seed=5)
    data.splits["train"].image(0, 3)  # handles of this process are open before it is forked
    assert same_batches(batches(data, 2), batches(expected, 0))


@every
def test_the_digest_and_the_order_are_fixed(opened: tuple[str, str]) -> None:
    first, second = open_data(opened[1]), open_data(opened[1])
    assert first.digest() == second.digest()
    assert first.digest() != open_data(opened[1], seed=1).digest()
    assert [s.names[:] for s in first.splits.values()] == [
        s.names[:] for s in second.splits.values()
    ]


@every
def test_a_split_travels_to_another_process(opened: tuple[str, str]) -> None:
    split = open_data(opened[1], "none").splits["train"]
    split.image(0, 3)
    there = pickle.loads(pickle.dumps(split))
    assert np.array_equal(pixels(there), pixels(split))


def _read(split: Split, i: int) -> list[int]:
    return [os.getpid(), *split.image(i, 1)[0, :, 0].tolist()]


@pytest.mark.parametrize("opened", ["tar", "parquet of images"], indirect=True)
def test_processes_have_their_own_handles(opened: tuple[str, str]) -> None:
    split = open_data(opened[1], "none").splits["train"]
    split.image(0, 1)
    with ProcessPoolExecutor(2) as pool:
        found = [pool.submit(_read, split, i) for i in range(len(split))]
        for i, row in enumerate(found):
            pid, *values = row.result()
            assert pid != os.getpid()
            assert values == MADE["train"][0][i, 0].tolist()


@every
def test_evaluation_counts_the_classes_of_the_model(opened: tuple[str, str]) -> None:
    path = opened[1]
    name, split, classes = open_split(path, None, None, 0, "auto")
    assert (name, classes) == ("test", CLASSES)
    assert split.labels.tolist() == MADE["test"][1].tolist()
    name, split, classes = open_split(path, None, ("1", "x", "0"), 0, "auto")
    assert classes == ("1", "x", "0")
    assert split.labels.tolist() == [2 if y == 0 else 0 for y in MADE["test"][1]]
    made = open_data(path, seed=3)
    held = open_split(path, "val", ("1", "0"), 3, "auto")[1]
    assert held.names[:] == made.splits["val"].names[:]
    assert held.labels.tolist() == (1 - made.splits["val"].labels).tolist()
    assert "'1'" in error_of(lambda: open_split(path, "test", ("0", "x"), 0, "auto"))
    assert "--split all" in error_of(lambda: open_split(path, "all", None, 0, "auto"))


@every
def test_a_plan_takes_channels_and_mirroring_from_the_data(opened: tuple[str, str]) -> None:
    form, path = opened
    plan = make_plan(path, {"device": "cpu"})
    assert plan.architecture.in_channels == (1 if form in GREY else 3)
    assert plan.config.augment.flip == (form not in UNNAMED)
    given = make_plan(path, {"device": "cpu", "data.channels": 3, "augment.flip": True})
    assert given.architecture.in_channels == 3
    assert given.config.augment.flip


# --- telling forms apart ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["zip", "tar", "csv", "parquet of paths", "npz"])
def test_a_file_is_known_by_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    path = FORMS[form](tmp_path, monkeypatch)
    other = path.rename(path.with_name("data.bin"))
    assert (
        open_data(str(other), "none").splits["train"].labels.tolist() == MADE["train"][1].tolist()
    )


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    """A zip is looked for at the end of a file."""
    held = writers.files(MADE, CLASSES)
    inner = writers.zipped(tmp_path / "x.zip", {"x.txt": b"x"}).read_bytes()
    path = writers.tarred(tmp_path / "data.tar", held | {"z/x.zip": inner})
    assert len(open_data(str(path), "none").splits["train"]) == 12


def test_a_stray_table_does_not_hide_class_folders(tmp_path: Path) -> None:
    place = writers.folder(tmp_path, writers.files(MADE, CLASSES))
    writers.pq.write_table(writers.pa.table({"a": [1]}), place / "metadata.parquet")
    (place / "labels.csv").write_text("path,label\n")
    assert len(open_data(str(place), "none").splits["train"]) == 12


def test_what_is_none_of_them(tmp_path: Path) -> None:
    for name, data in {
        "text.txt": b"some text, with a comma\n",
        "empty": b"",
        "noise": bytes(range(256)) * 4,
        "half.zip": b"PK\x03\x04" + bytes(60),
        "plain.gz": b"\x1f\x8b\x08\x00" + bytes(20),
        "latin.txt": "caf\xe9".encode("latin-1"),
    }.items():
        (tmp_path / name).write_bytes(data)
        text = error_of(lambda name=name: open_data(str(tmp_path / name)))
        assert re.search(f"{name}: neither a folder nor a zip, tar, CSV, parquet or .npz", text)


def test_names_that_are_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = error_of(lambda: open_data("fashion-mnsit"))
    assert "Did you mean 'fashion-mnist'?" in text
    assert all(name in text for name in ("digits", *NAMED, "tar", "CSV", "parquet", ".npz"))
    assert "no such folder or file" in error_of(lambda: open_data("a\0b"))
    assert "data" in error_of(lambda: open_data("data" * 2000))


def test_what_lies_on_the_disk_goes_before_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    writers.folder(tmp_path / "cifar10", writers.files(MADE, CLASSES))
    data = open_data("cifar10", "none")
    assert data.classes == CLASSES
    assert "what is called cifar10 here is taken" in data.notes[0]
