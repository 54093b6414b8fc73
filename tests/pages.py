"""Made-up runs and the pages that are written of them, parsed."""

from __future__ import annotations

import base64
import functools
import hashlib
import html.parser
import io
import json
import math
import re
from pathlib import Path

import numpy as np
from PIL import Image

from skipway.architecture import architecture
from skipway.card import Card
from skipway.images import Preprocess
from skipway.metrics import Outcomes
from skipway.report import write_report

HOSTILE = "[/x]<script>alert(1)</script>\"'&\x1b[31m\n\u202egnp.exe\u2066"
TEN = tuple(str(digit) for digit in range(10))
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """Elements with attributes and text; raises where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and all(found.get(k) == v for k, v in attributes.items())
        ]

    @functools.cached_property
    def text(self) -> str:
        return "\n".join(data for tag, data in self.texts if tag != "style")


@functools.cache
def png(side: int = 8, seed: int = 0) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def confusion(classes: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.3, (classes, classes)) + np.diag(rng.integers(20, 40, classes))
    return counts.tolist()


def record(classes=TEN, **fields) -> dict:
    counts = {name: 100 + 3 * i for i, name in enumerate(classes)}
    splits = {
        split: {
            "n": sum(counts.values()) // part,
            "counts": {k: n // part for k, n in counts.items()},
        }
        for split, part in (("train", 1), ("val", 8), ("test", 4))
    }
    return {
        "version": 1,
        "skipway": "0.1.0",
        "name": "digits-1",
        "command": "skipway train digits --seed 1",
        "created": "2025-01-02T03:04:05+00:00",
        "config": {
            "seed": 1,
            "precision": "float32",
            "recipe": "default",
            "schedule": {"length": 40, "warmup": 2},
            "optim": {"lr": 0.1, "milestones": [20, 30]},
            "model": {"name": "resnet20", "weights": None},
        },
        "choices": [
            {"key": "model", "value": "resnet20", "reason": "images are 8 px: CIFAR stem"},
            {"key": "workers", "value": 0, "reason": "2 cores: the images fit in memory"},
        ],
        "data": {
            "path": "digits",
            "classes": list(classes),
            "splits": splits,
            "notes": ["10 % of train became validation (seed 0)"],
            "skipped": [{"path": "train/3/broken.png", "reason": "truncated PNG (31 bytes)"}],
        },
        "environment": {"python": "3.12.1", "torch": "2.11.0", "cpu": "Some CPU", "threads": 2,
                        "instruction_set": "AVX2", "device": "cpu"},
        "params": 269722,
        "macs": 40551040,
        "status": "finished",
        "result": {
            "metrics": {"accuracy": 0.9889, "top5": 1.0, "loss": 0.0345, "ece": 0.0123},
            "interval": [0.9719, 0.9957],
            "split": "test",
            "weights": "best.safetensors (EMA)",
            "best_epoch": 31,
            "n": 360,
            "seconds": 61.2,
            "images_per_second": 1234.5,
        },
    } | fields  # fmt: skip


def metrics(epochs: int = 40, blocks: int = 9) -> list[dict]:
    rng = np.random.default_rng(0)
    names = [
        "conv1",
        *(f"layer{1 + i * 3 // blocks}.{i % (blocks // 3)}" for i in range(blocks)),
        "fc",
    ]
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "lr": 0.05 * (1 + math.cos(math.pi * epoch / epochs)),
            "train_loss": 2.3 * math.exp(-epoch / 6) + 0.02 * rng.random(),
            "train_accuracy": 1 - 0.9 * math.exp(-epoch / 5),
            "val_loss": 2.2 * math.exp(-epoch / 7) + 0.05 + 0.03 * rng.random(),
            "val_accuracy": 0.985 - 0.88 * math.exp(-epoch / 5) + 0.01 * rng.random(),
            "seconds": 1.5 + 0.2 * rng.random(),
            "images_per_second": 1200 + 60 * rng.random(),
            "waiting": 0.03 + 0.01 * rng.random(),
            "memory_mib": 900.0 + 4 * epoch,
            "signal": {
                "gradient_norm": {
                    name: (0.5 + rng.random()) * 0.4 * math.exp(-epoch / 15 - 0.1 * i)
                    for i, name in enumerate(names)
                },
                "dead_channels": {name: 0.0 for name in names if name != "fc"},
            },
        }
        for epoch in range(1, epochs + 1)
    ]


def evaluation(classes=TEN, side: int = 8) -> dict:
    counts = confusion(len(classes))
    bins = [
        {"low": i / 10, "high": (i + 1) / 10, "n": 3**i // 50 + 1, "confidence": i / 10 + 0.06,
         "accuracy": min(1.0, i / 10 + 0.1 * (i % 3) / 2)}
        for i in range(10)
    ]  # fmt: skip
    names = [classes[i % len(classes)] for i in range(25)]
    mistakes = [
        {"index": i, "name": f"test/{names[i]}/{i:04}.png", "label": names[i],
         "predicted": names[i + 1], "score": 0.99 - 0.02 * i, "true_score": 0.005 * i,
         "image": png(side, i)}
        for i in range(24)
    ]  # fmt: skip
    total = int(np.sum(counts))
    doubtful = [
        row | {"second": classes[0], "second_score": 0.3, "image": png(side, 50 + i)}
        for i, row in enumerate(mistakes[:12])
    ]
    doubted = [
        {k: v for k, v in row.items() if k != "image"} | {"likelier": row["predicted"]}
        for row in mistakes[:5]
    ]
    return {"split": "test", "n": total, "classes": list(classes), "confusion": counts,
            "mistakes": mistakes, "calibration": bins, "doubtful": doubtful,
            "doubted_labels": {"n": 5, "rows": doubted}, "images": images(counts)}  # fmt: skip


def images(counts: list[list[int]], seed: int = 0, digest: str = "d1") -> dict:
    """The outcome of each image, as many as the confusion matrix counts."""
    table = np.array(counts)
    label, predicted = np.argwhere(table >= 0).repeat(table.ravel(), axis=0).T
    confidence = np.random.default_rng(seed).uniform(0.2, 1, len(label))
    kept = Outcomes(label, predicted, confidence).packed(len(table))
    wrong = [f"wrong/{i}.png" for i in np.flatnonzero(label != predicted)]
    return kept | {"digest": digest, "wrong": wrong}


def samples(classes=TEN) -> dict:
    """What `samples.json` holds."""
    rows = [
        {"name": f"train/{i}.png", "label": classes[i % len(classes)], "image": png(16, 100 + i)}
        for i in range(24)
    ]
    return {"epoch": 1, "images": rows}


def card(classes=TEN, model: str = "resnet20", **fields) -> Card:
    return Card(
        model=model,
        architecture=architecture(model, num_classes=len(classes), **fields),
        classes=classes,
        preprocess=Preprocess(size=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3),
    )


def make_run(folder: Path, run=None, rows=None, evaluated=None, with_card=None, seen=None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record() if run is None else run))
    if rows is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if evaluated is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluated))
    if with_card is not None:
        (folder / "card.json").write_text(with_card.to_json())
    if seen is not None:
        (folder / "samples.json").write_text(json.dumps(seen))
    return folder


def full_run(folder: Path, classes=TEN) -> Path:
    return make_run(
        folder, record(classes), metrics(), evaluation(classes), card(classes), samples(classes)
    )


def read(run: Path) -> Page:
    return Page(write_report(run).read_text("utf-8"))


def poisoned(value):
    """The same JSON with every string but the images, keys too, replaced by a hostile one."""
    if isinstance(value, dict):
        return {
            f"{key}{HOSTILE}" if key in TEN else key: poisoned(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [poisoned(inner) for inner in value]
    if isinstance(value, str) and not value.startswith("data:"):
        return value + HOSTILE
    return value


def assert_self_contained(page: Page, pictures: str = "png") -> None:
    """`pictures`: a pattern of their kind."""
    inline = rf"#[a-z0-9-]+$|data:,$|data:image/{pictures};base64,[A-Za-z0-9+/=]+$"
    for name, attributes in page.elements:
        assert name not in {"script", "iframe", "object", "embed", "form", "base"}
        for attribute, value in attributes.items():
            assert not attribute.startswith("on")
            assert attribute != "style"
            if attribute in ("src", "href", "xlink:href", "srcset", "action"):
                assert re.match(inline, value)
    css = [data for tag, data in page.texts if tag == "style"]
    assert len(css) == len(page.all("style")) == 1
    assert not re.search(r"url\(|@import|expression", css[0])
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    digest = base64.b64encode(hashlib.sha256(css[0].encode()).digest()).decode()
    allowed = dict(part.split(" ", 1) for part in policy["content"].split("; "))
    assert allowed == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'",
                       "style-src": f"'sha256-{digest}'", "form-action": "'none'"}  # fmt: skip
