"""Distillation (Hinton et al. 2015, 1503.02531): a classifier that learns from another's scores."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.card import tell_assumed
from skipway.data import Key
from skipway.data.feed import Batch
from skipway.errors import InputError, harmless
from skipway.images import Preprocess
from skipway.tasks import Evaluator
from skipway.tasks.classify import Classify
from skipway.weights import load_model


@dataclass(frozen=True)
class Teacher:
    """A network that is learned from. It is in no checkpoint of the one that learns."""

    net: nn.Module
    """In evaluation mode, its parameters without gradients."""
    preprocess: Preprocess
    order: tuple[int, ...]
    """Of its outputs, so that their classes are in the learner's order."""
    digest: str
    """sha256 of its weights, architecture, preprocessing and order: what a resume compares."""


def read_teacher(model: str | os.PathLike[str], classes: Sequence[str], channels: int) -> Teacher:
    """The teacher that `weights.load_model` finds there, for a learner of these classes.

    Raises InputError where there is none, where it has no card, or where it has other classes or
    other input channels.
    """
    name = f"distill.model = {harmless(model)}"
    net, card, _ = load_model(model)
    if card is None:
        raise InputError(
            f"{name}: it has no card, so its classes are not known\n"
            "Give a run, or a weight file that Skipway wrote."
        )
    if odd := set(classes) ^ set(card.classes):
        first = min(odd)
        whose = "has no class" if first in classes else "has a class that the data lacks,"
        raise InputError(
            f"{name}: {whose} {harmless(first)}\n"
            f"It has {len(card.classes):,} classes, the data {len(classes):,}; they must be the "
            "same, in any order."
        )
    if card.preprocess.channels != channels:
        raise InputError(
            f"{name}: takes {card.preprocess.channels} channels, the network {channels}\n"
            f"Set data.channels={card.preprocess.channels}, or take another teacher."
        )
    tell_assumed(card, model)
    order = tuple(card.classes.index(c) for c in classes)
    about = repr((order, card.architecture, card.preprocess))
    digest = hashlib.sha256(about.encode("utf-8", "surrogateescape"))
    for key, tensor in net.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return Teacher(net.eval().requires_grad_(False), card.preprocess, order, digest.hexdigest())


class Distilled:
    """`tasks.Task` of a classifier, with the teacher's scores as a second target.

    The loss is (1 - weight) times the task's own and `weight` times temperature^2 times the
    Kullback-Leibler divergence of the learner's scores from the teacher's, both softened by the
    temperature (1503.02531, section 2; the square keeps the size of the gradients).
    """

    def __init__(
        self, task: Classify, teacher: Teacher, weight: float = 0.5, temperature: float = 4.0
    ) -> None:
        self.task, self.teacher = task, teacher
        self.weight, self.temperature = weight, temperature
        self._constants: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def to_input(self, batch: Batch, key: Key | None) -> Batch:
        return self.task.to_input(batch, key)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """`loss` and `distill_loss` with their shares, so that their sum is minimised."""
        logits = model(batch.images)
        terms = self.task.terms(logits, batch.targets)
        terms["loss"] = terms["loss"] * (1 - self.weight)
        with torch.no_grad():
            wanted = self.teacher.net(self.seen(batch.images))[:, self.teacher.order]
        return terms | {"distill_loss": self.weight * divergence(logits, wanted, self.temperature)}

    def seen(self, images: Tensor) -> Tensor:
        """The learner's input [B, C, H, W] as the teacher's [B, C, *size]: the same pixels, mixed
        ones too, with its mean, deviation and size."""
        if images.device not in self._constants:
            # Of both, input = level * scale + shift.
            (own, shift), (scale, other) = (
                p.scale_shift(np.uint8) for p in (self.task.preprocess, self.teacher.preprocess)
            )
            a, b, c = (torch.from_numpy(x).to(images.device) for x in (scale / own, -shift, other))
            self._constants[images.device] = (a, b, c)
        factor, before, after = self._constants[images.device]
        x = (images + before) * factor
        size = self.teacher.preprocess.size
        if x.shape[2:] != size:
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        return x + after

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        return self.task.predict(model, batch)

    def evaluator(self) -> Evaluator:
        return self.task.evaluator()


def divergence(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """temperature^2 times KL(teacher || learner) of softened scores, the mean over a batch.

    logits of the learner and of the teacher: [B, K]; computed in float32 at least.
    """
    log, wanted = (
        (x.to(torch.promote_types(x.dtype, torch.float32)) / temperature).log_softmax(1)
        for x in (logits, wanted)
    )
    each = F.kl_div(log, wanted, reduction="batchmean", log_target=True)
    return each * temperature**2
