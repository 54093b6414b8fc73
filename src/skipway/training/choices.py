"""What is chosen from the data and the machine where the user left it open, with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skipway.architecture import ARCHITECTURES
from skipway.config import RunConfig
from skipway.data import DataSet
from skipway.data.preflight import default_size
from skipway.data.split import image_sizes
from skipway.heads import DetectorConfig, light
from skipway.images import SMALL_IMAGE
from skipway.machine import cores, has_bf16
from skipway.training.distributed import World

RESIDENT_LIMIT = 2 << 30
"""Bytes of decoded images that are held in memory."""


@dataclass(frozen=True)
class Choice:
    """One setting that was not given, what was chosen, and why."""

    key: str
    value: Any
    reason: str


def _from_images(data: DataSet, config: RunConfig, _: World) -> list[Choice]:
    """Model, input size and channels from the size of the images, where still open."""
    sizes = image_sizes(data.splits["train"])
    short = int(np.median(sizes.min(axis=1)))
    choices = []
    if config.model.name == "auto":
        small = (config.data.size or short) <= SMALL_IMAGE
        name, kind = ("resnet20", "small") if small else ("resnet18", "large")
        of = f"{short} px the short side" if config.data.size is None else f"{config.data.size} px"
        choices.append(Choice("model.name", name, f"{kind} images, {of}"))
    if config.data.size is None:
        size, why = default_size(short), f"the median short side is {short} px"
        if short > SMALL_IMAGE:
            why += "; a multiple of 32, 224 at most"
        elif (sizes == sizes[0, 0]).all() and size == short:
            why = f"all images are {short} px"
        choices.append(Choice("data.size", size, why))
    if data.channels == 1 and config.model.weights is None:  # else the weights say it
        choices.append(Choice("data.channels", 1, "all images are grey"))
    why = "photographs may be mirrored" if data.mirror else "mirrored they may be another class"
    choices.append(Choice("augment.flip", data.mirror, why))
    return choices


def _batch(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    n = len(data.splits["train"])
    batch = 128 if n >= 5000 else 64 if n >= 1000 else 32
    why = f"{n:,} training images"
    if world.size > 1:
        batch, why = -(-batch // world.size), f"{why}; each of {world.size} processes has as many"
    return [Choice("batch_size", min(batch, n), why)]


def _groups(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """A batch of whole groups of a class, where it has such."""
    (choice,), k = _batch(data, config, world), config.embedder.per_class
    if not k:
        return [choice]
    groups = max(choice.value // k, 2)
    return [Choice("batch_size", groups * k, f"{groups} groups of {k} images of a class")]


_RATES = {"adamw": (0.001, 128, 0.05), "lamb": (0.005, 2048, 0.02)}
"""Learning rate, the batch it is for, and weight decay."""


def _training(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """Length, rate and augmentation from the number and the size of the images."""
    n = len(data.splits["train"])
    size = config.data.size or SMALL_IMAGE
    batch = min(config.batch_size * world.size, n)
    lr = Choice("optim.lr", 0.2 * batch / 128, "0.2 for a batch of 128, in proportion (1706.02677)")
    own = _RATES.get(config.optim.kind)
    if own is not None:
        rate, of, decay = own
        tenth = config.model.weights is not None
        rate *= (batch / of) ** 0.5 / (10 if tenth else 1)
        why = f"{own[0]:g} for a batch of {of:,}, with its root" + ", a tenth from weights" * tenth
        lr = Choice("optim.lr", rate, why)
    length = Choice(
        "schedule.length", f"{40 if n >= 5000 else 30} epochs", f"{n:,} training images"
    )
    if config.model.weights is not None:
        length = Choice("schedule.length", "15 epochs", "starts from given weights")
        if config.on_features:
            length = Choice("schedule.length", "60 epochs", "an epoch on kept features is short")
    choices = [length, lr]
    if own is not None:
        choices.append(Choice("optim.weight_decay", decay, f"usual with {config.optim.kind}"))
    if size > SMALL_IMAGE:
        choices.append(Choice("augment.area", (0.35, 1.0), "large images: random resized crops"))
    elif config.augment.area is None:
        choices.append(Choice("augment.pad_crop", max(size // 8, 1), f"an eighth of {size} px"))
    return choices


def _embedding(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """As `_training`, but for the rates of what makes vectors."""
    choices = _training(data, config, world)
    if config.model.weights is not None:
        why = "the network has been trained already, what makes vectors of it has not"
        return [*choices, Choice("optim.head_lr", 10.0, why)]
    if config.optim.kind == "adamw":
        batch = min(config.batch_size * world.size, len(data.splits["train"]))
        rate = 0.003 * (batch / 128) ** 0.5
        choices = [choice for choice in choices if choice.key != "optim.lr"]
        choices.append(Choice("optim.lr", rate, "0.003 for a batch of 128, with its root"))
    return choices


def _resident(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """Whether the decoded images live in memory, of each process."""
    size = config.data.size or SMALL_IMAGE
    images = sum(len(s) for s in data.splits.values())
    mebibytes = images * size * size * config.data.channels >> 20
    resident = mebibytes << 20 <= RESIDENT_LIMIT // world.local_size
    why = f"decoded it takes {mebibytes:,} MiB"
    if world.local_size > 1:
        why += f" in each of {world.local_size} processes"
    if config.augment.area is not None:
        resident, why = False, "random resized crops need the whole images"
    elif config.augment.policy != "none" or config.augment.jitter:
        resident, why = False, "each image is changed by itself"
    return [Choice("data.resident", resident, why)]


def _machine(_: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """Device, precision, threads and workers from the machine."""
    n = max(cores() // world.local_size, 1)
    gpu = torch.cuda.is_available()
    on_gpu = gpu and config.device != "cpu"
    # On two cores, one worker beside two threads trained no faster than none (photographs of 110
    # kB at 224 px, ResNet-18: 27 images/s both); one thread less cost almost half.
    workers = (min(8, n), f"{n} cores decode for the GPU") if on_gpu else (0, "all cores train")
    choices = [
        Choice("data.workers", *workers),
        Choice("threads", n, f"{n} cores may be used" + " by each" * (world.local_size > 1)),
        Choice("device", "cuda" if gpu else "cpu", "a GPU is there" if gpu else "no GPU is there"),
    ]
    fast = torch.cuda.is_bf16_supported() if on_gpu else has_bf16()
    unit = "GPU" if on_gpu else "processor"
    name, overrides = config.model.name, config.model.architecture
    grouped = overrides.get("groups", ARCHITECTURES[name].groups if name in ARCHITECTURES else 1)
    if not fast:
        choices.append(Choice("precision", "float32", f"the {unit} has no bf16 of its own"))
    elif grouped != 1 and not on_gpu:
        choices.append(Choice("precision", "float32", "grouped convolutions are slow in bf16"))
    else:
        choices.append(Choice("precision", "bf16", f"the {unit} multiplies bf16 by itself"))
    return choices


def _whole_images(data: DataSet, config: RunConfig, _: World) -> list[Choice]:
    """Network and input size where all of an image is seen."""
    sizes = image_sizes(data.splits["train"])
    long = int(np.median(sizes.max(axis=1)))
    choices = []
    if config.model.name == "auto":
        choices.append(Choice("model.name", "resnet18", "the smallest of the paper's"))
    if config.data.size is None:
        size = min(max(long // 32 * 32, 64), _LARGEST_INPUT)
        why = f"the median long side is {long} px; a multiple of 32, {_LARGEST_INPUT} at most"
        choices.append(Choice("data.size", size, why))
    fit = Choice("data.resize", "fit", "all of an image, its aspect ratio kept")
    return [*choices, fit, Choice("data.resident", False, "each image is changed by itself")]


def _detector(data: DataSet, config: RunConfig, _: World) -> list[Choice]:
    """Heads of a detector."""
    choices = []
    head = "mask-rcnn" if config.task == "instance" else "faster-rcnn"
    choices.append(Choice("detector.head", head, f"usual for {config.task}"))
    head = config.detector.head if "head" in config.detector.model_fields_set else head
    if config.model.weights is not None:
        choices.append(Choice("detector.norm", "frozen", "the weights saw more images"))
    n = len(data.splits["train"])
    if n < _FEW_IMAGES:
        usual = DetectorConfig(head=head, neck=config.detector.neck)
        of_few = light(usual)
        why = f"light heads: {n:,} training images"
        choices += [
            Choice(f"detector.{name}", getattr(of_few, name), why)
            for name in DetectorConfig.model_fields
            if getattr(of_few, name) != getattr(usual, name)
        ]
    choices.append(Choice("augment.flip", True, "mirrored objects are what they were"))
    return choices


def _few_at_once(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """The batch of a detector."""
    batch = min(-(-_DETECTED // world.size), len(data.splits["train"]))
    return [Choice("batch_size", batch, f"{_DETECTED} images a step")]


def _detecting(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """Length and rate of a detector's training."""
    n = len(data.splits["train"])
    epochs = 30 if config.model.weights is None else 15
    choices = [Choice("schedule.length", f"{epochs} epochs", f"{n:,} training images")]
    together = min(config.batch_size * world.size, n)
    if config.optim.kind in ("sgd", "muon"):
        lr = Choice("optim.lr", 0.02 * together / 16, "0.02 for a batch of 16, in proportion")
    else:
        lr = Choice("optim.lr", 4e-4 * (together / 8) ** 0.5, "0.0004 for a batch of 8, its root")
    return [*choices, lr]


