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
        source="Zagoruyko and Komodakis 2016 (1605.07146), section 3",
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
    "rsb-a3": Recipe(
        source="Wightman et al. 2021 (2110.00476), procedure A3; here with soft targets, "
        "torchvision's RandAugment and the centre 224 of 256 pixels",
        expected="the paper's gives resnet50 78.1 % top-1 on ImageNet at 224 px; not measured here",
        settings={
            "schedule.kind": "cosine",
            "schedule.length": "100 epochs",
            "schedule.warmup": "5 epochs",
            "optim.kind": "lamb",
            "optim.lr": 0.008,
            "optim.weight_decay": 0.02,
            "optim.decay_all": False,
            "optim.clip": 1.0,
            "loss": "bce",
            "data.size": 224,
            "augment.size": 160,
            "augment.area": (0.08, 1.0),
            "augment.flip": True,
            "augment.policy": "rand",
            "augment.magnitude": 18,
            "augment.mixup": 0.1,
            "augment.cutmix": 1.0,
            "batch_size": 2048,
        },
    ),
    "modern": Recipe(
        source="SGD with Nesterov momentum and one cycle (1708.07120), no decay on norms and "
        "biases (1812.01187, section 3.1), label smoothing (1512.00567), averaged weights",
        expected="see the table of results in the README",
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
