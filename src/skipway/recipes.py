"""Recipes: how to train, each a row named after where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skipway.errors import InputError, harmless, nearest


@dataclass(frozen=True)
class Recipe:
    """Settings by dotted key, as `--set` takes them, with where they come from."""

    source: str
    expected: str
    """What it gives, and on what."""
    settings: Mapping[str, Any]
    tasks: tuple[str, ...] = ()
    """Those it is for; empty is any."""


_RSB = (
    "Wightman et al. 2021 (2110.00476), table 2, procedure {}; here with torchvision's operations "
    "in RandAugment, bilinear"
)
_RSB_EXPECTED = "the paper's gives resnet50 {} % top-1 on ImageNet at 224 px; not measured here"
_RSB_SETTINGS: dict[str, Any] = {
    "schedule.kind": "cosine",
    "schedule.warmup": "5 epochs",
    "model.architecture": {"zero_init_last": True},  # timm's default
    "optim.kind": "lamb",
    "optim.weight_decay": 0.02,
    "optim.decay_all": False,
    "optim.clip": 1.0,  # part of timm's LAMB
    "loss": "bce",
    "data.size": 224,
    "data.crop_ratio": 0.95,
    "augment.area": (0.08, 1.0),
    "augment.flip": True,
    "augment.policy": "rand",
    "augment.magnitude_std": 1.5,
    "augment.operation_probability": 0.5,
    "augment.mixup": 0.1,
    "augment.cutmix": 1.0,
    "batch_size": 2048,
}

RECIPES: dict[str, Recipe] = {
    "he2015-cifar": Recipe(
        source="He et al. 2015, section 4.2",
        expected="ResNet-20 on CIFAR-10, all 50,000 training images: 8.75 % test error",
        settings={
            "schedule.kind": "step",
            "schedule.length": "64000 steps",
            "schedule.milestones": ("32000 steps", "48000 steps"),
            "optim.lr": 0.1,
            "optim.weight_decay": 1e-4,
            "augment.pad_crop": 4,
            "augment.flip": True,
            "augment.pixel_mean": True,
            "batch_size": 128,
            "precision": "float32",
        },
    ),
    "he2016-preact": Recipe(
        source="He et al. 2016, section 4 and appendix",
        expected="CIFAR-10, all 50,000 training images (--val none), mean and deviation by "
        "channel: preresnet110 6.37 % test error, preresnet164 5.46 % (medians of 5)",
        settings={
            "schedule.kind": "step",
            "schedule.length": "64000 steps",
            "schedule.milestones": ("32000 steps", "48000 steps"),
            "schedule.warmup": "400 steps",
            "schedule.warmup_lr": 0.01,
            "optim.lr": 0.1,
            "optim.weight_decay": 1e-4,
            "augment.pad_crop": 4,
            "augment.flip": True,
            "batch_size": 128,
            "precision": "float32",
        },
    ),
    "wrn": Recipe(
        source="Zagoruyko and Komodakis 2016 (1605.07146), section 3; images are padded with "
        "zeros, where the paper reflects them",
        expected="CIFAR-10, all 50,000 training images (--val none), no dropout: wrn28_10 4.00 % "
        "test error (median of 5)",
        settings={
            "schedule.kind": "step",
            "schedule.length": "200 epochs",
            "schedule.milestones": ("60 epochs", "120 epochs", "160 epochs"),
            "schedule.factor": 0.2,
            "optim.lr": 0.1,
            "optim.nesterov": True,
            "optim.weight_decay": 5e-4,
            "augment.pad_crop": 4,
            "augment.flip": True,
            "batch_size": 128,
            "precision": "float32",
        },
    ),
    "he2015-imagenet": Recipe(
        source="He et al. 2015, section 3.4; the rate falls after 30 and 60 of 90 epochs, as in "
        "torchvision's reproduction, where the paper waits for plateaus, up to 600,000 steps; "
        "random resized crops (1409.4842) for its crops of images of 256 to 480 px, and no noise "
        "of colours",
        expected="on ImageNet, one crop of 224 px, the authors' weights of resnet50 have 24.7 % "
        "top-1 error, torchvision's 23.9 %; not measured here",
        settings={
            "schedule.kind": "step",
            "schedule.length": "90 epochs",
            "schedule.milestones": ("30 epochs", "60 epochs"),
            "optim.lr": 0.1,
            "optim.weight_decay": 1e-4,
            "data.size": 224,
            "augment.area": (0.08, 1.0),
            "augment.flip": True,
            "batch_size": 256,
            "precision": "float32",
        },
    ),
    "bag-of-tricks": Recipe(
        source="He et al. 2018 (1812.01187), sections 3 and 5: of 120 epochs 200 with mixup; zero "
        "gamma; without distillation (--set distill.model) and noise of colours, contrast is "
        "jittered in place of hue",
        expected="the paper's gives resnet50d 79.15 % top-1 on ImageNet at 224 px; not measured "
        "here",
        settings={
            "schedule.kind": "cosine",
            "schedule.length": "200 epochs",
            "schedule.warmup": "5 epochs",
            "model.architecture": {"zero_init_last": True},
            "optim.lr": 0.4,  # 0.1 for a batch of 256, in proportion
            "optim.nesterov": True,
            "optim.weight_decay": 1e-4,
            "optim.decay_all": False,
            "label_smoothing": 0.1,
            "data.size": 224,
            "augment.area": (0.08, 1.0),
            "augment.flip": True,
            "augment.jitter": 0.4,
            "augment.mixup": 0.2,
            "batch_size": 1024,
        },
    ),
    "torchvision-v2": Recipe(
        source="torchvision's recipe of its IMAGENET1K_V2 weights (Vryniotis 2021, the blog and "
        "references/classification); the average is taken at each step, not at each 32nd, and no "
        "bias decays",
        expected="torchvision's gives resnet50 80.86 % top-1 on ImageNet, 224 of 232 px; not "
        "measured here",
        settings={
            "schedule.kind": "cosine",
            "schedule.length": "600 epochs",
            "schedule.warmup": "5 epochs",
            "optim.lr": 0.5,
            "optim.weight_decay": 2e-5,
            "optim.decay_all": False,
            "label_smoothing": 0.1,
            # 0.99998 is scaled by batch times 32 steps over epochs: 1 - 2e-5 * 1024 * 32 / 600 for
            # 32 steps.
            "ema.decay": 0.999966,
            "data.size": 224,
            "data.crop_ratio": 0.9655,
            "augment.size": 176,
            "augment.area": (0.08, 1.0),
            "augment.flip": True,
            "augment.policy": "trivial",
            "augment.erase": 0.1,
            "augment.mixup": 0.2,
            "augment.cutmix": 1.0,
            "augment.repeats": 4,
            "batch_size": 1024,
        },
    ),
    "rsb-a1": Recipe(
        source=_RSB.format("A1") + ", soft targets, as a threshold would undo their smoothing",
        expected=_RSB_EXPECTED.format("80.4"),
        settings=_RSB_SETTINGS
        | {
            "schedule.length": "600 epochs",
            "model.architecture": {"zero_init_last": True, "drop_path": 0.05},
            "optim.lr": 0.005,
            "optim.weight_decay": 0.01,
            "label_smoothing": 0.1,
            "augment.magnitude": 21,
            "augment.mixup": 0.2,
            "augment.repeats": 3,
        },
    ),
    "rsb-a2": Recipe(
        source=_RSB.format("A2"),
        expected=_RSB_EXPECTED.format("79.8"),
        settings=_RSB_SETTINGS
        | {
            "schedule.length": "300 epochs",
            "model.architecture": {"zero_init_last": True, "drop_path": 0.05},
            "optim.lr": 0.005,
            "bce_threshold": 0.2,
            "augment.magnitude": 21,
            "augment.repeats": 3,
        },
    ),
    "rsb-a3": Recipe(
        source=_RSB.format("A3"),
        expected=_RSB_EXPECTED.format("78.1"),
        settings=_RSB_SETTINGS
        | {
            "schedule.length": "100 epochs",
            "optim.lr": 0.008,
            "bce_threshold": 0.2,
            "augment.size": 160,
            "augment.magnitude": 18,
        },
    ),
    "speedrun-cifar": Recipe(
        source="after Jordan 2024 (2404.00498) and its successors with Muon, for resnet8_speedrun: "
        "a whitened stem, max-pools, label smoothing, mirrored in turns, a linear schedule",
        expected="CIFAR-10, all 50,000 training images, six views: 94.12 % (mean of 3 seeds)",
        settings={
            "model.name": "resnet8_speedrun",
            "schedule.kind": "linear",
            "schedule.length": "18 epochs",
            "schedule.warmup": "20 %",
            "optim.kind": "muon",
            "optim.lr": 0.1,
            "optim.muon_lr": 0.08,
            "optim.muon_norm": True,
            "optim.weight_decay": 5e-4,
            "optim.decay_all": False,
            "label_smoothing": 0.2,
            "augment.pad_crop": 2,
            "augment.flip": "alternate",
            "batch_size": 512,
        },
    ),
    "modern": Recipe(
        source="SGD with Nesterov momentum and one cycle (1708.07120), no decay on norms and "
        "biases (1812.01187, section 3.1), label smoothing (1512.00567), averaged weights",
        expected="ResNet-20 on CIFAR-10, 40 epochs: 91.35 %; the digits: 99.16 %",
        settings={
            "schedule.kind": "one-cycle",
            "schedule.warmup": "15 %",
            "optim.nesterov": True,
            "optim.weight_decay": 5e-4,
            "optim.decay_all": False,
            "label_smoothing": 0.05,
            "ema.decay": 0.998,
        },
    ),
    "detect": Recipe(
        source="a detector from the beginning or from a backbone's weights on small data: AdamW "
        "(1711.05101), cosine, averaged weights, scale jitter (2012.07177) of 0.7 to 1.4",
        expected="blood-cells, 205 training images, resnet18 from scratch, 8 epochs: AP 52.0 %",
        tasks=("detect", "instance"),
        settings={
            "schedule.kind": "cosine",
            "schedule.warmup": "5 %",
            "optim.kind": "adamw",
            "optim.weight_decay": 0.05,
            "optim.decay_all": False,
            "optim.clip": 5.0,
            "augment.scale": (0.7, 1.4),
            "ema.decay": 0.99,
        },
    ),
    "segment": Recipe(
        source="a segmenter from the beginning or from a backbone's weights on small data: AdamW "
        "(1711.05101), cosine, averaged weights, cross-entropy and Dice (1606.04797), rare classes "
        "weighted by the root of their rarity, scale jitter",
        expected="street, 120 training images, resnet18 of half the width from scratch, 54 epochs: "
        "mIoU 52.4 %",
        tasks=("segment",),
        settings={
            "schedule.kind": "cosine",
            "schedule.warmup": "5 %",
            "optim.kind": "adamw",
            "optim.weight_decay": 0.05,
            "optim.decay_all": False,
            "optim.clip": 5.0,
            "loss": "ce+dice",
            "class_weights": "root",  # else classes of few pixels are never found
            "augment.scale": (0.7, 1.6),
            "augment.jitter": 0.3,
            "ema.decay": 0.99,
        },
    ),
    "embed": Recipe(
        source="vectors from the beginning or from a classifier's weights: AdamW as in 2003.13911, "
        "section 4.2, cosine, averaged weights",
        expected="depends on the data and the loss",
        tasks=("embed",),
        settings={
            "schedule.kind": "cosine",
            "schedule.warmup": "5 %",
            "optim.kind": "adamw",
            "optim.weight_decay": 0.05,
            "optim.decay_all": False,
            "ema.decay": 0.99,
        },
    ),
    "finetune": Recipe(
        source="a short one-cycle from given weights, the new classifier faster than the rest",
        expected="depends on the weights",
        settings={
            "schedule.kind": "one-cycle",
            "schedule.warmup": "10 %",
            "optim.lr": 0.01,
            "optim.head_lr": 10.0,
            "optim.nesterov": True,
            "optim.weight_decay": 1e-4,
            "optim.decay_all": False,
            "label_smoothing": 0.1,
            "ema.decay": 0.99,
        },
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name. Raises InputError, offering the nearest name."""
    if name not in RECIPES:
        known = ", ".join(RECIPES)
        raise InputError(
            f"unknown recipe {harmless(name)!r}.{nearest(name, RECIPES)}\nRecipes: {known}"
        )
    return RECIPES[name]
