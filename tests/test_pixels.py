"""Masks of classes: every layout, file of classes and mode read alike, everything wrong named."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.datasets import VOCSegmentation

from commands import call
from skipway.data import DataSet
from skipway.data.pixels import (
    KINDS,
    MaskedSplit,
    Problem,
    colours,
    form_of_masks,
    mask_problems,
    open_pixels,
)
from skipway.data.pixels.masked import mask_image
from skipway.data.split import rarest
from skipway.images import DecodeError
from skipway.segmentations import IGNORED
from writers import error_of

Maps = dict[str, dict[str, np.ndarray]]
"""By split and stem: the class of each pixel, a position in `CLASSES` or IGNORED."""

CLASSES = ("sky", "road", "car")
COLOURS = ((70, 130, 180), (128, 64, 128), (0, 0, 142))
VOID_COLOUR = (0, 0, 0)
LIST = json.dumps([*CLASSES, "void"])
"""What is ignored has the value 3."""
SLOW_DISK = settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])

# --- writing ----------------------------------------------------------------------------------


def scene(seed: int, height: int = 8, width: int = 11, classes: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes + 1, (height, width))
    labels[0, :classes] = np.arange(classes)  # all are there
    return np.where(labels == classes, IGNORED, labels).astype(np.uint8)


MAPS: Maps = {
    "train": {f"t{i}": scene(i) for i in range(4)},
    "val": {f"v{i}": scene(10 + i, 7, 9) for i in range(2)},
}


def picture(path: Path, size: tuple[int, int], orientation: int = 0, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.fromarray(noise).save(path, exif=exif)


def values(labels: np.ndarray, ignored: int = 3) -> np.ndarray:
    """As `LIST` has them."""
    return np.where(labels == IGNORED, ignored, labels).astype(np.uint8)


def coloured(labels: np.ndarray) -> np.ndarray:
    table = np.zeros((256, 3), np.uint8)
    table[: len(COLOURS)] = COLOURS
    table[IGNORED] = VOID_COLOUR
    return table[labels]


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def write(
    root: Path,
    maps: Maps = MAPS,
    images: str = "{split}/images/{stem}.jpg",
    masks: str = "{split}/masks/{stem}.png",
    classes: tuple[str, str] | None = ("classes.json", LIST),
    draw: Callable[[np.ndarray], np.ndarray] = values,
) -> Path:
    seed = 0
    for split, stems in maps.items():
        for stem, labels in stems.items():
            seed += 1
            picture(root / images.format(split=split, stem=stem), labels.shape, seed=seed)
            save(root / masks.format(split=split, stem=stem), draw(labels))
    if classes is not None:
        (root / classes[0]).write_text(classes[1])
    return root


def masked(found: DataSet, split: str = "train") -> MaskedSplit:
    one = found.splits[split]
    assert isinstance(one, MaskedSplit)
    return one


def stems(split: MaskedSplit) -> list[str]:
    return [Path(name).stem for name in split.names]


def assert_reads(found: DataSet, maps: Maps = MAPS) -> None:
    assert list(found.splits) == list(maps)
    for name, want in maps.items():
        split = masked(found, name)
        assert len(split) == len(want)
        for i, labels in enumerate(want.values()):
            target = split.target(i)
            assert target.dtype == np.uint8
            assert np.array_equal(target, labels)
            assert split.image(i, 3).shape[:2] == labels.shape == tuple(split.sizes[i])
            counts = [int((labels == k).sum()) for k in range(len(found.classes))]
            assert split.counts[i].tolist() == counts


# --- every layout -----------------------------------------------------------------------------

LAYOUTS = {
    "masks": ("{split}/images/{stem}.jpg", "{split}/masks/{stem}.png"),
    "labels": ("{split}/images/{stem}.png", "{split}/labels/{stem}.png"),
    "annotations, deeper": ("{split}/Images/a b/{stem}.jpg", "{split}/Annotations/a b/{stem}.png"),
    "splits within": ("images/{split}/{stem}.jpg", "masks/{split}/{stem}.png"),
    "beside": ("{split}/{stem}.png", "{split}_labels/{stem}_L.png"),
    "SegNet": ("{split}/{stem}.png", "{split}annot/{stem}.png"),
    "an ending": ("{split}/images/{stem}.jpg", "{split}/masks/{stem}_mask.tif"),
    "two endings": (
        "images/{split}/{stem}_leftImg8bit.png",
        "labels/{split}/{stem}_gtFine_labelIds.png",
    ),
    "two suffixes": ("{split}/images/{stem}.jpg", "{split}/masks/{stem}.jpg.png"),
    "a folder around": ("data/{split}/images/{stem}.jpg", "data/{split}/masks/{stem}.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str) -> None:
    images, masks = LAYOUTS[layout]
    place = "data/classes.json" if layout == "a folder around" else "classes.json"
    write(tmp_path, images=images, masks=masks, classes=None)
    (tmp_path / place).write_text(LIST)
    assert form_of_masks(str(tmp_path)) == "masks"
    found = open_pixels(str(tmp_path))
    assert found.classes == CLASSES
    assert_reads(found)
    assert found.notes == ("ignored, by classes.json: 'void' (value 3)",)
    assert mask_problems(str(tmp_path)) == []


def test_a_split_is_called_valid_or_training(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train").rename(tmp_path / "Training")
    (tmp_path / "val").rename(tmp_path / "valid")
    assert_reads(open_pixels(str(tmp_path)))
    shutil.copytree(tmp_path / "valid", tmp_path / "val")
    for call_it in (open_pixels, form_of_masks):
        text = error_of(lambda call_it=call_it: call_it(str(tmp_path)))
        assert "could both be the masks of val" in text


def test_a_split_without_masks_is_said(tmp_path: Path) -> None:
    write(tmp_path)
    picture(tmp_path / "test" / "images" / "x.jpg", (8, 11))
    notes = open_pixels(str(tmp_path)).notes
    assert "test has images and no masks: left out" in notes


def test_what_holds_no_masks(tmp_path: Path) -> None:
    """Nor does what looks like it: YOLO's text files, folders of annotations."""
    assert "no such folder" in error_of(lambda: open_pixels(str(tmp_path / "no\nwhere")))
    assert form_of_masks(str(tmp_path / "nowhere")) is None
    picture(tmp_path / "images" / "train" / "a.jpg", (8, 11))
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text("{}")
    assert form_of_masks(str(tmp_path)) is None
    assert "no masks found" in error_of(lambda: open_pixels(str(tmp_path)))
    assert form_of_masks(str(tmp_path / "images" / "train" / "a.jpg")) is None


def voc(root: Path, lists: bool = True) -> Path:
    maps = {"all": {f"2007_{i:06}": scene(i, 9, 30, 21) for i in range(3)}}
    write(root, maps, "JPEGImages/{stem}.jpg", "SegmentationClass/{stem}.png", None, lambda m: m)
    for file in (root / "SegmentationClass").iterdir():
        image = Image.open(file)
        image.putpalette([value for colour in voc_palette() for value in colour])
        image.save(file)
    picture(root / "JPEGImages" / "of_detection.jpg", (5, 5))
    if lists:
        place = root / "ImageSets" / "Segmentation"
        place.mkdir(parents=True)
        (place / "train.txt").write_text("2007_000000\n2007_000002\n")
        (place / "val.txt").write_text("2007_000001\n")
    return root


