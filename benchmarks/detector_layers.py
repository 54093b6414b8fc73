"""Layers of two-stage detectors that Skipway computes in its own way on a CPU, and torchvision's.

Forward and backward, with torchvision's own numbers of RoIs and channels on a batch of four images
of 312 x 416 pixels, padded to 320 x 416:
- `roi_align`: 512 RoIs an image from four levels of a pyramid to 7 x 7.
- `rpn_head`: all cells of the five levels, of which 256 anchors an image are learned from, by their
  logits alone.

Both sides in turn in one process, on the same maps, boxes and gradients.

    python benchmarks/detector_layers.py
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from recorded import record_case, spread
from skipway.detectors.pooling import PyramidRoIAlign
from skipway.detectors.rpn import rpn_head
from skipway.machine import cores, keep_freed_memory

STRIDES = (4, 8, 16, 32)
CHANNELS, IMAGES, ROIS, ANCHORS = 256, 4, 512, 256
SIZE = (320, 416)
"""Height and width of the batch in pixels."""


def maps(strides: tuple[int, ...]) -> dict[str, Any]:
    """Levels of a pyramid that want a gradient."""
    shapes = [(IMAGES, CHANNELS, SIZE[0] // s, -(-SIZE[1] // s)) for s in strides]
    return {str(i): torch.randn(shape, requires_grad=True) for i, shape in enumerate(shapes)}


def roi_align() -> dict[str, Callable[[], Any]]:
    """A forward and a backward pass of each side."""
    levels = maps(STRIDES)
    low = torch.rand(IMAGES, ROIS, 2) * torch.tensor([SIZE[1] - 80, SIZE[0] - 80])
    boxes = [*torch.cat([low, low + 10 + 70 * torch.rand(IMAGES, ROIS, 2)], 2)]
    theirs = MultiScaleRoIAlign([*levels], 7, 2)
    theirs.scales = [1 / s for s in STRIDES]
    theirs.map_levels = LevelMapper(int(math.log2(STRIDES[0])), int(math.log2(STRIDES[-1])))
    gradient = torch.randn(IMAGES * ROIS, CHANNELS, 7, 7)

    def passes(pool: Any) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(
            pool(levels, boxes, [SIZE] * IMAGES), [*levels.values()], gradient, allow_unused=True
        )

    return {"skipway": passes(PyramidRoIAlign(STRIDES, 7)), "torchvision": passes(theirs)}


def rpn() -> dict[str, Callable[[], Any]]:
    """A forward and a backward pass of each side."""
    levels = [*maps((*STRIDES, 64)).values()]
    torch.manual_seed(0)
    theirs = RPNHead(CHANNELS, 3)
    torch.manual_seed(0)
    ours = rpn_head(CHANNELS, 3, 1)
    n = sum(level.shape[2] * level.shape[3] * 3 * IMAGES for level in levels)
    chosen = torch.randperm(n)[: ANCHORS * IMAGES]

    def passes(head: Any) -> Callable[[], Any]:
        def run() -> Any:
            logits = torch.cat([level.flatten() for level in head(levels)[0]])
            return torch.autograd.grad(logits[chosen].sum(), [*levels, *head.conv.parameters()])

        return run

    return {"skipway": passes(ours), "torchvision": passes(theirs)}


def compared(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """Seconds of both, in turns of who goes first, and how many times ours theirs take."""
    for mine, their in zip(*(side() for side in sides.values()), strict=True):
        if their is not None:
            torch.testing.assert_close(mine, their, rtol=1e-3, atol=1e-3)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 else -1]:
            begun = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - begun)
    ratios = [b / a for a, b in zip(seconds["skipway"], seconds["torchvision"], strict=True)]
    return {
        "seconds": {name: spread(took) for name, took in seconds.items()},
        "ratio": spread(ratios),
        "threads": cores(),
        "precision": "float32",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    for name, sides in (("roi_align", roi_align()), ("rpn_head", rpn())):
        record_case("detector_layers", name, compared(sides, options.rounds))


if __name__ == "__main__":
    main()
