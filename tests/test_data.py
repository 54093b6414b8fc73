"""Sources of labelled images: folders, zips, digits, and how splits are made of them."""

from __future__ import annotations

import io
import itertools
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from skipway.data import open_data, open_split
from skipway.data.forms.folders import walk
from skipway.data.preflight import scan
from skipway.data.split import (
    LARGEST_VALIDATION,
    ArrayReader,
    DataSet,
    Names,
    Split,
    hold_out,
    image_sizes,
    taken,
)
from skipway.errors import InputError
from skipway.images import DecodeError, verify


def picture(value: int, width: int = 4, height: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (value % 256, value // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def files(*folders: str, each: int = 2) -> dict[str, bytes]:
    """So many images, all different, in each folder."""
    names = [f"{folder}/{i:03}.png" for folder in folders for i in range(each)]
    return {name: picture(i) for i, name in enumerate(names)}


def in_folder(place: Path, content: dict[str, bytes]) -> str:
    for name, data in content.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(place)


def in_zip(path: Path, content: dict[str, bytes], root: str = "", folders: bool = False) -> str:
    """A zip, with members for its folders where asked; the order of members is shuffled."""
    names = sorted(content)
    random.Random(0).shuffle(names)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if folders:
            for folder in {str(p) for n in names for p in Path(root + n).parents} - {"."}:
                archive.mkdir(folder)
        for name in names:
            archive.writestr(root + name, content[name])
    return str(path)


def labelled(split: Split, classes: Iterable[str]) -> dict[str, str]:
    names = list(classes)
    return {n: names[y] for n, y in zip(split.names, split.labels.tolist(), strict=True)}


def error_of(action: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as error:
        action()
    text = str(error.value)
    assert len(text.splitlines()) <= 3
    assert not any(ord(char) < 32 and char != "\n" for char in text)
    return text


SPLITS = files("train/ants", "train/bees", "val/ants", "val/bees", "test/ants", "test/bees")
CLUTTER = {
    "train/ants/._000.png": b"Mac",
    "train/ants/.DS_Store": b"Mac",
    "train/ants/notes.txt": b"text",
    "train/.cache/x.png": picture(0),
    "train/ants/.thumbs/x.png": picture(0),
    "__MACOSX/train/ants/000.png": b"Mac",
    "README.md": b"text",
}


# --- folder and zip ---------------------------------------------------------------------------


def description(data: DataSet) -> Any:
    splits = {name: labelled(s, data.classes) for name, s in data.splits.items()}
    pixels = {
        name: [s.image(i, 3)[0, 0].tolist() for i in range(len(s))]
        for name, s in data.splits.items()
    }
    order = {name: s.names[:] for name, s in data.splits.items()}
    return data.classes, splits, pixels, order, data.notes


@pytest.mark.parametrize(
    "content",
    [
        SPLITS,
        SPLITS | CLUTTER,
        files("train/ants", "train/bees", "test/ants", "test/bees", each=20),
        files("ants", "bees", "käfer", each=20),
        {f"train/{c}/deep/{i % 3}/{i}.PNG": picture(i) for c in "ab" for i in range(12)},
    ],
    ids=["splits", "clutter", "no val", "no split", "nested"],
)
@pytest.mark.parametrize(
    ("root", "folders"),
    [("", False), ("", True), ("ants-bees/", False), ("./", False), ("r/", True)],
)
def test_a_zip_is_as_its_folder(
    tmp_path: Path, content: dict[str, bytes], root: str, folders: bool
) -> None:
    expected = open_data(in_folder(tmp_path / "data", content), seed=3)
    found = open_data(in_zip(tmp_path / "data.zip", content, root, folders), seed=3)
    assert description(found) == description(expected)
    for _, names in ((n, s.names) for n, s in found.splits.items()):
        assert not any("__MACOSX" in name or "/." in name for name in names)


def test_a_loose_image_in_a_zip_hides_no_class(tmp_path: Path) -> None:
    content = files("a", "b", each=12) | {"cover.png": picture(99)}
    found = open_data(in_zip(tmp_path / "photos.zip", content, "photos/"))
    assert found.classes == ("a", "b")
    assert sum(map(len, found.splits.values())) == 24


def test_a_folder_around_the_splits_is_passed(tmp_path: Path) -> None:
    in_folder(tmp_path / "outer" / "inner", SPLITS)
    expected = open_data(str(tmp_path / "outer" / "inner"))
    assert description(open_data(str(tmp_path / "outer"))) == description(expected)


def test_names_and_labels(tmp_path: Path) -> None:
    data = open_data(in_folder(tmp_path, SPLITS))
    assert data.classes == ("ants", "bees")
    assert list(data.splits) == ["train", "val", "test"]
    assert labelled(data.splits["train"], data.classes) == {
        "train/ants/000.png": "ants",
        "train/ants/001.png": "ants",
        "train/bees/000.png": "bees",
        "train/bees/001.png": "bees",
    }
    assert data.splits["train"].labels.dtype == np.int64
    assert data.counts("val") == {"ants": 2, "bees": 2}
    assert data.notes == ()


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("val", "val"),
        ("valid", "val"),
        ("validation", "val"),
        ("test", "test"),
        ("Test", "test"),
        ("VAL", "val"),
        ("dev", "val"),
        ("eval", "val"),
        ("Validate", "val"),
    ],
)
@pytest.mark.parametrize("train", ["train", "Train"])
def test_names_of_splits(tmp_path: Path, folder: str, split: str, train: str) -> None:
    """In any case: Train and Test must not be taken for two classes."""
    content = files(f"{train}/a", f"{train}/b", each=10) | files(f"{folder}/a", f"{folder}/b")
    data = open_data(in_folder(tmp_path, content), val="none")
    assert data.classes == ("a", "b")
    assert len(data.splits["train"]) == 20
    assert len(data.splits[split]) == 4
    assert len(data.splits) == 2


@pytest.mark.parametrize("name", ["train", "test", "val"])
def test_a_class_may_have_the_name_of_a_split(tmp_path: Path, name: str) -> None:
    """CIFAR-100 has a class of trains."""
    data = open_data(in_folder(tmp_path, files("bus", name, "zebra", each=10)))
    assert data.classes == tuple(sorted(("bus", name, "zebra")))
    assert list(data.splits) == ["train", "val", "test"]


def test_images_outside_class_folders_are_told(tmp_path: Path) -> None:
    content = files("train/a", "train/b", each=10) | {"test/1.png": picture(1)}
    data = open_data(in_folder(tmp_path, content | {"train/cover.png": picture(2)}))
    assert data.notes[0] == "2 images outside class folders are left out"
    assert list(data.splits) == ["train", "val"]
    assert sum(len(s) for s in data.splits.values()) == 20


def test_folders_beside_splits_are_told_by_name(tmp_path: Path) -> None:
    content = files("train/a", "train/b", each=10) | files("train2/a", each=3)
    data = open_data(in_folder(tmp_path, content | {"cover.png": picture(2)}))
    assert data.notes[:2] == (
        "train2/ is none of train, val, test: its 3 images are left out",
        "1 images outside class folders are left out",
    )


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("training_set/a", "training_set/b", "test_set/a", "test_set/b"), "Rename them to train/"),
        (("X_train/a", "X_train/b", "X_test/a", "X_test/b"), "Rename them to train/"),
        (("a/train", "a/test", "b/train", "b/test"), "splits lie inside the classes"),
        (("a", "b/train", "b/val"), "in b/"),
        (("train", "test"), "without class folders"),
        (("train/a", "train/b", "val/a", "val/b", "dev/a", "dev/b"), "both be val"),
        (("train/train/a", "train/train/b", "test/test/a", "test/test/b"), "nothing but test/"),
        (("seg_train/seg_train/a", "seg_test/seg_test/a"), "nothing but seg_test/"),
        (("bus/day", "bus/night", "train/day", "train/night"), "may be a split or a class"),
    ],
)
def test_splits_are_not_taken_for_classes(
    tmp_path: Path, folders: tuple[str, ...], said: str, zipped: bool
) -> None:
    content = files(*folders, each=10)
    path = (in_zip if zipped else in_folder)(tmp_path / ("d.zip" if zipped else "d"), content)
    text = error_of(lambda: open_data(path))
    assert said in text
    assert len(text.splitlines()) <= 3


