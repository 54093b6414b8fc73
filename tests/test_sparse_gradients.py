"""What detectors compute in their own way on a CPU, against torchvision's layers: RoIAlign, and the
gradient of the RPN's head."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from skipway.detectors.pooling import PyramidRoIAlign
from skipway.detectors.rpn import rpn_head

PYRAMID = (4, 8, 16, 32)
SIZE = (96, 160)
"""Height and width of the images in pixels."""


def torchvisions(strides: Sequence[int], size: int) -> MultiScaleRoIAlign:
    """torchvision's own, with strides that are told and not guessed."""
    pool = MultiScaleRoIAlign([str(i) for i in range(len(strides))], size, 2)
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = LevelMapper(int(math.log2(strides[0])), int(math.log2(strides[-1])))
    return pool


def levels(strides: Sequence[int], images: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Maps that want a gradient, and one that the RPN alone reads."""
    maps = {
        str(i): torch.randn(
            images, 5, SIZE[0] // s, SIZE[1] // s, generator=generator, requires_grad=True
        )
        for i, s in enumerate(strides)
    }
    return maps | {"pool": torch.zeros(images, 5, 1, 1)}


def boxes(counts: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Of all sizes, some far outside the image, some without an area."""
    found = []
    for count in counts:
        low = torch.rand(count, 2, generator=generator) * 240 - 40
        side = torch.rand(count, 2, generator=generator).pow(4) * 700 - 1
        found.append(torch.cat([low, low + side.clamp(min=0)], 1))
    return found


@given(
    strides=st.sampled_from([PYRAMID, (8, 16), (16,)]),
    size=st.sampled_from([7, 14]),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60)
def test_roi_align_and_its_gradient_are_torchvisions(
    strides: tuple[int, ...], size: int, counts: list[int], channels_last: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps, rois = levels(strides, len(counts), generator), boxes(counts, generator)
    learned = [maps[str(i)] for i in range(len(strides))]
    form = torch.channels_last if channels_last else torch.contiguous_format
    read = {name: level.contiguous(memory_format=form) for name, level in maps.items()}
    images = [SIZE] * len(counts)
    ours = PyramidRoIAlign(strides, size)(read, rois, images)
    theirs = torchvisions(strides, size)(read, rois, images)
    assert ours.shape == theirs.shape == (sum(counts), 5, size, size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    weights = torch.randn(theirs.shape, generator=generator)
    gradients = torch.autograd.grad((ours * weights).sum(), learned)
    if sum(counts):
        expected = torch.autograd.grad((theirs * weights).sum(), learned, allow_unused=True)
    else:
        expected = (None,) * len(learned)  # of none, torchvision's have no graph
    for mine, their in zip(gradients, expected, strict=True):
        if their is None:
            assert not mine.any()
        else:
            torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("strides", [(4,), PYRAMID])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_box_gone_wrong_reads_nothing_beyond_the_maps(
    value: float, strides: tuple[int, ...]
) -> None:
    maps = levels(strides, 1, torch.Generator().manual_seed(0))
    broken = torch.tensor([[4.0, 4.0, 60.0, 40.0], [value, 0.0, value, 30.0]])
    pool = PyramidRoIAlign(strides, 7)
    pooled, alone = pool(maps, [broken], [SIZE]), pool(maps, [broken[:1]], [SIZE])
    torch.testing.assert_close(pooled[:1], alone)
    assert not pooled[1].any()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_gradients_are_the_same_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    head = rpn_head(256, 3, 1)
    map_ = torch.randn(2, 256, 40, 52, generator=generator).requires_grad_()
    corner = torch.rand(2, 3, 16, 16, generator=generator) < 0.5
    low = torch.rand(400, 2, generator=generator) * 100
    boxes = [torch.cat([low, low + 40], 1)] * 2

    def gradients() -> list[Tensor]:
        learned = head([map_])[0][0][..., :16, :16][corner].sum()
        pooled = PyramidRoIAlign((4,), 7)({"0": map_}, boxes, [(160, 208)] * 2).square().sum()
        return [*torch.autograd.grad(learned, [map_, *head.conv.parameters()]),
                *torch.autograd.grad(pooled, map_)]  # fmt: skip

    first = gradients()
    for _ in range(8):
        for one, again in zip(first, gradients(), strict=True):
            assert torch.equal(one, again)


def test_half_precision_is_pooled_in_float32_and_given_back_in_half() -> None:
    generator = torch.Generator().manual_seed(0)
    maps, rois = levels((16,), 1, generator), boxes([6], generator)
    exact = PyramidRoIAlign((16,), 7)({"0": maps["0"].bfloat16().float()}, rois, [SIZE])
    read = maps["0"].detach().bfloat16().requires_grad_()
    half = PyramidRoIAlign((16,), 7)({"0": read}, rois, [SIZE])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, exact.bfloat16())
    (gradient,) = torch.autograd.grad(half.sum(), read)
    assert gradient.dtype == torch.bfloat16
    (expected,) = torch.autograd.grad(exact.sum(), maps["0"])
    torch.testing.assert_close(gradient.float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("learned", ["few", "none", "all"])
def test_the_rpns_head_learns_as_torchvisions(convolutions: int, learned: str) -> None:
    torch.manual_seed(0)
    theirs = RPNHead(12, 3, conv_depth=convolutions)
    drawn = torch.get_rng_state()
    torch.manual_seed(0)
    ours = rpn_head(12, 3, convolutions)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for mine, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, their)
    generator = torch.Generator().manual_seed(1)
    shapes = ((24, 40), (12, 20), (1, 2))
    maps = [torch.randn(2, 12, *shape, generator=generator).requires_grad_() for shape in shapes]
    share = {"few": 0.02, "none": 0.0, "all": 1.0}[learned]
    kept = [torch.rand(2, 3, *shape, generator=generator) < share for shape in shapes]
    results = []
    for head in (ours, theirs):
        logits, moves = head(maps)
        loss = sum((a[k] ** 2).sum() for a, k in zip(logits, kept, strict=True))
        loss = loss + sum((m[:, ::4][k] ** 3).sum() for m, k in zip(moves, kept, strict=True))
        results.append([*logits, *moves, *torch.autograd.grad(loss, [*maps, *head.parameters()])])
    for mine, their in zip(*results, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-6)


def test_parts_of_the_rpns_head_can_be_frozen() -> None:
    head = rpn_head(4, 3, 1)
    head.conv.requires_grad_(False)
    map_ = torch.randn(1, 4, 5, 5, requires_grad=True)
    head([map_])[0][0].sum().backward()
    assert map_.grad is not None
    assert all(p.grad is None for p in head.conv.parameters())
    head.conv.requires_grad_(True)
    head([map_.detach()])[0][0].sum().backward()
    assert all(p.grad is not None for p in head.conv.parameters())


def test_the_rpns_head_learns_under_autocast() -> None:
    torch.manual_seed(0)
    head = rpn_head(16, 3, 1)
    map_ = torch.randn(1, 16, 8, 8, requires_grad=True)
    exact = torch.autograd.grad(head([map_])[0][0][0, 0, 2, 3], [map_, *head.conv.parameters()])
    with torch.autocast("cpu", torch.bfloat16):
        told = head([map_])[0][0][0, 0, 2, 3]
    rough = torch.autograd.grad(told, [map_, *head.conv.parameters()])
    for mine, their in zip(rough, exact, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, their, rtol=0.05, atol=0.02 * float(their.abs().max()))
