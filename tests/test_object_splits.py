"""Annotated images once read: as they are shown, taken, scored and checked."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from annotations import (
    NAMES,
    SCENE,
    Json,
    annotated,
    picture,
    rectangle,
    single,
    small,
    voc_with_sets,
    write,
    write_coco,
    write_voc,
    write_yolo,
)
from commands import call
from skipway.data.objects import AnnotatedSplit, open_objects, undivided_objects
from skipway.errors import InputError


@pytest.fixture
def data() -> dict[str, Json]:
    return {"train": small("train"), "val": small("val")}


# --- images turned by EXIF --------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_sizes_are_those_of_the_image_as_it_is_shown(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    picture(tmp_path / "train" / f"x.{suffix}", 40, 30, orientation)
    one: Json = {"categories": [{"id": 1, "name": "cat"}]}
    one["images"] = [{"id": 1, "file_name": f"x.{suffix}"}]
    one["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 90, 90]}]
    (tmp_path / "train.json").write_text(json.dumps(one))
    split = annotated(open_objects(str(tmp_path), val="none"))
    height, width = split.image(0, 3).shape[:2]
    assert split.sizes.tolist() == [[height, width]]
    assert (height > width) == (orientation > 4)
    assert split.target(0).boxes.tolist() == [[0, 0, width, height]]


def test_a_jpeg_whose_size_stands_far_behind(tmp_path: Path) -> None:
    path = tmp_path / "train" / "x.jpg"
    picture(path)
    raw = path.read_bytes()
    note = b"\xff\xfe\xff\xff" + b"c" * 65533  # a comment as long as can be
    path.write_bytes(raw[:2] + note * 3 + raw[2:])
    one: Json = {"categories": [{"id": 1, "name": "cat"}]}
    one["images"] = [{"id": 1, "file_name": "x.jpg", "width": 40, "height": 30}]
    one["annotations"] = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]
    (tmp_path / "train.json").write_text(json.dumps(one))
    assert annotated(open_objects(str(tmp_path), val="none")).sizes.tolist() == [[30, 40]]


# --- the split --------------------------------------------------------------------------------


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(positions=st.lists(st.integers(0, 2), max_size=6))
def test_take_gives_those_images_in_that_order(tmp_path: Path, positions: list[int]) -> None:
    root = tmp_path / "d"
    if not root.exists():
        one = small("train")
        one["annotations"][1]["segmentation"] = [[0, 0, 40, 0, 40, 30, 0, 30]]
        write(root, {"train": one})
    split = annotated(open_objects(str(root), val="none", masks=True))
    taken = split.take(np.array(positions, np.int64))
    assert isinstance(taken, AnnotatedSplit)
    assert list(taken.names) == [split.names[i] for i in positions]
    for j, i in enumerate(positions):
        a, b = taken.target(j), split.target(i)
        assert a.ids.tolist() == b.ids.tolist()
        assert np.array_equal(a.masks(30, 40), b.masks(30, 40))
        assert np.array_equal(taken.sizes[j], split.sizes[i])


def test_objects_taken_and_pickled(tmp_path: Path, data: dict[str, Json]) -> None:
    split = annotated(open_objects(str(write(tmp_path, data)), masks=True))
    objects = pickle.loads(pickle.dumps(split)).target(1)
    assert objects.ids.tolist() == [12, 13, 15]
    for keep in (np.array([True, False, True]), np.array([0, 2])):
        part = objects.take(keep)
        assert part.ids.tolist() == [12, 15]
        assert np.array_equal(part.masks(30, 40), objects.masks(30, 40)[[0, 2]])


def test_content_changes_with_any_object(tmp_path: Path, data: dict[str, Json]) -> None:
    def content(n: int) -> bytes:
        return annotated(open_objects(str(write(tmp_path / str(n), data)), masks=True)).content()

    first = content(0)
    assert content(1) == first
    row = data["train"]["annotations"][2]
    changes: list[Json] = [{"bbox": [5, 5, 6, 8]}, {"category_id": 3}, {"area": 41}]
    changes += [{"iscrowd": 1}, {"segmentation": rectangle(5, 5, 6, 6)}]
    for n, change in enumerate(changes, 2):
        before = dict(row)
        row.update(change)
        assert content(n) != first
        row.clear()
        row.update(before)


# --- what is scored ---------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [False, True])
def test_before_anything_is_held_out(tmp_path: Path, data: dict[str, Json], masks: bool) -> None:
    """A model of the data's own classes finds the data that it was trained on."""
    data["train"]["categories"].append({"id": 0, "name": "all", "supercategory": "none"})
    for category in data["train"]["categories"][:2]:
        category["supercategory"] = "all"
    root = write(tmp_path / "two", data)
    made = open_objects(str(root), masks=masks)
    found = undivided_objects(str(root), masks=masks, classes=made.classes)
    assert found.divide().digest() == made.digest()
    assert (found.held_out(made.digest()), found.held_out("other")) == (("val",), None)
    assert [found.take(name)[0] for name in (None, "train", "val")] == ["val", "train", "val"]
    name, split, notes = found.take()
    assert list(split.names) == list(made.splits["val"].names)
    assert "val: 1 of 3 images hold no object" in notes
    assert not any(note.startswith("train: 1 of 3") for note in notes)
    for name in ("test", "all"):
        with pytest.raises(InputError, match=f"--split {name}: .* has train, val"):
            found.take(name)


