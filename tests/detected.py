"""Made-up runs of detectors, for the pages that are written of them."""

from __future__ import annotations

import base64
import functools
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pages import make_run, record
from skipway.drawing import drawn

CELLS = ("RBC", "WBC", "Platelets")
OBJECTS = {"RBC": 3000, "WBC": 280, "Platelets": 260}


def url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@functools.cache
def scene(seed: int, masks: bool = False) -> tuple[str, str]:
    """The found and the true objects of an image of noise, drawn on it."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 160, (90, 120, 3), dtype=np.uint8)
    corners = rng.uniform(5, 60, (4, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(12, 30, (4, 2))], axis=1)
    shapes = None
    if masks:
        y, x = np.mgrid[:90, :120]
        shapes = np.stack([(x > a) & (x < c) & (y > b) & (y < d) for a, b, c, d in boxes])
    labels = rng.integers(0, 3, 4).tolist()
    names = [CELLS[k] for k in labels]
    scored = [f"{name} {rng.uniform(0.3, 1):.2f}" for name in names]
    found = drawn(image, boxes + 2, scored, labels, shapes, side=240)
    return url(found), url(drawn(image, boxes, names, labels, shapes, side=240))


def task_record(task: str = "detect", **fields: Any) -> dict[str, Any]:
    made = record(CELLS, name=f"cells-{task}", command=f"skipway train cells --task {task}")
    made["config"] |= {"task": task, "detector": {"head": "faster-rcnn", "neck": "fpn"}}
    made["data"]["path"] = "cells"
    made["data"]["splits"] = {
        name: {"n": n, "counts": {k: round(v * n / 255) for k, v in OBJECTS.items()}}
        for name, n in (("train", 255), ("val", 37), ("test", 72))
    }
    before = "mask_" if task == "instance" else ""
    metrics = {f"{before}ap": 0.5123, f"{before}ap50": 0.8345, f"{before}ap75": 0.5561}
    if task == "instance":
        metrics |= {"box_ap": 0.5478, "box_ap50": 0.8511, "box_ap75": 0.6012}
    made["result"] |= {
        "best_epoch": 18,
        "metrics": metrics,
        "interval": None,
        "n": 72,
        "images_per_second": 2.1,
    }
    return made | fields


def task_rows(task: str = "detect", epochs: int = 20) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    before = "mask_" if task == "instance" else ""
    terms = {"loss_classifier": 0.7, "loss_box_reg": 0.4, "loss_objectness": 0.35,
             "loss_rpn_box_reg": 0.12} | ({"loss_mask": 0.6} if before else {})  # fmt: skip
    rows = []
    for epoch in range(1, epochs + 1):
        ap50 = 0.84 * (1 - math.exp(-epoch / 4)) + 0.01 * rng.random()
        row = {"epoch": epoch, "step": 64 * epoch, "lr": 0.02 * (1 - epoch / (epochs + 1))}
        row |= {f"train_{k}": v * math.exp(-epoch / 9) + 0.02 for k, v in terms.items()}
        row |= {f"val_{before}ap": 0.6 * ap50, f"val_{before}ap50": ap50}
        if before:
            row |= {"val_box_ap": 0.65 * ap50, "val_box_ap50": 1.02 * ap50}
        row |= {"seconds": 120 + rng.random(), "images_per_second": 2 + 0.1 * rng.random(),
                "waiting": 0.01, "memory_mib": 2200.0}  # fmt: skip
        rows.append(row)
    return rows


def task_evaluation(task: str = "detect", pictures: int = 6) -> dict[str, Any]:
    """With the keys of a real one, see `test_made_up_runs_have_what_real_ones_have`."""
    recall = np.linspace(0, 1, 101)
    rows, curves = [], []
    for i, (name, top) in enumerate(zip(CELLS, (0.88, 0.99, 0.72), strict=True)):
        precision = np.where(recall <= top, 1 - 0.5 * (recall / top) ** 4, 0.0)
        scores = np.where(recall <= top, 1 - 0.95 * recall / top, 0.0)
        row = {"label": name, "n": (840, 76, 73)[i], "ap": (0.55, 0.68, 0.31)[i],
               "ap50": float(precision.mean()), "recall": top, "ap_interval": None}  # fmt: skip
        if task == "instance":
            row |= {"mask_ap": row["ap"] - 0.04, "mask_ap50": row["ap50"] - 0.02,
                    "mask_ap_interval": None}  # fmt: skip
        rows.append(row)
        curves.append(
            {"label": name, "precision": precision.tolist(), "scores": scores.tolist()}
        )  # fmt: skip
    shown = []
    for i in range(pictures):
        found, truth = scene(i, task == "instance")
        shown.append({"index": i, "name": f"test/cell-{i}.png", "image": found, "truth": truth,
                      "right": 9 - i, "missed": pictures - i, "extra": 1})  # fmt: skip
    return {"split": "test", "n": 72, "classes": list(CELLS), "per_class": rows,
            "curves": curves, "pictures": shown, "intervals": {}, "resamples": 1000,
            "out_of_reach": {"objects": 0, "of_a_class": 0, "in_all": 0, "given": 100},
            "sizes": {"small": {"n": 60, "ap": 0.21}, "medium": {"n": 600, "ap": 0.5},
                      "large": {"n": 329, "ap": 0.57}}}  # fmt: skip


def task_run(folder: Path, task: str = "detect", **fields: Any) -> Path:
    rows, evaluated = task_rows(task), task_evaluation(task)
    seen = {"epoch": 1, "images": [{"name": f"train/{i}.png", "n": i, "image": scene(i)[1]}
                                   for i in range(1, 5)]}  # fmt: skip
    return make_run(folder, task_record(task, **fields), rows, evaluated, seen=seen)
