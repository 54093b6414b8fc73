"""IDX and CIFAR's own files: against torchvision's readers, by name, and damaged."""

from __future__ import annotations

import gzip
import pickle
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

import writers
from skipway.data import DataSet, open_data, open_split
from skipway.data.forms import cifar, idx, named
from skipway.errors import InputError

TEN = writers.content(train=40, test=20, classes=10, side=28)
CIFAR = writers.content(train=40, test=20, classes=10, side=32)


def error_of(action: Any) -> str:
    with pytest.raises(InputError) as error:
        action()
    assert len(str(error.value).splitlines()) <= 3
    return str(error.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Skipway's cache; nothing else is where it is looked for, and nothing is downloaded."""

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(idx, "_DEBIAN", str(tmp_path / "debian"))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache" / "skipway"


def assert_as(data: DataSet, peer: Any, root: Path, channels: Any) -> None:
    """Pixels, labels and classes are those of torchvision's data set."""
    names = [name.split(" - ")[0] for name in peer(root).classes]  # MNIST's are "0 - zero"
    assert data.classes == tuple(names)
    for name, split in data.splits.items():
        other = peer(root, train=name == "train")
        assert len(split) == len(other)
        for i in range(len(split)):
            image, label = other[i]
            assert split.labels[i] == label
            pixels = split.image(i, channels)
            assert np.array_equal(pixels, np.asarray(image).reshape(pixels.shape))


# --- IDX ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"), [("fashion-mnist", datasets.FashionMNIST), ("mnist", datasets.MNIST)]
)
@pytest.mark.parametrize("place", ["cache", "data"])
def test_idx_by_name_is_as_torchvision_reads_it(
    cache: Path, name: str, kind: Any, place: str
) -> None:
    """`cache` is what torchvision's download fills, ``data`` what its tutorials name."""
    root = cache if place == "cache" else Path("data")
    raw = writers.idx_folder(root / kind.__name__ / "raw", TEN)
    data = open_data(name, "none")
    assert_as(data, kind, root, 1)
    assert f"IDX files of {raw}" in data.notes
    assert (data.channels, data.mirror) == (1, name == "fashion-mnist")


def test_fashion_mnist_is_found_where_debian_puts_it(cache: Path, tmp_path: Path) -> None:
    writers.idx_folder(tmp_path / "debian", TEN, ".gz")
    data = open_data("fashion-mnist")
    assert data.classes[0] == "T-shirt/top"
    assert data.classes[9] == "Ankle boot"
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 30, "val": 10, "test": 20}
    assert data.counts("val") == dict.fromkeys(data.classes, 1)


def test_classes_of_fashion_mnist_are_in_the_order_of_labels() -> None:
    assert list(idx.FASHION) == datasets.FashionMNIST.classes
    assert list(idx.FASHION) != sorted(idx.FASHION)


def test_fashion_mnist_is_known_by_its_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(writers.idx_folder(tmp_path / "some", TEN))
    assert open_data(path).classes == tuple("0123456789")
    labels = TEN["train"][1].astype(np.uint8).tobytes()
    monkeypatch.setattr(idx, "_FASHION_LABELS", writers.hashlib.sha256(labels).hexdigest())
    assert open_data(path).classes == idx.FASHION


@pytest.mark.parametrize("inner", ["", "raw", "FashionMNIST/raw", "MNIST/raw"])
def test_a_folder_of_idx_files(tmp_path: Path, inner: str) -> None:
    writers.idx_folder(tmp_path / inner, TEN)
    data = open_data(str(tmp_path), "none")
    fashion = inner == "FashionMNIST/raw"
    assert data.classes == (idx.FASHION if fashion else tuple("0123456789"))
    assert np.array_equal(data.splits["test"].image(3, 1)[..., 0], TEN["test"][0][3])
    _, split, classes = open_split(str(tmp_path), "test", data.classes[::-1], 0, "auto")
    assert classes == data.classes[::-1]
    assert split.labels.tolist() == (9 - TEN["test"][1]).tolist()