def _segmenter(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """Head and batch of semantic segmentation."""
    n = len(data.splits["train"])
    few = n < _FEW_IMAGES
    why = f"{n:,} training images: a decoder for {'small' if few else 'large'} data"
    batch = min(-(-_SEGMENTED // world.size), n)
    return [
        Choice("segmenter.head", "unet" if few else "deeplabv3plus", why),
        Choice("batch_size", batch, f"{_SEGMENTED} images a step"),
        Choice("augment.flip", True, "a mirrored scene has the same classes"),
    ]


def _segmenting(data: DataSet, config: RunConfig, world: World) -> list[Choice]:
    """Length and rate of a segmenter's training."""
    n = len(data.splits["train"])
    epochs = 60 if config.model.weights is None else 30
    together = min(config.batch_size * world.size, n)
    if config.optim.kind in ("sgd", "muon"):
        lr = Choice("optim.lr", 0.01 * together / 8, "0.01 for a batch of 8, in proportion")
    else:
        lr = Choice("optim.lr", 1e-3 * (together / 8) ** 0.5, "0.001 for a batch of 8, its root")
    return [Choice("schedule.length", f"{epochs} epochs", f"{n:,} training images"), lr]


_LARGEST_INPUT = 640
"""Pixels that are chosen at most of an input that holds all of an image."""
_FEW_IMAGES = 5000
"""Training images below which a detector gets light heads, and a segmenter a light decoder."""
_DETECTED, _SEGMENTED = 4, 8
"""Images a step of a detector, and of a segmenter."""

_Choose = Callable[[DataSet, RunConfig, World], list[Choice]]

CHOICES: dict[str, tuple[_Choose, ...]] = {
    "classify": (_from_images, _batch, _training, _resident, _machine),
    "detect": (_whole_images, _detector, _few_at_once, _detecting, _machine),
    "instance": (_whole_images, _detector, _few_at_once, _detecting, _machine),
    "segment": (_whole_images, _segmenter, _segmenting, _machine),
    "embed": (_from_images, _groups, _embedding, _resident, _machine),
}
"""By task: what is chosen, in this order; each knows what was chosen before it."""
