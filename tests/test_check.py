"""The preflight: everything it tells is planted here, or counted by hashlib, Pillow or by hand."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.cells import cell_len

from commands import QUICK, Answer, call, draw
from skipway.check import FEW, SHOWN, UNEVEN, Look, check, look
from skipway.data import DataSet, open_data, preflight
from skipway.data.feed import decode_all
from skipway.data.objects import form_of
from skipway.data.preflight import (
    DIGEST,
    Scan,
    content_digest,
    default_size,
    find_copies,
    readable_counts,
    remarks,
    scan,
)
from skipway.data.split import ArrayReader, Names, Split
from skipway.errors import InputError
from skipway.images import DecodeError, Preprocess, decode, verify
from skipway.training.plan import make_plan

KINDS = {
    "unreadable": True,
    "missing_in_train": True,
    "leak": True,
    "label_conflict": True,
    "no_pair": True,
    "missing_elsewhere": False,
    "duplicate": False,
    "uneven": False,
    "small_class": False,
    "small_image": False,
}
"""What is looked for, and whether it is a problem."""


def clean(root: Path) -> Path:
    """Two classes, split, with nothing wrong."""
    draw(root / "train", ("ants", "bees"), n=FEW, seed=1)
    draw(root / "val", ("ants", "bees"), n=3, seed=2)
    return root


def found_in(answer: Answer) -> dict[str, list[Any]]:
    """What a report in JSON found, by kind; that it is as every report is, is checked here."""
    report = answer.value
    assert set(report) == {
        "data", "ok", "classes", "notes", "input_size", "imbalance", "splits", "findings",
    }  # fmt: skip
    findings = report["findings"]
    assert {kind: f["problem"] for kind, f in findings.items()} == KINDS
    assert all(f["count"] == len(f["items"]) for f in findings.values())
    found = {kind: f["items"] for kind, f in findings.items() if f["items"]}
    assert report["ok"] == (not any(KINDS[kind] for kind in found))
    assert answer.code == (0 if report["ok"] else 1)
    return found


# --- one of each ------------------------------------------------------------------------------


def unreadable(root: Path) -> list[Any]:
    whole = (root / "train/ants/00.png").read_bytes()
    (root / "train/ants/cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "val/bees/empty.jpg").write_bytes(b"")
    (root / "val/bees/text.jpg").write_bytes(b"no image at all")
    # Damaged alike, they are damaged and nothing else.
    (root / "train/bees/empty too.jpg").write_bytes(b"")
    return [
        {"split": "train", "name": "train/ants/cut.png"},
        {"split": "train", "name": "train/bees/empty too.jpg"},
        {"split": "val", "name": "val/bees/empty.jpg"},
        {"split": "val", "name": "val/bees/text.jpg"},
    ]


def class_unreadable(root: Path) -> list[Any]:
    for path in (root / "train/bees").iterdir():
        path.write_bytes(path.name.encode())
    return [{"split": "train", "class": "bees"}]


def leak(root: Path) -> list[Any]:
    shutil.copy(root / "train/ants/03.png", root / "val/ants/other name.png")
    shutil.copy(root / "train/bees/04.png", root / "val/bees/99.png")
    pairs = (
        ("train/ants/03.png", "val/ants/other name.png"),
        ("train/bees/04.png", "val/bees/99.png"),
    )
    return [{"splits": ["train", "val"], "names": list(pair)} for pair in pairs]


def conflict(root: Path) -> list[Any]:
    shutil.copy(root / "train/ants/03.png", root / "train/bees/03b.png")
    images = ("train/ants/03.png", "ants"), ("train/bees/03b.png", "bees")
    return [{"images": [{"split": "train", "name": n, "class": c} for n, c in images]}]


def no_pair(root: Path) -> list[Any]:
    for path in (root / "val").glob("*/0[12].png"):
        path.unlink()
    return [{"split": "val"}]


def class_not_in_val(root: Path) -> list[Any]:
    shutil.rmtree(root / "val/bees")
    return [{"split": "val", "class": "bees"}]


def duplicate(root: Path) -> list[Any]:
    for name in ("a", "b"):
        shutil.copy(root / "val/bees/00.png", root / f"val/bees/{name}.png")
    names = ["val/bees/00.png", "val/bees/a.png", "val/bees/b.png"]
    return [{"split": "val", "class": "bees", "names": names}]


def uneven(root: Path) -> list[Any]:
    draw(root / "train", ("ants",), n=FEW * UNEVEN, seed=9)
    return [{"class": "bees", "images": FEW}, {"class": "ants", "images": FEW * UNEVEN}]


def small_class(root: Path) -> list[Any]:
    (root / "train/ants/00.png").unlink()
    return [{"class": "ants", "images": FEW - 1}]


def small_image(root: Path) -> list[Any]:
    Image.new("RGB", (30, 7), "red").save(root / "val/ants/strip.png")
    return [{"split": "val", "name": "val/ants/strip.png", "width": 30, "height": 7}]


PLANTS: dict[str, Callable[[Path], list[Any]]] = {
    "unreadable": unreadable,
    "missing_in_train": class_unreadable,
    "leak": leak,
    "label_conflict": conflict,
    "no_pair": no_pair,
    "missing_elsewhere": class_not_in_val,
    "duplicate": duplicate,
    "uneven": uneven,
    "small_class": small_class,
    "small_image": small_image,
}


ASKED = {"no_pair": ["--task=embed"]}
"""What is found only where it is asked for."""


def packed(root: Path) -> Path:
    """The folder as a zip."""
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(root))
    return path


def test_each_kind_is_planted() -> None:
    assert PLANTS.keys() == KINDS.keys()


@pytest.mark.parametrize("form", [Path, packed], ids=["folder", "zip"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_planted_is_found(tmp_path: Path, kind: str, form: Callable[[Path], Path]) -> None:
    root = clean(tmp_path / "data")
    expected = PLANTS[kind](root)
    found = found_in(call("check-data", form(root), *ASKED.get(kind, ()), "--threads=2", "--json"))
    if kind in ("unreadable", "missing_in_train"):
        reasons = [item.pop("reason") for item in found["unreadable"]]
        for item, reason in zip(found["unreadable"], reasons, strict=True):
            assert item["name"] in reason
    assert found.pop(kind) == expected
    also = {"missing_in_train": {"unreadable"}}.get(kind, set())  # else nothing more
    assert found.keys() == also


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_planted_is_shown(tmp_path: Path, kind: str) -> None:
    root = clean(tmp_path / "data")
    expected = PLANTS[kind](root)
    answer = call("check-data", root, *ASKED.get(kind, ()), "--threads=1")
    assert answer.code == (1 if KINDS[kind] else 0)
    assert answer.err == ""
    problems, _, rest = answer.out.partition("Worth knowing")
    assert ("Problems" in problems) is KINDS[kind]
    assert ("No problems found." in answer.out) is not KINDS[kind]
    where = problems.partition("Problems")[2] if KINDS[kind] else rest
    for item in expected:
        names = item.get("names") or [item.get("name") or item.get("class") or item.get("split")]
        for name in names if "images" not in item or "class" in item else ("03.png", "03b.png"):
            assert name in where


def test_nothing_wrong(tmp_path: Path) -> None:
    answer = call("check-data", clean(tmp_path / "data"), "--threads=1")
    assert answer.code == 0
    assert "No problems found." in answer.out
    assert "Worth knowing" not in answer.out
    assert re.search(r"^images +20 +6$", answer.out, re.M)
    assert re.search(r"^  bees +10 +3$", answer.out, re.M)
    assert re.search(r"^size +16 x 16 +16 x 16$", answer.out, re.M)


def test_digits_are_clean() -> None:
    answer = call("check-data", "digits", "--threads=1", "--json")
    assert found_in(answer) == {}
    report = answer.value
    assert sum(split["images"] for split in report["splits"].values()) == 1797
    assert report["splits"]["train"]["modes"] == {"L": report["splits"]["train"]["images"]}
    assert report["splits"]["val"]["median"] == [8, 8]


def test_splits_are_those_that_train_would_make(tmp_path: Path) -> None:
    """An image that is there twice leaks or not, as the seed deals it."""
    root = draw(tmp_path / "data", ("ants", "bees"), n=20)
    shutil.copy(root / "ants/00.png", root / "ants/again.png")
    seen = set()
    for seed in range(12):
        data = open_data(str(root), 0.3, seed)
        where = {name: set(split.names) for name, split in data.splits.items()}
        places = [
            next(split for split, names in where.items() if f"ants/{n}.png" in names)
            for n in ("00", "again")
        ]
        found = found_in(call("check-data", root, "--val=0.3", f"--seed={seed}", "--json"))
        assert found.keys() == ({"duplicate"} if len(set(places)) == 1 else {"leak"})
        seen |= found.keys()
    assert seen == {"duplicate", "leak"}


def test_images_outside_class_folders_are_told(tmp_path: Path) -> None:
    root = clean(tmp_path / "data")
    Image.new("RGB", (9, 9)).save(root / "train/cover.png")
    assert "outside class folders" in call("check-data", root).out
    assert any("outside class" in n for n in call("check-data", root, "--json").value["notes"])


def test_many_classes_are_summed_up(tmp_path: Path) -> None:
    classes = [f"class-{i:02}" for i in range(21)]
    root = draw(tmp_path / "data" / "train", classes, n=3, size=8).parent
    draw(root / "train", ["class-07"], n=5, size=8, seed=4)
    (root / "train/class-08/00.png").unlink()
    draw(root / "val", classes[:20], n=1, size=8, seed=1)
    out = call("check-data", root).out
    assert "class-00" not in out.partition("Worth knowing")[0]
    for title, row in (("fewest", "2 +0"), ("median", "3 +1"), ("most", "5 +1")):
        assert re.search(rf"^  {title} of a class +{row}$", out, re.M)
    assert "val: class-20" in out
    assert "21 classes with fewer than 10 training images" in out
    assert f"and {21 - SHOWN} more" in out


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda root: root / "nowhere", "nowhere: no such"),
        (lambda root: (root / "train/wasps").mkdir() or root, "'wasps'"),
        (lambda root: draw(root / "val", ["wasps"]).parent, "'wasps'"),
    ],
    ids=["no data", "empty class", "class in val only"],
)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_data_that_cannot_be_opened(
    tmp_path: Path, make: Callable[[Path], Path], told: str, flags: list[str]
) -> None:
    answer = call("check-data", make(clean(tmp_path / "data")), *flags)
    assert (answer.code, answer.out) == (2, "")
    assert told in answer.error[0]
    assert len(answer.error) <= 3


@pytest.mark.parametrize("flag", ["--val=x", "--val=0", "--val=1.5", "--seed=-1", "--threads=0"])
def test_flags_that_cannot_be_used(tmp_path: Path, flag: str) -> None:
    answer = call("check-data", draw(tmp_path, ("a", "b")), flag)
    assert (answer.code, answer.out) == (2, "")
    assert len(answer.error) <= 3


# --- hostile names ----------------------------------------------------------------------------

HOSTILE = ("\x1b[2J", "a\nb", "\u202egpj", "[red]x", "  ", "名前" * 30, os.fsdecode(b"\xe9"))


def test_hostile_names(tmp_path: Path) -> None:
    """In every place where a name is shown."""
    root = tmp_path / "da\x1bta"
    classes = [name for name in HOSTILE if name.isprintable() or name.isascii()]
    draw(root / "train", classes, n=2)
    draw(root / "val", classes[1:], n=2, seed=5)
    source = next((root / "train" / classes[0]).iterdir())
    for name in HOSTILE:
        shutil.copy(source, root / "train" / classes[0] / f"{name}.png")
        shutil.copy(source, root / "train" / classes[1] / f"{name}.png")
        shutil.copy(source, root / "val" / classes[1] / f"{name}.png")
        (root / "train" / classes[0] / f"{name} bad.png").write_bytes(b"x")
        Image.new("RGB", (20, 5)).save(root / "val" / classes[2] / f"{name}.png")
    answer = call("check-data", root)
    assert answer.code == 1
    answer.out.encode()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", answer.out)
    for shown in (r"\x1b[2J", r"a\nb", r"\u202egpj", "[red]x"):
        assert shown in answer.out
    found = found_in(call("check-data", root, "--json"))
    assert found.keys() == KINDS.keys() - {"missing_in_train", "uneven", *ASKED}
    expected = {f"train/{classes[0]}/{name} bad.png" for name in HOSTILE}
    assert {item["name"] for item in found["unreadable"]} == expected
    assert {item["class"] for item in found["missing_elsewhere"]} == {classes[0]}


def test_the_report_fits_a_terminal(tmp_path: Path) -> None:
    """All but lines of names, which are not cut apart."""
    root = clean(tmp_path / "data")
    for plant in PLANTS.values():
        if plant not in (class_unreadable, small_class, class_not_in_val):
            plant(root)
    draw(root / "train", ["蟻と蜂" * 20])
    draw(root / "test", ["ants"], seed=7)
    lines = call("check-data", root).out.splitlines()
    assert len(lines) > 30
    widths = [cell_len(line) for line in lines[1:] if not line.startswith("    ")]
    assert max(widths) <= 80
    rows = lines[lines.index("") + 1 :]
    rows = rows[: rows.index("")]
    assert len({cell_len(row) for row in rows}) == 1  # columns stand below one another


# --- what is there more than once: against dictionaries ---------------------------------------


def in_arrays(content: dict[str, list[tuple[int, int]]], classes: int) -> DataSet:
    """Splits of (value, label): each image is 2 x 2 pixels of that value."""
    splits = {}
    for name, images in content.items():
        pixels = np.array([v for v, _ in images], np.uint8).reshape(-1, 1, 1, 1)
        names = Names(f"{name}/{i}" for i in range(len(images)))
        reader = ArrayReader(np.tile(pixels, (1, 2, 2, 3)))
        splits[name] = Split(reader, names, np.array([y for _, y in images], np.int64))
    return DataSet("arrays", tuple(f"c{k}" for k in range(classes)), splits)


Place = tuple[str, int]


def grouped(data: DataSet, skip: set[Place]) -> dict[str, list[Place]]:
    """Places by sha256 of the pixels, in order."""
    groups: dict[str, list[Place]] = defaultdict(list)
    for name, split in data.splits.items():
        for i in range(len(split)):
            if (name, i) not in skip:
                digest = hashlib.sha256(split.image(i, 3).tobytes()).hexdigest()
                groups[digest].append((name, i))
    return groups


VALUES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), max_size=14)


@given(VALUES, VALUES, VALUES, st.data())
def test_copies_are_those_of_a_dictionary(train: Any, val: Any, test: Any, more: Any) -> None:
    content = {"train": train, "val": val, "test": test}
    data = in_arrays(content, 3)
    places = [(name, i) for name, images in content.items() for i in range(len(images))]
    bad = set(more.draw(st.lists(st.sampled_from(places), max_size=4)) if places else [])
    scans = {}
    for name, split in data.splits.items():
        found = scan(split, 2, lambda source, name: None)
        assert found.failed == []
        scans[name] = Scan(found.digests, [(i, "bad") for s, i in sorted(bad) if s == name])
    copies = find_copies(data, scans)
    groups = [g for g in grouped(data, bad).values() if len(g) > 1]

    def label(place: Place) -> int:
        return content[place[0]][place[1]][1]

    assert list(copies.members()) == groups
    assert (copies.groups, len(copies)) == (len(groups), sum(map(len, groups)))
    conflicts = copies.conflicts()
    assert list(conflicts.members()) == [g for g in groups if len(set(map(label, g))) > 1]
    assert conflicts.groups == len(list(conflicts.members()))
    expected = []
    for group in groups:
        parts: dict[Any, list[Place]] = defaultdict(list)
        for place in group:
            parts[place[0], label(place)].append(place)
        expected += [part for part in parts.values() if len(part) > 1]
    repeats = copies.repeats()
    assert sorted(repeats.members()) == sorted(expected)
    assert len(repeats) == sum(map(len, expected))
    leaks = {(k.first, k.second): k.pairs.tolist() for k in copies.leaks()}
    for first, second in itertools.combinations(content, 2):
        pairs = sorted(
            (min(i for s, i in group if s == first), j)
            for group in groups
            if any(s == first for s, _ in group)
            for s, j in group
            if s == second
        )
        pairs.sort(key=lambda pair: pair[1])
        assert leaks.pop((first, second), []) == [list(pair) for pair in pairs]
    assert leaks == {}
    counts = readable_counts(data, scans)
    for name, images in content.items():
        there = [y for i, (_, y) in enumerate(images) if (name, i) not in bad]
        assert counts[name].tolist() == [there.count(k) for k in range(3)]


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_bytes_have_one_digest(one: bytes, other: bytes) -> None:
    assert len(content_digest(one)) == DIGEST
    assert (content_digest(one) == content_digest(other)) == (one == other)
    assert content_digest(one) == content_digest(bytes(bytearray(one)))


def test_pixels_of_another_shape_or_type_are_others() -> None:
    eight = np.arange(24, dtype=np.uint8)
    images = [
        eight.reshape(4, 6),
        eight.reshape(6, 4),
        eight.reshape(2, 4, 3),
        eight.view(np.uint16).reshape(4, 3),
        eight.reshape(4, 6)[:, ::-1],
    ]
    assert len({content_digest(image) for image in images}) == len(images)
    transposed = np.asfortranarray(images[0])  # another order in memory, the same pixels
    assert content_digest(transposed) == content_digest(images[0])


def test_copies_take_no_object_an_image() -> None:
    """A million images must fit: arrays only, of whatever is not found."""
    n = 50_000
    digests = np.random.default_rng(0).integers(0, 256, (n, DIGEST), np.uint8)
    digests[1] = digests[0]
    split = Split(ArrayReader(np.zeros(0)), Names(["x"] * n), np.zeros(n, np.int64))
    data = DataSet("x", ("a", "b"), {"train": split})
    scans = {"train": Scan(digests, [])}
    tracemalloc.start()
    copies = find_copies(data, scans)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert list(copies.members()) == [[("train", 0), ("train", 1)]]
    assert peak / n < 200


# --- reading ----------------------------------------------------------------------------------


class Counted(ArrayReader):
    """Counts how often each image is read; the third cannot be."""

    def read(self, name: str) -> Any:
        self.pixels[int(name)] += 1
        if name == "2":
            raise DecodeError("2: gone")
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (int(name), 0, 0)).save(buffer, "PNG")
        return buffer.getvalue()


@pytest.fixture(params=["quick", "slow"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are read by this thread alone, and those that several threads read."""
    monkeypatch.setattr(preflight, "TRIED", 2)
    monkeypatch.setattr(preflight, "QUICK", {"quick": math.inf, "slow": 0.0}[request.param])


