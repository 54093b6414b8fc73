"""Muon and AdamW against PyTorch's own, LAMB against timm's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from skipway.config import OptimConfig
from skipway.training.lamb import Lamb
from skipway.training.muon import Muon, orthogonalised
from skipway.training.optim import make_optimizer
from skipway.weights import create_model


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (16, 16)])
def test_matrices_move_as_with_torch(shape: tuple[int, int], half: bool) -> None:
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    group = {"params": [ours], "orthogonal": True, "weight_decay": 0.1}
    optimizer = Muon([group], lr=0.02, momentum=0.95, half=half)
    oracle = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95)
    begun = ours.detach().clone()
    for _ in range(5):
        gradient = torch.randn(shape)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        oracle.step()
    # PyTorch's rounds to bfloat16, in another order of operations.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    assert (ours - begun).abs().max() > 0.02


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_the_matrix_of_outputs_by_inputs(memory: torch.memory_format) -> None:
    torch.manual_seed(0)
    convolution = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=memory))
    matrix = nn.Parameter(convolution.detach().reshape(6, 36).clone())
    gradient = torch.randn(6, 4, 3, 3)
    convolution.grad = gradient.to(memory_format=memory)
    matrix.grad = gradient.reshape(6, 36).clone()
    for parameter in (convolution, matrix):
        group = {"params": [parameter], "orthogonal": True, "weight_decay": 0.0}
        Muon([group], lr=0.1, momentum=0.9).step()
    torch.testing.assert_close(convolution.reshape(6, 36), matrix, rtol=0, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_close_to_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(12, 30), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.1, 3, 12)) @ vh
    turned = orthogonalised(matrix.to(dtype))
    assert turned.dtype == dtype
    turned = turned.float()
    found = torch.linalg.svdvals(turned)
    assert 0.6 < found.min() <= found.max() < 1.3
    assert torch.nn.functional.cosine_similarity(turned.flatten(), (u @ vh).flatten(), 0) > 0.97


def test_what_is_no_hidden_weight_is_left_to_sgd() -> None:
    net = create_model("resnet20", depths=(1, 1, 1), width=0.25, shortcut="B", seed=0)
    config = OptimConfig(kind="muon", lr=0.2, muon_lr=0.05, nesterov=True, decay_all=False)
    optimizer = make_optimizer(net, config)
    twin = create_model("resnet20", depths=(1, 1, 1), width=0.25, shortcut="B", seed=0)
    sgd = make_optimizer(twin, OptimConfig(lr=0.2, nesterov=True, decay_all=False))
    scale = {p: g["scale"] for g in optimizer.param_groups for p in g["params"]}
    turned = {p for g in optimizer.param_groups for p in g["params"] if g["orthogonal"]}
    for _ in range(3):
        for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            ours.grad = torch.randn(ours.shape)
            theirs.grad = ours.grad.clone()
        for one in (optimizer, sgd):
            for group in one.param_groups:
                group["lr"] = 0.2 * group["scale"]
            one.step()
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        hidden = ours.ndim == 4 and name != "conv1.weight"
        assert (ours in turned) == hidden, name
        assert scale[ours] == (0.25 if hidden else 1.0), name
        if not hidden:
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lamb", "muon"])
def test_its_state_goes_on_to_the_bit(kind: Any) -> None:
    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape)
            optimizer.step()

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        net = create_model("resnet20", depths=(1, 1, 1), width=0.25, seed=0)
        return net, make_optimizer(net, OptimConfig(kind=kind))

    whole, optimizer = fresh()
    steps(whole, optimizer, range(6))
    first, optimizer = fresh()
    steps(first, optimizer, range(3))
    state = optimizer.state_dict()
    second, optimizer = fresh()
    second.load_state_dict(first.state_dict())
    optimizer.load_state_dict(state)
    steps(second, optimizer, range(3, 6))
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


class Mixed(nn.Module):
    """Weights of several shapes, a bias, and a tensor that is all 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.fc = nn.Linear(8, 5)
        self.silent = nn.Linear(4, 4, bias=False)
        nn.init.zeros_(self.silent.weight)


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_lamb_is_timms(decay: float) -> None:
    timm_optim = pytest.importorskip("timm.optim")
    ours, theirs = Mixed(), Mixed()
    config = OptimConfig(
        kind="lamb", lr=0.01, weight_decay=decay, decay_all=False, betas=(0.8, 0.99), eps=1e-6
    )
    mine = make_optimizer(ours, config)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    oracle = timm_optim.Lamb(groups, lr=0.01, betas=(0.8, 0.99), eps=1e-6, max_grad_norm=None)
    for step in range(12):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape) * 10 ** (step % 4 - 2)
            b.grad = a.grad.clone()
        mine.step()
        oracle.step()
        for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=f"{name} at step {step}")


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_lamb_counts_the_steps_of_a_weight_that_was_frozen(decay: float) -> None:
    """It goes as timm's that begins where the weight is freed."""
    timm_optim = pytest.importorskip("timm.optim")
    torch.manual_seed(4)
    early, late = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5, 2))
    mine = Lamb([{"params": [early, late], "weight_decay": decay}], 0.01, (0.9, 0.999), 1e-6)
    freed = nn.Parameter(late.detach().clone())
    oracle = timm_optim.Lamb([freed], 0.01, eps=1e-6, weight_decay=decay, max_grad_norm=None)
    for step in range(40):
        early.grad = torch.randn_like(early)
        late.grad = torch.randn_like(late) if step >= 30 else None
        mine.step()
        if late.grad is not None:
            freed.grad = late.grad.clone()
            oracle.step()
        torch.testing.assert_close(late, freed, rtol=1e-5, atol=1e-7)