@pytest.mark.parametrize(
    "folders",
    [
        ("bullet_train/side", "bullet_train/front", "bus/side", "bus/rear"),  # not the same in each
        ("test_a/x", "test_b/x"),
        ("bottle/small", "bottle/large", "test_tube/small", "test_tube/large"),
        ("bus/small/train", "bus/small/test", "car/small"),  # deeper
    ],
)
def test_classes_are_not_taken_for_splits(tmp_path: Path, folders: tuple[str, ...]) -> None:
    data = open_data(in_folder(tmp_path, files(*folders, each=10)))
    assert data.classes == tuple(sorted({folder.split("/")[0] for folder in folders}))


@pytest.mark.parametrize("inner", ["{}", "train/{}"])
@pytest.mark.parametrize("zipped", [False, True])
def test_one_folder_around_all_is_passed(tmp_path: Path, inner: str, zipped: bool) -> None:
    content = files(*(f"flowers/{inner.format(c)}" for c in "ab"), each=10)
    content["cover.png"] = picture(1)
    path = (in_zip if zipped else in_folder)(tmp_path / ("d.zip" if zipped else "d"), content)
    data = open_data(path)
    assert data.classes == ("a", "b")
    assert sum(map(len, data.splits.values())) == 20
    assert data.notes[0] == "1 images outside class folders are left out"
    split = data.splits["train"]
    assert split.image(0, 3).any()