@pytest.mark.usefixtures("reading")
def test_each_image_is_read_once() -> None:
    for threads, way in itertools.product((1, 3), ("verify", "look", "decode_all")):
        reader = Counted(np.zeros(9, np.int64))
        split = Split(reader, Names(map(str, range(9))), np.zeros(9, np.int64))
        if way == "decode_all":
            preprocess = Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
            frames, found = decode_all(split, preprocess, threads)
            there = [0, 1, *range(3, 9)]
            assert frames[there, 0, 0, 0].tolist() == there
        else:
            found = scan(split, threads, verify if way == "verify" else look)
        assert reader.pixels.tolist() == [1] * 9
        assert found.failed == [(2, "2: gone")]
        assert found.digests.nbytes == 9 * DIGEST
        good = np.delete(found.digests, 2, axis=0)
        assert len(np.unique(good, axis=0)) == 8


@pytest.mark.usefixtures("reading")
def test_results_come_in_order_and_in_this_thread() -> None:
    pixels = np.arange(30, dtype=np.uint8).reshape(10, 1, 1, 3)
    split = Split(ArrayReader(pixels), Names(map(str, range(10))), np.zeros(10, np.int64))
    kept: list[tuple[int, int]] = []
    scan(split, 4, lambda source, name: int(np.asarray(source).sum()), lambda *x: kept.append(x))
    assert kept == [(i, 9 * i + 3) for i in range(10)]