def test_a_number_that_no_label_has_moves_none(tmp_path: Path) -> None:
    """The classes of training are those that occur; what is held out counts the same."""
    gap = {name: (pixels, labels + 1 + (labels > 4)) for name, (pixels, labels) in TEN.items()}
    path = str(writers.idx_folder(tmp_path, gap))
    data = open_data(path)
    assert data.classes == tuple(map(str, (1, 2, 3, 4, 5, 7, 8, 9, 10, 11)))
    for classes in (None, data.classes):
        _, split, names = open_split(path, "val", classes, 0, "auto")
        assert names == data.classes
        assert split.labels.tolist() == data.splits["val"].labels.tolist()


def test_names_of_files_with_a_dot(tmp_path: Path) -> None:
    writers.idx_folder(tmp_path, TEN)
    for file in list(tmp_path.iterdir()):
        file.rename(file.with_name(file.name.replace("-idx", ".idx")))
    assert len(open_data(str(tmp_path), "none").splits["train"]) == 40


def test_two_sets_of_idx_files_are_told(tmp_path: Path) -> None:
    for kind in ("FashionMNIST", "MNIST"):
        writers.idx_folder(tmp_path / kind / "raw", TEN)
    text = error_of(lambda: open_data(str(tmp_path)))
    assert "FashionMNIST/raw and MNIST/raw; give one" in text


def test_only_test_images(tmp_path: Path) -> None:
    writers.idx_folder(tmp_path, TEN)
    for file in tmp_path.glob("train-*"):
        file.unlink()
    assert open_split(str(tmp_path), None, None, 0, "auto")[0] == "test"
    assert "no train" in error_of(lambda: open_data(str(tmp_path)))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def damaged(head: bytes, count: int = 40) -> dict[str, tuple[str, bytes, str]]:
    pixels = bytes(count * 784)
    size = struct.pack(">3I", count, 28, 28)
    return {
        "short": (IMAGES, head + size + pixels[:-1], "31,359 bytes where its header tells 31,360"),
        "long": (IMAGES, head + size + pixels + b"x", "more bytes where its header tells 31,360"),
        "no header": (IMAGES, b"\0\0", "not an IDX file of unsigned bytes in 3 dimensions"),
        "text": (IMAGES, b"<html>not found</html>", "not an IDX file"),
        "floats": (IMAGES, b"\0\0\x0d\3" + size + pixels, "not an IDX file"),
        "labels for images": (IMAGES, b"\0\0\x08\1" + size + pixels, "not an IDX file"),
        "none": (IMAGES, head + struct.pack(">3I", 0, 28, 28), "tells the dimensions (0, 28, 28)"),
        "vast": (IMAGES, head + b"\xff" * 12, "tells the dimensions (4294967295,"),
        "fewer labels": (LABELS, b"\0\0\x08\1" + struct.pack(">I", 3) + b"abc", "3 labels for the"),
    }