def voc_palette() -> list[tuple[int, int, int]]:
    """The first, as the devkit prints them, others as its loop over bits gives them."""
    table = []
    for value in range(256):
        rgb, c = [0, 0, 0], value
        for j in range(8):
            for channel in range(3):
                rgb[channel] |= (c >> channel & 1) << (7 - j)
            c >>= 3
        table.append((rgb[0], rgb[1], rgb[2]))
    assert table[:5] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert (table[20], table[255]) == ((0, 64, 128), (224, 224, 192))
    return table


def test_voc_as_torchvision_reads_it(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOCdevkit" / "VOC2012")
    for path in (root, root.parent):
        found = open_pixels(str(path))
        assert form_of_masks(str(path)) == "VOC masks"
        for split in ("train", "val"):
            oracle = VOCSegmentation(str(tmp_path), year="2012", image_set=split)
            assert len(oracle) == len(found.splits[split])
            for i in range(len(oracle)):
                image, mask = oracle[i]
                assert np.array_equal(masked(found, split).image(i, 3), np.asarray(image))
                assert np.array_equal(masked(found, split).target(i), np.asarray(mask))
    assert found.classes[:2] == ("background", "aeroplane")
    assert found.classes[15] == "person"
    assert len(found.classes) == 21
    assert "no file names the classes: Pascal VOC's list of 21" in found.notes
    assert "ignored, by Pascal VOC's list of 21: 255" in found.notes
    assert colours(str(root)) == tuple(voc_palette()[:21])
    drawn = {
        name: {stem: masked(found, name).target(i) for i, stem in enumerate(stems(split))}
        for name, split in ((name, masked(found, name)) for name in found.splits)
    }
    for file in (root / "SegmentationClass").iterdir():  # as who converts them has them
        Image.open(file).convert("RGB").save(file)
    assert_reads(open_pixels(str(root)), drawn)


def test_voc_without_lists_or_with_classes_of_its_own(tmp_path: Path) -> None:
    root = voc(tmp_path, lists=False)
    found = open_pixels(str(root), val="none")
    assert stems(masked(found)) == ["2007_000000", "2007_000001", "2007_000002"]
    assert "1 image without a mask left out" in found.notes
    names = ["_background_", *(f"c{i}" for i in range(1, 21)), "void"]
    (root / "class_names.txt").write_text("\n".join(names) + "\n\n")
    text = error_of(lambda: open_pixels(str(root)))
    assert "value 255 is no class in class_names.txt" in text


# --- every file of classes --------------------------------------------------------------------

ROWS = list(zip([*CLASSES, "void"], [*COLOURS, VOID_COLOUR], strict=True))
ENTRIES: list[dict[str, Any]] = [
    {"name": name, "index": i, "color": list(rgb)} for i, (name, rgb) in enumerate(ROWS)
]
FILES: dict[str, tuple[str, Any]] = {
    "list": ("classes.json", [*CLASSES, "void"]),
    "names and values": ("classes.json", {"void": 3, "car": 2, "sky": 0, "road": 1}),
    "values and names": ("classes.json", {"0": "sky", "1": "road", "2": "car", "3": "Unlabelled"}),
    "names and colours": ("classes.json", {name: list(rgb) for name, rgb in ROWS}),
    "HTML colours": ("classes.json", {n: "#{:02x}{:02X}{:02x}".format(*c) for n, c in ROWS}),
    "entries": ("classes.json", ENTRIES[::-1]),
    "entries in order": ("classes.json", [{"name": name, "color": list(c)} for name, c in ROWS]),
    "ids": ("classes.json", [{"id": i, "name": name} for i, (name, _) in enumerate(ROWS)]),
    "ignored": (
        "classes.json",
        [*ENTRIES[:3], {"name": "other", "index": 3, "color": [0, 0, 0], "ignore": True}],
    ),
    "ignore_index": ("classes.json", {"classes": [*CLASSES], "ignore_index": 3}),
    "of a class": ("classes.json", {"classes": [*CLASSES, "other"], "ignore_index": [3, 255]}),
    "of an object": ("classes.json", {"classes": dict(zip(CLASSES, range(3), strict=True)),
                                      "ignore_index": 3}),
    "lines": ("classes.txt", "sky\nroad\ncar\nVoid\n\n"),
    "columns": ("class_dict.csv", "name, r,g,b\n" + "".join(
        f"{name},{r}, {g},{b}\n" for name, (r, g, b) in ROWS)),
    "columns in another order": ("class_dict.csv", "R,G,B,Name\r\n" + "".join(
        f"{r},{g},{b},{name}\r\n" for name, (r, g, b) in ROWS)),
    "CVAT": ("labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(
        f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in ROWS)),
}  # fmt: skip


def text_of(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given)


@pytest.mark.parametrize("form", FILES)
def test_files_of_classes(tmp_path: Path, form: str) -> None:
    name, given = FILES[form]
    text = text_of(given)
    root = write(tmp_path / "values", classes=(name, text))
    found = open_pixels(str(root))
    assert found.classes == CLASSES
    assert_reads(found)
    assert any("ignored" in note and "3" in note for note in found.notes)
    if "128" in text or "#" in text.removeprefix("# label"):
        root = write(tmp_path / "colours", classes=(name, text), draw=coloured)
        assert open_pixels(str(root)).classes == CLASSES
        assert_reads(open_pixels(str(root)))
        assert colours(str(root)) == COLOURS
    else:
        assert colours(str(root)) is None
        root = write(tmp_path / "colours", classes=(name, text), draw=coloured)
        found_problems = mask_problems(str(root))
        assert {p.kind for p in found_problems} == {"no-colours", "no-images"}
        assert "write class_dict.csv" in found_problems[0].what


def test_a_file_beside_the_masks_goes_before_one_of_all(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "val" / "masks" / "classes.txt").write_text("void\ncar\nroad\nsky\n")
    for stem, labels in MAPS["val"].items():
        save(root / "val" / "masks" / f"{stem}.png", (3 - values(labels)).astype(np.uint8))
    assert_reads(open_pixels(str(root)))  # matched by name
    (root / "val" / "classes.json").write_text(LIST)
    assert_reads(open_pixels(str(root)))
    (root / "val" / "masks" / "classes.json").write_text(LIST)
    text = error_of(lambda: open_pixels(str(root)))
    assert "classes.json and classes.txt both name the classes" in text


def test_what_is_called_void_can_be_a_class(tmp_path: Path) -> None:
    entries = [{"name": name, "ignore": False} for name in (*CLASSES, "void")]
    root = write(tmp_path, classes=("classes.json", json.dumps(entries)))
    assert open_pixels(str(root)).classes == (*CLASSES, "void")


