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