def test_a_class_beside_an_empty_one_is_no_folder_around_all(tmp_path: Path) -> None:
    in_folder(tmp_path, files("cats/2019", "cats/2020"))
    (tmp_path / "dogs").mkdir()
    assert "'dogs'" in error_of(lambda: open_data(str(tmp_path)))


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "JP2", "pnm", "apng"])
def test_what_is_read_is_an_image_by_any_of_its_names(tmp_path: Path, suffix: str) -> None:
    content = files("a", "b", each=5) | {f"a/x.{suffix}": picture(1)}
    data = open_data(in_folder(tmp_path, content))
    assert sum(map(len, data.splits.values())) == 11


@pytest.mark.parametrize("zipped", [False, True])
def test_files_that_are_no_images_by_their_names_are_told(tmp_path: Path, zipped: bool) -> None:
    content = files("a", "b", each=5) | dict.fromkeys(("a/1.heic", "b/2.HEIC", "b/x", "c.txt"), b"")
    write = in_zip if zipped else in_folder
    path = write(tmp_path / ("d.zip" if zipped else "d"), content)
    told = "3 files in class folders are no images by their names: .heic 2, no suffix 1"
    assert open_data(path).notes[0] == told
    path = write(tmp_path / ("e.zip" if zipped else "e"), content | {"c/3.heic": b""})
    text = error_of(lambda: open_data(path)).splitlines()
    assert "without a training image: 'c'" in text[0]
    assert text[1] == "4 files in class folders are no images by their names: .heic 3, no suffix 1"
    assert len(text) == 3
    path = write(tmp_path / ("f.zip" if zipped else "f"), {"a/1.heic": b"", "b/1.heic": b""})
    assert error_of(lambda: open_data(path)).endswith("by their names: .heic 2")


def test_a_folder_that_is_called_as_an_image_is_none(tmp_path: Path) -> None:
    content = files("a/set.jpg", "b/set.jpg", each=5)
    path = in_zip(tmp_path / "d.zip", content | {"a/set.jpg/": b"", "b/set.jpg/": b""})
    assert sum(map(len, open_data(path).splits.values())) == 10


def test_a_folder_that_cannot_be_looked_into_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_folder(tmp_path, files("train/a", "train/b", "val/a", "val/b", each=4))
    scan = os.scandir

    def refusing(folder: Any) -> Any:
        if Path(folder).name == "val":
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert error_of(lambda: open_data(str(tmp_path))) == f"{tmp_path / 'val'}: Permission denied"


def test_a_link_to_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    in_folder(tmp_path, files("train/a", "train/b", each=4))
    (tmp_path / "val").symlink_to(tmp_path / "unmounted")
    text = error_of(lambda: open_data(str(tmp_path)))
    assert text.startswith(f"{tmp_path / 'val'}: a link to what is not there")


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    in_folder(tmp_path / "real", files("ants"))
    in_folder(tmp_path / "data", files("bees"))
    (tmp_path / "data" / "ants").symlink_to(tmp_path / "real" / "ants")
    assert open_data(str(tmp_path / "data"), "none").classes == ("ants", "bees")


