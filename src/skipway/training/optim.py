"""Optimizer, averaged weights, frozen parts, and exact statistics of batch norm."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from skipway.config import OptimConfig
from skipway.resnet import ResNet
from skipway.training.lamb import Lamb
from skipway.training.muon import Muon

Tensors = tuple[Tensor, ...] | list[Tensor]


def make_optimizer(
    net: nn.Module,
    config: OptimConfig,
    later: Iterable[nn.Parameter] = (),
    half: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters, grouped by decay and rate. Muon takes the
    convolutions of the stages and leaves the others to SGD.

    later: parameters that are frozen and will train; until they have a gradient nothing moves them.
    half: whether what Muon makes orthogonal is so in bfloat16.
    Each group's `scale` multiplies the scheduled learning rate. SGD's momentum is PyTorch's: the
    step is lr * v with v = m v + g. Without momentum Nesterov's step is the plain one.
    """
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    last = max(_stage(name, 0) for name, _ in net.named_parameters())
    waiting = set(later)
    for name, parameter in net.named_parameters():
        if not parameter.requires_grad and parameter not in waiting:
            continue
        stage = _stage(name, last)
        scale = config.stage_decay ** (last - stage)
        if name.startswith(_HEADS):
            scale = config.head_lr
        decay = config.weight_decay if config.decay_all or parameter.ndim > 1 else 0.0
        of_stage = _STAGE.match(_in_body(name)) is not None
        orthogonal = config.kind == "muon" and parameter.ndim == 4 and of_stage
        if orthogonal:
            scale *= config.muon_lr / config.lr
        groups.setdefault((orthogonal, decay, scale), []).append(parameter)
    chosen: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "scale": scale, "orthogonal": orthogonal}
        for (orthogonal, decay, scale), parameters in groups.items()
    ]
    if config.kind == "muon":
        return Muon(chosen, config.lr, config.momentum, config.muon_norm, half)
    for group in chosen:
        del group["orthogonal"]
    if config.kind == "lamb":
        return Lamb(chosen, config.lr, config.betas, config.eps)
    if config.kind == "adamw":
        return torch.optim.AdamW(
            chosen, lr=config.lr, betas=config.betas, eps=config.eps, fused=True
        )
    nesterov = config.nesterov and config.momentum > 0
    optimizer = torch.optim.SGD(
        chosen, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True
    )
    if config.momentum > 0:
        for parameter in waiting:  # the fused step takes no first step of some beside others
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


_HEADS = ("fc.", "embedding.", "directions")
"""How the parameters of classifiers begin, and of what makes vectors."""
_STAGE = re.compile(r"layer(\d+)\.")
"""How those of a stage begin."""


def _in_body(name: str) -> str:
    """A parameter's name in the residual network, of one that heads stand on too."""
    return name.removeprefix("backbone.").removeprefix("body.")


def _stage(name: str, last: int) -> int:
    """The stage of a parameter: 0 for the stem, `last` for what comes after the stages."""
    name = _in_body(name)
    match = _STAGE.match(name)
    return int(match[1]) if match else 0 if name.startswith(("conv1.", "bn1.")) else last


def make_ema(net: nn.Module, decay: float) -> AveragedModel:
    """Exponentially averaged weights and buffers, warmed up: after t steps the decay is at most
    (1 + t) / (10 + t), so that early weights do not linger."""

    def average(averaged: Tensors, current: Tensors, t: Tensor | int) -> None:
        now = min(decay, (1 + int(t)) / (10 + int(t)))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - now)
        else:
            torch._foreach_copy_(averaged, current)

    return AveragedModel(net, multi_avg_fn=average, use_buffers=True)


class Frozen:
    """Parts of a network, from input to output, that do not train, or not from the beginning.

    While a part is frozen its batch norms keep their statistics. until: the steps at which parts
    begin to train, rising: at the first the last part, and so on; at the last all that are left.
    """

    def __init__(
        self, parts: Sequence[Sequence[nn.Module]] = (), until: Sequence[int] = ()
    ) -> None:
        self.parts, self.until = parts, tuple(until)
        modules = [module for part in parts for module in part]
        own = [p for module in modules for p in module.parameters() if p.requires_grad]
        self._own = dict.fromkeys(own if until else ())
        """What will train; a whitened stem never does."""
        self._held = len(parts)
        self.at(0)

    def at(self, step: int) -> bool:
        """Freeze and free the parts as at that step, and after `train()`; whether more of them
        train than did before."""
        passed = sum(step >= border for border in self.until)
        held = len(self.parts) - passed
        if self.until and passed == len(self.until):
            held = 0
        for i, part in enumerate(self.parts):
            for module in part:
                if i < held:
                    module.requires_grad_(False).eval()
                elif self.until:
                    module.train()
                    for parameter in module.parameters():
                        parameter.requires_grad_(parameter in self._own)
        freed, self._held = held < self._held, held
        return freed

    def later(self) -> list[nn.Parameter]:
        """The parameters that are frozen at first and will train."""
        return list(self._own)


def freeze(net: ResNet, parts: int | Literal["all"], until: Sequence[int] = ()) -> Frozen:
    """Freeze the first `parts` of stem, stage 1, stage 2, …, or all but the classifier; see
    `Frozen`."""
    every: list[list[nn.Module]] = [[net.conv1, net.bn1]]
    every += [[stage] for stage in net.stages()]
    if parts == "all":
        every[-1].append(net.norm)
        return Frozen(every, until)
    return Frozen(every[:parts], until)


@torch.no_grad()
def set_exact_statistics(net: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Batch norm's statistics as the plain mean over these batches [B, C, H, W].

    As the authors' code does after training (github.com/KaimingHe/deep-residual-networks,
    "Disclaimer and known issues"), in place of a moving average. Frozen norms keep theirs: what
    follows them was trained on these.
    """
    every = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    norms = [m for m in every if m.weight.requires_grad]
    if not norms:
        return
    momenta = [m.momentum for m in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # cumulative average
    net.eval()  # no stochastic depth, no dropout
    for module in norms:
        module.train()
    for x in inputs:
        net(x)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
    net.eval()