def test_adamw_is_torchs_with_decay_on_weights_alone() -> None:
    ours, theirs = Mixed(), Mixed()
    config = OptimConfig(kind="adamw", lr=0.01, weight_decay=0.1, decay_all=False)
    mine = make_optimizer(ours, config)
    decayed = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.ndim > 1], lr=0.01, eps=1e-6, weight_decay=0.1
    )
    others = torch.optim.AdamW(
        [p for p in theirs.parameters() if p.ndim == 1], lr=0.01, eps=1e-6, weight_decay=0.0
    )
    for _ in range(5):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        for optimizer in (mine, decayed, others):
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_part_without_gradients_is_left_as_it_is() -> None:
    net = Mixed()
    before = copy.deepcopy(net.state_dict())
    optimizer = make_optimizer(net, OptimConfig(kind="lamb", lr=0.1))
    net.conv.weight.grad = torch.ones_like(net.conv.weight)
    optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (name != "conv.weight"), name


def test_muon_can_keep_the_norm_it_began_with() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 4, 3, 3))
    group = {"params": [weight], "orthogonal": True, "weight_decay": 0.5}
    optimizer = Muon([group], lr=0.1, momentum=0.9, keep_norm=True)
    begun, norm = weight.detach().clone(), weight.norm().item()
    for _ in range(5):
        weight.grad = torch.randn_like(weight)
        optimizer.step()
    assert weight.norm().item() == pytest.approx(norm, rel=1e-5)
    assert torch.cosine_similarity(weight.flatten(), begun.flatten(), dim=0) < 0.999
    again = Muon([{**group, "params": [weight]}], lr=0.1, momentum=0.9, keep_norm=True)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[weight]["norm"].item() == pytest.approx(norm, rel=1e-5)


def test_a_weight_that_began_at_0_may_grow() -> None:
    weight = nn.Parameter(torch.zeros(6, 4, 3, 3))
    group = {"params": [weight], "orthogonal": True, "weight_decay": 0.0}
    optimizer = Muon([group], lr=0.1, momentum=0.9, keep_norm=True)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert weight.norm() > 0


def test_stages_of_networks_that_heads_stand_on_have_the_rates_of_a_classifiers() -> None:
    from skipway.architecture import architecture
    from skipway.detectors import build_detector
    from skipway.heads import DetectorConfig, SegmenterConfig
    from skipway.segmenters import build_segmenter

    arch = architecture("resnet18", width=0.125)
    small = DetectorConfig(channels=16, box_width=16)
    nets = {
        "": create_model("resnet18", 7, width=0.125),
        "backbone.body.": build_detector(arch, small, 3),
        "backbone.": build_segmenter(arch, SegmenterConfig(), 3),
    }
    rates: dict[str, dict[str, float]] = {}
    for before, net in nets.items():
        names = {parameter: name for name, parameter in net.named_parameters()}
        optimizer = make_optimizer(net, OptimConfig(stage_decay=0.5))
        found = {names[p]: g["scale"] for g in optimizer.param_groups for p in g["params"]}
        body = {n.removeprefix(before): s for n, s in found.items() if n.startswith(before)}
        rates[before] = {n: s for n, s in body.items() if n in dict(nets[""].named_parameters())}
        heads = {scale for name, scale in found.items() if not name.startswith(before or "layer")}
        assert before == "" or heads == {1.0}
    assert rates[""]["conv1.weight"] == rates["backbone."]["conv1.weight"] == 0.5**4
    assert rates["backbone."]["layer4.0.conv1.weight"] == 1
    for before in ("backbone.body.", "backbone."):
        shared = rates[before].items() & rates[""].items()
        assert dict(shared) == rates[before]


def test_what_trains_in_bfloat16_is_made_orthogonal_in_it() -> None:
    net = create_model("resnet20", depths=(1, 1, 1), width=0.25, seed=0)
    config = OptimConfig(kind="muon")
    for half in (False, True):
        optimizer = make_optimizer(net, config, half=half)
        assert isinstance(optimizer, Muon)
        assert optimizer.half is half
