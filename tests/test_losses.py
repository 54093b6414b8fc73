"""Classification losses against PyTorch's and torchvision's, by autograd too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from skipway.config import AugmentConfig
from skipway.data import Key
from skipway.data.feed import Batch
from skipway.images import Preprocess
from skipway.tasks.classify import Classify, Loss, Mixed
from skipway.training.prepare import class_weights

K = 5


def case(share: float = 1.0) -> tuple[Tensor, Mixed, Tensor]:
    """Logits, targets, and the same targets as shares of the classes."""
    torch.manual_seed(0)
    logits = (3 * torch.randn(16, K)).requires_grad_()
    labels = torch.arange(16) % K
    others = labels.roll(-1)
    soft = share * F.one_hot(labels, K) + (1 - share) * F.one_hot(others, K)
    return logits, Mixed(labels, others, share), soft.float()


def assert_same(found: Tensor, expected: Tensor, logits: Tensor) -> None:
    torch.testing.assert_close(found, expected)
    pair = [torch.autograd.grad(t, logits, retain_graph=True)[0] for t in (found, expected)]
    torch.testing.assert_close(*pair)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_cross_entropy(share: float, smoothing: float) -> None:
    logits, targets, soft = case(share)
    expected = F.cross_entropy(logits, soft, label_smoothing=smoothing)
    assert_same(Loss("ce", smoothing)(logits, targets), expected, logits)
    smooth = soft * (1 - smoothing) + smoothing / K
    assert_same(
        Loss("ce", smoothing)(logits, targets), SoftTargetCrossEntropy()(logits, smooth), logits
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_binary_cross_entropy(share: float, smoothing: float) -> None:
    logits, targets, soft = case(share)
    # timm smooths labels alone, not shares
    oracle = BinaryCrossEntropy(smoothing=smoothing if share == 1 else 0.0)
    given: Any = targets.labels if share == 1 else soft * (1 - smoothing) + smoothing / K
    assert_same(Loss("bce", smoothing)(logits, targets), oracle(logits, given), logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("share", [1.0, 0.9, 0.6, 0.3, 0.05])
def test_a_threshold_makes_mixed_targets_whole(
    share: float, threshold: float, smoothing: float
) -> None:
    """As timm's --bce-target-thresh does, after its mixup and smoothing."""
    logits, targets, _ = case(share)
    targets = Mixed(targets.labels, targets.labels.flip(0), share)  # timm's partner
    dense = mixup_target(targets.labels, K, share, smoothing)
    oracle = BinaryCrossEntropy(target_threshold=threshold)(logits, dense)
    loss = Loss("bce", smoothing, threshold=threshold)
    assert_same(loss(logits, targets), oracle, logits)


def test_both_classes_of_a_mixture_are_wanted() -> None:
    """2110.00476: each class that is in the picture, by arithmetic."""
    logits = torch.tensor([[0.0, 2.0, -1.0]], requires_grad=True)
    mixture = Mixed(torch.tensor([0]), torch.tensor([1]), 0.7)
    expected = (F.softplus(torch.tensor([-0.0, -2.0])).sum() + F.softplus(torch.tensor(-1.0))) / 3
    torch.testing.assert_close(Loss("bce", threshold=0.2)(logits, mixture), expected)


def test_focal_is_the_papers() -> None:
    """-(1 - p)^gamma log p of the true class; for two classes torchvision's of their difference."""
    logits, targets, _ = case()
    p = logits.softmax(1)[torch.arange(16), targets.labels]
    expected = -((1 - p) ** 1.5 * p.log()).mean()
    assert_same(Loss("focal", gamma=1.5)(logits, targets), expected, logits)
    pair = (2 * torch.randn(16, 2)).requires_grad_()
    labels = torch.arange(16) % 2
    difference = pair[:, 1] - pair[:, 0]
    oracle = sigmoid_focal_loss(difference, labels.float(), alpha=-1, gamma=2, reduction="mean")
    assert_same(Loss("focal")(pair, Mixed(labels, labels, 1.0)), oracle, pair)
    plain = F.cross_entropy(logits, targets.labels)
    assert_same(Loss("focal", gamma=0.0)(logits, targets), plain, logits)


@pytest.mark.parametrize("kind", ["ce", "bce", "focal"])
def test_weights_count_an_image_as_often_as_they_say(kind: Any) -> None:
    logits, targets, _ = case()
    weights = (1.0, 2.0, 0.0, 1.0, 3.0)
    repeated = [i for i in range(16) for _ in range(int(weights[int(targets.labels[i])]))]
    labels = targets.labels[repeated]
    often = Loss(kind, 0.1)(logits[repeated], Mixed(labels, labels, 1.0)) * len(repeated) / 16
    assert_same(Loss(kind, 0.1, weights=weights)(logits, targets), often, logits)


def test_focal_has_a_slope_where_an_image_is_surely_right() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    label = torch.tensor([0])
    Loss("focal", gamma=0.5)(logits, Mixed(label, label, 1.0)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("share", [0.9, 0.1])
def test_accuracy_of_a_mixture_is_that_of_its_larger_part(share: float) -> None:
    labels = torch.tensor([0, 1, 2])
    targets = Mixed(labels, labels.roll(-1), share)
    larger = targets.labels if share > 0.5 else targets.others
    task = Classify(Preprocess(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,)), AugmentConfig())
    batch = Batch(F.one_hot(larger, 3).float(), targets, labels.numpy())
    assert task.losses(torch.nn.Identity(), batch)["accuracy"] == 1


def test_the_task_mixes_images_and_targets_alike() -> None:
    preprocess = Preprocess(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,))
    task = Classify(preprocess, AugmentConfig(mixup=1.0), Loss("bce"))
    frames = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 8, 8) * 40
    index = torch.arange(6).numpy()
    batch = task.to_input(Batch(frames, torch.arange(6) % 3, index), Key(0, 0, index))
    found = batch.targets
    own = torch.arange(6) * 40 / 255
    torch.testing.assert_close(
        batch.images[:, 0, 0, 0], found.share * own + (1 - found.share) * own.roll(-1)
    )
    assert torch.equal(found.others, found.labels.roll(-1))
    plain = task.to_input(Batch(frames, torch.arange(6) % 3, index), None)
    assert torch.equal(plain.targets, torch.arange(6) % 3)  # not in evaluation


# --- weights of classes ---------------------------------------------------------------------------


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.repeat([0, 1, 2], [70, 25, 5])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights([70, 25, 5], "balanced") == pytest.approx(tuple(expected))
    assert class_weights([70, 25, 5], "none") is None


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=8).filter(any))
def test_weights_by_the_root_are_1_on_average(counts: list[int]) -> None:
    weights = class_weights(counts, "root")
    assert weights is not None
    total = sum(w * n for w, n in zip(weights, counts, strict=True))
    assert total == pytest.approx(sum(counts))
    there = [(w, n) for w, n in zip(weights, counts, strict=True) if n]
    first, most = there[0]
    assert [w / first for w, _ in there] == pytest.approx([(most / n) ** 0.5 for _, n in there])
    assert all((w == 0) == (n == 0) for w, n in zip(weights, counts, strict=True))