def test_one_file_without_splits_is_scored_whole(tmp_path: Path) -> None:
    file = single(tmp_path, 40, empty=10)
    found, made = undivided_objects(str(file), seed=2), open_objects(str(file), seed=2)
    for asked in (None, "all"):
        name, split, notes = found.take(asked)
        assert (name, len(split)) == ("all", 40)
        assert notes[-1] == "all: 10 of 40 images hold no object"
    for asked, part in made.splits.items():
        name, split, notes = found.take(asked)
        assert (name, list(split.names), notes) == (asked, list(part.names), made.notes)
    assert found.held_out(made.digest()) == ("test", "val")
    whole = undivided_objects(str(file), val="none")
    assert whole.held_out(open_objects(str(file), val="none").digest()) == ()
    with pytest.raises(InputError, match="has all, train"):
        whole.take("val")
    file.rename(tmp_path / "train.json")  # all of it too, unless a part is asked for
    alone = undivided_objects(str(tmp_path))
    assert [(name, len(split)) for name, split, _ in map(alone.take, (None, "val"))] == [
        ("train", 40),
        ("val", 5),
    ]
    few = undivided_objects(str(single(tmp_path / "one", 1)))  # too few to hold any out
    assert few.take()[0] == "all"
    assert few.held_out("") is None


# --- check-data -------------------------------------------------------------------------------


def two_splits(form: str, root: Path) -> tuple[Path, Path, Path]:
    """Data in which all images differ, one of them in train, and one in val."""
    if form == "COCO":
        write(root, {"train": small("train"), "val": small("val")})
        one, two = root / "train" / "train0.png", root / "val" / "val7.png"
    elif form == "VOC":
        voc_with_sets(root)
        one, two = root / "JPEGImages" / "a.png", root / "JPEGImages" / "b.png"
    else:
        write_yolo(root, SCENE, NAMES)
        for kind, suffix in (("images", ".png"), ("labels", ".txt")):
            (root / kind / "val").mkdir()
            (root / kind / "train" / f"b{suffix}").rename(root / kind / "val" / f"b{suffix}")
        with (root / "data.yaml").open("a") as yaml:
            yaml.write("val: images/val\n")
        one, two = root / "images" / "train" / "a.png", root / "images" / "val" / "b.png"
    for i, file in enumerate(sorted(root.rglob("*.png"))):
        Image.new("RGB", Image.open(file).size, (9 * i, 0, 0)).save(file)
    return root, one, two


@pytest.mark.parametrize("form", ["COCO", "VOC", "YOLO"])
def test_check_data_tells_images_in_two_splits(tmp_path: Path, form: str) -> None:
    root, one, two = two_splits(form, tmp_path / "data")
    found = call("check-data", root)
    assert found.code == 0, found.out
    assert found.out.splitlines()[-1] == "nothing is wrong"
    shutil.copy(one, two)
    found = call("check-data", root)
    assert found.code == 1
    assert found.out.splitlines()[-3:] == [
        "PROBLEM: 1 images that are in two splits",
        f"  {two}: in val, the same file as {os.path.relpath(one, image_root(root))} in train",
        "scores on the later split will be too good",
    ]
    value = call("check-data", root, "--json").value
    assert value["ok"] is False
    (problem,) = value["problems"]
    assert (problem["kind"], problem["file"]) == ("leak", str(two))
    picture(one, 3, 2)  # of another size than annotated: left out, and no longer in both
    lines = call("check-data", root).out.splitlines()
    if form == "YOLO":
        assert lines[-1] == "nothing is wrong"
    else:
        assert lines[-1].startswith("train stops at these")
        assert not any("two splits" in line for line in lines)