def test_links_back_up_bring_no_image_twice(tmp_path: Path) -> None:
    in_folder(tmp_path / "data", files("ants", "bees"))
    (tmp_path / "elsewhere").mkdir()
    whole = walk(tmp_path / "data")
    (tmp_path / "data" / "ants" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "bees" / "self").symlink_to(".")
    (tmp_path / "data" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    assert walk(tmp_path / "data") == whole
    (tmp_path / "data" / "bees" / "twin").symlink_to(tmp_path / "data" / "ants")  # seen once more
    assert len(walk(tmp_path / "data")) == len(whole) + len(whole) // 2


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    in_folder(tmp_path, {"a.png": b"", "b.png": b""})
    os.mkfifo(tmp_path / "c.png")
    (tmp_path / "d.png").symlink_to("nowhere")  # told of when it is opened
    (tmp_path / "e.png").symlink_to("a.png")
    assert walk(tmp_path) == ["a.png", "b.png", "d.png", "e.png"]


def test_walk_lists_images_in_order(tmp_path: Path) -> None:
    in_folder(tmp_path, dict.fromkeys(("b/2.JPG", "b/1.tiff", "a.webp", "c.txt", ".d/3.png"), b""))
    assert walk(tmp_path) == ["a.webp", "b/1.tiff", "b/2.JPG"]


# --- classes across splits --------------------------------------------------------------------


@pytest.mark.parametrize("split", ["val", "test"])
def test_labels_stay_right_where_a_split_lacks_a_class(tmp_path: Path, split: str) -> None:
    content = files("train/ants", "train/bees", "train/wasps", f"{split}/wasps", f"{split}/bees")
    data = open_data(in_folder(tmp_path, content), val="auto" if split == "val" else "none")
    assert data.classes == ("ants", "bees", "wasps")
    assert set(data.splits[split].labels.tolist()) == {1, 2}
    for name, label in labelled(data.splits[split], data.classes).items():
        assert name.split("/")[1] == label
    assert f"1 of 3 classes have no image in {split}" in data.notes


def test_a_class_that_no_drawn_split_has_is_told(tmp_path: Path) -> None:
    content = files("ants", "bees", each=10) | files("wasps", each=1)
    data = open_data(in_folder(tmp_path, content))
    for name in ("val", "test"):
        assert f"1 of 3 classes have no image in {name}" in data.notes
    assert not any("in train" in note for note in data.notes)


def test_classes_that_differ_in_case_alone_are_told(tmp_path: Path) -> None:
    data = open_data(in_folder(tmp_path, files("Cat", "cat", "dog", each=10)))
    assert data.notes[0] == "classes that differ in case alone: 'Cat' and 'cat'"


def test_an_empty_class_folder_of_validation_is_told(tmp_path: Path) -> None:
    in_folder(tmp_path, files("train/ants", "train/bees", "val/bees"))
    (tmp_path / "val" / "ants").mkdir()
    assert "1 of 2 classes have no image in val" in open_data(str(tmp_path)).notes


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_that_training_lacks_is_refused(tmp_path: Path, split: str) -> None:
    content = files("train/ants", "train/bees", f"{split}/bees", f"{split}/was\x1bps")
    text = error_of(lambda: open_data(in_folder(tmp_path, content)))
    assert split in text
    assert "'was" in text
    assert "'ants', 'bees'" in text


@pytest.mark.parametrize("layout", ["train/{}", "{}"])
@pytest.mark.parametrize("zipped", [False, True])
def test_an_empty_class_folder_of_training_is_refused(
    tmp_path: Path, layout: str, zipped: bool
) -> None:
    content = files(layout.format("ants"), layout.format("bees"))
    content[f"{layout.format('wasps')}/notes.txt"] = b"no image"
    if zipped:
        path = in_zip(tmp_path / "data.zip", content)
    else:
        path = in_folder(tmp_path / "data", content)
    assert "'wasps'" in error_of(lambda: open_data(path))
    # Evaluation does not mind.
    assert open_split(path, None, None, 0, "auto")[2] == ("ants", "bees")


def test_hidden_folders_are_no_empty_classes(tmp_path: Path) -> None:
    in_folder(tmp_path, files("ants", "bees", each=10))
    for name in (".git", "__MACOSX"):
        (tmp_path / name).mkdir()
    assert open_data(str(tmp_path)).classes == ("ants", "bees")


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "[/x]<script>", "\u202eright"])
def test_odd_class_names_are_kept(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for c in (name.replace("/", "_"), "plain"):
        in_folder(folder / c, {f"{i}.png": picture(i) for i in range(10)})
    data = open_data(str(folder))
    assert set(data.classes) == {name.replace("/", "_"), "plain"}
    assert data.splits["train"].image(0, 3).shape == (3, 4, 3)


def test_a_class_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    """Before training, not after it when the card is written."""
    in_folder(tmp_path / "data", files("bees", each=10))
    odd = os.fsencode(tmp_path / "data") + b"/caf\xe9"
    try:
        os.mkdir(odd)
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    Path(os.fsdecode(odd + b"/1.png")).write_bytes(picture(1))
    text = error_of(lambda: open_data(str(tmp_path / "data")))
    assert r"caf\udce9" in text
    assert "UTF-8" in text


def test_a_file_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    in_folder(tmp_path, files("ants", "bees", each=10))
    try:
        Path(os.fsdecode(os.fsencode(tmp_path / "ants") + b"/\xe9.png")).write_bytes(picture(99))
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    data = open_data(str(tmp_path), "none")
    i = next(i for i, n in enumerate(data.splits["train"].names) if "\udce9" in n)
    assert data.splits["train"].image(i, 3)[0, 0].tolist() == [99, 0, 7]


# --- refusals ---------------------------------------------------------------------------------


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    cases = {
        str(tmp_path / "missing\x1b"): "no such folder or file",
        str(tmp_path / "empty"): "no images in class folders",
        str(tmp_path / "text.zip"): "neither a folder nor a zip",
        in_folder(tmp_path / "flat", {"1.png": picture(1), "2.png": picture(2)}): "no images in",
        in_folder(tmp_path / "texts", {"a/1.txt": b"", "b/2.txt": b""}): "no images in",
        in_folder(tmp_path / "one", files("ants")): "one class only ('ants')",
        in_folder(tmp_path / "one2", files("train/ants", "test/ants")): "one class only ('ants')",
        in_folder(tmp_path / "evals", files("val/a", "test/a")): "no train folder",
        in_zip(tmp_path / "none.zip", {"a.txt": b""}): "no images in class folders",
        in_zip(tmp_path / "one.zip", files("ants")): "one class only ('ants')",
    }
    for path, said in cases.items():
        assert said in error_of(lambda path=path: open_data(path)), path


def test_a_member_that_unpacks_to_more_than_an_image_is_left_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = files("ants", "bees", each=20) | {"ants/bomb.png": bytes(5000)}
    whole = open_data(in_zip(tmp_path / "data.zip", content), "none").splits["train"]
    monkeypatch.setattr("skipway.data.split._LARGEST", 4999)
    ((i, reason),) = scan(whole, 1, verify).failed
    assert whole.names[i] == "ants/bomb.png"
    assert reason.endswith("data.zip: ants/bomb.png: 5,000 bytes unpacked, too many for an image")
    monkeypatch.setattr("skipway.data.split._LARGEST", 5000)
    ((_, reason),) = scan(whole, 1, verify).failed
    assert "not an image" in reason


@pytest.mark.parametrize("names", [("training", "testing"), ("Training", "validation")])
def test_other_names_of_splits_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    content = files(*(f"{name}/{c}" for name in names for c in ("ants", "bees")))
    found = open_data(in_folder(tmp_path, content), "none")
    assert found.classes == ("ants", "bees")
    assert list(found.splits) == ["train", "val" if "validation" in names else "test"]


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    path = Path(in_zip(tmp_path / "data.zip", SPLITS))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at : at + 4] = b"XXXX"  # in the directory
    path.write_bytes(content)
    assert "data.zip: damaged zip" in error_of(lambda: open_data(str(path)))
    path.write_bytes(content[: len(content) // 2])
    assert "data.zip" in error_of(lambda: open_data(str(path)))


def test_a_zip_whose_names_are_no_text(tmp_path: Path) -> None:
    path = Path(in_zip(tmp_path / "data.zip", files("a\u00e9", "b", each=1)))
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xff\xff"))
    assert "data.zip: damaged zip" in error_of(lambda: open_data(str(path)))


def member_at(path: Path, name: str) -> int:
    """Where the content of a member begins."""
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(name).header_offset
    lengths = struct.unpack("<HH", path.read_bytes()[offset + 26 : offset + 30])
    return offset + 30 + sum(lengths)


@pytest.mark.parametrize("damage", [b"\xff" * 12, b"\x00" * 12])
def test_a_damaged_member_is_named(tmp_path: Path, damage: bytes) -> None:
    path = Path(in_zip(tmp_path / "data.zip", SPLITS))
    at = member_at(path, "train/bees/001.png")
    content = bytearray(path.read_bytes())
    content[at : at + len(damage)] = damage
    path.write_bytes(content)
    train = open_data(str(path)).splits["train"]
    with pytest.raises(DecodeError, match=r"data\.zip: train/bees/001\.png"):
        train.image(3, 3)
    found = scan(train, 2, verify).failed
    assert [i for i, _ in found] == [3]
    assert "train/bees/001.png" in found[0][1]
    assert train.image(2, 3).shape == (3, 4, 3)


def test_an_encrypted_zip_is_told(tmp_path: Path) -> None:
    path = Path(in_zip(tmp_path / "data.zip", SPLITS))
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := content.find(signature, at + 1)) >= 0:
            content[at + flags] |= 1
    path.write_bytes(content)
    train = open_data(str(path)).splits["train"]
    text = error_of(lambda: train.image(0, 3))
    assert "train/ants/000.png" in text
    assert "encrypted" in text


def test_a_zip_that_went_away_is_named(tmp_path: Path) -> None:
    path = Path(in_zip(tmp_path / "data.zip", SPLITS))
    train = open_data(str(path)).splits["train"]
    path.unlink()
    assert "data.zip" in error_of(lambda: train.image(0, 3))


def test_errors_of_images_name_the_file(tmp_path: Path) -> None:
    content = dict(SPLITS)
    content["train/ants/000.png"] = picture(5)[:40]
    content["train/ants/001.png"] = b"not an image"
    content["train/bees/000.png"] = b""
    train = open_data(in_folder(tmp_path, content)).splits["train"]
    for i, name in enumerate(("train/ants/000.png", "train/ants/001.png", "train/bees/000.png")):
        assert name in error_of(lambda i=i: train.image(i, 3))
    (tmp_path / "train/bees/001.png").unlink()
    assert "train/bees/001.png: No such file" in error_of(lambda: train.image(3, 3))
    assert [i for i, _ in scan(train, 1, verify).failed] == [0, 1, 2, 3]


def first_pixel(split: Split, i: int) -> list[int]:
    return split.image(i, 3)[0, 0].tolist()


def test_a_zip_is_read_by_threads_and_processes(tmp_path: Path) -> None:
    train = open_data(in_zip(tmp_path / "x.zip", files("a", "b", each=30)), "none").splits["train"]
    expected = [first_pixel(train, i) for i in range(60)]
    assert len(set(map(tuple, expected))) == 60
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(first_pixel, itertools.repeat(train), range(60))) == expected
    with ProcessPoolExecutor(2) as processes:  # forked or not, each opens its own
        found = processes.map(first_pixel, itertools.repeat(train), range(60), chunksize=15)
        assert list(found) == expected
    assert first_pixel(train, 7) == expected[7]


