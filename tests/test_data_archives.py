"""Tars and npz files: what their writers can do to them."""

from __future__ import annotations

import io
import itertools
import os
import shlex
import subprocess
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import writers
from skipway.data import open_data, open_split
from skipway.data.preflight import scan
from skipway.images import DecodeError, verify
from writers import error_of

MADE = writers.content(side=8)
HELD = writers.files(MADE, ("ants", "bees"))


def described(path: Path) -> Any:
    data = open_data(str(path), "none")
    return (
        data.classes,
        data.notes,
        {
            name: (s.names[:], s.labels.tolist(), [s.image(i, 1).tolist() for i in range(len(s))])
            for name, s in data.splits.items()
        },
    )


# --- tar ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", "./", "photos/", "./photos/", "/photos/", "//", "é/"])
@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_is_as_its_folder(tmp_path: Path, root: str, kind: int) -> None:
    path = tmp_path / "data.tar"
    with tarfile.open(path, "w", format=kind) as archive:
        for name in ("", "train", "train/ants", "test"):
            folder = tarfile.TarInfo((root + name).rstrip("/") or ".")
            folder.type = tarfile.DIRTYPE
            archive.addfile(folder)
        for name in reversed(HELD):
            member = tarfile.TarInfo(root + name)
            member.size = len(HELD[name])
            archive.addfile(member, io.BytesIO(HELD[name]))
    assert described(path) == described(writers.folder(tmp_path / "data", HELD))


def test_the_tar_command_writes_what_is_read(tmp_path: Path) -> None:
    long = {name.replace("ants/", f"ants/{'deep/' * 30}"): data for name, data in HELD.items()}
    place = writers.folder(tmp_path / "data", long)
    path = tmp_path / "data.tar"
    try:
        subprocess.run(["tar", "-cf", path, "-C", place, "."], check=True)
    except FileNotFoundError:
        pytest.skip("no tar command here")
    assert described(path) == described(place)


def test_the_last_member_of_a_name_counts(tmp_path: Path) -> None:
    path = writers.tarred(tmp_path / "data.tar", dict.fromkeys(HELD, b"old"))
    writers.tarred(path, HELD, "a")
    assert described(path)[2] == described(writers.folder(tmp_path / "data", HELD))[2]


