"""Images and targets of a batch, as torchvision takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from skipway.errors import InputError

Target = dict[str, Tensor]


def padded(images: Sequence[Tensor], multiple: int) -> Any:
    """Images [C, H, W] as one batch, with 0 at the right and below to a multiple of pixels."""
    sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for image, (h, w), place in zip(images, sizes, batch, strict=True):
        place[:, :h, :w] = image
    return ImageList(batch, sizes)


def checked(
    targets: Sequence[Target], sizes: Sequence[tuple[int, int]], num_classes: int, masks: bool
) -> list[Target]:
    """The targets as torchvision takes them. Its kernels trust boxes: what is not finite, has no
    area or lies outside the image (by more than a pixel) could take a process down."""
    if len(targets) != len(sizes):
        raise ValueError(f"{len(targets)} targets for {len(sizes)} images")
    usable = []
    for i, (target, (height, width)) in enumerate(zip(targets, sizes, strict=True)):
        here = f"image {i} of the batch"
        boxes, labels = target["boxes"].float(), target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            shapes = f"boxes {list(boxes.shape)} and labels {list(labels.shape)}"
            raise InputError(f"{here}: {shapes} are not [n, 4] and [n]")
        edge = boxes.new_tensor((width + 1, height + 1))
        faults = {
            "is not finite": ~boxes.isfinite().all(1),
            "has no area": (boxes[:, 2:] <= boxes[:, :2]).any(1),
            f"lies outside the {width} x {height} pixels of the image": (
                (boxes[:, :2] < -1) | (boxes[:, 2:] > edge)
            ).any(1),
            f"has no label from 0 to {num_classes - 1}": (labels < 0) | (labels >= num_classes),
        }
        if bool(torch.stack(list(faults.values())).any()):
            fault, which = next((f, w) for f, w in faults.items() if bool(w.any()))
            first = int(which.nonzero()[0])
            box = ", ".join(f"{x:g}" for x in boxes[first].tolist())
            raise InputError(f"{here}: box {first} ({box}; label {int(labels[first])}) {fault}")
        one = {"boxes": boxes, "labels": labels.long()}
        if masks:
            expected = (len(boxes), height, width)
            if "masks" not in target or target["masks"].shape != expected:
                got = list(target["masks"].shape) if "masks" in target else "none"
                raise InputError(f"{here}: masks are {list(expected)}, and here {got}")
            one["masks"] = target["masks"]
        usable.append(one)
    return usable