@pytest.mark.parametrize("case", damaged(b""))
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_files(tmp_path: Path, case: str, suffix: str) -> None:
    writers.idx_folder(tmp_path, TEN, suffix)
    name, data, said = damaged(b"\0\0\x08\3")[case]
    path = tmp_path / (name + suffix)
    path.write_bytes(gzip.compress(data) if suffix else data)
    text = error_of(lambda: open_data(str(tmp_path)))
    assert said in text
    assert name in text


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08\x00", b"no gzip", "cut", "changed"])
def test_damaged_gzip(tmp_path: Path, data: bytes | str) -> None:
    path = writers.idx_folder(tmp_path, TEN, ".gz") / (IMAGES + ".gz")
    if isinstance(data, str):
        whole = bytearray(path.read_bytes())
        whole[-8] ^= 255  # the checksum
        data = bytes(whole[: len(whole) // 2] if data == "cut" else whole)
    path.write_bytes(data)
    assert IMAGES in error_of(lambda: open_data(str(tmp_path)))


def test_missing_idx_files(tmp_path: Path) -> None:
    writers.idx_folder(tmp_path, TEN)
    (tmp_path / LABELS).unlink()
    assert f"{LABELS} (or .gz) is missing" in error_of(lambda: open_data(str(tmp_path)))


def test_a_label_that_fashion_mnist_does_not_have(cache: Path) -> None:
    place = writers.idx_folder(cache / "FashionMNIST" / "raw", TEN)
    writers.idx(place / LABELS, np.full(40, 10))
    assert "the label 10" in error_of(lambda: open_data("fashion-mnist"))


# --- CIFAR --------------------------------------------------------------------------------------


def test_checksums_are_those_of_torchvision() -> None:
    for edition in cifar.EDITIONS.values():
        peer = getattr(datasets, edition.torchvision)
        assert edition.folder == peer.base_folder
        assert edition.train == dict(peer.train_list)
        assert edition.test == dict(peer.test_list)
        assert edition.meta == {peer.meta["filename"]: peer.meta["md5"]}
        assert edition.names == peer.meta["key"]


@pytest.mark.parametrize("place", ["cache", "data", "path", "inner path"])
def test_cifar_is_as_torchvision_reads_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    root = {"cache": cache, "data": Path("data")}.get(place, tmp_path / "elsewhere")
    names = [f"class {9 - i}" for i in range(10)]  # not in alphabetical order
    writers.cifar_files(root, CIFAR, names, monkeypatch)
    path = "cifar10" if place in ("cache", "data") else str(root)
    data = open_data(path + "/cifar-10-batches-py" * (place == "inner path"), "none")
    assert data.classes == tuple(names)
    assert_as(data, datasets.CIFAR10, root, 3)
    assert (data.channels, data.mirror) == (3, True)


class _Trap:
    """A pickle that, when it is opened, leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_a_pickle_without_its_checksum_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers.cifar_files(tmp_path, CIFAR, map(str, range(10)), monkeypatch)
    mark = tmp_path / "mark"
    for name in ("test_batch", "data_batch_3", "batches.meta"):
        file = tmp_path / "cifar-10-batches-py" / name
        before = file.read_bytes()
        file.write_bytes(pickle.dumps(_Trap(mark)))
        text = error_of(lambda: open_data(str(tmp_path)))
        assert name in text
        assert "checksum" in text
        assert not mark.exists()
        file.write_bytes(before)
    pickle.loads(pickle.dumps(_Trap(mark)))
    assert mark.exists()  # the trap would have shut


def test_a_missing_batch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers.cifar_files(tmp_path, CIFAR, map(str, range(10)), monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_5").unlink()
    assert "data_batch_5: No such file" in error_of(lambda: open_data(str(tmp_path)))


def test_both_editions_in_one_folder_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers.cifar_files(tmp_path, CIFAR, map(str, range(10)), monkeypatch)
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").touch()
    text = error_of(lambda: open_data(str(tmp_path)))
    assert "cifar-10-batches-py and cifar-100-python; give one" in text
    inner = str(tmp_path / "cifar-100-python")
    assert "meta: No such file" in error_of(lambda: open_data(inner))


# --- downloads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_without_a_network_it_is_said_what_to_do(cache: Path, name: str) -> None:
    text = error_of(lambda: open_data(name))
    assert f"{name}: no copy was found here, and the download failed" in text
    assert "no network" in text
    assert str(cache) in text
    assert "or give their folder as DATA" in text
    assert text == error_of(lambda: open_split(name, None, None, 0, "auto"))


def test_a_download_goes_into_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own download, from a server that is only pretended."""
    server = writers.idx_folder(cache.parent / "server", TEN, ".gz")
    sums = [
        (file.name, writers.hashlib.md5(file.read_bytes()).hexdigest()) for file in server.iterdir()
    ]

    def fetch(url: str, filename: Any, *_: Any, **__: Any) -> None:
        Path(filename).write_bytes((server / Path(url).name).read_bytes())

    monkeypatch.setattr(datasets.utils, "_urlretrieve", fetch)
    monkeypatch.setattr(datasets.utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    data = open_data("mnist", "none")
    assert np.array_equal(data.splits["train"].image(7, 1)[..., 0], TEN["train"][0][7])
    assert (cache / "MNIST" / "raw" / IMAGES).is_file()
    (cache / "MNIST" / "raw" / LABELS).unlink()  # as where a download was broken off
    assert len(open_data("mnist", "none").splits["train"]) == 40
    (server / f"{IMAGES}.gz").write_bytes(b"changed")
    for file in (cache / "MNIST" / "raw").iterdir():
        file.unlink()
    assert "download failed" in error_of(lambda: open_data("mnist"))


def test_the_cache_is_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/somewhere")
    assert named.cache() == Path("/somewhere/.cache/skipway")


def test_imagenet_is_not_downloaded(cache: Path) -> None:
    text = error_of(lambda: open_data("imagenet"))
    assert "give the folder of your copy" in text
    assert "ILSVRC/Data/CLS-LOC" in text