# --- splits that are made ---------------------------------------------------------------------


def test_a_tenth_of_train_becomes_validation(tmp_path: Path) -> None:
    content = files("train/a", each=40) | files("train/b", each=20) | files("test/a", "test/b")
    path = in_folder(tmp_path, content)
    data = open_data(path, seed=5)
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 54, "val": 6, "test": 4}
    assert data.counts("val") == {"a": 4, "b": 2}
    assert data.notes == ("6 of the training images became validation (stratified, seed 5)",)
    together = {**labelled(data.splits["train"], "ab"), **labelled(data.splits["val"], "ab")}
    assert together == {n: n.split("/")[1] for n in content if n.startswith("train")}
    assert description(open_data(path, seed=5)) == description(data)
    assert set(open_data(path, seed=6).splits["val"].names) != set(data.splits["val"].names)
    assert set(open_data(path, seed=6).splits["test"].names) == set(data.splits["test"].names)


def test_a_share_of_ones_own(tmp_path: Path) -> None:
    path = in_folder(tmp_path, files("train/a", "train/b", "test/a", each=20))
    assert open_data(path, 0.25).counts("val") == {"a": 5, "b": 5}
    for share in (0.0, 1.0, -0.1, 1.5, float("nan")):
        assert "--val" in error_of(lambda share=share: open_data(path, share))
        assert "--val" in error_of(lambda share=share: open_data("digits", share))


