"""The whitened stem: what it gives of the images it was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from commands import call, draw
from skipway.architecture import architecture
from skipway.data import Key
from skipway.data.augment import pad_crop_flip
from skipway.resnet import ResNet
from skipway.training.whitening import whiten
from skipway.weights import load_model


def correlated(n: int = 60, channels: int = 3) -> torch.Tensor:
    """Smooth images, whose neighbouring pixels are much alike."""
    noise = torch.randn(n, channels, 20, 20, generator=torch.Generator().manual_seed(0))
    return F.avg_pool2d(noise, 3, 1, 1) + noise.mean(1, keepdim=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_become_uncorrelated(channels: int) -> None:
    images = correlated(channels=channels)
    net = ResNet(architecture("resnet8_speedrun", in_channels=channels))
    assert isinstance(net.conv1, torch.nn.Conv2d)
    whiten(net.conv1, images)
    given = F.conv2d(images, net.conv1.weight).transpose(0, 1).flatten(1)
    half = 4 * channels
    given = given[: 2 * half]
    assert torch.equal(given[:half], -given[half:])
    covariance = given[:half] @ given[:half].T / given.shape[1]
    # the eps takes a little of the components that vary least
    torch.testing.assert_close(covariance, torch.eye(half), rtol=0, atol=0.1)
    before = F.unfold(images, 2).transpose(0, 1).flatten(1)
    assert (np.abs(np.corrcoef(before) - np.eye(half)) > 0.1).any()


@pytest.mark.slow
def test_the_stem_does_not_train(tmp_path: Path) -> None:
    draw(tmp_path / "data", ["a", "b"], n=20, size=32)
    flags = ["--recipe=speedrun-cifar", "--threads=1", "--batch-size=8"]
    kept = []
    for epochs in (1, 2):
        out = tmp_path / str(epochs)
        answer = call("train", tmp_path / "data", *flags, f"--epochs={epochs}", "--out", out)
        assert answer.code == 0, answer.err
        kept.append(load_model(out / "last.safetensors")[0].state_dict()["conv1.weight"])
    assert torch.equal(*kept)
    assert torch.equal(kept[0][:12], -kept[0][12:])
    exported = call("export", tmp_path / "2", "--json")
    assert exported.code == 0, exported.err


@given(st.integers(0, 99), st.integers(0, 99))
def test_mirrored_in_turns(seed: int, epoch: int) -> None:
    x = torch.arange(8.0).view(1, 1, 1, 8).expand(32, 1, 4, 8).contiguous()
    now, then = (
        pad_crop_flip(x, Key(seed, e, np.arange(32)), 0, "alternate")[:, 0, 0, 0] > 0
        for e in (epoch, epoch + 1)
    )
    assert torch.equal(now, ~then)
    assert 2 < now.sum() < 30
