"""Annotated images: COCO, Pascal VOC and YOLO read alike, and everything wrong in them named."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection, VOCDetection

from commands import call
from skipway.data import DataSet
from skipway.data.objects import (
    KINDS,
    AnnotatedSplit,
    Objects,
    Runs,
    form_of,
    open_objects,
    problems,
    undivided_objects,
)
from skipway.data.objects.shapes import ShapeList, decode_texts, decoded
from skipway.data.problems import Problem
from skipway.errors import InputError

Json = dict[str, Any]
SLOW_DISK = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])

# --- writing ----------------------------------------------------------------------------------


def picture(path: Path, width: int = 40, height: int = 30, orientation: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (width, height), "grey")
    exif = image.getexif()
    if orientation:
        exif[274] = orientation
    image.save(path, exif=exif)


def rle(mask: np.ndarray) -> Json:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def rectangle(x: int, y: int, w: int, h: int, size: tuple[int, int] = (30, 40)) -> Json:
    mask = np.zeros(size, bool)
    mask[y : y + h, x : x + w] = True
    return rle(mask)


def small(split: str) -> Json:
    """Three images of two classes, with ids that have holes: five objects, one image empty."""
    start = {"train": 0, "val": 100}[split]
    images = [
        {"id": start + i, "file_name": f"{split}{i}.png", "width": 40, "height": 30}
        for i in (0, 5, 7)
    ]
    rows = [(11, 0, 7, [1, 2, 10, 20]), (12, 5, 3, [0, 0, 40, 30]), (13, 5, 7, [5, 5, 6, 7])]
    rows += [(15, 5, 3, [20, 10, 8, 9]), (14, 0, 7, [30, 20, 10, 10])]
    annotations = [
        {
            "id": start + i,
            "image_id": start + image,
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": rectangle(*box),
        }
        for i, image, category, box in rows
    ]
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write(root: Path, data: dict[str, Json]) -> Path:
    """COCO json for each split and its images, as far as they are there at first."""
    for split, one in data.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{split}.json").write_text(json.dumps(one))
        for image in small(split)["images"]:
            picture(root / split / image["file_name"])
    return root


@pytest.fixture
def data() -> dict[str, Json]:
    return {"train": small("train"), "val": small("val")}


def annotated(found: DataSet, split: str = "train") -> AnnotatedSplit:
    one = found.splits[split]
    assert isinstance(one, AnnotatedSplit)
    return one


def ids(found: DataSet, split: str = "train") -> list[int]:
    return annotated(found, split).table.ids.tolist()


def told(error: pytest.ExceptionInfo[InputError]) -> list[str]:
    lines = str(error.value).split("\n")
    assert 1 <= len(lines) <= 3
    return lines


# --- what is read is what pycocotools and torchvision read ------------------------------------


def test_coco_as_pycocotools_reads_it(tmp_path: Path, data: dict[str, Json]) -> None:
    polygon = [[1.0, 2.5, 30.25, 2.5, 17.1, 27.9], [30, 20, 39, 20, 39, 29, 30, 29]]
    data["train"]["annotations"][1]["segmentation"] = polygon
    counts = [40, 20, 30 * 40 - 60]
    crowd = {"segmentation": {"size": [30, 40], "counts": counts}, "iscrowd": 1, "area": 20}
    data["train"]["annotations"][0] |= crowd
    root = write(tmp_path, data)
    found = open_objects(str(root), masks=True)
    assert found.classes == ("dog", "cat")
    oracle = COCO(str(root / "train.json"))
    names = [c["name"] for c in oracle.loadCats(sorted(oracle.getCatIds()))]
    assert list(found.classes) == names
    split = annotated(found)
    images = {image["file_name"]: image for image in oracle.loadImgs(oracle.getImgIds())}
    assert sorted(split.names) == sorted(images)
    assert [len(split.target(i)) for i in range(3)] == [2, 3, 0]
    for i, name in enumerate(split.names):
        objects = split.target(i)
        want = {a["id"]: a for a in oracle.loadAnns(oracle.getAnnIds(images[name]["id"]))}
        assert sorted(objects.ids.tolist()) == sorted(want)
        masks = objects.masks(30, 40)
        assert masks.shape == (len(objects), 30, 40)
        assert masks.dtype == bool
        for j, annotation in enumerate(want[k] for k in objects.ids.tolist()):
            x, y, w, h = annotation["bbox"]
            assert objects.boxes[j].tolist() == [x, y, x + w, y + h]
            category = oracle.loadCats(annotation["category_id"])[0]["name"]
            assert found.classes[objects.labels[j]] == category
            assert bool(objects.crowd[j]) == bool(annotation["iscrowd"])
            assert objects.areas[j] == np.float32(annotation["area"])
            assert np.array_equal(masks[j], oracle.annToMask(annotation))
    kinds = {
        f.name: getattr(objects, f.name).dtype
        for f in objects.__dataclass_fields__.values()
        if f.name != "shapes"
    }
    assert kinds == {
        "boxes": np.float32,
        "labels": np.int64,
        "crowd": bool,
        "areas": np.float32,
        "ids": np.int64,
    }


def test_pictures_and_targets_as_torchvision_gives_them(
    tmp_path: Path, data: dict[str, Json]
) -> None:
    root = write(tmp_path, data)
    split = annotated(open_objects(str(root)), "val")
    oracle = CocoDetection(str(root / "val"), str(root / "val.json"))
    place = {name: i for i, name in enumerate(split.names)}
    for k in range(len(oracle)):
        image, target = oracle[k]
        i = place[oracle.coco.loadImgs(oracle.ids[k])[0]["file_name"]]
        assert np.array_equal(split.image(i, 3), np.asarray(image))
        assert split.target(i).ids.tolist() == [a["id"] for a in target]
        assert split.sizes[i].tolist() == [image.height, image.width]


@settings(max_examples=150)
@given(st.data())
def test_rle_as_pycocotools_decodes_it(draw: st.DataObject) -> None:
    height, width = draw.draw(st.integers(1, 40)), draw.draw(st.integers(1, 40))
    r = np.random.default_rng(draw.draw(st.integers(0, 2**32)))
    made = ShapeList()
    masks = []
    for density in draw.draw(st.lists(st.sampled_from([0, 0.02, 0.5, 1]), max_size=4)):
        mask = r.random((height, width)) < density
        masks.append(mask)
        found = rle(mask)
        if draw.draw(st.booleans()):
            runs = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False)).tolist()
            runs = np.diff([0, *runs, height * width]).tolist()
            found = {"size": [height, width], "counts": runs}
        assert made.add(found) is None
    shapes, broken = made.finish()
    assert not broken.any()
    want = np.array(masks, bool).reshape(-1, height, width)
    assert np.array_equal(decoded([shapes[i] for i in range(len(masks))], height, width), want)
    assert np.array_equal(shapes.areas(), want.sum(axis=(1, 2)))


@settings(max_examples=300)
@given(st.lists(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12)))
def test_any_text_as_rle_is_broken_or_right(texts: list[str]) -> None:
    """Each text judged as if it were alone; what is accepted is what pycocotools makes of it."""
    raw = "".join(texts).encode()
    ends = np.cumsum([0, *map(len, texts)])
    counts, count_ends, broken = decode_texts(np.frombuffer(raw, np.uint8), ends)
    for i, text in enumerate(texts):
        alone = np.frombuffer(text.encode(), np.uint8)
        single, _, bad = decode_texts(alone, np.array([0, len(text)]))
        mine = counts[count_ends[i] : count_ends[i + 1]]
        assert bool(broken[i]) == bool(bad[0])
        assert np.array_equal(mine, single)
        n = int(mine.sum())
        if not broken[i] and 0 < n < 10_000:
            want = coco_mask.decode({"size": [n, 1], "counts": text.encode()})
            assert np.array_equal(decoded([Runs(mine, (n, 1))], n, 1)[0], want)


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-20, 60), st.floats(-20, 50)), min_size=3, max_size=8),
        min_size=1,
        max_size=3,
    )
)
def test_polygons_as_pycocotools_draws_them(polygons: list[list[tuple[float, float]]]) -> None:
    flat = [[v for point in polygon for v in point] for polygon in polygons]
    made = ShapeList()
    made.add([[0, 0, 4, 0, 4, 3.0]])
    assert made.add(flat) is None
    shapes, _ = made.finish()
    want = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, 30, 40)))
    assert np.array_equal(decoded([shapes[1]], 30, 40)[0], want)
    assert shapes.areas()[0] == 6
    x, y = (np.concatenate([np.array(p)[:, k] for p in polygons]) for k in (0, 1))
    assert shapes.extents()[1].tolist() == [x.min(), y.min(), x.max(), y.max()]


def test_masks_of_another_size_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match="a mask of"):
        decoded([Runs(np.array([4]), (2, 2))], 4, 1)
    with pytest.raises(ValueError, match="no mask"):
        decoded([None], 4, 1)
    assert decoded([], 4, 3).shape == (0, 4, 3)


def test_area_of_the_mask_where_cocos_own_is_unsound(tmp_path: Path, data: dict[str, Json]) -> None:
    rows = data["train"]["annotations"]
    for row, area in zip(rows, [150.0, -1, None, 1e9, "many"], strict=True):
        row["area"] = area
    rows[0]["segmentation"] = [[1, 2, 11, 2, 11, 22, 1, 22]]
    rows[1]["segmentation"] = [[0, 0, 40, 0, 40, 30]]
    del rows[2]["area"]
    root = write(tmp_path, data)
    for masks, second in ((True, 600), (False, 1200)):
        table = annotated(open_objects(str(root), masks=masks)).table
        areas = dict(zip(table.ids.tolist(), table.areas.tolist(), strict=True))
        assert areas == {11: 150, 12: second, 13: 42, 15: 72, 14: 100}


# --- layouts ----------------------------------------------------------------------------------


def test_layouts_of_coco(tmp_path: Path, data: dict[str, Json]) -> None:
    plain = write(tmp_path / "plain", data)
    (plain / "notes.txt").write_text("x")
    roboflow, own, around = tmp_path / "robo", tmp_path / "own", tmp_path / "a" / "inner"
    for split, folder in (("train", "train"), ("val", "valid")):
        for image in data[split]["images"]:
            for place in (roboflow / folder, own / f"{split}2017"):
                picture(place / image["file_name"])
        (roboflow / folder / "_annotations.coco.json").write_text(json.dumps(data[split]))
        (own / "annotations").mkdir(exist_ok=True)
        (own / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(data[split]))
        (own / "annotations" / f"captions_{split}2017.json").write_text("{}")
    write(around, data)
    want = open_objects(str(plain))
    assert list(want.splits) == ["train", "val"]
    for root in (roboflow, own, around.parent):
        assert form_of(str(root)) == "COCO"
        found = open_objects(str(root))
        assert found.classes == want.classes
        for name, split in want.splits.items():
            assert (
                annotated(found, name).table.boxes.tolist()
                == annotated(want, name).table.boxes.tolist()
            )
            assert list(found.splits[name].names) == list(split.names)


def single(root: Path, images: int, empty: int = 0) -> Path:
    """One json, its images beside it; every tenth image has the rare class."""
    one = {"categories": [{"id": 1, "name": "often"}, {"id": 2, "name": "seldom"}]}
    rows = [(i, 1) for i in range(images - empty)] + [(i, 2) for i in range(0, images - empty, 10)]
    one |= {
        "images": [{"id": i, "file_name": f"{i:03}.png"} for i in range(images)],
        "annotations": [
            {"id": k, "image_id": i, "category_id": c, "bbox": [1, 1, 5, 5]}
            for k, (i, c) in enumerate(rows)
        ],
    }
    for i in range(images):
        picture(root / f"{i:03}.png", 10, 8)
    (root / "annotations.json").write_text(json.dumps(one))
    return root / "annotations.json"


def test_a_single_json_is_split_by_image_and_rarest_class(tmp_path: Path) -> None:
    file = single(tmp_path, 100, empty=20)
    found = open_objects(str(file))
    assert {name: len(s) for name, s in found.splits.items()} == {
        "train": 80,
        "val": 10,
        "test": 10,
    }
    for name, seldom, empty in (("val", 1, 2), ("test", 1, 2), ("train", 6, 16)):
        split = annotated(found, name)
        assert split.per_class(2)[1] == seldom
        assert int((np.diff(split.table.offsets) == 0).sum()) == empty
        assert split.labels.tolist() == [0] * len(split)
    names = [set(s.names) for s in found.splits.values()]
    assert len(set.union(*names)) == 100
    assert any("rarest class" in note for note in found.notes)
    assert any("size" in note for note in found.notes)  # taken from the images
    again, other = open_objects(str(tmp_path)), open_objects(str(file), seed=1)
    assert list(again.splits["test"].names) == list(found.splits["test"].names)
    assert list(other.splits["test"].names) != list(found.splits["test"].names)
    shared = open_objects(str(file), val=0.5)
    assert {n: len(s) for n, s in shared.splits.items()} == {"train": 45, "val": 45, "test": 10}
    assert list(open_objects(str(file), val="none").splits) == ["train"]
    with pytest.raises(InputError, match="between 0 and 1"):
        open_objects(str(file), val=1.5)


def test_a_split_of_its_own_and_too_few_images(tmp_path: Path, data: dict[str, Json]) -> None:
    root = write(tmp_path / "two", data)
    with pytest.raises(InputError, match="validation split of its own"):
        open_objects(str(root), val=0.2)
    with pytest.raises(InputError, match="too few images"):
        open_objects(str(single(tmp_path / "one", 1)))
    assert len(open_objects(str(tmp_path / "one"), val="none").splits["train"]) == 1


@pytest.mark.parametrize("what", ["missing", "empty", "text", "results"])
def test_what_holds_no_annotations_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "here"
    if what == "empty":
        path.mkdir()
    if what == "text":
        path.write_text("no annotations")
    if what == "results":
        path = tmp_path / "results.json"
        path.write_text("[{}]")
    with pytest.raises(InputError) as error:
        open_objects(str(path))
    assert path.name in told(error)[0]
    assert form_of(str(path)) == ("COCO" if what == "results" else None)


def test_two_files_for_one_split_are_refused(tmp_path: Path, data: dict[str, Json]) -> None:
    root = write(tmp_path, data)
    (root / "valid.json").write_text("{}")
    for act in (open_objects, form_of):
        with pytest.raises(InputError, match="both be the annotations of val"):
            act(str(root))
    for split, name in (("train", "some"), ("val", "other"), ("valid", "third")):
        (root / f"{split}.json").rename(root / f"{name}.json")
    (root / "third.json").unlink()
    with pytest.raises(InputError, match=r"call them train\.json and val\.json"):
        open_objects(str(root))


@pytest.mark.parametrize("name", ["{}_annotations.json", "annotations_{}.json", "{}2014.json"])
def test_other_names_of_files(tmp_path: Path, data: dict[str, Json], name: str) -> None:
    root = write(tmp_path, data)
    for split in data:
        (root / f"{split}.json").rename(root / name.format(split))
    assert {n: len(s) for n, s in open_objects(str(root)).splits.items()} == {"train": 3, "val": 3}


# --- ids are names ----------------------------------------------------------------------------


def test_ids_are_names(tmp_path: Path, data: dict[str, Json]) -> None:
    """From 0, with holes, as text, as whole floats, and others in each split."""
    want = open_objects(str(write(tmp_path / "plain", data)))
    ways: list[Callable[[int], Any]] = [
        lambda i: i - 3,
        lambda i: f"a{i}",
        float,
        lambda i: i * 10**12,
    ]
    for n, way in enumerate(ways):
        changed = copy.deepcopy(data)
        one = changed["val"]
        for entry in one["categories"]:
            entry["id"] = way(entry["id"])
        for entry in one["annotations"]:
            entry["category_id"] = way(entry["category_id"])
            entry["image_id"] = way(entry["image_id"])
        for entry in one["images"]:
            entry["id"] = way(entry["id"])
        found = open_objects(str(write(tmp_path / str(n), changed)))
        assert found.classes == want.classes
        assert (
            annotated(found, "val").table.labels.tolist()
            == annotated(want, "val").table.labels.tolist()
        )
        assert found.notes == want.notes


def test_other_order_of_categories_in_val_is_matched_by_name(
    tmp_path: Path, data: dict[str, Json]
) -> None:
    data["val"]["categories"] = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    found = open_objects(str(write(tmp_path, data)))
    assert found.classes == ("dog", "cat")
    train, val = annotated(found).table.labels, annotated(found, "val").table.labels
    assert val.tolist() == (1 - train).tolist()


def test_a_category_above_all_others_is_no_class(tmp_path: Path, data: dict[str, Json]) -> None:
    for one in data.values():
        for entry in one["categories"]:
            entry["supercategory"] = "pets"
        one["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"})
        one["categories"].append({"id": 9, "name": "eel", "supercategory": "eel"})
    found = open_objects(str(write(tmp_path, data)))
    assert found.classes == ("dog", "cat", "eel")  # declared, though no image has one
    assert any("'pets'" in note for note in found.notes)
    assert any("no object of 1 of the 3 classes" in note for note in found.notes)


def test_without_ids_the_row_counts(tmp_path: Path, data: dict[str, Json]) -> None:
    for entry in data["train"]["annotations"]:
        del entry["id"]
    found = open_objects(str(write(tmp_path, data)))
    assert sorted(ids(found)) == [1, 2, 3, 4, 5]


def test_a_models_classes(tmp_path: Path, data: dict[str, Json]) -> None:
    root = write(tmp_path, data)
    found = open_objects(str(root), classes=("cat", "cow", "dog"))
    assert found.classes == ("cat", "cow", "dog")
    assert set(annotated(found).table.labels.tolist()) == {0, 2}
    with pytest.raises(InputError, match="'dog' here and 1 more is not among those learned"):
        open_objects(str(root), classes=("cat",))
    (root / "train.json").unlink()
    with pytest.raises(InputError, match="none of train"):
        open_objects(str(root))
    assert list(open_objects(str(root), classes=("cat", "dog")).splits) == ["val"]


# --- everything that can be wrong -------------------------------------------------------------

Change = Callable[[dict[str, Json], Path], None]


def of_annotation(**fields: Any) -> Change:
    def change(data: dict[str, Json], root: Path) -> None:
        data["train"]["annotations"][2] |= fields  # id 13, in train5.png

    return change


def without(key: str) -> Change:
    def change(data: dict[str, Json], root: Path) -> None:
        del data["train"]["annotations"][2][key]

    return change


def of_image(**fields: Any) -> Change:
    def change(data: dict[str, Json], root: Path) -> None:
        data["train"]["images"][1] |= fields  # train5.png

    return change


def of_file(act: Callable[[Path], Any]) -> Change:
    def change(data: dict[str, Json], root: Path) -> None:
        act(root / "train" / "train5.png")

    return change


def turn(path: Path) -> None:
    """As a camera held upright leaves it: 40 x 30 stored, 30 x 40 shown."""
    path.unlink()
    picture(path.with_suffix(".jpg"), 40, 30, orientation=6)
    path.with_suffix(".jpg").rename(path)


def rename_class(data: dict[str, Json], root: Path) -> None:
    data["val"]["categories"][1]["name"] = "dgo"


def twice(data: dict[str, Json], root: Path) -> None:
    data["train"]["annotations"][4]["id"] = 13


def same_file(data: dict[str, Json], root: Path) -> None:
    data["train"]["images"][1]["file_name"] = "./train0.png"


def same_image_id(data: dict[str, Json], root: Path) -> None:
    data["train"]["images"].append(data["train"]["images"][1] | {})


def id_of_two_images(data: dict[str, Json], root: Path) -> None:
    data["train"]["images"][2]["id"] = 5


def no_object(data: dict[str, Json], root: Path) -> None:
    data["train"]["annotations"][2] = 17  # type: ignore[call-overload]


NAN, INF = float("nan"), float("inf")
A, IMAGE = 13, "train5.png"
ALL = [11, 14, 12, 13, 15]
"""Annotations in the order of images."""
REST = [11, 14, 12, 15]
OTHERS = [11, 14]
"""Without those of train5.png."""
WRONG: dict[str, tuple[Change, str, int | None, str, list[int]]] = {
    "zero area": (of_annotation(bbox=[5, 5, 0, 7]), "no-area", A, IMAGE, REST),
    "zero height": (of_annotation(bbox=[5, 5, 6, 0.0]), "no-area", A, IMAGE, REST),
    "no area in float32": (of_annotation(bbox=[0, 0, 1e-30, 1e-30]), "no-area", A, IMAGE, REST),
    "no width in float32": (of_annotation(bbox=[39, 5, 1e-9, 3]), "no-area", A, IMAGE, REST),
    "reversed": (of_annotation(bbox=[9, 9, -4, 7]), "reversed", A, IMAGE, REST),
    "both reversed": (of_annotation(bbox=[9, 9, -4, -4]), "reversed", A, IMAGE, REST),
    "right of it": (of_annotation(bbox=[40, 5, 6, 7]), "outside", A, IMAGE, REST),
    "above it": (of_annotation(bbox=[5, -9, 6, 7]), "outside", A, IMAGE, REST),
    "NaN": (of_annotation(bbox=[NAN, 5, 6, 7]), "not-finite", A, IMAGE, REST),
    "infinite": (of_annotation(bbox=[5, 5, INF, 7]), "not-finite", A, IMAGE, REST),
    "sum too large": (of_annotation(bbox=[1e308, 5, 1e308, 7]), "not-finite", A, IMAGE, REST),
    "strings": (of_annotation(bbox=["5", 5, 6, 7]), "no-box", A, IMAGE, REST),
    "bool": (of_annotation(bbox=[True, 5, 6, 7]), "no-box", A, IMAGE, REST),
    "huge": (of_annotation(bbox=[5, 5, 6, 10**400]), "no-box", A, IMAGE, REST),
    "five numbers": (of_annotation(bbox=[5, 5, 6, 7, 8]), "no-box", A, IMAGE, REST),
    "no bbox": (without("bbox"), "no-box", A, IMAGE, REST),
    "bbox null": (of_annotation(bbox=None), "no-box", A, IMAGE, REST),
    "unknown category": (of_annotation(category_id=4), "unknown-category", A, IMAGE, REST),
    "category true": (of_annotation(category_id=True), "unknown-category", A, IMAGE, REST),
    "no category": (without("category_id"), "unknown-category", A, IMAGE, REST),
    "unknown image": (of_annotation(image_id=6), "unknown-image", A, "", REST),
    "image a list": (of_annotation(image_id=[5]), "unknown-image", A, "", REST),
    "no image": (without("image_id"), "unknown-image", A, "", REST),
    "id again": (twice, "duplicate-id", A, "train0.png", [11, 12, 13, 15]),
    "no id": (without("id"), "bad-annotation", 3, IMAGE, REST),
    "id true": (of_annotation(id=True), "bad-annotation", 3, IMAGE, REST),
    "id huge": (of_annotation(id=10**30), "bad-annotation", 3, IMAGE, REST),
    "iscrowd 2": (of_annotation(iscrowd=2), "bad-annotation", A, IMAGE, REST),
    "no object": (no_object, "bad-annotation", 3, "", REST),
    "misspelt": (rename_class, "unknown-class", 112, "val5.png", ALL),
    "no mask": (without("segmentation"), "no-mask", A, IMAGE, REST),
    "empty list": (of_annotation(segmentation=[]), "no-mask", A, IMAGE, REST),
    "four numbers": (of_annotation(segmentation=[[1, 1, 5, 5]]), "broken-mask", A, IMAGE, REST),
    "odd count": (
        of_annotation(segmentation=[[1, 1, 5, 5, 1, 5, 2]]),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "flat": (of_annotation(segmentation=[1, 1, 5, 5, 1, 5]), "broken-mask", A, IMAGE, REST),
    "NaN point": (
        of_annotation(segmentation=[[1, 1, NAN, 5, 1, 5]]),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "text point": (
        of_annotation(segmentation=[[1, 1, "5", 5, 1, 5]]),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "huge point": (
        of_annotation(segmentation=[[1, 2, 3, 4, 5, 6], [1, 1, 10**400, 5, 1, 5]]),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "far point": (
        of_annotation(segmentation=[[1, 1, 1e9, 5, 1, 5]]),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "a line": (of_annotation(segmentation=[[1, 1, 5, 5, 9, 9]]), "broken-mask", A, IMAGE, REST),
    "mask text": (of_annotation(segmentation="mask"), "broken-mask", A, IMAGE, REST),
    "other size": (
        of_annotation(segmentation=rectangle(5, 5, 6, 7, (40, 30))),
        "mask-size",
        A,
        IMAGE,
        REST,
    ),
    "no size": (of_annotation(segmentation={"counts": "04"}), "broken-mask", A, IMAGE, REST),
    "size of 0": (
        of_annotation(segmentation={"size": [0, 4], "counts": ""}),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "RLE cut off": (
        of_annotation(
            segmentation={"size": [30, 40], "counts": rectangle(5, 5, 6, 7)["counts"][:-1]}
        ),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "RLE of nothing": (
        of_annotation(segmentation={"size": [30, 40], "counts": ""}),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "RLE with é": (
        of_annotation(segmentation={"size": [30, 40], "counts": "é"}),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "RLE with a space": (
        of_annotation(segmentation={"size": [30, 40], "counts": "0 "}),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "counts too few": (
        of_annotation(segmentation={"size": [30, 40], "counts": [5, 5]}),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "counts below 0": (
        of_annotation(segmentation={"size": [30, 40], "counts": [1205, -5]}),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "no counts": (of_annotation(segmentation={"size": [30, 40]}), "broken-mask", A, IMAGE, REST),
    "empty mask": (
        of_annotation(segmentation={"size": [30, 40], "counts": [1200]}),
        "broken-mask",
        A,
        IMAGE,
        REST,
    ),
    "no file": (of_file(Path.unlink), "missing-image", None, IMAGE, OTHERS),
    "damaged file": (
        of_file(lambda p: p.write_bytes(b"no image")),
        "unreadable-image",
        None,
        IMAGE,
        OTHERS,
    ),
    "folder": (of_file(lambda p: (p.unlink(), p.mkdir())), "unreadable-image", None, IMAGE, OTHERS),
    "turned": (of_file(turn), "wrong-size", None, IMAGE, OTHERS),
    "width wrong": (of_image(width=41), "wrong-size", None, IMAGE, OTHERS),
    "width text": (of_image(width="40"), "wrong-size", None, IMAGE, OTHERS),
    "width true": (of_image(width=True), "wrong-size", None, IMAGE, OTHERS),
    "height only": (of_image(width=None), "wrong-size", None, IMAGE, OTHERS),
    "height below 0": (of_image(height=-30), "wrong-size", None, IMAGE, OTHERS),
    "no name": (of_image(file_name=None), "bad-image", None, "", OTHERS),
    "null in the name": (of_image(file_name="a\0.png"), "missing-image", None, "a\0.png", OTHERS),
    "half a character": (
        of_image(file_name="\ud800.png"),
        "missing-image",
        None,
        "\ud800.png",
        OTHERS,
    ),
    "listed twice": (same_file, "image-twice", None, "./train0.png", OTHERS),
    "id twice": (same_image_id, "duplicate-image-id", None, IMAGE, ALL),
    "id of two": (id_of_two_images, "duplicate-image-id", None, IMAGE, OTHERS),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_problem_is_named_and_can_be_left_out(
    tmp_path: Path, data: dict[str, Json], case: str
) -> None:
    change, kind, annotation, image, left = WRONG[case]
    root = write(tmp_path, data)
    change(data, root)
    for split, one in data.items():
        (root / f"{split}.json").write_text(json.dumps(one))
    found = problems(str(root), masks=True)
    assert found[0].kind == kind, found
    assert (found[0].annotation, found[0].image) == (annotation, image)
    assert found[0].file == str(root / ("val.json" if case == "misspelt" else "train.json"))
    with pytest.raises(InputError) as error:
        open_objects(str(root), masks=True)
    lines = told(error)
    assert lines[0] == str(found[0])
    assert "--on-bad skip" in lines[-1]
    assert any("more problem" in line for line in lines) == (len(found) > 1)
    rest = open_objects(str(root), masks=True, on_bad="skip")
    assert ids(rest) == left
    assert [s.reason for s in rest.skipped] == [str(p) for p in found]
    assert any(KINDS[kind] in note for note in rest.notes)
    assert {p.kind for p in found} <= set(KINDS)
    split = annotated(rest)
    for i in range(len(split)):  # what is left can be used
        objects = split.target(i)
        height, width = split.sizes[i].tolist()
        assert split.image(i, 3).shape == (height, width, 3)
        assert objects.masks(height, width).shape[0] == len(objects)
        assert_sound(objects, height, width)


def test_every_kind_of_problem_is_tried() -> None:
    tried = {kind for _, kind, *_ in WRONG.values()}
    assert set(KINDS) - tried == {"damaged", "no-objects"}  # below


def assert_sound(objects: Objects, height: int, width: int) -> None:
    boxes = objects.boxes
    assert np.isfinite(boxes).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    assert (objects.areas > 0).all()
    assert np.isfinite(objects.areas).all()


def test_a_misspelt_class_is_told_with_its_neighbour(tmp_path: Path, data: dict[str, Json]) -> None:
    data["val"]["categories"][1]["name"] = "dgo"
    root = write(tmp_path, data)
    with pytest.raises(InputError, match=r"'dgo' here and 1 more .* Did you mean 'dog'\?"):
        open_objects(str(root))
    found = open_objects(str(root), on_bad="skip")
    assert found.classes == ("dog", "cat")
    assert ids(found, "val") == [111, 114, 113]
    assert any(
        "val: annotations left out (2): of classes that are not learned 2" in note
        for note in found.notes
    )


def test_without_masks_no_shape_is_read(tmp_path: Path, data: dict[str, Json]) -> None:
    for row in data["train"]["annotations"]:
        row["segmentation"] = "nonsense"
    found = open_objects(str(write(tmp_path, data)))
    assert annotated(found).target(0).shapes == (None, None)


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_annotation_at_all_is_an_error_under_both_policies(
    tmp_path: Path, data: dict[str, Json], split: str
) -> None:
    data[split]["annotations"] = []
    root = write(tmp_path, data)
    assert [p.kind for p in problems(str(root))] == ["no-objects"]
    for on_bad in ("error", "skip"):
        with pytest.raises(InputError, match=f"{split}.json: no object in any") as error:
            open_objects(str(root), on_bad=on_bad)  # type: ignore[arg-type]
        told(error)


def test_nothing_left_after_leaving_out_is_an_error(tmp_path: Path, data: dict[str, Json]) -> None:
    for row in data["train"]["annotations"]:
        row["bbox"] = [1, 1, 0, 0]
    root = write(tmp_path, data)
    with pytest.raises(InputError, match="and 5 more problems"):
        open_objects(str(root))
    with pytest.raises(InputError, match="no object left"):
        open_objects(str(root), on_bad="skip")


def test_empty_images_are_kept_and_counted(tmp_path: Path, data: dict[str, Json]) -> None:
    found = open_objects(str(write(tmp_path, data)))
    assert len(found.splits["train"]) == 3
    assert "train: 1 of 3 images hold no object" in found.notes
    empty = annotated(found).target(2)
    assert empty.boxes.shape == (0, 4)
    assert empty.masks(30, 40).shape == (0, 30, 40)


def test_boxes_past_the_image_are_clipped_and_counted(
    tmp_path: Path, data: dict[str, Json]
) -> None:
    data["train"]["annotations"][0]["bbox"] = [-3, 20.5, 10, 20]
    data["train"]["annotations"][1] |= {"bbox": [5, 5, 1e300, 2], "area": 2e300}
    found = open_objects(str(write(tmp_path, data)))
    table = annotated(found).table
    assert table.boxes[0].tolist() == [0, 20.5, 7, 30]
    assert table.boxes[2].tolist() == [5, 5, 40, 7]
    assert table.areas[2] == 35 * 2
    assert "train: 2 boxes reach past the image: clipped to it" in found.notes


DAMAGED = [
    ('{"images": [}', "line 1, column 13"),
    ('{\n"images":\n  [1,', "line 3, column 6"),
    ("", "line 1, column 1"),
    ("[1, 2]", "no object"),
    ("17", "no object"),
    ('{"images": [], "annotations": {}, "categories": []}', "no list 'annotations'"),
    ('{"images": [], "annotations": []}', "no list 'categories'"),
    ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "entry 1: needs an id"),
    ('{"images": [], "annotations": [], "categories": [{"id": true, "name": "a"}]}', "entry 1"),
    ('{"images": [], "annotations": [], "categories": [7]}', "entry 1: needs an id"),
    (
        '{"images": [], "annotations": [], "categories": '
        '[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
        "the id 1 is that of 'a' and of 'b'",
    ),
    (
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "\\ud800"}]}',
        "not UTF-8",
    ),
    ("[" * 100_000, "nested too deep"),
    ('{"images": ' + "9" * 5000 + "}", "damaged json"),
    (b'{"images": "\xff"}', "not UTF-8 at byte 12"),
]


@pytest.mark.parametrize(("content", "named"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_json_is_told_with_its_place(
    tmp_path: Path, content: str | bytes, named: str
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "train.json").write_bytes(raw)
    for on_bad in ("error", "skip"):
        with pytest.raises(InputError) as error:
            open_objects(str(tmp_path), on_bad=on_bad)  # type: ignore[arg-type]
        lines = told(error)
        assert "train.json" in lines[0]
        assert named in lines[0]


def test_user_text_is_harmless(tmp_path: Path, data: dict[str, Json]) -> None:
    evil = "\x1b[31m\u202e\nx"
    data["train"]["annotations"][0]["bbox"] = evil
    data["train"]["annotations"][1]["category_id"] = evil
    data["train"]["annotations"][2]["image_id"] = evil
    data["train"]["images"][0]["file_name"] = evil
    data["val"]["categories"][0]["name"] = evil
    root = write(tmp_path / f"d{evil[:5]}", data)
    found = problems(str(root), masks=True)
    assert len(found) >= 5
    texts = [str(p) for p in found]
    kept = open_objects(str(root), on_bad="skip")
    texts += [*kept.notes, *(s.reason for s in kept.skipped)]
    with pytest.raises(InputError) as error:
        open_objects(str(root))
    texts += told(error)
    for text in texts:
        assert not set("\x1b\u202e\n") & set(text), text


finite = st.floats(-100, 100, width=32)
any_number = st.one_of(
    finite,
    st.floats(),
    st.integers(),
    st.integers(-5, 45),
    st.sampled_from([0, 10**400, True, "1", None]),
)


@SLOW_DISK
@given(boxes=st.lists(st.lists(any_number, min_size=3, max_size=5), min_size=1, max_size=6))
def test_whatever_boxes_are_given_those_kept_are_sound(
    tmp_path: Path, boxes: list[list[Any]]
) -> None:
    data = small("train")
    keys = {"id": 13, "image_id": 5, "category_id": 7}
    sane = {**keys, "id": 999, "bbox": [0, 0, 1, 1]}
    data["annotations"] = [{**keys, "id": i, "bbox": box} for i, box in enumerate(boxes)] + [sane]
    root = write(tmp_path, {"train": data})
    found = annotated(open_objects(str(root), val="none", on_bad="skip"))
    bad = {p.annotation for p in problems(str(root))}
    objects = found.target(list(found.names).index("train5.png"))
    assert_sound(objects, 30, 40)
    assert {*objects.ids.tolist()} | bad == {*range(len(boxes)), 999}
    assert not bad & {*objects.ids.tolist()}
    for i, box in enumerate(boxes):
        numbers = len(box) == 4 and all(type(v) in (int, float) and abs(v) < 1e6 for v in box)
        x, y, w, h = box if numbers else (0, 0, 0, 0)
        if w > 1e-3 and h > 1e-3 and 0 <= x < 39 and 0 <= y < 29:  # must be kept
            j = objects.ids.tolist().index(i)
            want = np.float32([x, y, min(x + w, 40), min(y + h, 30)])
            assert np.array_equal(objects.boxes[j], want)


# --- three forms, the same objects ------------------------------------------------------------


def write_voc(root: Path, images: dict[str, Any], classes: list[str], database: str = "") -> Path:
    for name, (width, height, objects) in images.items():
        picture(root / "JPEGImages" / f"{name}.png", width, height)
        first = 1 if database else 0
        inner = "".join(
            f"<object><name>{escape(classes[c])}</name><bndbox><xmin>{x1 + first}</xmin>"
            f"<ymin>{y1 + first}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
            for c, (x1, y1, x2, y2) in objects
        )
        file = root / "Annotations" / f"{name}.xml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            f"<annotation><source><database>{database}</database></source><filename>{name}.png"
            f"</filename><size><width>{width}</width><height>{height}</height><depth>3</depth>"
            f"</size>{inner}</annotation>"
        )
    return root


def write_yolo(root: Path, images: dict[str, Any], classes: list[str]) -> Path:
    for name, (width, height, objects) in images.items():
        picture(root / "images" / "train" / f"{name}.png", width, height)
        lines = [
            f"{c} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} "
            f"{(y2 - y1) / height}"
            for c, (x1, y1, x2, y2) in objects
        ]
        file = root / "labels" / "train" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        if lines:  # an image without objects needs none
            file.write_text("\n".join(lines))
    (root / "data.yaml").write_text(f"train: images/train\nnames: {json.dumps(classes)}\n")
    return root


def write_coco(root: Path, images: dict[str, Any], classes: list[str]) -> Path:
    one: Json = {"categories": [{"id": 2 * i, "name": c} for i, c in enumerate(classes)]}
    one |= {"images": [], "annotations": []}
    for i, (name, (width, height, objects)) in enumerate(images.items()):
        picture(root / "train" / f"{name}.png", width, height)
        one["images"].append(
            {"id": i, "file_name": f"{name}.png", "width": width, "height": height}
        )
        for c, (x1, y1, x2, y2) in objects:
            row = {"id": len(one["annotations"]), "image_id": i, "category_id": 2 * c}
            one["annotations"].append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1]})
    (root / "train.json").write_text(json.dumps(one))
    return root


@st.composite
def scenes(draw: st.DrawFn) -> dict[str, Any]:
    """Images by name: width, height and objects (class, corners in whole pixels)."""
    images = {}
    for i in range(draw(st.integers(1, 3))):
        width, height = draw(st.integers(2, 90)), draw(st.integers(2, 90))
        objects = []
        for _ in range(draw(st.integers(i == 0, 4))):
            x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
            x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
            objects.append((draw(st.integers(0, 2)), (x1, y1, x2, y2)))
        images[f"im{i}"] = (width, height, objects)
    return images


@SLOW_DISK
@given(images=scenes())
def test_three_forms_give_the_same(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, Any]
) -> None:
    root = tmp_path_factory.mktemp("forms")
    classes = ["no", "1", "zèbre & co"]  # which yaml must not read as false and as a number
    places = [
        write_coco(root / "coco", images, classes),
        write_voc(root / "voc", images, classes),
        write_voc(root / "voc2007", images, classes, "The VOC2007 Database"),
        write_yolo(root / "yolo", images, classes),
    ]
    assert [form_of(str(place)) for place in places] == ["COCO", "VOC", "VOC", "YOLO"]
    for place in places:
        found = open_objects(str(place), val="none")
        split = annotated(found)
        stems = [Path(name).stem for name in split.names]
        assert sorted(stems) == sorted(images)
        for i, stem in enumerate(stems):
            width, height, objects = images[stem]
            got = split.target(i)
            assert split.sizes[i].tolist() == [height, width]
            assert got.boxes.tolist() == [list(map(float, box)) for _, box in objects]
            assert [found.classes[k] for k in got.labels] == [classes[c] for c, _ in objects]
            assert got.areas.tolist() == [(c - a) * (d - b) for _, (a, b, c, d) in objects]
            assert not got.crowd.any()


SCENE = {
    "a": (40, 30, [(0, (1, 2, 11, 22)), (1, (0, 0, 40, 30))]),
    "b": (40, 30, [(0, (5, 5, 11, 12))]),
    "c": (40, 30, []),
}
NAMES = ["cat", "dog"]


def voc_with_sets(root: Path) -> Path:
    write_voc(root, SCENE, NAMES)
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("a\nc\n")
    (sets / "val.txt").write_text("b\n")
    (sets / "cat_train.txt").write_text("a 1\nc -1\n")
    return root


def test_voc_as_torchvision_reads_it(tmp_path: Path) -> None:
    root = voc_with_sets(tmp_path / "VOCdevkit" / "VOC2012")
    for path in (root, root.parent):
        found = open_objects(str(path))
        assert {name: list(s.names) for name, s in found.splits.items()} == {
            "train": ["a.png", "c.png"],
            "val": ["b.png"],
        }
    for image in (root / "JPEGImages").iterdir():  # torchvision knows .jpg only
        image.rename(image.with_suffix(".jpg"))
    oracle = VOCDetection(str(tmp_path), year="2012", image_set="train")
    split = annotated(open_objects(str(root)))
    for i in range(len(split)):
        image, target = oracle[i]
        assert np.array_equal(split.image(i, 3), np.asarray(image))
        objects = target["annotation"]["object"]
        want = [[float(o["bndbox"][k]) for k in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
        assert split.target(i).boxes.tolist() == want
        assert [found.classes[k] for k in split.target(i).labels] == [o["name"] for o in objects]


def test_lists_of_voc(tmp_path: Path) -> None:
    """trainval serves as train; names may have spaces; what stands behind them in a list of one
    class is passed over."""
    root = voc_with_sets(tmp_path)
    for file in (root / "JPEGImages/a.png", root / "Annotations/a.xml"):
        file.rename(file.with_stem("a 7"))
    sets = root / "ImageSets" / "Main"
    (sets / "train.txt").unlink()
    (sets / "trainval.txt").write_text("a 7  1\n\nc -1\n")
    found = open_objects(str(root))
    assert list(found.splits["train"].names) == ["a 7.png", "c.png"]
    text = (root / "Annotations/a 7.xml").read_text()  # the files renamed, not what is inside
    assert "<filename>a.png</filename>" in text
    (root / "Annotations/a 7.xml").write_text(text.replace("a.png", "c.png"))
    assert list(open_objects(str(root)).splits["train"].names) == ["a 7.png", "c.png"]
    (root / "Annotations/a 7.xml").rename(root / "Annotations/q.xml")
    (sets / "trainval.txt").write_text("q\n")
    assert list(open_objects(str(root)).splits["train"].names) == ["c.png"]
    (sets / "val.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"val\.txt: not UTF-8"):
        open_objects(str(root))


def test_layouts_of_voc(tmp_path: Path) -> None:
    write_voc(tmp_path / "whole", SCENE, NAMES)
    found = open_objects(str(tmp_path / "whole"), val="none")
    assert list(found.splits["train"].names) == ["a.png", "b.png", "c.png"]
    (tmp_path / "whole" / "Annotations" / "c.xml").unlink()
    found = open_objects(str(tmp_path / "whole"), val="none")
    assert "images without an xml are left out: 1" in found.notes
    flat = tmp_path / "flat"
    for split in ("train", "valid"):
        write_voc(tmp_path / split, SCENE, NAMES)
        for file in (*(tmp_path / split).glob("*/*.png"), *(tmp_path / split).glob("*/*.xml")):
            (flat / split).mkdir(parents=True, exist_ok=True)
            file.rename(flat / split / file.name)
    assert {n: len(s) for n, s in open_objects(str(flat)).splits.items()} == {"train": 3, "val": 3}
    with pytest.raises(InputError, match="boxes and no masks"):
        open_objects(str(flat), masks=True)
    one = open_objects(str(flat / "valid"), val="none")
    assert list(one.splits["train"].names) == ["a.png", "b.png", "c.png"]


def test_what_is_no_form_of_annotations(tmp_path: Path) -> None:
    (tmp_path / "settings.xml").write_text("<a/>")  # of something else
    with pytest.raises(InputError, match="no annotations found"):
        open_objects(str(tmp_path))
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError, match=r"labels/ without its data\.yaml"):
        open_objects(str(tmp_path))


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for file in (root / "Annotations" / "a.xml", root / "labels" / "train" / "a.txt"):
            if file.exists():
                text = file.read_text()
                assert old in text
                file.write_text(text.replace(old, new, 1))

    return change


XMIN, BOX = "<xmin>1</xmin>", "<bndbox><xmin>1</xmin><ymin>2</ymin>"
WRONG_VOC: dict[str, tuple[Callable[[Path], Any], str, int | None, str]] = {
    "no xml": (lambda r: (r / "Annotations/a.xml").unlink(), "damaged", None, "no such xml"),
    "damaged xml": (edit("<size>", "<size"), "damaged", None, r"line 1, column \d+"),
    "not utf-8": (
        lambda r: (r / "Annotations/a.xml").write_bytes(b"<a>\xff</a>"),
        "damaged",
        None,
        "line 1, column 3",
    ),
    "encoding": (
        lambda r: (r / "Annotations/a.xml").write_text('<?xml version="1.0" encoding="odd"?><a/>'),
        "damaged",
        None,
        "damaged xml",
    ),
    "no image": (
        lambda r: (r / "JPEGImages/a.png").unlink(),
        "missing-image",
        None,
        "no such image",
    ),
    "wrong size": (
        edit("<width>40<", "<width>30<"),
        "wrong-size",
        None,
        "30 x 30 px in the annotations",
    ),
    "size text": (edit("<width>40<", "<width>wide<"), "wrong-size", None, "whole numbers"),
    "no area": (edit(XMIN, "<xmin>11</xmin>"), "no-area", 1, "no area: box 11, 2, 11, 22"),
    "reversed": (edit(XMIN, "<xmin>12</xmin>"), "reversed", 1, "reversed corners"),
    "NaN": (edit(XMIN, "<xmin>nan</xmin>"), "not-finite", 1, "not finite: box nan"),
    "text": (edit(XMIN, "<xmin>left</xmin>"), "no-box", 1, "bndbox is left, 2, 11, 22"),
    "no corner": (edit(XMIN, ""), "no-box", 1, "bndbox is None"),
    "outside": (
        edit(BOX, "<bndbox><xmin>1</xmin><ymin>-2</ymin><ymax>-1</ymax>"),
        "outside",
        1,
        "outside its image of 40 x 30 px",
    ),
    "no name": (edit("<name>cat</name>", ""), "unknown-category", 1, "without a name"),
    "twice": (
        lambda r: (r / "ImageSets/Main/train.txt").write_text("c\na\na\n"),
        "image-twice",
        None,
        r"listed before \(.*a.xml\)",
    ),
    "misspelt": (
        lambda r: (r / "Annotations/b.xml").write_text(
            (r / "Annotations/b.xml").read_text().replace(">cat<", ">cta<")
        ),
        "unknown-class",
        1,
        "Did you mean 'cat'",
    ),
}


@pytest.mark.parametrize("case", WRONG_VOC)
def test_problems_of_voc(tmp_path: Path, case: str) -> None:
    change, kind, annotation, what = WRONG_VOC[case]
    root = voc_with_sets(tmp_path)
    sets = root / "ImageSets" / "Main"
    (sets / "train.txt").write_text("b\na\nc\n")  # b in train keeps it from being empty
    if case == "misspelt":
        (sets / "train.txt").write_text("a\nc\n")
    (sets / "val.txt").write_text("b\na\n" if case == "misspelt" else "b\n")
    change(root)
    judge(root, kind, annotation, what)


def judge(root: Path, kind: str, annotation: int | None, what: str) -> list[Problem]:
    """The first problem is this one, and told under both policies."""
    found = problems(str(root))
    assert (found[0].kind, found[0].annotation) == (kind, annotation), found
    assert re.search(what, str(found[0])), found[0]
    with pytest.raises(InputError) as error:
        open_objects(str(root), val="none")
    assert told(error)[0] == str(found[0])
    rest = open_objects(str(root), val="none", on_bad="skip")
    assert [s.reason for s in rest.skipped] == [str(p) for p in found]
    assert any("left out" in note for note in rest.notes)
    for split in map(str, rest.splits):
        one = annotated(rest, split)
        for i in range(len(one)):
            assert_sound(one.target(i), *one.sizes[i].tolist())
    return found


def test_difficult_objects_count_as_crowd(tmp_path: Path) -> None:
    root = write_voc(tmp_path, SCENE, NAMES)
    edit("</bndbox>", "</bndbox><difficult>1</difficult>")(root)
    found = open_objects(str(root), val="none")
    assert annotated(found).target(0).crowd.tolist() == [True, False]
    (note,) = (note for note in found.notes if "difficult" in note)
    assert note == (
        "difficult objects are neither learned nor judged, as COCO's crowds (1); figures are "
        "COCO's, not VOC's"
    )
    plain = open_objects(str(write_voc(tmp_path / "plain", SCENE, NAMES)), val="none")
    assert not any("difficult" in note for note in plain.notes)


WRONG_YOLO: dict[str, tuple[Callable[[Path], Any], str, int | None, str]] = {
    "unknown class": (edit("0 0.15", "2 0.15"), "unknown-category", 1, "class '2' is not among"),
    "half a class": (edit("0 0.15", "0.5 0.15"), "unknown-category", 1, "class '0.5'"),
    "named class": (edit("0 0.15", "cat 0.15"), "unknown-category", 1, "class 'cat'"),
    "class below 0": (edit("0 0.15", "-1 0.15"), "unknown-category", 1, "class '-1'"),
    "text": (edit("0 0.15", "0 left"), "no-box", 1, "something else than numbers: 0 left"),
    "class alone": (edit("0 0.15 0.4 0.25 0.6666666666666666", "0"), "no-box", 1, "without a box"),
    "five numbers": (edit("0 0.15", "0 0.9 0.15"), "no-box", 1, "5 numbers: a box has 4"),
    "seven numbers": (edit("0 0.15", "0 0.9 0.9 0.9 0.15"), "broken-mask", 1, "7 numbers"),
    "pixels": (edit("0 0.15", "0 15"), "outside", 1, "box 15, 0.4, 0.25"),
    "no area": (edit("0.25", "0"), "no-area", 1, "no area"),
    "reversed": (edit("0.25", "-0.25"), "reversed", 1, "reversed"),
    "NaN": (edit("0.25", "nan"), "not-finite", 1, "not finite"),
    "infinite": (edit("0.25", "1e999"), "not-finite", 1, "not finite"),
    "not utf-8": (
        lambda r: (r / "labels/train/a.txt").write_bytes(b"0 \xff"),
        "damaged",
        None,
        "byte 2",
    ),
    "damaged image": (
        lambda r: (r / "images/train/a.png").write_bytes(b"x"),
        "unreadable-image",
        None,
        "not an image",
    ),
}


@pytest.mark.parametrize("case", WRONG_YOLO)
def test_problems_of_yolo(tmp_path: Path, case: str) -> None:
    change, kind, annotation, what = WRONG_YOLO[case]
    root = write_yolo(tmp_path, SCENE, NAMES)
    change(root)
    assert judge(root, kind, annotation, what)[0].image == "images/train/a.png"


def test_labels_without_an_image(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, SCENE, NAMES)
    (root / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    assert problems(str(root)) == []
    (root / "images" / "train" / "a.png").unlink()
    (found,) = problems(str(root))
    assert (found.kind, found.file) == ("missing-image", str(root / "labels/train/a.txt"))
    with pytest.raises(InputError, match="labels without an image"):
        open_objects(str(root))
    assert open_objects(str(root), val="none", on_bad="skip").skipped[0].name == found.file


def test_yolo_polygons_are_masks(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, SCENE, NAMES)
    (root / "labels/train/a.txt").write_text("1 0.25 0.2 0.75 0.2 0.75 0.8\n")
    (root / "labels/train/b.txt").unlink()
    found = open_objects(str(root), val="none", masks=True)
    objects = annotated(found).target(0)
    assert objects.boxes.tolist() == [[10, 6, 30, 24]]
    assert objects.areas.tolist() == [20 * 18 / 2]
    flat = [[10, 6, 30, 6, 30, 24]]
    want = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, 30, 40)))
    assert np.array_equal(objects.masks(30, 40)[0], want)
    assert (
        annotated(open_objects(str(root), val="none")).target(0).boxes.tolist()
        == objects.boxes.tolist()
    )
    (root / "labels/train/b.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError, match=r"annotation 1 \(images/train/b.png\): no mask"):
        open_objects(str(root), masks=True)


def test_layouts_of_yolo(tmp_path: Path) -> None:
    root = write_yolo(tmp_path / "data", SCENE, NAMES)
    yaml = root / "data.yaml"
    want = annotated(open_objects(str(root), val="none")).table.boxes.tolist()
    (root / "train.txt").write_text(
        "images/train/a.png\n./images/train/b.png\n\nimages/train/c.png\n"
    )
    for text in (
        "path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\nnc: 2\n",
        "train: ../images/train\ntest: ../nowhere\nnames: [cat, dog]\n",
        f"path: {root}\ntrain: [images/train]\nnames: {{1: dog, 0: cat}}\n",
        "train: train.txt\nnames: [cat, dog]\n",
    ):
        yaml.write_text(text)
        for path in (root, yaml):
            found = open_objects(str(path), val="none")
            assert found.classes == ("cat", "dog")
            assert annotated(found).table.boxes.tolist() == want
    (root / "odd.txt").write_text("images/train/a.png\nimages/train/\0.png\nimages/train/no.png\n")
    yaml.write_text("train: odd.txt\nnames: [cat, dog]\n")
    assert [p.kind for p in problems(str(root))] == ["missing-image"] * 2
    yaml.write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    assert any("same images" in note for note in open_objects(str(root)).notes)
    for image in (root / "images" / "train").iterdir():  # labels beside the images
        (root / "flat").mkdir(exist_ok=True)
        image.rename(root / "flat" / image.name)
    for file in (root / "labels" / "train").iterdir():
        file.rename(root / "flat" / file.name)
    yaml.write_text("train: flat\nnames: [cat, dog]\n")
    assert annotated(open_objects(str(root), val="none")).table.boxes.tolist() == want


def test_holes_in_the_numbers_of_yolo(tmp_path: Path) -> None:
    root = write_yolo(tmp_path, SCENE, NAMES)
    (root / "data.yaml").write_text("train: images/train\nnames: {7: eel, 1: dog, 0: cat}\n")
    found = open_objects(str(root), val="none")
    assert found.classes == ("cat", "dog", "eel")
    edit("0 0.15", "7 0.15")(root)
    assert annotated(open_objects(str(root), val="none")).target(0).labels.tolist() == [2, 1]


BAD_YAML = [
    ("names: [a\ntrain: x", r"line 2, column \d+: damaged yaml"),
    ("names: [a]\n\x00", "damaged yaml"),
    ("train: images/train", "no names of classes"),
    ("- a", "no names of classes"),
    ("names: cat\ntrain: images/train", "names is no list"),
    ("names: []\ntrain: images/train", "names is no list"),
    ("names: [[a]]\ntrain: images/train", "names is no list"),
    ("names: {x: a}\ntrain: images/train", "not whole numbers"),
    ("names: [cat, dog]\nnc: 3\ntrain: images/train", "nc is '3', and names has 2"),
    ("names: [cat, dog]", "names no images"),
    ("names: [cat, dog]\ntest: nowhere", "test: no such"),
    ("names: [cat, dog]\ntrain: nowhere", "train: no such folder or file: 'nowhere'"),
    ("names: [cat, dog]\ntrain: {a: b}", "train: no such folder or file"),
    ("names: [cat, dog]\ntrain: images/train\nval: nowhere", "val: no such"),
    ("names: [cat, dog]\ntrain: images/train/a.png", "not a list of images"),
]


@pytest.mark.parametrize(("text", "what"), BAD_YAML, ids=range(len(BAD_YAML)))
def test_a_yaml_that_cannot_be_used(tmp_path: Path, text: str, what: str) -> None:
    root = write_yolo(tmp_path, SCENE, NAMES)
    (root / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=what) as error:
        open_objects(str(root / "data.yaml"))
    told(error)


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
        assert "skipway[detect]" in str(error), error
    else:
        raise AssertionError
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
