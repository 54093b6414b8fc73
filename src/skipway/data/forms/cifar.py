"""CIFAR-10 and CIFAR-100 as their authors publish them for Python.

A folder holds ``cifar-10-batches-py`` or ``cifar-100-python`` with the pickled batches
(https://www.cs.toronto.edu/~kriz/cifar.html). A pickle can run code, so only files whose checksums
are the published ones are opened. Images are uint8 [N, 32, 32, 3]; classes are in the order of
their labels.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.forms.named import fetched
from skipway.data.split import ArrayReader, Found, Names, Split
from skipway.errors import InputError, harmless


@dataclass(frozen=True)
class _Edition:
    """One of the two data sets. The checksums are MD5, as published."""

    torchvision: str
    folder: str
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    labels: str
    names: str

    @property
    def files(self) -> dict[str, str]:
        return self.train | self.test | self.meta


EDITIONS = {
    "cifar10": _Edition(
        "CIFAR10",
        "cifar-10-batches-py",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
        {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        "labels",
        "label_names",
    ),
    "cifar100": _Edition(
        "CIFAR100",
        "cifar-100-python",
        {"train": "16019d7e3df5f24257cddd939b257f8d"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        {"meta": "7973b15100ade9c7d40fb424638fde48"},
        "fine_labels",
        "fine_label_names",
    ),
}


def is_cifar(path: Path) -> bool:
    """Whether a folder is or holds one of CIFAR's own folders."""
    return next(_places(path), None) is not None


def open_cifar(path: Path) -> Found:
    """CIFAR's files in a folder. Raises InputError for files that are missing or not CIFAR's."""
    places = list(_places(path))
    if len(places) > 1:
        shown = " and ".join(place.name for place, _ in places)
        raise InputError(f"{harmless(path)}: holds {shown}; give one of them")
    return _read(*places[0])


def open_named(name: str) -> Found:
    """``cifar10`` or ``cifar100``: local files where they are found, else a download."""
    edition = EDITIONS[name]

    def complete(place: Path) -> bool:
        return all((place / file).is_file() for file in edition.files)

    place = fetched(name, edition.torchvision, edition.folder, complete, "its files")
    return _read(place, edition)


def _places(path: Path) -> Iterator[tuple[Path, _Edition]]:
    for edition in EDITIONS.values():
        for place in (path, path / edition.folder):
            if place.name == edition.folder and any((place / f).is_file() for f in edition.files):
                yield place, edition


def _read(place: Path, edition: _Edition) -> Found:
    classes = tuple(_unpickled(place, edition, next(iter(edition.meta)))[edition.names])
    splits = {}
    for name, files in (("train", edition.train), ("test", edition.test)):
        batches = [_unpickled(place, edition, file) for file in files]
        flat = np.concatenate([batch["data"] for batch in batches])
        pixels = np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels = np.concatenate([batch[edition.labels] for batch in batches]).astype(np.int64)
        names = Names(f"{name}/{i:05}.png" for i in range(len(pixels)))
        splits[name] = Split(ArrayReader(pixels), names, labels)
    return Found(splits, classes, declared=True, notes=(f"CIFAR's own files in {place}",))


def _unpickled(place: Path, edition: _Edition, file: str) -> dict[str, Any]:
    try:
        content = (place / file).read_bytes()
    except OSError as error:
        raise InputError(f"{harmless(place / file)}: {error.strerror}") from None
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != edition.files[file]:
        raise InputError(
            f"{harmless(place / file)}: not the published file (its checksum differs), so that it "
            "is not opened\nFetch it again: it may be damaged, or a pickle that runs code."
        )
    found: dict[str, Any] = pickle.loads(content, encoding="latin1")
    return found