def test_the_size_is_what_train_chooses(tmp_path: Path) -> None:
    for size in (8, 16, 33, 64, 65, 100, 129, 300):
        root = draw(tmp_path / str(size), ("a", "b"), n=10, size=size)
        plan = make_plan(str(root), {})
        assert check(plan.data, 1).input_size == plan.config.data.size == default_size(size)


# --- headers ----------------------------------------------------------------------------------


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(depth: int, colour: int, samples: int, width: int = 5, height: int = 4) -> bytes:
    """A PNG by hand (Pillow writes no colours of 16 bits): all samples 0."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        content = kind + data
        return struct.pack(">I", len(data)) + content + struct.pack(">I", zlib.crc32(content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = (b"\0" + bytes(width * samples * depth // 8)) * height
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


WIDE = Image.new("RGB", (5, 4), "red")
GREY16 = Image.fromarray(np.full((4, 5), 40_000, np.uint16))
PALETTE = WIDE.convert("P")
RED = PALETTE.getpixel((0, 0))
FRAMES = {"save_all": True, "append_images": [Image.new("RGB", (5, 4), "blue")]}

HEADERS: dict[str, tuple[Any, str, set[str]]] = {
    "jpeg": (encoded(WIDE, "JPEG"), "RGB", set()),
    "grey": (encoded(WIDE.convert("L"), "PNG"), "L", set()),
    "bits": (encoded(WIDE.convert("1"), "PNG"), "1", set()),
    "cmyk": (encoded(WIDE.convert("CMYK"), "JPEG"), "CMYK", set()),
    "palette": (encoded(PALETTE, "PNG"), "P", set()),
    "rgba": (encoded(WIDE.convert("RGBA"), "PNG"), "RGBA", {"alpha"}),
    "la": (encoded(WIDE.convert("LA"), "PNG"), "LA", {"alpha"}),
    "transparent colour": (encoded(PALETTE, "PNG", transparency=0), "P", {"alpha"}),
    "transparent gif": (
        encoded(PALETTE, "GIF", transparency=RED),
        "P",
        {"alpha"},
    ),
    "grey 16": (encoded(GREY16, "PNG"), "I;16", {"sixteen_bit"}),
    "grey 16 tiff": (encoded(GREY16, "TIFF"), "I;16", {"sixteen_bit"}),
    "rgb 16": (png(16, 2, 3), "RGB", {"sixteen_bit"}),
    "rgb 8 by hand": (png(8, 2, 3), "RGB", set()),
    "rgba 16": (png(16, 6, 4), "RGBA", {"sixteen_bit", "alpha"}),
    "gif": (encoded(PALETTE, "GIF"), "P", set()),
    "animated gif": (encoded(WIDE, "GIF", **FRAMES), "P", {"animated"}),
    "animated png": (encoded(WIDE, "PNG", **FRAMES), "RGB", {"animated"}),
    "pages": (encoded(WIDE, "TIFF", **FRAMES), "RGB", {"animated"}),
    "camera": (encoded(WIDE, "MPO", **FRAMES), "RGB", set()),
    "array grey": (np.zeros((4, 5), np.uint8), "L", set()),
    "array": (np.zeros((4, 5, 3), np.uint8), "RGB", set()),
    "array 16": (np.zeros((4, 5, 4), np.uint16), "RGBA", {"sixteen_bit", "alpha"}),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers(kind: str) -> None:
    source, mode, traits = HEADERS[kind]
    assert look(source, "x") == Look((4, 5), mode, frozenset(traits))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_images(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = look(encoded(WIDE, form, exif=exif), "x")
    assert found.size == ((5, 4) if orientation > 4 else (4, 5))
    assert found.traits == (frozenset() if orientation == 1 else {"rotated"})


def test_large_images_are_looked_at_quietly() -> None:
    """Pillow warns of images of so many pixels."""
    lines = (
        "import sys",
        "from PIL import Image",
        "from skipway.check import look",
        "Image.MAX_IMAGE_PIXELS = 15",
        "assert look(sys.stdin.buffer.read(), 'x').size == (4, 5)",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, input=encoded(WIDE, "PNG"), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def damaged() -> Iterator[bytes]:
    for source, _, _ in HEADERS.values():
        if isinstance(source, bytes):
            yield source[: len(source) * 2 // 3]
            yield source[:-30] + b"\xff" * 30


@pytest.mark.parametrize("source", list(damaged()))
def test_what_cannot_be_decoded_is_refused_and_nothing_else(source: bytes) -> None:
    try:
        decode(source, 3, "x")
    except DecodeError:
        with pytest.raises(DecodeError):
            look(source, "x")
    else:
        assert look(source, "x").size == (4, 5)


def test_sizes_and_modes_are_counted(tmp_path: Path) -> None:
    root = clean(tmp_path / "data")
    sizes = [(20, 10), (30, 12), (15, 40), (9, 9)]
    for i, size in enumerate(sizes):
        Image.new("RGB" if i % 2 else "L", size).save(root / f"val/ants/x{i}.png")
    (root / "val/ants/bad.png").write_bytes(b"")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 60)).save(root / "val/ants/turned.jpg", exif=exif)
    sizes += [(60, 50), *[(16, 16)] * 6]
    split = call("check-data", root, "--json").value["splits"]["val"]
    assert split["images"] == 12
    assert split["unreadable"] == 1
    assert split["counts"] == {"ants": 9, "bees": 3}
    assert split["modes"] == {"RGB": 9, "L": 2}
    assert split["rotated"] == 1
    assert (split["alpha"], split["animated"], split["sixteen_bit"]) == (0, 0, 0)
    assert split["smallest"] == [9, 9]
    assert split["largest"] == [60, 50]
    assert split["median"] == np.median(sizes, axis=0).astype(int).tolist()
    out = call("check-data", root).out
    assert re.search(r"^smallest size +16 x 16 +9 x 9$", out, re.M)
    assert re.search(r"^largest size +16 x 16 +60 x 50$", out, re.M)
    assert re.search(r"^mode L +0 +2$", out, re.M)
    assert re.search(r"^turned by EXIF +0 +1$", out, re.M)
    assert re.search(r"^unreadable +0 +1$", out, re.M)


def test_data_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    root = clean(tmp_path / "data")
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    answer = call("check-data", root, "--json")
    found = found_in(answer)
    assert found.keys() == {"unreadable", "missing_in_train", "missing_elsewhere"}
    assert len(found["unreadable"]) == 26
    assert answer.value["input_size"] is None
    assert answer.value["splits"]["train"]["median"] is None
    assert answer.value["imbalance"] is None
    assert re.search(r"^size +- +-$", call("check-data", root).out, re.M)


# --- the fast part, in train ------------------------------------------------------------------


def scanned(data: DataSet) -> dict[str, Scan]:
    return {name: scan(split, 1, verify) for name, split in data.splits.items()}


def test_remarks_of_clean_data(tmp_path: Path) -> None:
    data = open_data(str(clean(tmp_path / "data")))
    assert remarks(data, scanned(data)) == ("10 training images of each class",)
    assert remarks(data, {}) == ("10 training images of each class",)


def test_remarks_of_uneven_classes(tmp_path: Path) -> None:
    root = clean(tmp_path / "data")
    draw(root / "train", ["ants"], n=13, seed=3)
    (line,) = remarks(open_data(str(root)), {})
    assert line == "from 10 (bees) to 13 (ants) training images of a class"
    uneven(root)
    (line,) = remarks(open_data(str(root)), {})
    assert line.startswith("warning: uneven classes, 10 to 1: from 10 (bees) to 100 (ants)")


def test_remarks_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    root = clean(tmp_path / "data")
    (root / "train/bees/00.png").write_bytes(b"")
    (root / "val/bees/00.png").write_bytes(b"")
    data = open_data(str(root))
    expected = ("from 9 (bees) to 10 (ants) training images of a class",)
    assert remarks(data, scanned(data)) == expected


@pytest.mark.parametrize("resident", ["true", "false"])
def test_train_tells_of_leaks_and_goes_on(tmp_path: Path, resident: str) -> None:
    root = clean(tmp_path / "data")
    pairs = [item["names"] for item in leak(root)]
    conflict(root)
    (root / "val/ants/bad\x1b.png").write_bytes(b"")
    flags = [*QUICK, f"--set=data.resident={resident}", "--on-bad=skip"]
    done = call("train", root, *flags, "--out", tmp_path / "run")
    assert done.code == 0
    (line,) = [line for line in done.err.splitlines() if "too good" in line]
    assert line.strip().startswith("warning: 2 of 9 val images are in train too")
    for pair in pairs:
        assert " = ".join(pair) in line
    (line,) = [line for line in done.err.splitlines() if "different labels" in line]
    assert "1 image is there" in line
    assert "train/ants/03.png (ants) = train/bees/03b.png (bees)" in line
    assert "\x1b" not in done.err
    notes = json.loads((tmp_path / "run/run.json").read_text())["data"]["notes"]
    assert len(notes) == 3
    assert notes[0].startswith("from 10 (ants) to 11 (bees)")


def test_train_without_reading_first_tells_what_labels_tell(tmp_path: Path) -> None:
    root = clean(tmp_path / "data")
    leak(root)
    flags = [*QUICK, "--set=data.resident=false", "--set=data.preflight=false"]
    done = call("train", root, *flags, "--out", tmp_path / "run")
    assert done.code == 0
    assert "10 training images of each class" in done.err
    assert "warning" not in done.err


def test_only_two_pairs_are_shown(tmp_path: Path) -> None:
    root = clean(tmp_path / "data")
    shutil.copytree(root / "train/ants", root / "val/ants", dirs_exist_ok=True)
    data = open_data(str(root))
    line = remarks(data, scanned(data))[1]
    assert line.startswith("warning: 10 of 13 val images are in train too")
    assert line.count(" = ") == 2
    assert line.endswith("skipway check-data lists all")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.json", '{"name": "pets", "images": 40}'),
        ("rows.json", '[{"file_name": "a/1.png", "image_id": 1}]'),
        ("config.yaml", "model: resnet18\nclass_names: [a, b]\n"),
        ("classes.yaml", "names: [a, b]\n"),
        ("data.yaml", "source: a museum\n"),
    ],
)
def test_stray_files_beside_class_folders_are_no_annotations(
    tmp_path: Path, name: str, content: str
) -> None:
    root = clean(tmp_path / "data")
    (root / name).write_text(content)
    assert form_of(str(root)) is None
    assert call("check-data", root, "--json").value["ok"]


def test_annotations_are_not_looked_at_where_images_are_classified(tmp_path: Path) -> None:
    root = clean(tmp_path / "data")
    (root / "train.json").write_text("no COCO")
    assert call("check-data", root, "--threads=1").code == 2
    assert call("check-data", root, "--task=classify", "--json").value["ok"]


def test_masks_and_annotations_are_not_classified_unasked(tmp_path: Path) -> None:
    masks = draw(tmp_path / "masks" / "train", ("images", "masks"), n=20)
    boxes = clean(tmp_path / "boxes")
    (boxes / "data.yaml").write_text("train: train\nval: val\nnames: [a]\n")
    for root, task in ((masks.parent, "segment"), (boxes, "detect")):
        with pytest.raises(InputError, match=f"--task {task}.*; or --task classify") as raised:
            make_plan(str(root), {})
        assert len(str(raised.value).splitlines()) <= 3
        assert len(make_plan(str(root), {"task": "classify", "device": "cpu"}).data.classes) == 2
    (boxes / "data.yaml").write_text("museum: here\n")
    assert make_plan(str(boxes), {"device": "cpu"}).data.classes == ("ants", "bees")