BAD_FILES: dict[str, tuple[str, Any, str]] = {
    "damaged": ("classes.json", '["sky",', "damaged json"),
    "not text": ("classes.json", b'["\xff"]', "not UTF-8 at byte 2"),
    "a number": ("classes.json", 7, "names no classes"),
    "empty": ("classes.json", [], "names no class"),
    "only ignored": ("classes.json", ["void"], "names no class"),
    "empty object": ("classes.json", {}, "names no class"),
    "one": ("classes.json", ["sky", "void"], "one class only ('sky'"),
    "numbers": ("classes.json", [1, 2], "entry 1 is no object with a name"),
    "no name": ("classes.json", [{"index": 1}], "'None' is no name"),
    "empty name": ("classes.json", ["sky", " "], "' ' is no name"),
    "again": ("classes.json", ["sky", "road", "sky"], "the name 'sky' is given twice"),
    "key again": ("classes.json", '{"sky": 0, "sky": 1}', "'sky' is given twice"),
    "value again": ("classes.json", {"sky": 0, "road": 0}, "the value 0 is given twice"),
    "colour again": ("classes.json", {"sky": [0, 0, 1], "road": "#000001"}, "'#000001' is given"),
    "name of two values": ("classes.json", {"0": "sky", "1": "sky"}, "'sky' is given twice"),
    "below 0": ("classes.json", {"sky": -1, "road": 0}, "the value of 'sky' is '-1'"),
    "true": ("classes.json", {"sky": True, "road": 0}, "the value of 'sky' is 'True'"),
    "too large": ("classes.json", {"sky": 65536, "road": 0}, "not 0 to 65535"),
    "half": ("classes.json", {"sky": 0.5, "road": 0}, "the value of 'sky' is '0.5'"),
    "index of some": ("classes.json", [{"name": "a", "id": 1}, {"name": "b"}], "of 'b' is 'None'"),
    "two parts": ("classes.json", {"sky": [0, 1], "road": [0, 1]}, "not three numbers"),
    "256": ("classes.json", {"sky": [0, 1, 256], "road": [0, 1, 2]}, "not three numbers"),
    "no hex": ("classes.json", {"sky": "#00000g", "road": "#000000"}, "not three numbers"),
    "a word": ("classes.json", {"sky": "blue", "road": "grey"}, "colour of 'sky' is 'blue'"),
    "ignore": ("classes.json", [{"name": "sky", "ignore": "no"}], "not true or false"),
    "ignore_index": ("classes.json", {"classes": [*CLASSES], "ignore_index": "void"}, "is 'void'"),
    "surrogate": ("classes.json", '["\\ud800", "sky"]', "not UTF-8"),
    "too many": ("classes.json", [f"c{i}" for i in range(256)], "256 classes; 255 at most"),
    "a gap": ("classes.txt", "sky\n\nroad\n", "'' is no name"),
    "no header": ("class_dict.csv", "sky,0,0,0\n", "its first line is 'sky, 0', not name,r,g,b"),
    "a field": ("class_dict.csv", "name,r,g,b\nsky,0,0\n", "the colour of 'sky'"),
    "a quote": ("class_dict.csv", 'name,r,g,b\n"sk"y,0,0,0\n', "line 1: "),
    "no file": ("class_dict.csv", "", "its first line is ''"),
    "a line": ("labelmap.txt", "sky\nroad\n", "the colour of 'sky'"),
    "control": ("classes.txt", "sk\x1b[31my\nsk\x1b[31my\n", "twice"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_of_classes_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    name, given, what = BAD_FILES[case]
    root = write(tmp_path, {"train": {"a": scene(0)}}, classes=None)
    content = given if isinstance(given, bytes) else text_of(given).encode()
    (root / name).write_bytes(content)
    text = error_of(lambda: open_pixels(str(root)))
    assert what in text
    assert (name in text) or case == "too many"


# --- every mode -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "grey RGB", "RGB", "RGBA", "LA"])
@SLOW_DISK
@given(data=st.data())
def test_what_is_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, mode: str, data: Any
) -> None:
    """Random maps in index and in colour form, in any mode, with any values and colours."""
    root = tmp_path_factory.mktemp("maps")
    draw = data.draw
    k = draw(st.integers(2, 30), "classes")
    height, width = draw(st.integers(1, 12), "height"), draw(st.integers(1, 12), "width")
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    chosen = rng.choice(65536 if mode == "I;16" else 256, k + 1, replace=False)
    packed = rng.choice(1 << 24, k + 1, replace=False)
    rgb = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], -1).astype(np.uint8)
    in_colour = mode in ("RGB", "RGBA")
    entries = [
        {"name": f"c{i}", "index": int(chosen[i]), "ignore": i == k}
        | ({"color": rgb[i].tolist()} if in_colour else {})
        for i in range(k + 1)
    ]
    order = np.argsort(chosen[:k])  # which is that of the classes
    maps = {"train": {}, "val": {}}
    for split in maps:
        places = rng.integers(0, k + 1, (height, width))
        places[0, 0] = rng.integers(0, k)
        position = np.append(np.argsort(order), IGNORED)
        maps[split]["x"] = position[places].astype(np.uint8)
        index = chosen[places].astype(np.uint16 if mode == "I;16" else np.uint8)
        pixels = {"grey RGB": np.repeat(index[..., None], 3, 2), "RGB": rgb[places]}.get(
            mode, index
        )
        if mode in ("RGBA", "LA"):
            layers = rgb[places] if in_colour else index[..., None]
            alpha = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
            pixels = np.concatenate([layers, alpha], 2)
        image = Image.fromarray(pixels)
        if mode == "P":
            image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        suffix = draw(st.sampled_from(["png", "tif"]), "suffix")
        (root / split / "masks").mkdir(parents=True)
        image.save(root / split / "masks" / f"x.{suffix}")
        picture(root / split / "images" / "x.png", (height, width))
    (root / "classes.json").write_text(json.dumps(entries))
    found = open_pixels(str(root))
    assert found.classes == tuple(f"c{i}" for i in order)
    assert_reads(found, maps)


