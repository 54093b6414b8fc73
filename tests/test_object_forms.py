"""COCO, Pascal VOC and YOLO read alike, and what can be wrong in the latter two."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.datasets import VOCDetection

from annotations import (
    NAMES,
    SCENE,
    SLOW_DISK,
    annotated,
    assert_sound,
    told,
    voc_with_sets,
    write_coco,
    write_voc,
    write_yolo,
)
from skipway.data.objects import form_of, open_objects, problems
from skipway.data.problems import Problem
from skipway.errors import InputError

# --- three forms, the same objects ------------------------------------------------------------


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


def test_trainval_without_what_val_has(tmp_path: Path) -> None:
    """It is train where there is no train.txt, and holds val."""
    root = voc_with_sets(tmp_path)
    sets = root / "ImageSets" / "Main"
    (sets / "train.txt").unlink()
    (sets / "trainval.txt").write_text("a\nb\nc\n")
    (sets / "test.txt").write_text("a\n")
    found = open_objects(str(root))
    names = {split: list(one.names) for split, one in found.splits.items()}
    assert names == {"train": ["a.png", "c.png"], "val": ["b.png"], "test": ["a.png"]}
    note = "trainval.txt is train, as there is no train.txt, without the names in val.txt (1)"
    assert f"train: {note}" in found.notes


def test_names_that_end_as_lists_of_one_class_do(tmp_path: Path) -> None:
    scenes = {"img 0": SCENE["a"], "img 1": SCENE["b"], "img": SCENE["c"]}
    root = write_voc(tmp_path, scenes, NAMES)
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("img 0\nimg 1\n")
    (sets / "val.txt").write_text("img 0 -1\nimg  1\n")
    found = open_objects(str(root))
    assert list(found.splits["train"].names) == ["img 0.png", "img 1.png"]
    assert list(found.splits["val"].names) == ["img 0.png", "img.png"]


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
        "difficult objects are no targets, as COCO's crowds (1): in training their place counts as "
        "background, and they are not judged; figures are COCO's, not VOC's"
    )
    assert found.counts("train") == {"cat": 1, "dog": 1}  # of two cats
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


def test_yolo_keypoints_are_left_out(tmp_path: Path) -> None:
    """Of labels of poses the box alone is read, which is not that around the keypoints."""
    root = write_yolo(tmp_path, SCENE, NAMES)
    boxes = annotated(open_objects(str(root), val="none")).table.boxes.tolist()
    with (root / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 3]\n")
    for name in ("a", "b"):
        file = root / f"labels/train/{name}.txt"
        lines = file.read_text().splitlines()
        file.write_text("\n".join(f"{line} 0.3 0.3 2 0 0 0" for line in lines))
    found = open_objects(str(root), val="none")
    assert annotated(found).table.boxes.tolist() == boxes
    assert "train: keypoints are left out, their boxes are kept (3)" in found.notes
    with pytest.raises(InputError, match=r"annotation 1 \(images/train/a.png\): no mask"):
        open_objects(str(root), masks=True)
    (root / "labels/train/b.txt").write_text("0 0.5 0.5 0.1 0.1")  # without them
    assert len(annotated(open_objects(str(root), val="none")).table) == 3
    (root / "labels/train/b.txt").write_text("0 0.5 0.5 0.1 0.1 0.3 0.3")
    (found_one,) = problems(str(root))
    assert (found_one.kind, found_one.annotation) == ("no-box", 1)
    assert found_one.what == "6 numbers: a box has 4, with its keypoints 10"


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
    ("names: [cat, dog]\ntrain: images/train\nkpt_shape: 17", "kpt_shape is '17', not as"),
    ("names: [cat, dog]\ntrain: images/train\nkpt_shape: [17, x]", "kpt_shape is"),
    ("names: [cat, dog]\ntrain: images/train/a.png", "not a list of images"),
]


@pytest.mark.parametrize(("text", "what"), BAD_YAML, ids=range(len(BAD_YAML)))
def test_a_yaml_that_cannot_be_used(tmp_path: Path, text: str, what: str) -> None:
    root = write_yolo(tmp_path, SCENE, NAMES)
    (root / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=what) as error:
        open_objects(str(root / "data.yaml"))
    told(error)