def test_no_validation(tmp_path: Path) -> None:
    content = files("train/a", "train/b", "test/a", "test/b", each=10)
    data = open_data(in_folder(tmp_path / "1", content), "none")
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 20, "test": 20}
    data = open_data(in_folder(tmp_path / "2", files("a", "b", each=10)), "none")
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 20}
    data = open_data(in_folder(tmp_path / "3", SPLITS), "none")
    assert list(data.splits) == ["train", "val", "test"]  # for the last score only


def test_a_share_beside_a_validation_folder_is_refused(tmp_path: Path) -> None:
    path = in_folder(tmp_path, SPLITS)
    assert "--val 0.2" in error_of(lambda: open_data(path, 0.2))


def test_without_splits_80_10_10(tmp_path: Path) -> None:
    path = in_folder(tmp_path, files("a", "b", each=50))
    data = open_data(path, seed=1)
    assert {n: data.counts(n) for n in data.splits} == {
        "train": {"a": 40, "b": 40},
        "val": {"a": 5, "b": 5},
        "test": {"a": 5, "b": 5},
    }
    assert data.notes[0] == "no split given: 10 images became test (stratified, seed 1)"
    everything = [n for s in data.splits.values() for n in s.names]
    assert sorted(everything) == walk(Path(path))
    counts = {n: len(s) for n, s in open_data(path, 0.2).splits.items()}
    assert counts == {"train": 72, "val": 18, "test": 10}


def test_too_few_images_to_hold_out(tmp_path: Path) -> None:
    path = in_folder(tmp_path, files("train/a", "train/b", each=1))
    assert "--val none" in error_of(lambda: open_data(path))
    assert len(open_data(path, "none").splits["train"]) == 2
    path = in_folder(tmp_path / "no split", files("a", "b", each=2))
    assert "--val none" in error_of(lambda: open_data(path))


# --- hold_out ---------------------------------------------------------------------------------


def made_up(labels: np.ndarray) -> Split:
    names = Names(map(str, range(len(labels))))
    return Split(ArrayReader(np.zeros((1, 1, 1, 1), np.uint8)), names, labels)


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=200),
    st.floats(0.01, 0.99),
    st.integers(0, 2**40),
)
def test_hold_out(labels: list[int], share: float, seed: int) -> None:
    split = made_up(np.array(labels, np.int64))
    rest, held = hold_out(split, share, seed)
    for part in (rest, held):
        positions = [int(n) for n in part.names]
        assert positions == sorted(positions)
        assert part.labels.tolist() == [labels[i] for i in positions]
    assert sorted([*rest.names, *held.names], key=int) == split.names[:]  # disjoint and complete
    for label in set(labels):
        n, out = labels.count(label), held.labels.tolist().count(label)
        assert out < n
        assert out >= (n > 1)
        assert abs(out - share * n) <= 1
    again = hold_out(split, share, seed)[1]
    assert again.names[:] == held.names[:]


def test_hold_out_by_seed() -> None:
    split = made_up(np.arange(1000) % 3)
    found = {tuple(hold_out(split, 0.1, seed)[1].names[:]) for seed in range(5)}
    assert len(found) == 5
    chosen = np.zeros(1000)
    for seed in range(300):
        chosen[[int(n) for n in hold_out(split, 0.1, seed)[1].names]] += 1
    assert chosen.min() > 10  # 30 expected: every image is held out by some seeds
    assert chosen.max() < 60


