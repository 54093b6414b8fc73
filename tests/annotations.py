"""Small annotated images in the forms that are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image
from pycocotools import mask as coco_mask

from skipway.data import DataSet
from skipway.data.objects import AnnotatedSplit, Objects
from skipway.errors import InputError

Json = dict[str, Any]
SLOW_DISK = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCENE = {
    "a": (40, 30, [(0, (1, 2, 11, 22)), (1, (0, 0, 40, 30))]),
    "b": (40, 30, [(0, (5, 5, 11, 12))]),
    "c": (40, 30, []),
}
NAMES = ["cat", "dog"]


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


def assert_sound(objects: Objects, height: int, width: int) -> None:
    boxes = objects.boxes
    assert np.isfinite(boxes).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= [width, height]).all()
    assert (objects.areas > 0).all()
    assert np.isfinite(objects.areas).all()


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


def voc_with_sets(root: Path) -> Path:
    write_voc(root, SCENE, NAMES)
    sets = root / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("a\nc\n")
    (sets / "val.txt").write_text("b\n")
    (sets / "cat_train.txt").write_text("a 1\nc -1\n")
    return root