def test_hostile_members_are_harmless(tmp_path: Path) -> None:
    """Nothing is written, no link is followed, no name leaves the tar."""
    secret = writers.folder(tmp_path / "outside", {"secret.png": writers.png(MADE["train"][0][0])})
    path = writers.tarred(tmp_path / "data.tar", HELD)
    before = set(tmp_path.rglob("*"))
    odd = "train/ants/\x1b[31m\n\u202e.png"
    with tarfile.open(path, "a") as archive:
        for name, kind, link in (
            ("train/ants/link.png", tarfile.SYMTYPE, str(secret / "secret.png")),
            ("train/ants/hard.png", tarfile.LNKTYPE, "train/ants/000.png"),
            ("train/ants/pipe.png", tarfile.FIFOTYPE, ""),
            ("train/ants/device.png", tarfile.CHRTYPE, ""),
            ("train/../../escape.png", tarfile.REGTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)
        member = tarfile.TarInfo(odd)
        member.size = 3
        archive.addfile(member, io.BytesIO(b"bad"))
    data = open_data(str(path), "none")
    train = data.splits["train"]
    assert set(train.names) == {n for n in HELD if n.startswith("train")} | {odd}
    assert "5 members of the tar are left out" in data.notes[0]
    at = train.names[:].index(odd)
    text = error_of(lambda: train.image(at, 3))
    assert "\\x1b[31m\\n\\u202e.png" in text
    assert [i for i, _ in scan(train, 2, verify).failed] == [at]
    assert set(tmp_path.rglob("*")) == before


def test_a_tar_that_was_cut_is_told(tmp_path: Path) -> None:
    path = writers.tarred(tmp_path / "data.tar", HELD)
    whole = path.read_bytes()
    ends = len(b"".join(d + bytes(512 + -len(d) % 512) for d in HELD.values()))
    for length in (ends - 1, ends - 600, ends // 2, ends, 700, 512):
        path.write_bytes(whole[:length])
        assert "data.tar: damaged tar: " in error_of(lambda: open_data(str(path))), length
    path.write_bytes(whole[: ends + 512])
    assert len(open_data(str(path), "none").splits["train"]) == 12
    changed = bytearray(whole)
    at = whole.index(b"test/bees/003.png")
    changed[at + 4] ^= 1  # tarfile's own listing would end here without a word
    path.write_bytes(changed)
    assert f"no header at byte {at:,}" in error_of(lambda: open_data(str(path)))


def test_a_tar_that_changed_since_is_told(tmp_path: Path) -> None:
    path = writers.tarred(tmp_path / "data.tar", HELD)
    train = open_data(str(path), "none").splits["train"]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DecodeError, match=r"data\.tar: train/bees/011\.png: the tar ends"):
        train.image(11, 3)
    again = open_data(str(writers.tarred(path, HELD)), "none").splits["train"]
    path.unlink()
    with pytest.raises(DecodeError, match="No such file"):
        again.image(0, 3)


def test_threads_that_open_a_tar_at_once_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first opens it and waits; the second opens it too and is about to read meanwhile."""
    path = writers.tarred(tmp_path / "data.tar", HELD)
    train = open_data(str(path), "none").splits["train"]
    opens, opened, pread = itertools.count(), Path.open, os.pread
    second_reads, both_read = threading.Event(), threading.Event()

    def slow(self: Path, *arguments: Any) -> Any:
        file = opened(self, *arguments)
        if next(opens) == 0:
            second_reads.wait(10)
        return file

    def late(*arguments: Any) -> bytes:
        (both_read if second_reads.is_set() else second_reads).set()
        both_read.wait(10)
        return pread(*arguments)

    monkeypatch.setattr(Path, "open", slow)
    monkeypatch.setattr(os, "pread", late)
    with ThreadPoolExecutor(2) as pool:
        images = list(pool.map(lambda i: train.image(i, 1)[..., 0], (0, 1)))
    assert next(opens) == 2
    assert np.array_equal(images, MADE["train"][0][:2])


def test_an_empty_class_folder_in_a_tar_is_told(tmp_path: Path) -> None:
    path = writers.tarred(tmp_path / "data.tar", HELD)
    with tarfile.open(path, "a") as archive:
        folder = tarfile.TarInfo("train/wasps")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert "'wasps'" in error_of(lambda: open_data(str(path)))


def test_a_tar_without_images(tmp_path: Path) -> None:
    for held in ({}, {"a/1.txt": b"x"}, {"1.png": HELD["train/ants/000.png"]}):
        path = writers.tarred(tmp_path / "data.tar", held)
        assert "no images in class folders" in error_of(lambda path=path: open_data(str(path)))


@pytest.mark.parametrize(("mode", "suffix"), [("w:gz", "gz"), ("w:bz2", "bz2"), ("w:xz", "xz")])
def test_a_compressed_tar_says_how_to_unpack_it(tmp_path: Path, mode: str, suffix: str) -> None:
    """The command that it gives is run."""
    (tmp_path / "a b").mkdir()
    path = writers.tarred(tmp_path / "a b" / f"my data.tar.{suffix}", HELD, mode)
    text = error_of(lambda: open_data(str(path)))
    kind = {"gz": "gzip", "bz2": "bzip2", "xz": "xz"}[suffix]
    assert f"my data.tar.{suffix}: compressed with {kind}" in text
    command = text.splitlines()[1].removeprefix("Unpack it: ")
    assert shlex.split(command)[:2] == ["mkdir", "my data"]
    try:
        subprocess.run(["tar", "--version"], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no tar command here")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, capture_output=True)
    assert len(open_data(str(tmp_path / "my data"), "none").splits["train"]) == 12


def test_a_tar_compressed_with_zstd_is_told(tmp_path: Path) -> None:
    path = tmp_path / "data.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(60))
    assert "compressed with zstd" in error_of(lambda: open_data(str(path)))


# --- npz ----------------------------------------------------------------------------------------


def arrays(**more: Any) -> dict[str, Any]:
    """A whole npz of two splits, with some arrays changed."""
    found = {
        f"{split}_{what}": values
        for split, (pixels, labels) in MADE.items()
        for what, values in (("images", pixels), ("labels", labels[:, None]))
    } | more
    return {key: value for key, value in found.items() if value is not None}


def saved(path: Path, held: dict[str, Any]) -> str:
    np.savez(path, **held)
    return str(path)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.uint16])
def test_npz_as_numpy_reads_it(tmp_path: Path, flat: bool, kind: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 5, 7, 3), np.uint8)
    labels = np.arange(12)[::-1] % 11  # ten and more: 10 does not come before 2
    made = {
        "train_images": pixels, "train_labels": labels.astype(kind),
        "val_images": pixels[:4], "val_labels": labels[:4].astype(kind),
        "test_images": np.asfortranarray(pixels[4:]), "test_labels": labels[4:].astype(kind),
    }  # fmt: skip
    if not flat:
        made |= {key: value[:, None] for key, value in made.items() if key.endswith("labels")}
    path = saved(tmp_path / "data.npz", made)
    data = open_data(path)
    assert data.classes == tuple(str(i) for i in range(11))
    assert list(data.splits) == ["train", "val", "test"]
    with np.load(path, allow_pickle=False) as peer:
        for name, split in data.splits.items():
            assert split.labels.tolist() == peer[f"{name}_labels"].reshape(-1).tolist()
            found = np.stack([split.image(i, 3) for i in range(len(split))])
            assert np.array_equal(found, peer[f"{name}_images"])
    assert data.channels == 3
    assert open_split(path, None, None, 0, "auto")[0] == "test"


def test_npz_of_numbers_with_gaps(tmp_path: Path) -> None:
    labels = {"train_labels": np.repeat([3, 7], 6), "test_labels": np.repeat([7, 3], 3)}
    data = open_data(saved(tmp_path / "data.npz", arrays(**labels)), "none")
    assert data.classes == ("3", "7")
    assert data.splits["test"].labels.tolist() == [1, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("order", ["<", ">"])
def test_npz_that_names_its_classes(tmp_path: Path, order: str) -> None:
    names = np.array(["zebra", "ärger"]).astype(np.dtype("U7").newbyteorder(order))
    data = open_data(saved(tmp_path / "data.npz", arrays(class_names=names)), "none")
    assert data.classes == ("zebra", "ärger")
    assert data.splits["train"].labels.tolist() == MADE["train"][1].tolist()
    assert data.notes == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train_labels": np.eye(14)[:12].astype(int)}, "several labels an image"),
        ({"train_images": np.zeros((12, 8, 8, 8), np.uint8)}, "(12, 8, 8, 8); give [N, H, W]"),
        ({"train_images": np.zeros((12, 3, 8, 8), np.uint8)}, "(12, 3, 8, 8); give [N, H, W]"),
        ({"train_images": np.zeros((12, 64), np.uint8)}, "(12, 64); give [N, H, W]"),
        ({"train_images": np.zeros((12, 8, 8))}, "is float64; give uint8"),
        ({"train_images": np.zeros((12, 8, 8), np.int64)}, "is int64; give uint8"),
        ({"train_images": np.zeros((0, 8, 8), np.uint8)}, "train_images is empty"),
        ({"train_labels": np.zeros(12)}, "is float64 of shape (12,); give whole numbers"),
        ({"train_labels": np.array(["a"] * 12)}, "is <U1 of shape (12,); give whole numbers"),
        ({"train_labels": np.arange(12, dtype=np.uint64) << 60}, "too large for a label"),
        ({"train_labels": np.zeros((12, 1, 1), int)}, "give whole numbers, [N] or [N, 1]"),
        ({"train_labels": np.zeros(11, int)}, "12 train_images, but 11 train_labels"),
        ({"train_labels": None}, "train_labels is missing"),
        ({"test_images": None}, "test_images is missing"),
        ({"test_images": np.zeros((6, 8, 8, 3), np.uint8)}, "grey images in one split, colour"),
        ({"test_labels": np.full(6, 5)}, "unknown classes: '5'"),
        ({"train_labels": np.zeros(12, int), "test_labels": np.zeros(6, int)}, "one class only"),
        ({"train_images": None, "train_labels": None}, "no train"),
        ({"class_names": np.array(["a"])}, "labels from 0 to 1, but 1 class_names"),
        ({"class_names": np.array(["a", "a"])}, "class_names is <U1 of shape (2,); give text"),
        ({"class_names": np.array(["a", ""])}, "class_names is <U1"),
        ({"class_names": np.array([["a", "b"]])}, "class_names is <U1 of shape (1, 2)"),
        ({"class_names": np.arange(2)}, "class_names is int64"),
        ({"class_names": np.array([0x7FFFFFFF, 65], "<u4").view("<U1")}, "class_names is <U1"),
    ],
)
def test_npz_that_is_no_data_set(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    path = saved(tmp_path / "data.npz", arrays(**changed))
    text = error_of(lambda: open_data(path))
    assert said in text
    assert "data.npz" in text


def test_npz_of_other_arrays(tmp_path: Path) -> None:
    text = error_of(lambda: open_data(saved(tmp_path / "data.npz", {"x": [1], "y\x1b": [2]})))
    assert "data.npz: holds x, y\\x1b\n" in text
    assert "train_images" in text


class _Trap:
    """An object that, when it is unpickled, leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("key", ["train_images", "train_labels", "class_names"])
def test_npz_with_pickled_objects(tmp_path: Path, key: str) -> None:
    mark = tmp_path / "mark"
    held = arrays(**{key: np.array([_Trap(mark)] * 12, object)})
    path = saved(tmp_path / "data.npz", held)
    text = error_of(lambda: open_data(path))
    assert f"data.npz: {key} holds pickled Python objects" in text
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as peer:
        peer[key]
    assert mark.exists()  # the trap would have shut


def test_npz_that_is_damaged(tmp_path: Path) -> None:
    whole = {key: io.BytesIO() for key in arrays()}
    for key, value in arrays().items():
        np.save(whole[key], value)
    lying = whole["train_images"].getvalue().replace(b"(12, 8, 8)", b"(99999999, 8, 8)")
    old = len(whole["train_images"].getvalue()) - len(lying)
    cases = {
        "no array": b"nonsense",
        "empty": b"",
        "no header": b"\x93NUMPY\x01\x00",
        "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
        "no dtype": b"\x93NUMPY\x01\x00\x10\x00{'descr': 3}    \n",
        "no width": whole["train_images"].getvalue().replace(b"'|u1'", b"'|S0'"),
        "lying": lying.replace(b" " * -old, b"", 1),
        "cut": whole["train_images"].getvalue()[:-1],
    }
    for name, content in cases.items():
        path = tmp_path / f"{name}.npz"
        held = {f"{key}.npy": value.getvalue() for key, value in whole.items()}
        writers.zipped(path, held | {"train_images.npy": content})
        text = error_of(lambda path=path: open_data(str(path)))
        assert f"{name}.npz: train_images is" in text
    damaged = tmp_path / "compressed.npz"
    np.savez_compressed(damaged, **arrays())
    with zipfile.ZipFile(damaged) as archive:
        at = archive.getinfo("train_images.npy").header_offset + 100
    content = bytearray(damaged.read_bytes())
    content[at : at + 20] = bytes(20)
    damaged.write_bytes(content)
    assert "train_images is damaged" in error_of(lambda: open_data(str(damaged)))
