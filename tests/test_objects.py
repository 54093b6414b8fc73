"""Annotated images in the form of COCO, and everything that can be wrong in them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.datasets import CocoDetection

from annotations import (
    SLOW_DISK,
    Json,
    annotated,
    assert_sound,
    ids,
    picture,
    rectangle,
    rle,
    single,
    small,
    told,
    write,
)
from skipway.data.objects import KINDS, Runs, form_of, open_objects, problems
from skipway.data.objects.shapes import ShapeList, decode_texts, decoded
from skipway.errors import InputError


@pytest.fixture
def data() -> dict[str, Json]:
    return {"train": small("train"), "val": small("val")}


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