def image_root(root: Path) -> Path:
    """The folder that the names of training images are relative to."""
    return next(root / name for name in ("train", "JPEGImages", ".") if (root / name).is_dir())


def slips(root: Path) -> list[str]:
    return [note for note in open_objects(str(root), val="none").notes if "only this" in note]


@pytest.mark.parametrize("form", [write_coco, write_voc, write_yolo])
def test_a_class_that_is_a_slip_of_another(
    tmp_path: Path, form: Callable[[Path, dict[str, Any], list[str]], Path]
) -> None:
    """One of 200 platelets."""
    boxes = [(0, (i, i, i + 5, i + 6)) for i in range(20)]
    images = {f"im{i}": (40, 30, boxes) for i in range(10)}
    images["im7"] = (40, 30, [*boxes[:3], (1, (0, 0, 9, 9)), *boxes[4:]])
    root = form(tmp_path / "data", images, ["platelet", "platlet"])
    (note,) = slips(root)
    file, row = {
        write_coco: (root / "train.json", 143),
        write_voc: (root / "Annotations" / "im7.xml", 4),
        write_yolo: (root / "labels" / "train" / "im7.txt", 4),
    }[form]
    image = "images/train/im7.png" if form is write_yolo else "im7.png"
    assert note == (
        f"{file}, annotation {row} ({image}): only this in training of the class 'platlet'. "
        "Did you mean 'platelet'?"
    )
    told = call("check-data", root, "--val=none")
    assert f"  {note}" in told.out.splitlines()
    assert note in call("check-data", root, "--val=none", "--json").value["notes"]
    made = undivided_objects(str(root), classes=("platelet", "platlet"))  # of a model
    assert not any("only this" in note for note in made.notes)


@pytest.mark.parametrize(
    ("counts", "pairs"),
    [
        ({"cat": 90, "car": 80}, 0),  # both are frequent
        ({"cat": 90, "car": 5}, 0),
        ({"cat": 300, "car": 3}, 1),
        ({"cat": 299, "car": 3}, 0),
        ({"cat": 40, "cats": 2}, 1),
        ({"cat": 39, "cats": 2}, 0),
        ({"class 1": 100, "class 2": 1}, 0),  # numbers tell them apart
        ({"1": 100, "12": 1, "3": 1}, 0),
        ({"grade 1a": 100, "grade 1b": 1}, 1),
        ({"cell": 100, "zebra": 1}, 0),
        ({"Zebra": 100, "zebra": 1}, 1),
        ({"zebra": 100, "zebre": 1, "zebrra": 2, "zzebra": 1, "zebras": 1, "zebr": 1}, 4),
    ],
)
def test_what_is_no_slip(tmp_path: Path, counts: dict[str, int], pairs: int) -> None:
    labels = [label for label, n in enumerate(counts.values()) for _ in range(n)]
    images = {"a": (40, 30, [(label, (0, 0, 9, 9)) for label in labels])}
    root = write_coco(tmp_path, images, list(counts))
    found = slips(root)
    assert len(found) == min(pairs, 3)
    notes = open_objects(str(root), val="none").notes
    more = [note for note in notes if "called almost as" in note]
    assert more == (
        ["2 more classes are called almost as one of many more objects"] if pairs > 3 else []
    )
    if "cats" in counts and found:
        assert "annotation 40 (a.png): only this and 1 more object in training" in found[0]


def test_without_its_optional_packages(tmp_path: Path, data: dict[str, Json]) -> None:
    """Boxes and RLE need none; polygons and YOLO say what brings what they need. No torch."""
    polygons = copy.deepcopy(data)
    polygons["train"]["annotations"][0]["segmentation"] = [[0, 0, 5, 0, 5, 5]]
    runs, drawn = write(tmp_path / "runs", data), write(tmp_path / "drawn", polygons)
    yolo = write_yolo(tmp_path / "yolo", SCENE, NAMES)
    code = f"""
import sys
sys.modules.update(pycocotools=None, yaml=None)
from skipway.data.objects import open_objects
from skipway.errors import InputError
assert open_objects({str(runs)!r}, masks=True).splits["train"].target(0).masks(30, 40).any()
for act in (
    lambda: open_objects({str(drawn)!r}, masks=True).splits["train"].target(0).masks(30, 40),
    lambda: open_objects({str(yolo)!r}),
):
    try:
        act()
    except InputError as error:
        assert "'.[detect]'" in str(error), error
    else:
        raise AssertionError
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
