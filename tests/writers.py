"""The same labelled images in every form, written without any of Skipway's own code."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torchvision import datasets

from skipway.data.forms import cifar
from skipway.errors import InputError

Content = dict[str, tuple[np.ndarray, np.ndarray]]
"""By split: grey pixels uint8 [N, H, W] and labels [N], ordered by label."""


def content(train: int = 12, test: int = 6, classes: int = 2, side: int = 32) -> Content:
    """Noise, so that no two images are alike."""
    rng = np.random.default_rng(0)
    return {
        name: (
            rng.integers(0, 256, (n, side, side), dtype=np.uint8),
            np.sort(np.arange(n) % classes),
        )
        for name, n in (("train", train), ("test", test))
    }


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def files(made: Content, classes: Iterable[str]) -> dict[str, bytes]:
    """PNGs by their names in class folders of splits."""
    names = list(classes)
    return {
        f"{split}/{names[label]}/{i:03}.png": png(image)
        for split, (pixels, labels) in made.items()
        for i, (image, label) in enumerate(zip(pixels, labels, strict=True))
    }


def folder(place: Path, held: Mapping[str, bytes]) -> Path:
    for name, data in held.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def zipped(path: Path, held: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, held: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in held.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def table(path: Path, rows: Iterable[Iterable[Any]], header: Iterable[str], **options: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return path


def idx(path: Path, values: np.ndarray) -> None:
    head = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    data = head + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def idx_folder(place: Path, made: Content, suffix: str = "") -> Path:
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels, labels = made[split]
        idx(place / f"{stem}-images-idx3-ubyte{suffix}", pixels)
        idx(place / f"{stem}-labels-idx1-ubyte{suffix}", labels)
    return place


def npz(path: Path, made: Content, colour: bool = False) -> Path:
    arrays = {}
    for split, (pixels, labels) in made.items():
        arrays[f"{split}_images"] = np.repeat(pixels[..., None], 3, 3) if colour else pixels
        arrays[f"{split}_labels"] = labels[:, None].astype(np.uint8)
    np.savez_compressed(path, **arrays)
    return path


def image_table(
    images: Iterable[bytes | None], labels: Iterable[Any], classes: Iterable[str] | None = None
) -> pa.Table:
    """As Hugging Face's datasets lay it out, with class names in the metadata where given."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(images)]
    made = pa.table({"image": pa.array(rows, kind), "label": pa.array(list(labels))})
    if classes is None:
        return made
    feature = {"names": list(classes), "_type": "ClassLabel"}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
    return made.replace_schema_metadata({"huggingface": json.dumps(info)})


def image_parquets(place: Path, made: Content, classes: Iterable[str], shards: int = 2) -> Path:
    """``data/train-00000-of-00002.parquet`` and so on, three rows a group."""
    names = list(classes)
    (place / "data").mkdir(parents=True)
    for split, (pixels, labels) in made.items():
        parts = np.array_split(np.arange(len(labels)), shards)
        for i, part in enumerate(parts):
            whole = image_table((png(pixels[j]) for j in part), labels[part], names)
            path = place / "data" / f"{split}-{i:05}-of-{shards:05}.parquet"
            pq.write_table(whole, path, row_group_size=3)
    return place


def cifar_files(
    place: Path, made: Content, classes: Iterable[str], patch: pytest.MonkeyPatch
) -> Path:
    """``cifar-10-batches-py``; its checksums are made those that Skipway and torchvision expect."""
    inner = place / "cifar-10-batches-py"
    inner.mkdir(parents=True)
    labels = made["train"][1]
    flat = {
        split: np.repeat(images[:, None], 3, 1).reshape(len(images), -1)
        for split, (images, _) in made.items()
    }
    parts = np.array_split(np.arange(len(labels)), 5)
    held: dict[str, Any] = {
        f"data_batch_{i}": {"data": flat["train"][part], "labels": labels[part].tolist()}
        for i, part in enumerate(parts, 1)
    }
    held["test_batch"] = {"data": flat["test"], "labels": made["test"][1].tolist()}
    held["batches.meta"] = {"label_names": list(classes)}
    sums = {}
    for name, value in held.items():
        data = pickle.dumps(value, protocol=2)
        (inner / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    edition = cifar.EDITIONS["cifar10"]
    train = {name: value for name, value in sums.items() if name.startswith("data")}
    for part, own in ((edition.train, train), (edition.test, sums), (edition.meta, sums)):
        for name in part:
            patch.setitem(part, name, own[name])
    patch.setattr(datasets.CIFAR10, "train_list", [list(item) for item in train.items()])
    patch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = datasets.CIFAR10.meta | {"md5": sums["batches.meta"]}
    patch.setattr(datasets.CIFAR10, "meta", meta)
    return place


Writer = Callable[[Path, pytest.MonkeyPatch], Path]


def forms(made: Content, classes: tuple[str, ...]) -> dict[str, Writer]:
    """Every form, as a function that writes it into a folder of its own and gives DATA."""
    held = files(made, classes)
    rows = [(f"images/{n}", n.split("/")[1], n.split("/")[0]) for n in held]

    def by_csv(place: Path, _: pytest.MonkeyPatch) -> Path:
        folder(place / "images", held)
        return table(place / "list.csv", reversed(rows), ("path", "label", "split"))

    def by_parquet(place: Path, _: pytest.MonkeyPatch) -> Path:
        folder(place / "images", held)
        columns = dict(
            zip(("file", "class", "split"), map(list, zip(*rows, strict=True)), strict=True)
        )
        pq.write_table(pa.table(columns), place / "list.parquet")
        return place / "list.parquet"

    return {
        "folder": lambda place, _: folder(place / "data", held),
        "zip": lambda place, _: zipped(place / "data.zip", held),
        "tar": lambda place, _: tarred(place / "data.tar", held),
        "csv": by_csv,
        "parquet of paths": by_parquet,
        "parquet of images": lambda place, _: image_parquets(place / "hf", made, classes),
        "npz": lambda place, _: npz(place / "data.npz", made),
        "npz in colour": lambda place, _: npz(place / "data.npz", made, colour=True),
        "idx": lambda place, _: idx_folder(place / "idx", made),
        "idx.gz": lambda place, _: idx_folder(place / "idx", made, ".gz"),
        "cifar": lambda place, patch: cifar_files(place / "cifar", made, classes, patch),
    }


def error_of(action: Any) -> str:
    """The text of the InputError that an action raises: of three lines at most, and harmless."""
    with pytest.raises(InputError) as error:
        action()
    text = str(error.value)
    assert len(text.splitlines()) <= 3
    assert not any(ord(char) < 32 and char != "\n" for char in text)
    return text