@pytest.mark.parametrize(
    "sizes", [[60_000, 20_000], [130] * 900 + [73] * 100, [100] * 1100, [50_000] + [3] * 100]
)
def test_at_most_5000_are_held_out(sizes: list[int]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    _, held = hold_out(made_up(labels), 0.1, 0, LARGEST_VALIDATION)
    counts = np.bincount(held.labels, minlength=len(sizes))
    assert LARGEST_VALIDATION * 0.9 <= counts.sum() <= LARGEST_VALIDATION
    assert counts.min() >= 1
    assert np.abs(counts - np.array(sizes) * LARGEST_VALIDATION / sum(sizes)).max() <= 200


def test_more_classes_than_5000() -> None:
    _, held = hold_out(made_up(np.repeat(np.arange(6000), 20)), 0.1, 0, LARGEST_VALIDATION)
    assert np.bincount(held.labels).tolist() == [1] * 6000


# --- digits -----------------------------------------------------------------------------------


def test_few_are_taken_of_each_class_its_share(tmp_path: Path) -> None:
    content = files("train/a", each=30) | files("train/b", each=10) | files("train/c", "val/a")
    whole = open_data(in_folder(tmp_path, content))
    few = taken(whole, 21, 0)
    assert few.counts("train") == {"a": 15, "b": 5, "c": 1}
    assert few.counts("val") == whole.counts("val")
    assert few.digest() == whole.digest()  # the same data, of which something is held out
    assert few.notes[-1] == "learned from 21 of 42 training images (data.take)"
    assert set(few.splits["train"].names) < set(whole.splits["train"].names)
    again, other = taken(whole, 21, 0), taken(whole, 21, 1)
    assert list(again.splits["train"].names) == list(few.splits["train"].names)
    assert list(other.splits["train"].names) != list(few.splits["train"].names)
    with pytest.raises(InputError, match=r"data\.take = 42: .* has 42 training images"):
        taken(whole, 42, 0)


def test_digits() -> None:
    data = open_data("digits")
    sizes = {n: len(s) for n, s in data.splits.items()}
    assert sum(sizes.values()) == 1797
    assert {n: round(size / 1797, 2) for n, size in sizes.items()} == {
        "train": 0.7,
        "val": 0.1,
        "test": 0.2,
    }
    assert data.classes == tuple("0123456789")
    truth = load_digits()
    everything: list[str] = []
    for split in data.splits.values():
        everything += split.names[:]
        for i in (0, len(split) - 1):
            at = int(Path(split.names[i]).stem)
            assert truth.target[at] == split.labels[i]
            image = split.image(i, 1)
            assert image.shape == (8, 8, 1)
            assert np.abs(image[..., 0] / 255 * 16 - truth.images[at]).max() <= 16 / 255 / 2
        share = np.bincount(split.labels) / np.bincount(truth.target)
        assert np.ptp(share) < 0.02  # stratified
    assert len(set(everything)) == 1797


def test_the_split_of_digits_is_fixed() -> None:
    expected = description(open_data("digits", seed=0))
    assert description(open_data("digits", seed=99)) == expected
    names = "".join(n for s in open_data("digits").splits.values() for n in s.names)
    assert zlib.crc32(names.encode()) == 1565807211  # a change makes recorded results incomparable


def test_digits_without_and_with_other_validation() -> None:
    auto = open_data("digits")
    none, half = open_data("digits", "none"), open_data("digits", 0.5)
    assert list(none.splits) == ["train", "test"]
    for data in (none, half):
        assert data.splits["test"].names[:] == auto.splits["test"].names[:]
    together = {*auto.splits["train"].names, *auto.splits["val"].names}
    assert set(none.splits["train"].names) == together
    assert abs(len(half.splits["val"]) - len(half.splits["train"])) <= 10


# --- open_split -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "chosen"),
    [
        (("train", "val", "test"), "test"),
        (("train", "valid"), "val"),
        (("val", "test"), "test"),
        (("test",), "test"),
        (("train",), "train"),
        ((), "all"),
    ],
)
def test_the_split_of_an_evaluation(tmp_path: Path, folders: tuple[str, ...], chosen: str) -> None:
    places = [f"{f}/{c}" for f in folders for c in "ab"] or ["a", "b"]
    path = in_folder(tmp_path, files(*places, each=3))
    name, split, classes = open_split(path, None, None, 0, "auto")
    assert (name, classes, len(split)) == (chosen, ("a", "b"), 6)
    for n, label in labelled(split, classes).items():
        assert n.split("/")[-2] == label


def test_labels_count_the_classes_of_the_model(tmp_path: Path) -> None:
    known = ("wasps", "bees", "moths", "ants")
    path = in_folder(tmp_path, SPLITS)
    _, split, classes = open_split(path, "test", known, 0, "auto")
    assert classes == known
    assert split.labels.tolist() == [3, 3, 1, 1]
    text = error_of(lambda: open_split(path, None, ("bees", "moths"), 0, "auto"))
    assert "'ants'" in text
    assert "'bees', 'moths'" in text


