"""bf16 in use: models of every task give nearly float32's answers, and not float32's bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from skipway.architecture import architecture
from skipway.card import Card
from skipway.config import Task
from skipway.detectors import build_detector
from skipway.embedders import build_embedder
from skipway.heads import DetectorConfig, EmbedderConfig, SegmenterConfig
from skipway.images import plain_preprocess
from skipway.loading import load
from skipway.resnet import ResNet
from skipway.segmenters import build_segmenter
from skipway.weights import save_weights

ARCH = architecture("resnet18", num_classes=3, width=0.25, depths=(1, 1, 1, 1))
IMAGE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def saved(path: Path, task: str) -> Path:
    """A small model of that task, with weights by chance."""
    torch.manual_seed(0)
    heads: dict[str, Any] = {}
    if task == "classify":
        net: torch.nn.Module = ResNet(ARCH)
    elif task == "segment":
        heads["segmenter"] = SegmenterConfig(head="fcn")
        net = build_segmenter(ARCH, heads["segmenter"], 3)
    elif task == "embed":
        heads["embedder"] = EmbedderConfig(dim=16)
        net = build_embedder(ARCH, heads["embedder"], 3)
    else:
        head = "mask-rcnn" if task == "instance" else "faster-rcnn"
        heads["detector"] = DetectorConfig(head=head, channels=16, box_width=32)
        net = build_detector(ARCH, heads["detector"], 3)
    resize = "fit" if task not in ("classify", "embed") else "crop"
    card = Card(
        task=task,  # type: ignore[arg-type]
        model="custom",
        architecture=ARCH,
        classes=("a", "b", "c"),
        preprocess=plain_preprocess(64, 3, resize),  # type: ignore[arg-type]
        **heads,
    )
    save_weights(path, net, card)
    return path


def answer(path: Path, task: str, precision: str) -> np.ndarray:
    model: Any = load(path, 1, precision=precision)
    x = model.card.preprocess(IMAGE)
    if task in ("detect", "instance"):
        (found,) = model._engine([x])
        return np.asarray(found["scores"][:5].float())
    run = model._engine if task == "segment" else model.run
    return np.asarray(run(x[None]))


@pytest.mark.parametrize("task", get_args(Task))
def test_half_the_bits_give_nearly_the_same(tmp_path: Path, task: str) -> None:
    path = saved(tmp_path / "m.safetensors", task)
    whole, half = (answer(path, task, precision) for precision in ("float32", "bf16"))
    assert whole.dtype == half.dtype == np.float32
    assert len(whole)
    assert not np.array_equal(whole, half)  # it was in bf16
    assert np.abs(whole - half).max() < 0.1 * np.abs(whole).max()