def narrow_png(pixels: np.ndarray, bits: int) -> bytes:
    """Grey of 1, 2, 4 or 8 bits, written by hand."""
    height, width = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    spread = pixels[..., None] >> np.arange(bits - 1, -1, -1) & 1
    rows = np.packbits(spread.astype(np.uint8).reshape(height, -1), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    rest = chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + rest


def test_values_out_of_range_are_no_class(tmp_path: Path) -> None:
    """Nor do they count from the end."""
    root = write(tmp_path, classes=("classes.json", json.dumps({"a": 0, "b": 1, "void": 255})))
    save(root / "train/masks/t1.png", np.zeros((8, 11), np.uint8))
    for value in (-1, 256, 70_000):
        save(root / "train/masks/t0.tif", np.full((8, 11), value, np.int32))
        (root / "train/masks/t0.png").unlink(missing_ok=True)
        assert any(f"value {value} is no class" in p.what for p in mask_problems(str(root)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_grey_of_few_bits_has_the_values_that_were_written(bits: int) -> None:
    want = np.random.default_rng(0).integers(0, 2**bits, (5, 7))
    with mask_image(narrow_png(want, bits), "x") as image:
        assert np.array_equal(np.asarray(image), want)


@pytest.mark.parametrize("plain", [False, True])
def test_a_pgm_that_pillow_would_stretch(plain: bool) -> None:
    with mask_image(b"P5 2 2 255\n\x00\x01\x02\x0f", "x") as image:
        assert np.asarray(image).ravel().tolist() == [0, 1, 2, 15]
    data = b"P2 2 2 15\n0 1 2 15\n" if plain else b"P5 2 2 15\n\x00\x01\x02\x0f"
    with pytest.raises(DecodeError, match="PGM"), mask_image(data, "x"):
        pass


# --- images turned by EXIF --------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_drawn_on_what_is_shown(tmp_path: Path, orientation: int) -> None:
    """Or has an EXIF rotation of its own; the size of the image as stored is told as such."""
    root = write(tmp_path, {"train": {}}, classes=("classes.json", LIST))
    shown = scene(0, 12, 8) if orientation < 5 else scene(0, 8, 12)
    for stem in ("plain", "own"):
        picture(root / "train/images" / f"{stem}.jpg", (12, 8), orientation)
    save(root / "train/masks/plain.png", values(shown))
    stored = scene(1, 12, 8)
    exif = Image.Exif()
    exif[274] = orientation
    save(root / "train/masks/own.png", values(stored), exif=exif)
    found = open_pixels(str(root), val="none")
    split = masked(found)
    turned = Image.fromarray(stored)
    turned.getexif()[274] = orientation
    want = np.asarray(ImageOps.exif_transpose(turned))
    for i, stem in enumerate(stems(split)):
        assert np.array_equal(split.target(i), want if stem == "own" else shown)
        assert split.image(i, 3).shape[:2] == shown.shape
    said = any("2 images are turned by EXIF" in note for note in found.notes)
    assert said == (orientation > 1)
    if orientation > 4:
        save(root / "train/masks/plain.png", values(stored))
        (problem,) = mask_problems(str(root))
        assert problem.kind == "mask-size"
        assert "take the orientation out of the EXIF" in problem.what


# --- everything that can be wrong -------------------------------------------------------------

Change = Callable[[Path], Any]
MASK, IMAGE = "train/masks/t1.png", "train/images/t1.jpg"


def of_mask(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda root: save(root / MASK, change(values(MAPS["train"]["t1"])))


def put(value: int, n: int = 1, dtype: Any = np.uint8) -> Change:
    """That value at x 4, y 2, and right of it."""

    def change(pixels: np.ndarray) -> np.ndarray:
        changed = pixels.astype(dtype)
        changed[2, 4 : 4 + n] = value
        return changed

    return of_mask(change)


def as_jpeg(root: Path) -> None:
    image = Image.open(root / MASK)
    (root / MASK).unlink()
    image.save(root / MASK, "JPEG", quality=95)


def lossy(suffix: str, **options: Any) -> Change:
    def change(root: Path) -> None:
        image = Image.open(root / MASK)
        (root / MASK).unlink()
        image.save((root / MASK).with_suffix(suffix), **options)

    return change


def smoothed(pixels: np.ndarray) -> np.ndarray:
    changed = np.zeros_like(pixels)
    changed[2, 0:10] = np.arange(10, 20)
    return changed


def in_colours(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels * 9, pixels, pixels], -1)


def rename_class(root: Path) -> None:
    (root / "val" / "classes.json").write_text(LIST.replace("road", "raod"))


def cut(file: str) -> Change:
    return lambda root: (root / file).write_bytes((root / file).read_bytes()[:70])


def copied(file: str, to: str) -> Change:
    return lambda root: Image.open(root / file).save(root / to)


def many_colours(pixels: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)


def lost(file: str) -> Change:
    return lambda root: (root / file).unlink()


WRONG: dict[str, tuple[Change, str, str, str, str]] = {
    "255": (put(255, 3), "unknown-value", MASK, IMAGE, 'classes.json: 3 pixels, the first at x 4, '
            'y 2; if it is not to be judged, write {"classes": …, "ignore_index": 255}'),
    "a value": (put(4), "unknown-value", MASK, IMAGE, "value 4 is no class in classes.json: 1 "
                "pixel, the first at x 4, y 2"),
    "two values": (lambda r: (put(9, 2)(r), save(r / MASK, np.where(np.eye(8, 11) > 0, 7,
                   np.asarray(Image.open(r / MASK))).astype(np.uint8))), "unknown-value", MASK,
                   IMAGE, "value 7 is no class in classes.json: 8 pixels, the first at x 0, y 0; "
                   "1 other value too"),
    "smoothed": (of_mask(smoothed), "unknown-value", MASK, IMAGE, "as after JPEG"),
    "instances": (put(26001, 2, np.uint16), "wide-value", MASK, IMAGE, "value 26001 is no class"),
    "below 0": (lambda r: (lost(MASK)(r), save(r / "train/masks/t1.tif", np.full((8, 11), -1,
                np.int32))), "unknown-value", "train/masks/t1.tif", IMAGE, "value -1 is no class"),
    "another size": (of_mask(lambda m: m[:-1]), "mask-size", MASK, IMAGE, "a mask of 11 x 7 px, "
                     "its image has 11 x 8"),
    "swapped": (of_mask(lambda m: m.T), "mask-size", MASK, IMAGE, "a mask of 8 x 11 px"),
    "a JPEG": (as_jpeg, "lossy-mask", MASK, IMAGE, "a lossy JPEG"),
    "a lossy WebP": (lossy(".webp"), "lossy-mask", "train/masks/t1.webp", IMAGE, "a lossy WEBP"),
    "a lossy TIFF": (lossy(".tif", compression="jpeg"), "lossy-mask", "train/masks/t1.tif", IMAGE,
                     "a lossy TIFF"),
    "no mask": (lost(MASK), "missing-mask", IMAGE, "", "no mask of this name"),
    "no image": (lost(IMAGE), "missing-image", MASK, "", "no image of this name"),
    "an image twice": (copied(IMAGE, "train/images/t1.png"), "image-twice", "train/images/t1.png",
                       "", "has the name of t1.jpg"),
    "a mask twice": (copied(MASK, "train/masks/t1.tif"), "mask-twice", IMAGE, "", "two masks, "
                     "t1.png and t1.tif"),
    "cut off": (cut(MASK), "unreadable-mask", MASK, IMAGE, "PNG"),
    "no PNG": (lambda r: (r / MASK).write_bytes(b"mask"), "unreadable-mask", MASK, IMAGE,
               "not an image that can be read (4 bytes)"),
    "an empty file": (lambda r: (r / MASK).write_bytes(b""), "unreadable-mask", MASK, IMAGE,
                      "an empty file"),
    "a folder": (lambda r: (lost(MASK)(r), (r / MASK).mkdir(), save(r / MASK / "x.png",
                 np.zeros((2, 2), np.uint8))), "missing-mask", IMAGE, "", "no mask of this name"),
    "no picture": (lambda r: (r / IMAGE).write_bytes(b"image"), "unreadable-image", IMAGE, "",
                   "not an image that can be read (5 bytes)"),
    "a link to nowhere": (lambda r: (lost(IMAGE)(r), (r / IMAGE).symlink_to("nowhere")),
                          "missing-image", IMAGE, "", "no such image"),
    "all ignored": (of_mask(lambda m: np.full_like(m, 3)), "no-pixels", MASK, IMAGE, "every pixel"),
    "colours": (of_mask(in_colours), "no-colours", MASK, IMAGE, "#000000, #090101, #120202, …"),
    "a picture": (lambda r: (picture(r / IMAGE, (80, 80)), of_mask(many_colours)(r)), "mask-mode",
                  MASK, IMAGE, "more than 4,096 colours"),
    "numbers with a point": (lambda r: (lost(MASK)(r), save(r / "train/masks/t1.tif",
                             np.zeros((8, 11), np.float32))), "mask-mode", "train/masks/t1.tif",
                             IMAGE, "mode F"),
    "misspelt": (rename_class, "unknown-class", "val/masks/v0.png", "val/images/v0.jpg",
                 "the class 'raod' here and in 1 more mask is not among those learned. Did you "
                 "mean 'road'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_each_problem_is_named_and_its_image_left_out(tmp_path: Path, case: str) -> None:
    change, kind, file, image, what = WRONG[case]
    root = write(tmp_path)
    change(root)
    if case == "misspelt":  # an image of val that has none of it
        blank = np.zeros((5, 5), np.uint8)
        write(root, {"val": {"v9": blank}}, classes=None)
    found = mask_problems(str(root))
    assert (found[0].kind, found[0].file, found[0].image) == (kind, str(root / file), image)
    assert what in found[0].what
    assert found[0].annotation is None
    text = error_of(lambda: open_pixels(str(root)))
    assert text.splitlines()[0] == str(found[0])
    assert "--on-bad skip" in text
    assert ("more problem" in text) == (len(found) > 1)
    rest = open_pixels(str(root), on_bad="skip")
    left = {"t0", "t1", "t2", "t3", "v0", "v1"} - ({"v0", "v1"} if case == "misspelt" else {"t1"})
    left |= {"v9"} if case == "misspelt" else {"t1"} if case == "an image twice" else set()
    assert {stem for split in rest.splits for stem in stems(masked(rest, split))} == left
    assert [s.reason for s in rest.skipped] == [str(p) for p in found]
    assert rest.skipped[0].name == (image or file)
    assert any("left out (" in note and KINDS[kind] in note for note in rest.notes)
    for split in rest.splits:  # what is left can be used
        one = masked(rest, split)
        for i in range(len(one)):
            assert one.target(i).shape == one.image(i, 3).shape[:2] == tuple(one.sizes[i])


OTHERS = {"unknown-colour", "palette", "no-images"}


def test_every_kind_of_problem_is_tried() -> None:
    assert set(KINDS) == {kind for _, kind, *_ in WRONG.values()} | OTHERS


def test_colours_that_are_no_class(tmp_path: Path) -> None:
    root = write(tmp_path, classes=FILES["columns"], draw=coloured)
    pixels = coloured(MAPS["train"]["t2"])
    pixels[3, 5:7] = (1, 2, 255)
    save(root / "train/masks/t2.png", pixels)
    (problem,) = mask_problems(str(root))
    assert problem.kind == "unknown-colour"
    want = "colour #0102ff is no class in class_dict.csv: 2 pixels, the first at x 5, y 3"
    assert problem.what == want
    assert len(masked(open_pixels(str(root), on_bad="skip"))) == 3


def test_a_palette_that_contradicts_the_values(tmp_path: Path) -> None:
    """What a tool does that makes a PNG of colours smaller: the values are then no classes."""
    root = write(tmp_path, classes=FILES["columns"])
    file = root / "train/masks/t1.png"

    def with_palette(*colours_of: tuple[int, int, int]) -> list[Problem]:
        image = Image.fromarray(values(MAPS["train"]["t1"]))
        image.putpalette([value for colour in colours_of for value in colour])
        image.save(file)
        return mask_problems(str(root))

    assert with_palette(*COLOURS, VOID_COLOUR) == []
    assert with_palette((1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)) == []  # made for viewing
    (problem,) = with_palette(COLOURS[1], COLOURS[0], COLOURS[2], VOID_COLOUR)
    assert problem.kind == "palette"
    assert "value 0 has the colour #804080 in its palette" in problem.what
    assert_reads(open_pixels(str(root), on_bad="skip"), {
        "train": {k: m for k, m in MAPS["train"].items() if k != "t1"}, "val": MAPS["val"]
    })  # fmt: skip


def with_palette(file: Path, labels: np.ndarray, *colours_of: tuple[int, int, int]) -> None:
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([value for colour in colours_of for value in colour])
    image.save(file)


def test_a_palette_that_contradicts_a_mask_of_one_class(tmp_path: Path) -> None:
    """Alone its colour may be one for viewing; not beside a palette that contradicts."""
    root = write(tmp_path, classes=FILES["columns"])
    alone, other = (root / "train/masks" / f"{stem}.png" for stem in ("t1", "t2"))
    with_palette(alone, np.zeros((8, 11)), COLOURS[2])
    assert mask_problems(str(root)) == []
    with_palette(other, np.eye(8, 11) > 0, COLOURS[1], COLOURS[0])
    found = mask_problems(str(root))
    assert [(p.kind, p.file) for p in found] == [("palette", str(f)) for f in (alone, other)]
    assert "value 0 has the colour #00008e in its palette" in found[0].what


def test_palettes_of_their_own_where_no_file_names_the_classes(tmp_path: Path) -> None:
    """As tools write that make colours smaller: the same value is another class in each mask."""
    maps = {s: {k: np.where(m == IGNORED, 0, m) for k, m in MAPS[s].items()} for s in MAPS}
    root = write(tmp_path, maps, classes=None, draw=lambda m: m.astype(np.uint8))
    files = {file.stem: file for file in root.glob("*/masks/*.png")}
    for stem in ("t0", "t2", "v0"):  # the others stay grey
        with_palette(files[stem], maps["val" if stem == "v0" else "train"][stem], *COLOURS)
    assert mask_problems(str(root)) == []
    ramp = Image.open(files["t3"]).convert("P")  # Pillow's palette of greys
    assert ramp.mode == "P"
    ramp.save(files["t3"])
    (problem,) = mask_problems(str(root))
    assert problem.file == str(files["t3"])
    with_palette(files["t3"], np.zeros((8, 11)), COLOURS[0], (9, 9, 9))  # a value that is not there
    assert mask_problems(str(root)) == []
    for stem, labels, palette in (
        ("t1", maps["train"]["t1"], (COLOURS[1], COLOURS[0], COLOURS[2])),
        ("v1", np.zeros((7, 9)), (COLOURS[1],)),
    ):
        with_palette(files[stem], labels, *palette)
    found = mask_problems(str(root))
    assert [(p.kind, p.file) for p in found] == [("palette", str(files[s])) for s in ("t1", "v1")]
    assert found[0].what.startswith(
        "value 0 has the colour #804080 in its palette, #4682b4 in other masks; save the masks in "
        "RGB and name colours in class_dict.csv"
    )
    rest = open_pixels(str(root), on_bad="skip")
    assert stems(masked(rest)) == ["t0", "t2", "t3"]
    (root / "classes.json").write_text(json.dumps(CLASSES))  # the values are right, then
    assert mask_problems(str(root)) == []


def test_palettes_of_greys_alike_are_no_problem(tmp_path: Path) -> None:
    maps = {s: {k: np.where(m == IGNORED, 0, m) for k, m in MAPS[s].items()} for s in MAPS}
    root = write(tmp_path, maps, classes=None, draw=lambda m: m.astype(np.uint8))
    for file in root.glob("*/masks/*.png"):
        Image.open(file).convert("P").save(file)
    assert mask_problems(str(root)) == []
    assert_reads(open_pixels(str(root)), maps)


def test_a_class_that_is_not_learned_in_any_form(tmp_path: Path) -> None:
    """By value, in grey written as RGB, and by colour."""
    grey = lambda labels: np.repeat(values(labels)[..., None], 3, 2)  # noqa: E731
    for n, (draw, file) in enumerate(
        [(values, FILES["lines"]), (grey, FILES["lines"]), (coloured, FILES["columns"])]
    ):
        root = write(tmp_path / str(n), classes=file, draw=draw)
        text = error_of(lambda root=root: open_pixels(str(root), classes=("sky", "car")))
        assert "the class 'road' here and in 3 more masks is not among those learned" in text


@pytest.mark.parametrize("split", ["train", "val"])
def test_nothing_left_is_an_error_under_both_policies(tmp_path: Path, split: str) -> None:
    root = write(tmp_path)
    for file in (root / split / "images").iterdir():
        file.write_bytes(b"")
    text = error_of(lambda: open_pixels(str(root)))
    assert "unreadable" not in text
    assert "an empty file" in text
    text = error_of(lambda: open_pixels(str(root), on_bad="skip"))
    assert f"{split}/images: no image with a mask left" in text
    assert mask_problems(str(root))[-1].kind == "no-images"


def test_lists_of_voc_that_name_what_is_not_there(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets/Segmentation/train.txt").write_text(
        "2007_000000\nof_detection\nnowhere\n2007_000000\n"
    )
    found = mask_problems(str(root))
    assert [p.kind for p in found] == ["missing-mask", "missing-image", "image-twice"]
    assert found[1].file == str(root / "ImageSets/Segmentation/train.txt")
    assert "no image nowhere" in found[1].what
    assert "lists 2007_000000 2 times" in found[2].what
    assert stems(masked(open_pixels(str(root), on_bad="skip"))) == ["2007_000000"]


def test_trainval_without_what_val_has_and_names_that_end_in_numbers(tmp_path: Path) -> None:
    root = voc(tmp_path)
    sets = root / "ImageSets/Segmentation"
    (sets / "train.txt").unlink()
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        file = root / folder / f"2007_000000{suffix}"
        file.rename(file.with_name(f"2007 0{suffix}"))
    (sets / "trainval.txt").write_text("2007 0\n2007_000001\n2007_000002  1\n")
    found = open_pixels(str(root))
    assert stems(masked(found)) == ["2007 0", "2007_000002"]
    assert stems(masked(found, "val")) == ["2007_000001"]
    assert any("without the names in val.txt (1)" in note for note in found.notes)


def test_an_empty_list_of_voc_cannot_be_left_out(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets/Segmentation/train.txt").write_text("\n")
    for on_bad in ("error", "skip"):
        text = error_of(lambda on_bad=on_bad: open_pixels(str(root), on_bad=on_bad))
        assert f"{root / 'JPEGImages'}: no image with a mask" in text
        assert "--on-bad skip" not in text


def test_user_text_is_harmless(tmp_path: Path) -> None:
    evil = "e\x1b[31m\u202e\nx"
    maps = {"train": {evil: scene(0), "b": scene(1)}, "val": MAPS["val"]}
    names = ("classes.json", json.dumps(["sky", evil, "car", "void"]))
    root = write(tmp_path / evil, maps, classes=names)
    save(root / f"train/masks/{evil}.png", np.full((8, 11), 9, np.uint8))
    (root / "val" / "classes.json").write_text(json.dumps(["sky", f"{evil}!", "car", "void"]))
    picture(root / "train/images" / f"{evil}2.png", (8, 11))
    found = mask_problems(str(root))
    assert len(found) >= 3
    texts = [str(p) for p in found]
    (root / "val" / "classes.json").unlink()
    kept = open_pixels(str(root), on_bad="skip")
    texts += [*kept.notes, *(s.reason for s in kept.skipped)]
    texts += error_of(lambda: open_pixels(str(root))).splitlines()
    shown = call("check-data", root)
    assert shown.code == 1
    texts += shown.out.splitlines()
    for text in texts:
        assert not set("\x1b\u202e\n") & set(text), text


# --- where no file names the classes ----------------------------------------------------------


def test_values_are_classes_where_no_file_names_them(tmp_path: Path) -> None:
    draw = lambda labels: np.where(labels == 2, 7, labels).astype(np.uint8)  # noqa: E731
    root = write(tmp_path / "here", classes=None, draw=draw)
    (tmp_path / "classes.json").write_text(LIST)  # of something else
    found = open_pixels(str(root))
    assert found.classes == ("0", "1", "7")
    assert_reads(found)
    assert found.notes[0] == (
        "no file names the classes: they are the values of the training masks, 0, 1, 7; 255 is "
        "ignored. Name them in classes.json"
    )
    assert colours(str(root)) is None
    save(root / "val/masks/v0.png", np.full((7, 9), 5, np.uint8))
    text = error_of(lambda: open_pixels(str(root)))
    assert "value 5 is no class of the training masks: 63 pixels, the first at x 0, y 0" in text


@pytest.mark.parametrize(("low", "names"), [(0, ("0", "255")), (1, ("1", "255"))])
def test_masks_of_two_values_have_two_classes(
    tmp_path: Path, low: int, names: tuple[str, str]
) -> None:
    draw = lambda labels: np.where(labels == 1, 255, low).astype(np.uint8)  # noqa: E731
    root = write(tmp_path, classes=None, draw=draw)
    found = open_pixels(str(root))
    assert found.classes == names
    assert_reads(found, {s: {k: np.uint8(m == 1) for k, m in MAPS[s].items()} for s in MAPS})
    assert "255 is ignored" not in found.notes[0]
    again = open_pixels(str(root), classes=names)
    assert again.digest() == found.digest()
    full = {"val": {"v": np.ones((3, 4), np.uint8)}}  # all of it the second class
    alone = write(tmp_path / "alone", full, classes=None, draw=draw)
    assert_reads(open_pixels(str(alone), classes=names), full)


def test_one_value_is_no_task(tmp_path: Path) -> None:
    root = write(tmp_path, classes=None, draw=np.zeros_like)
    assert "one class only ('0', by the training masks)" in error_of(lambda: open_pixels(str(root)))


Draw = Callable[[int], Image.Image]


def blobs(seed: int, codes: list[int], side: int = 128, n: int = 40) -> Image.Image:
    """Discs of random codes on one another."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.uint8)
    for _ in range(n):
        middle, radius = rng.integers(0, side, 2), rng.integers(2, 16)
        near = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2
        labels[near] = rng.choice(codes)
    return Image.fromarray(labels)


def of_maps(root: Path, draw: Draw, n: int = 4) -> Path:
    for i in range(n):
        mask = draw(i)
        picture(root / "images" / f"{i}.png", (mask.height, mask.width))
        (root / "masks").mkdir(exist_ok=True)
        mask.save(root / "masks" / f"{i}.png")
    return root


def through_jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(buffer).copy()


SMOOTHED: dict[str, Draw] = {
    "enlarged": lambda i: blobs(i, [255], 64, 6).resize((150, 150), Image.Resampling.BILINEAR),
    "shrunk": lambda i: blobs(i, [255]).resize((80, 80), Image.Resampling.BILINEAR),
    "bicubic": lambda i: blobs(i, [255]).resize((80, 80), Image.Resampling.BICUBIC),
    "of five": lambda i: blobs(i, [50, 100, 150, 200]).resize((90, 90), Image.Resampling.BILINEAR),
    "through JPEG": lambda i: through_jpeg(blobs(i, [255])),
}


@pytest.mark.parametrize("case", SMOOTHED)
def test_smoothed_masks_that_no_file_describes(tmp_path: Path, case: str) -> None:
    root = of_maps(tmp_path, SMOOTHED[case])
    found = [p for p in mask_problems(str(root)) if p.kind == "unknown-value"]
    assert len(found) == 4
    for problem in found:
        assert "is no class of the training masks" in problem.what
        assert (
            "as after JPEG, or a resize that is not to the nearest. Resize it anew" in problem.what
        )
    every = {"classes": [str(value) for value in range(255)], "ignore_index": 255}
    (root / "classes.json").write_text(json.dumps(every))  # as said: each is a class
    assert len(open_pixels(str(root), val="none").classes) == 255


def land_cover(seed: int) -> np.ndarray:
    """Fields of two classes, a fifth of them speckled by all fifteen."""
    rng = np.random.default_rng(seed)
    codes = np.array([11, 21, 22, 23, 24, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95], np.uint8)
    fields = rng.choice(codes[-2:], (8, 8)).repeat(16, 0).repeat(16, 1)
    fields[:57, :57] = rng.choice(codes, (57, 57))
    return fields


MANY_CLASSES: dict[str, Draw] = {
    "19": lambda i: blobs(i, [*range(19)]),
    "150": lambda i: blobs(i, [*range(150)], 256, 150),
    "small": lambda i: blobs(i, [*range(34)], 128, 120).resize((32, 32), Image.Resampling.NEAREST),
    "rare": lambda i: blobs(i, [7] * 80 + [11] * 60 + [23] * 40 + [*range(34)], 128, 80),
    "noise": lambda i: Image.fromarray(scene(i, 20, 50, 40) % 200),
    "land cover": lambda i: Image.fromarray(land_cover(i)),
}


@pytest.mark.parametrize("case", MANY_CLASSES)
def test_many_classes_that_no_file_names(tmp_path: Path, case: str) -> None:
    root = of_maps(tmp_path, MANY_CLASSES[case])
    values_of = {v for f in root.glob("masks/*") for v in np.unique(np.asarray(Image.open(f)))}
    assert open_pixels(str(root), val="none").classes == tuple(map(str, sorted(values_of)))


def test_instances_of_16_bits_that_no_file_describes(tmp_path: Path) -> None:
    def draw(i: int, stuff: int = 7) -> Image.Image:
        labels = np.full((40, 40), stuff, np.uint16)
        labels[:20] = 0
        for k in range(6):
            labels[4 * k : 4 * k + 3, 5:9] = 26000 + 6 * i + k
        return Image.fromarray(labels)

    found = mask_problems(str(of_maps(tmp_path, draw)))
    assert [p.kind for p in found[:4]] == ["wide-value"] * 4
    assert "26000 is no class of the training masks" in found[0].what
    assert found[0].what.endswith("not classes. If it is a class, write classes.json")
    text = error_of(lambda: open_pixels(str(of_maps(tmp_path, lambda i: draw(i, 0)))))
    assert "24 values in the masks look like no class" in text
    assert "others: 0." in text


def test_values_that_look_smoothed_and_are_classes_of_a_model(tmp_path: Path) -> None:
    root = of_maps(tmp_path, SMOOTHED["shrunk"])
    names = [str(value) for value in range(255)]
    assert open_pixels(str(root), val="none", classes=names).classes == tuple(names)
    text = error_of(lambda: open_pixels(str(root), classes=("0", "255")))
    assert "is no class of the training masks" in text


# --- a model's classes ------------------------------------------------------------------------


def test_a_models_classes_are_matched_by_name(tmp_path: Path) -> None:
    root = write(tmp_path)
    found = open_pixels(str(root), classes=("car", "tree", "sky", "road"))
    assert found.classes == ("car", "tree", "sky", "road")
    moved = {IGNORED: IGNORED, 0: 2, 1: 3, 2: 0}
    assert_reads(found, {
        s: {k: np.vectorize(moved.get)(m).astype(np.uint8) for k, m in MAPS[s].items()}
        for s in MAPS
    })  # fmt: skip
    assert "train: no pixel of 'tree'" in found.notes
    text = error_of(lambda: open_pixels(str(root), classes=("sky", "rod", "car")))
    assert "the class 'road' here and in 3 more masks is not among those learned" in text
    assert "Did you mean 'rod'?" in text
    shutil.rmtree(root / "train")
    assert "none of train" in error_of(lambda: open_pixels(str(root)))
    alone = open_pixels(str(root), classes=CLASSES)
    assert_reads(alone, {"val": MAPS["val"]})


def test_a_models_classes_and_no_file_that_names_those_of_the_data(tmp_path: Path) -> None:
    root = write(tmp_path, classes=None, draw=lambda m: m)
    text = error_of(lambda: open_pixels(str(root), classes=CLASSES))
    assert "the class '0' here" in text
    assert "write classes.json" in text
    found = open_pixels(str(root), classes=("2", "1", "0"))
    assert masked(found).target(0).max() == IGNORED


# --- splits -----------------------------------------------------------------------------------


def flat(root: Path, n: int = 60) -> Path:
    """Every tenth image has the rare class."""
    maps = {}
    for i in range(n):
        labels = np.random.default_rng(i).integers(0, 2, (4, 5), dtype=np.uint8)
        labels[0, :3] = 0, 1, 2 if i % 10 == 0 else 1
        maps[f"{i:03}"] = labels
    return write(root, {"all": maps}, "images/{stem}.png", "masks/{stem}.png")


def test_without_splits_80_10_10(tmp_path: Path) -> None:
    root = flat(tmp_path)
    found = open_pixels(str(root))
    sizes = {name: len(split) for name, split in found.splits.items()}
    assert sizes == {"train": 48, "val": 6, "test": 6}
    for name in found.splits:
        rare = {"train": 4, "val": 1, "test": 1}[name]
        assert np.count_nonzero(masked(found, name).counts[:, 2]) == rare
        assert not masked(found, name).labels.any()
    names = [name for split in found.splits.values() for name in split.names]
    assert sorted(names) == [f"images/{i:03}.png" for i in range(60)]
    how = "(stratified by the rarest class in an image, seed 0)"
    assert f"no split given: 6 images became test {how}" in found.notes
    assert f"6 of the training images became validation {how}" in found.notes
    other = open_pixels(str(root), seed=1)
    assert list(other.splits["test"].names) != list(found.splits["test"].names)
    assert list(open_pixels(str(root)).splits["test"].names) == list(found.splits["test"].names)
    shares = {n: len(s) for n, s in open_pixels(str(root), val=0.5).splits.items()}
    assert shares == {"train": 28, "val": 26, "test": 6}
    assert list(open_pixels(str(root), val="none").splits) == ["train"]
    assert "between 0 and 1" in error_of(lambda: open_pixels(str(root), val=1.0))


def test_train_alone_and_a_val_of_its_own(tmp_path: Path) -> None:
    root = write(tmp_path)
    assert "split of its own" in error_of(lambda: open_pixels(str(root), val=0.5))
    shutil.rmtree(root / "val")
    found = open_pixels(str(root))
    assert {n: len(s) for n, s in found.splits.items()} == {"train": 3, "val": 1}
    one = write(tmp_path / "one", {"train": {"a": scene(0)}})
    assert "--val none" in error_of(lambda: open_pixels(str(one)))
    assert len(open_pixels(str(one), val="none").splits["train"]) == 1


@settings(max_examples=60)
@given(st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=30))
def test_the_rarest_class_of_an_image(held: list[set[int]]) -> None:
    pairs = [(i, k) for i, classes in enumerate(held) for k in classes for _ in range(1 + i % 2)]
    images, labels = (np.array([pair[j] for pair in pairs], np.int64) for j in (0, 1))
    strata = rarest(images, labels, len(held), 6)
    often = [sum(k in classes for classes in held) for k in range(6)]
    for i, classes in enumerate(held):
        if not classes:
            assert strata[i] == 6
            continue
        least = min(often[k] for k in classes)
        same = [j for j in range(len(held)) if held[j] and strata[j] == strata[i]]
        shared = set.intersection(*(held[j] for j in same))
        assert any(often[k] == least for k in shared)  # one class is the reason for all of them


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(positions=st.lists(st.integers(0, 3), max_size=6))
def test_take_gives_those_images_in_that_order(tmp_path: Path, positions: list[int]) -> None:
    if not (tmp_path / "train").exists():
        write(tmp_path)
    split = masked(open_pixels(str(tmp_path)))
    taken = split.take(np.array(positions, np.int64))
    assert isinstance(taken, MaskedSplit)
    assert list(taken.names) == [split.names[i] for i in positions]
    for j, i in enumerate(positions):
        assert np.array_equal(taken.target(j), split.target(i))
        assert taken.sizes[j].tolist() == split.sizes[i].tolist()
        assert taken.counts[j].tolist() == split.counts[i].tolist()
    total = sum((split.counts[i] for i in positions), np.zeros(3, np.int64))
    assert taken.per_class(3).tolist() == total.tolist()


def test_pixels_of_each_class(tmp_path: Path) -> None:
    found = open_pixels(str(write(tmp_path)))
    split = masked(found)
    together = np.concatenate([m.ravel() for m in MAPS["train"].values()])
    want = np.bincount(together[together != IGNORED], minlength=3)
    assert split.per_class(3).tolist() == want.tolist()
    assert split.per_class(3).dtype == np.int64
    assert found.counts("train") == dict(zip(CLASSES, want.tolist(), strict=True))
    assert split.ignored() == int((together == IGNORED).sum())
    assert split.counted == "pixels"


def test_a_split_is_pickled_light(tmp_path: Path) -> None:
    split = masked(open_pixels(str(write(tmp_path))))
    data = pickle.dumps(split)
    assert len(data) < 5000
    assert np.array_equal(pickle.loads(data).target(2), MAPS["train"]["t2"])


def test_content_and_stamp_change_with_a_mask(tmp_path: Path) -> None:
    root = write(tmp_path)
    first = open_pixels(str(root))
    again = open_pixels(str(root))
    stamps = {name: split.stamp() for name, split in first.splits.items()}
    assert again.digest() == first.digest()
    assert masked(again).stamp() == stamps["train"]
    file = root / "train/masks/t3.png"
    changed = values(MAPS["train"]["t3"])
    changed[-1, -1] = (changed[-1, -1] + 1) % 3
    save(file, changed)
    other = open_pixels(str(root))
    assert masked(other).content() != masked(first).content()
    assert masked(other).stamp() != stamps["train"]
    assert masked(other, "val").stamp() == stamps["val"]
    assert other.digest() != first.digest()
    split = masked(first)
    for i in range(3):
        split.target(i)
    with pytest.raises(DecodeError, match=r"t3\.png: the mask has changed since"):
        split.target(3)
    file.unlink()
    with pytest.raises(DecodeError, match=r"t3\.png: No such file"):
        split.target(3)


def test_content_changes_with_what_values_stand_for(tmp_path: Path) -> None:
    """Also where names, sizes and masks stay as they are."""
    given_as = {"classes": ["sky", "road", "car", "void"], "ignore_index": 3}
    root = write(tmp_path)
    first = masked(open_pixels(str(root))).content()
    for text, same in (
        (json.dumps(given_as), True),
        (json.dumps({"road": 0, "sky": 1, "car": 2, "void": 3}), False),
    ):
        (root / "classes.json").write_text(text)
        content = masked(open_pixels(str(root), classes=CLASSES)).content()
        assert (content == first) == same


# --- check-data -------------------------------------------------------------------------------


def test_check_data_tells_what_is_there(tmp_path: Path) -> None:
    root = write(tmp_path)
    found = call("check-data", root)
    assert found.code == 0
    assert "masks, 3 classes" in found.out
    assert "nothing is wrong" in found.out
    split = masked(open_pixels(str(root)))
    share = split.per_class(3)[1] / split.per_class(3).sum()
    (row,) = (line for line in found.out.splitlines() if line.startswith("  road"))
    assert row.split()[1:4] == [f"{share:.2%}", "in", "4"]
    value = call("check-data", root, "--json").value
    assert value["ok"] is True
    assert value["classes"] == [*CLASSES]
    train = value["splits"]["train"]
    assert train["pixels"] == train["ignored"] + sum(train["classes"].values()) == 4 * 8 * 11
    assert train["images_with"] == dict.fromkeys(CLASSES, 4)


def test_check_data_tells_each_problem(tmp_path: Path) -> None:
    root = write(tmp_path)
    put(255)(root)
    shutil.copy(root / "train/images/t0.jpg", root / "val/images/same.jpg")
    shutil.copy(root / "train/masks/t0.png", root / "val/masks/same.png")
    cut("train/images/t2.jpg")(root)
    picture(root / "train/images/t2.jpg", (8, 11))
    data = (root / "train/images/t2.jpg").read_bytes()
    (root / "train/images/t2.jpg").write_bytes(data[: len(data) - 60])  # its header is whole
    found = call("check-data", root)
    assert found.code == 1
    for line in (
        "PROBLEM: 1 masks with values that are no class",
        "PROBLEM: 1 unreadable images",
        "PROBLEM: 1 images that are in two splits",
        "scores on the later split will be too good",
        "train stops at these; --on-bad skip leaves out what is at fault",
    ):
        assert line in found.out.splitlines()
    assert "same.jpg: in val, the same file as train/images/t0.jpg in train" in found.out
    value = call("check-data", root, "--json").value
    assert value["ok"] is False
    kinds = {problem["kind"]: problem for problem in value["problems"]}
    assert set(kinds) == {"unknown-value", "unreadable-image", "leak"}
    assert kinds["unreadable-image"]["file"] == str(root / "train/images/t2.jpg")


def test_check_data_where_nothing_is_left(tmp_path: Path) -> None:
    root = write(tmp_path)
    for file in (root / "val" / "masks").iterdir():
        save(file, np.full((7, 9), 200, np.uint8))
    found = call("check-data", root, "--task", "segment")
    assert found.code == 1
    assert "PROBLEM: 1 no image at all" in found.out
    assert call("check-data", root, "--json").value["splits"] == {}


def test_check_data_of_many_classes(tmp_path: Path) -> None:
    maps = {s: {k: scene(i, 9, 60, 50) for i, k in enumerate(MAPS[s])} for s in MAPS}
    found = call("check-data", write(tmp_path, maps, classes=None, draw=lambda m: m))
    assert found.code == 0
    assert "the 20 rarest classes" in found.out
    assert "0 to 49" in found.out
    assert sum(" in " in line and "%" in line for line in found.out.splitlines()) == 20


def test_check_data_and_annotations_beside_masks(tmp_path: Path) -> None:
    """What is asked for is checked; without being asked, the annotations."""
    root = write(tmp_path)
    one: dict[str, Any] = {"categories": [{"id": 1, "name": "cat"}]}
    for split, names in MAPS.items():
        one["images"] = [{"id": i, "file_name": f"images/{s}.jpg"} for i, s in enumerate(names)]
        one["annotations"] = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 3, 3]}]
        (root / f"{split}.json").write_text(json.dumps(one))
    assert f"{root}: COCO" in call("check-data", root).out
    assert f"{root}: masks" in call("check-data", root, "--task", "segment").out
    found = call("check-data", tmp_path / "train" / "images", "--task", "segment")
    assert found.code == 2
    assert "no masks found" in found.err


def test_no_torch_is_loaded(tmp_path: Path) -> None:
    root = write(tmp_path)
    code = f"""
import sys
from skipway.data.pixels import open_pixels
assert open_pixels({str(root)!r}).splits["train"].target(0).any()
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_bytes_of_any_kind_are_a_mask_or_refused() -> None:
    """Whatever a file holds, there is a mask or a DecodeError."""
    image = Image.fromarray(values(MAPS["train"]["t0"]))
    for options in ({"format": "PNG"}, {"format": "TIFF"}, {"format": "GIF"}, {"format": "BMP"}):
        buffer = io.BytesIO()
        image.save(buffer, **options)
        data = buffer.getvalue()
        rng = np.random.default_rng(0)
        for _ in range(60):
            changed = bytearray(data[: rng.integers(1, len(data) + 1)])
            for at in rng.integers(0, len(changed), rng.integers(0, 4)):
                changed[at] = rng.integers(0, 256)
            with contextlib.suppress(DecodeError), mask_image(bytes(changed), "x") as found:
                assert np.asarray(found).size