def test_derived_splits_count_the_classes_of_the_model(tmp_path: Path) -> None:
    known = ("wasps", "bees", "ants")
    path = in_folder(tmp_path, files("ants", "bees", each=20))
    _, split, classes = open_split(path, "test", known, 0, "auto")
    assert classes == known
    for n, label in labelled(split, classes).items():
        assert n.split("/")[0] == label
    assert "'ants'" in error_of(lambda: open_split(path, "test", ("bees",), 0, "auto"))
    _, digits, _ = open_split("digits", "val", tuple("9876543210"), 0, "auto")
    assert np.array_equal(9 - digits.labels, open_data("digits").splits["val"].labels)


@pytest.mark.parametrize("val", ["auto", 0.3])
def test_derived_splits_are_those_of_training(tmp_path: Path, val: Any) -> None:
    whole = in_folder(tmp_path / "1", files("a", "b", each=30))
    halves = in_folder(tmp_path / "2", files("train/a", "train/b", "test/a", "test/b", each=30))
    for path, names in (
        (whole, ("train", "val", "test")),
        (halves, ("val", "test")),
        ("digits", ("train", "val", "test")),
    ):
        data = open_data(path, val, seed=7)
        for name in names:
            found = open_split(path, name, data.classes, 7, val)[1]
            assert labelled(found, data.classes) == labelled(data.splits[name], data.classes)


def test_without_validation_in_training_there_is_none_to_score(tmp_path: Path) -> None:
    """What a run trained on must not pass for held-out images."""
    whole = in_folder(tmp_path / "1", files("a", "b", each=30))
    halves = in_folder(tmp_path / "2", files("train/a", "train/b", "test/a", "test/b", each=30))
    for path, split in ((whole, "val"), (whole, "test"), (halves, "val"), ("digits", "val")):
        assert "--split" in error_of(lambda p=path, s=split: open_split(p, s, None, 0, "none"))


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    path = in_folder(tmp_path, SPLITS)
    text = error_of(lambda: open_split(path, "all", None, 0, "auto"))
    assert all(name in text for name in ("train", "val", "test"))
    assert "--split x" in error_of(lambda: open_split(path, "x", None, 0, "auto"))
    assert "--split x" in error_of(lambda: open_split("digits", "x", None, 0, "auto"))
    only_val = in_folder(tmp_path / "v", files("train/a", "train/b", "val/a", each=5))
    # A share in the recipe is no reason to complain of the validation folder.
    assert "--split test" in error_of(lambda: open_split(only_val, "test", None, 0, 0.2))
    assert "no such folder" in error_of(
        lambda: open_split(str(tmp_path / "y"), None, None, 0, "auto")
    )


# --- names and splits in memory ---------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=12))
def test_names_are_a_sequence(names: list[str]) -> None:
    found = Names(iter(names))
    assert len(found) == len(names)
    assert list(found) == names
    assert found[:] == names
    assert found[::-2] == names[::-2]
    assert [found[-i - 1] for i in range(len(names))] == names[::-1]
    assert pickle.loads(pickle.dumps(found))[:] == names
    with pytest.raises(IndexError):
        found[len(names)]


def test_names_keep_bytes_that_are_no_text() -> None:
    assert Names(["caf\udce9", "é"])[:] == ["caf\udce9", "é"]


def test_a_million_names_are_small() -> None:
    names = Names(f"train/class{i % 1000:04}/{i:08}.jpg" for i in range(1_000_000))
    assert names[999_999] == "train/class0999/00999999.jpg"
    size = len(pickle.dumps(names, protocol=5))
    assert size < 40_000_000  # 28 bytes of name and 8 of place each; as strings about 80 MB


def test_take_keeps_the_order_given() -> None:
    split = made_up(np.array([3, 1, 4, 1, 5]))
    part = split.take(np.array([4, 0, 0]))
    assert part.names[:] == ["4", "0", "0"]
    assert part.labels.tolist() == [5, 3, 3]


def test_sizes_of_images(tmp_path: Path) -> None:
    content = {f"{c}/{i}.png": picture(i, 10 + i, 20 + i) for c in "ab" for i in range(5)}
    train = open_data(in_folder(tmp_path, content), "none").splits["train"]
    assert image_sizes(train).tolist() == [[20 + i, 10 + i] for i in range(5)] * 2
    few = image_sizes(train, 2).tolist()
    assert few == [[20, 10], [24, 14]]
    for name in list(content)[:9]:
        (tmp_path / name).write_bytes(b"x")
    assert image_sizes(train).tolist() == [[24, 14]]
    (tmp_path / "b/4.png").write_bytes(b"x")
    assert "a/0.png" in error_of(lambda: image_sizes(train))
