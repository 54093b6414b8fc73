"""Made-up runs that tell the class of every pixel, for the pages that are written of them."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from detected import url
from pages import make_run, record
from skipway.drawing import painted
from skipway.segmentations import (
    IGNORED,
    boundary_counts,
    confusion,
    intervals,
    iou,
    mean_boundary_f1,
    mean_iou,
    metrics,
    precision,
    recall,
)

STREET = ("sky", "building", "road", "pole", "car")
TRAINED = {"sky": 9_000_000, "building": 14_000_000, "road": 16_000_000, "pole": 250_000,
           "car": 2_500_000}  # fmt: skip
NAMES = tuple(f"val/street-{i}.png" for i in range(6))


@functools.cache
def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An image of noise, what is true of it and what was found; poles are mostly missed."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 160, (72, 96, 3), dtype=np.uint8)
    truth = np.zeros((72, 96), np.uint8)
    truth[20:, : rng.integers(30, 60)] = 1
    truth[44:] = 2
    truth[40:60, rng.integers(5, 30) :][:, :25] = 4
    truth[8:50, rng.integers(60, 90) :][:, :2] = 3
    truth[44:47, 70:80] = IGNORED
    found = np.roll(truth, (seed % 3, 1 + seed), (0, 1))
    found[(found == 3) & (rng.random(found.shape) < 0.8)] = 0
    found[found == IGNORED] = 2
    if seed % 2:
        found[found == 4] = 1
    return image, truth, found


@functools.cache
def pictures(seed: int) -> tuple[str, str]:
    """What was found in an image, and what is true of it."""
    image, truth, found = scene(seed)
    return tuple(url(painted(image, labels, STREET, side=192)) for labels in (found, truth))


@functools.cache
def counted() -> tuple[np.ndarray, np.ndarray]:
    """Confusions and boundary counts of the images."""
    pairs = [scene(seed)[:0:-1] for seed in range(len(NAMES))]
    return (
        np.stack([confusion(*pair, len(STREET)) for pair in pairs]),
        np.stack([boundary_counts(*pair, len(STREET)) for pair in pairs]),
    )


def task_record(**fields: Any) -> dict[str, Any]:
    made = record(STREET, name="street-1", command="skipway train street --task segment")
    made["config"] |= {
        "task": "segment",
        "segmenter": {"head": "deeplabv3plus", "output_stride": 16},
    }
    made["data"]["path"] = "street"
    made["data"]["splits"] = {
        name: {"n": n, "counts": {k: v * n // 100 for k, v in TRAINED.items()}}
        for name, n in (("train", 100), ("val", 20))
    }
    made["result"] |= {
        "split": "val",
        "best_epoch": 18,
        "metrics": metrics(*counted()),
        "interval": intervals(*counted())["miou"],
        "n": len(NAMES),
        "images_per_second": 3.1,
    }
    return made | fields


def task_rows(epochs: int = 20) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    terms = {"loss_ce": 1.4, "loss_dice": 0.8, "loss_aux": 0.5}
    rows = []
    for epoch in range(1, epochs + 1):
        miou = 0.6 * (1 - math.exp(-epoch / 4)) + 0.01 * rng.random()
        row = {"epoch": epoch, "step": 25 * epoch, "lr": 0.02 * (1 - epoch / (epochs + 1))}
        row |= {f"train_{k}": v * math.exp(-epoch / 9) + 0.02 for k, v in terms.items()}
        row |= {"val_miou": miou, "val_pixel_accuracy": 0.4 + 0.8 * miou,
                "val_boundary_f1": 0.8 * miou}  # fmt: skip
        row |= {"seconds": 120 + rng.random(), "images_per_second": 3 + 0.1 * rng.random(),
                "waiting": 0.01, "memory_mib": 2200.0}  # fmt: skip
        rows.append(row)
    return rows


def task_evaluation(shown: int = len(NAMES)) -> dict[str, Any]:
    confusions, boundaries = counted()
    counts, names = confusions.sum(axis=0), list(STREET)
    pixels = counts.sum(axis=1)
    columns = {
        "iou": iou(counts),
        "accuracy": recall(counts),
        "precision": precision(counts),
        "boundary_f1": mean_boundary_f1(boundaries)[1],
        "share": pixels / pixels.sum(),
    }
    rows = [
        {"label": name, "n": int(pixels[k]), "iou_interval": (0.5 * iou(counts)[k], 1.0)}
        | {key: float(of[k]) for key, of in columns.items()}
        for k, name in enumerate(names)
    ]
    wrong = 1 - np.trace(confusions, axis1=1, axis2=2) / confusions.sum(axis=(1, 2))
    rest = []
    for i in np.argsort(-wrong)[:shown].tolist():
        found, truth = pictures(i)
        rest.append({"index": i, "name": NAMES[i], "miou": float(mean_iou(confusions[i])),
                     "wrong": float(wrong[i]), "image": found, "truth": truth})  # fmt: skip
    return {"task": "segment", "split": "val", "n": len(NAMES), "classes": names,
            "per_class": rows, "confusion": counts.tolist(), "pictures": rest}  # fmt: skip


def task_run(folder: Path, **fields: Any) -> Path:
    seen = [{"name": f"train/{i}.png", "label": "sky, road", "image": pictures(i)[1]}
            for i in range(4)]  # fmt: skip
    return make_run(folder, task_record(**fields), task_rows(), task_evaluation(),
                    seen={"epoch": 1, "images": seen})  # fmt: skip
