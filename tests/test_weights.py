"""Weights: every dialect against an independent network, strictness, safety and atomic saving."""

from __future__ import annotations

import argparse
import copy
import errno
import functools
import json
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from skipway import files
from skipway.architecture import ARCHITECTURES, Architecture, architecture, replaced
from skipway.card import METADATA_KEY, Card, read_card
from skipway.dialects import guess_architecture, translate
from skipway.errors import InputError
from skipway.files import atomic_write
from skipway.images import Preprocess, plain_preprocess
from skipway.peers import TIMM_NAMES, timm_row
from skipway.resnet import ResNet
from skipway.weights import (
    create_model,
    load_model,
    load_start,
    load_weights,
    read_state,
    save_weights,
)

Net = TypeVar("Net", bound=nn.Module)


def lively(net: Net) -> Net:
    """The network with norms that do something, so that a lost or swapped tensor shows."""
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                with torch.no_grad():
                    tensor.uniform_(low, high, generator=generator)
    return net.eval()


def same(net: nn.Module, oracle: nn.Module, size: int, channels: int = 3) -> bool:
    x = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        got, want = net.eval()(x), oracle.eval()(x)
    return bool((got - want).abs().max() <= 1e-5 * want.abs().max())


def refusal(call: Callable[[], object]) -> str:
    """The text of the InputError that a call ends in."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    return text


def fitting(state: Mapping[str, Tensor]) -> tuple[str, Architecture] | None:
    """What the tensors are taken for, as where a file has no card."""
    return guess_architecture(translate(state))


def small(**fields: Any) -> ResNet:
    """A residual network of three units, for what does not depend on the size."""
    torch.manual_seed(3)
    net = ResNet(architecture("resnet20", depths=(1, 1, 1), shortcut="B", **fields))
    return lively(net)


def tiny20() -> ResNet:
    """ResNet-20 with projections: a row of the table that is small enough to write to disk."""
    torch.manual_seed(4)
    return lively(ResNet(architecture("resnet20", shortcut="B")))


# --- dialects ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "theirs", "ours"),
    [
        (torchvision.models, "resnet18", "resnet18"),
        (torchvision.models, "resnet50", "resnet50"),
        (torchvision.models, "resnext50_32x4d", "resnext50_32x4d"),
        (torchvision.models, "wide_resnet50_2", "wide_resnet50_2"),
        (timm.models, "resnet50d", "resnet50d"),
        (timm.models, "seresnet50", "seresnet50"),
        (timm.models, "resnetv2_50", "preresnet50"),
    ],
)
def test_the_libraries_weights_give_the_same_answers(library: Any, theirs: str, ours: str) -> None:
    oracle = lively(getattr(library, theirs)(num_classes=11))
    state = oracle.state_dict()
    guess = fitting(state)
    assert guess is not None
    assert guess == (ours, architecture(ours, num_classes=11))
    net = ResNet(guess[1])
    report = load_weights(net, state, minimum=1.0)
    assert set(report.loaded) == set(net.state_dict())
    assert (report.share, report.made_anew, report.ignored, report.notes) == (1.0, (), (), ())
    assert report.dialect == ("timm resnetv2" if "v2" in theirs else "torchvision")
    assert same(net, oracle, 32)


def test_timms_deep_stem_before_pre_activation() -> None:
    oracle = lively(timm.models.resnetv2_50d(num_classes=5))
    # safetensors files come back sorted, so that the stem is not first
    state = dict(sorted(oracle.state_dict().items()))
    net = ResNet(architecture("preresnet50", stem="deep", shortcut="D", num_classes=5))
    load_weights(net, state, minimum=1.0)
    assert same(net, oracle, 32)


@pytest.mark.parametrize("carded", [False, True])
def test_trained_parts_that_the_network_lacks_are_not_dropped_in_use(
    tmp_path: Path, carded: bool
) -> None:
    oracle = torchvision.models.resnet18(num_classes=5)
    oracle.bnneck = nn.BatchNorm1d(512)  # before its classifier
    state = lively(oracle).state_dict()
    arch = architecture("resnet18", num_classes=5)
    card = Card(
        model="resnet18",
        architecture=arch,
        classes=tuple("abcde"),
        preprocess=plain_preprocess(224, 3),
    )
    save_weights(tmp_path / "w.safetensors", state, card if carded else None)
    text = refusal(lambda: load_model(tmp_path / "w.safetensors"))
    assert "trained parts that its network lacks" in text
    assert re.search(r"bnneck\.\w+, bnneck\.\w+, bnneck\.\w+ and 1 more$", text, re.MULTILINE)
    # to begin a training with, they are left and told
    report = load_weights(ResNet(arch), state)
    assert len(report.ignored) == 5  # the counter of batches among them
    assert "ignored: bnneck" in str(report)


def test_a_trained_stem_in_place_of_the_pool_is_not_dropped(tmp_path: Path) -> None:
    stem = timm.create_model("resnet50d", replace_stem_pool=True, num_classes=5)
    torch.save(stem.state_dict(), tmp_path / "w.pth")
    assert "its network lacks" in refusal(lambda: load_model(tmp_path / "w.pth"))


def test_what_only_training_or_measuring_uses_is_left(tmp_path: Path) -> None:
    net = tiny20()
    beside = {
        "aux_head.0.weight": torch.ones(3, 3),
        "criterion.weight": torch.ones(10),
        "loss_fn.centers": torch.ones(10, 3),
        "n_averaged": torch.tensor(3),
        "total_ops": torch.ones(1),
        "layer1.total_params": torch.ones(1),
        "queue_bn.num_batches_tracked": torch.tensor([3]),
    }
    torch.save({**net.state_dict(), **beside}, tmp_path / "w.pth")
    again, _, report = load_model(tmp_path / "w.pth")
    assert same(again, net, 32)
    assert set(report.ignored) == set(beside)


@pytest.mark.parametrize("name", ["resnetv2_18", "resnetv2_34d"])
def test_timms_pre_activation_of_basic_units_is_refused(tmp_path: Path, name: str) -> None:
    """Its tensors fit, and its first unit adds its input where ours adds it activated."""
    oracle = lively(timm.create_model(name, num_classes=5))
    state, path = oracle.state_dict(), tmp_path / "net.pth"
    torch.save(state, path)
    guess = fitting(state)
    assert guess is not None
    arch = guess[1]
    net = ResNet(arch)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    fields = {"order": "pre", "stem": arch.stem, "shortcut": arch.shortcut, "depths": arch.depths}
    for load in (
        lambda: load_weights(net, state),
        lambda: load_start(net, *read_state(path)),
        lambda: load_model(path),
        lambda: create_model("resnet18", 5, weights=path, **fields),
    ):
        text = refusal(load)
        assert "input as it is, and Skipway's adds it activated" in text
        assert "resnetv2_50" in text
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())


def test_timms_basic_units_whose_first_has_a_projection_are_taken() -> None:
    oracle = lively(timm.create_model("resnetv2_18", channels=(32, 48, 64, 80), num_classes=5))
    guess = fitting(oracle.state_dict())
    assert guess is not None
    net = ResNet(guess[1])
    load_weights(net, oracle.state_dict(), minimum=1.0)
    assert same(net, oracle, 32)


class TheirBlock(nn.Module):
    """The block of a widely copied CIFAR code: shortcut empty, projecting, or a function."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int, pad: bool) -> None:
        super().__init__()
        self.deep = expansion > 1
        outputs = width * expansion
        first, second = (1, stride) if self.deep else (stride, 1)
        self.conv1 = nn.Conv2d(inputs, width, 3 - 2 * self.deep, first, 1 - self.deep, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        if self.deep:
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        self.zeros = (outputs - inputs) // 2 if pad else 0
        if not pad and (stride != 1 or inputs != outputs):
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.deep:
            y = self.bn3(self.conv3(F.relu(y)))
        short = self.shortcut(x)
        if self.zeros:
            edge = x.new_zeros(x.shape[0], self.zeros, *y.shape[2:])
            short = torch.cat([edge, x[:, :, ::2, ::2], edge], 1)
        return F.relu(y + short)


class TheirNet(nn.Module):
    def __init__(
        self, depths: tuple[int, ...], width: int, expansion: int, head: str, pad: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages, inputs = len(depths), width
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                blocks.append(TheirBlock(inputs, width << i, stride, expansion, pad))
                inputs = (width << i) * expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.head = head
        setattr(self, head, nn.Linear(inputs, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return getattr(self, self.head)(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize("head", ["linear", "fc"])
@pytest.mark.parametrize(
    ("name", "depths", "expansion"),
    [("resnet18_cifar", (2, 2, 2, 2), 1), ("resnet50_cifar", (3, 4, 6, 3), 4)],
)
def test_the_reference_of_the_cifar_stem(
    name: str, depths: tuple[int, ...], expansion: int, head: str
) -> None:
    oracle = lively(TheirNet(depths, 64, expansion, head))
    guess = fitting(oracle.state_dict())
    assert guess == (name, ARCHITECTURES[name])
    net = ResNet(ARCHITECTURES[name])
    report = load_weights(net, oracle.state_dict(), minimum=1.0)
    assert (report.dialect, report.made_anew, report.ignored) == ("kuangliu", (), ())
    assert same(net, oracle, 32)


def akamaster(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A CIFAR checkpoint as akamaster's: DataParallel, `linear`, half of the zeros on each side."""
    torch.manual_seed(6)
    oracle = lively(TheirNet((3, 3, 3), 16, 1, "linear", pad=True))
    state = {f"module.{k}": v for k, v in oracle.state_dict().items() if "num_batches" not in k}
    torch.save({"state_dict": state, "best_prec1": 91.8}, tmp_path / "any-name.th")
    return oracle, tmp_path / "any-name.th"


def test_akamasters_checkpoint_means_zeros_on_both_sides(tmp_path: Path) -> None:
    oracle, path = akamaster(tmp_path)
    net, card, report = load_model(path)
    assert card is None
    assert net.arch == architecture("resnet20", shortcut="A-split")
    assert report.dialect == "akamaster"
    assert "shortcut A-split assumed" in str(report)
    assert same(net, oracle, 32)
    other = ResNet(architecture("resnet20"))
    assert "A-split" in str(load_weights(other, read_state(path)[0]))
    assert not same(other, oracle, 32)


def test_create_model_takes_akamasters_shortcut_unless_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oracle, path = akamaster(tmp_path)
    assert same(create_model("resnet20", weights=path), oracle, 32)
    assert "'A-split' taken" in caplog.text
    assert create_model("resnet20", weights=path, shortcut="A").arch.shortcut == "A"


class TheirConv(nn.Module):
    """Convolution and norm under Hugging Face's names (transformers, modeling_resnet.py)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalization(self.convolution(x))


class TheirLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        project = stride != 1 or inputs != outputs
        self.shortcut = TheirConv(inputs, outputs, 1, stride) if project else nn.Identity()
        self.layer = nn.Sequential(
            TheirConv(inputs, outputs, 3, stride), TheirConv(outputs, outputs, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer[1](F.relu(self.layer[0](x))) + self.shortcut(x))


class TheirEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = nn.Module()
        self.resnet.embedder = nn.Module()
        self.resnet.embedder.embedder = TheirConv(3, 64, 7, 2)
        self.resnet.encoder = nn.Module()
        self.resnet.encoder.stages = nn.ModuleList()
        inputs = 64
        for i, width in enumerate((64, 128, 256, 512)):
            stage = nn.Module()
            stage.layers = nn.Sequential(
                TheirLayer(inputs, width, 2 if i else 1), TheirLayer(width, width, 1)
            )
            self.resnet.encoder.stages.append(stage)
            inputs = width
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(512, 9))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.resnet.embedder.embedder(x)), 3, 2, 1)
        for stage in self.resnet.encoder.stages:
            x = stage.layers(x)
        return self.classifier(x.mean((2, 3)))


def test_hugging_faces_names() -> None:
    oracle = lively(TheirEncoder())
    assert fitting(oracle.state_dict()) == (
        "resnet18",
        architecture("resnet18", num_classes=9),
    )
    net = ResNet(architecture("resnet18", num_classes=9))
    report = load_weights(net, oracle.state_dict(), minimum=1.0)
    assert report.dialect == "Hugging Face"
    assert same(net, oracle, 32)


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if "1001" not in n and "1202" not in n])
def test_every_row_is_found_from_keys_and_shapes(name: str) -> None:
    with torch.device("meta"):
        state = ResNet(architecture(name, num_classes=7, in_channels=4)).state_dict()
    guess = fitting({f"module.{k}": v for k, v in state.items()})
    assert guess is not None
    # what keys cannot tell: stride in the first 1x1 where both rows exist, and plain nets
    expected = name.replace("plain", "resnet").removesuffix("v1")
    shortcut = "A" if "plain" in name else ARCHITECTURES[name].shortcut
    assert guess == (
        expected,
        architecture(expected, num_classes=7, in_channels=4, shortcut=shortcut),
    )


@pytest.mark.parametrize("shortcut", ["A", "B", "C", "D"])
def test_the_shortcut_is_found_from_the_keys(shortcut: str) -> None:
    arch = architecture("resnet34", shortcut=shortcut)
    with torch.device("meta"):
        state = ResNet(arch).state_dict()
    assert fitting(state) == ("resnet34", arch)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_timms_networks_are_found_with_or_without_a_row(name: str) -> None:
    arch = replaced(timm_row(name), num_classes=7)
    with torch.device("meta"):
        state = ResNet(arch).state_dict()
    guess = fitting(state)
    assert guess is not None
    # blurs have no tensors
    assert replaced(guess[1], source="") == replaced(arch, antialias=False, source="")


@pytest.mark.parametrize("name", ["resnet18d", "seresnext26d_32x4d"])
def test_a_network_that_is_no_row_is_read_by_its_parts(tmp_path: Path, name: str) -> None:
    oracle, path = lively(timm.create_model(name, num_classes=3)), tmp_path / "w.pth"
    torch.save({"n_averaged": torch.tensor(2)} | oracle.state_dict(), path)
    net, card, report = load_model(path)
    assert card is None
    assert same(net, oracle, 64)
    assert "note: no card: taken for b" in str(report)
    assert "units (2, 2, 2, 2), no row of the table, after its tensors' names" in str(report)


def test_of_a_network_for_small_images_the_size_is_theirs(tmp_path: Path) -> None:
    assert fitting(small().state_dict()) == ("custom", replaced(small().arch, source=""))


@pytest.mark.parametrize(
    "name", ["resnetv2_50x1_bit", "resnetrs50", "ecaresnet26t", "skresnet18", "hrnet_w18_small"]
)
def test_a_network_of_other_parts_is_not_guessed(name: str) -> None:
    with torch.device("meta"):
        assert fitting(timm.create_model(name, num_classes=2).state_dict()) is None
    assert fitting({"blocks.0.attn.qkv.weight": torch.zeros(3, 3)}) is None


@pytest.mark.parametrize(
    ("name", "said", "not_said"),
    [
        ("resnet18", "no blur before sub-sampling assumed", "max-pool"),
        ("resnet18_cifar", "no max-pool behind the 3x3 stem assumed", "blur"),
    ],
)
def test_what_no_tensor_shows_is_noted_as_assumed(
    tmp_path: Path, name: str, said: str, not_said: str
) -> None:
    save_weights(tmp_path / "w", ResNet(architecture(name)), None)
    text = str(load_model(tmp_path / "w")[2])
    assert f"note: {said}: nets with it look alike" in text
    assert not_said not in text


def headed(head: nn.Module, key: str = "fc") -> tuple[nn.Module, dict[str, Tensor]]:
    """A third party's ResNet-18 with another head, and its state dict."""
    oracle = torchvision.models.resnet18()
    oracle.fc = head
    state = lively(oracle).state_dict()
    return oracle, {f"{key}{k[2:]}" if k.startswith("fc.") else k: t for k, t in state.items()}


@pytest.mark.parametrize("key", ["fc", "linear"])
def test_a_classifier_behind_dropout_is_taken(tmp_path: Path, key: str) -> None:
    oracle, state = headed(nn.Sequential(nn.Dropout(), nn.Linear(512, 7)), key)
    torch.save(state, tmp_path / "w.pth")
    net, _, report = load_model(tmp_path / "w.pth")
    assert net.arch.num_classes == 7
    assert same(net, oracle, 64)
    assert "note: fc.1 taken for the classifier" in str(report)
    tuned = create_model("resnet18", weights=tmp_path / "w.pth")
    assert same(tuned, oracle, 64)


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 7)),
        nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 7)),
        nn.Sequential(nn.Flatten(), nn.Linear(512, 7, bias=False)),
    ],
)
def test_other_heads_are_refused_by_their_names(tmp_path: Path, head: nn.Module) -> None:
    torch.save(headed(head)[1], tmp_path / "w.pth")
    text = refusal(lambda: load_model(tmp_path / "w.pth"))
    assert "lacks fc.weight, fc.bias; predicting needs every tensor" in text
    first = next(key for key in head.state_dict())
    assert f"of a classifier it has fc.{first}" in text


PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "ema.", "net."]


@settings(max_examples=25)
@given(st.lists(st.sampled_from(PREFIXES), max_size=5), st.booleans())
def test_any_prefixes_are_undone(prefixes: list[str], averaged: bool) -> None:
    oracle, net = small(), ResNet(small().arch)
    prefix = "".join(prefixes)
    state = {prefix + key: tensor for key, tensor in oracle.state_dict().items()}
    if averaged:
        state["n_averaged"] = torch.tensor(3)
    report = load_weights(net, state, minimum=1.0)
    assert report.made_anew == ()
    assert report.ignored == (("n_averaged",) if averaged else ())
    for key, tensor in oracle.state_dict().items():
        assert torch.equal(net.state_dict()[key], tensor)


def test_torchs_own_wrappers_are_undone() -> None:
    oracle = tiny20()
    averaged = torch.optim.swa_utils.AveragedModel(nn.DataParallel(oracle), use_buffers=True)
    net = ResNet(oracle.arch)
    assert load_weights(net, averaged.state_dict(), minimum=1.0).ignored == ("n_averaged",)
    assert same(net, oracle, 32)


def test_two_names_of_one_tensor_are_refused() -> None:
    state = small().state_dict()
    state["linear.weight"] = state["fc.weight"]
    text = refusal(lambda: load_weights(small(), state))
    assert "fc.weight" in text
    assert "linear.weight" in text


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {"model": state},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": {"module." + k: v for k, v in state.items()}, "acc": 95.1},
        lambda state: {"model": {"state_dict": state}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_are_unwrapped(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object], zipped: bool
) -> None:
    oracle = tiny20()
    path = tmp_path / "a.pth"
    torch.save(wrap(oracle.state_dict()), path, _use_new_zipfile_serialization=zipped)
    net, card, report = load_model(path)
    assert card is None
    assert report.origin == str(path)
    assert same(net, oracle, 32)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_averaged_weights_are_preferred_and_named(tmp_path: Path, key: str) -> None:
    oracle, other = tiny20(), ResNet(tiny20().arch)
    path = tmp_path / "a.pt"
    torch.save({"state_dict": other.state_dict(), key: oracle.state_dict()}, path)
    net, _, report = load_model(path)
    assert same(net, oracle, 32)
    assert f"averaged (EMA) weights taken, from {key!r}" in str(report)


def trained20() -> tuple[ResNet, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """ResNet-20 with what a training script keeps beside it, momentum filled."""
    net = tiny20()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4])
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return net, optimizer, scheduler


@pytest.mark.parametrize("zipped", [True, False])
def test_checkpoints_of_torchvisions_training_script(tmp_path: Path, zipped: bool) -> None:
    """references/classification/train.py keeps its settings as a Namespace."""
    net, optimizer, scheduler = trained20()
    args = argparse.Namespace(lr=0.1, device="cuda", output_dir=Path("out"), mean=np.ones(3))
    checkpoint = {
        "model": net.state_dict(), "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(), "epoch": 89, "args": args,
        "model_ema": {"n_averaged": torch.tensor(5)}
        | {f"module.{key}": tensor for key, tensor in net.state_dict().items()},
    }  # fmt: skip
    path = tmp_path / "checkpoint.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    loaded, _, report = load_model(path)
    assert same(loaded, net, 32)
    assert "averaged (EMA) weights taken, from 'model_ema'" in str(report)


def test_checkpoints_of_timms_saver(tmp_path: Path) -> None:
    net, optimizer, _ = trained20()
    saver = timm.utils.CheckpointSaver(
        model=net, optimizer=optimizer, args=argparse.Namespace(model="resnet20", aa=None, lr=0.1),
        model_ema=timm.utils.ModelEmaV3(net), checkpoint_dir=str(tmp_path),
    )  # fmt: skip
    saver.save_checkpoint(3, metric=np.float64(0.9))
    path = tmp_path / "last.pth.tar"
    assert b"argparse" in path.read_bytes()
    loaded, _, report = load_model(path)
    assert same(loaded, net, 32)
    assert "averaged (EMA) weights taken, from 'state_dict_ema'" in str(report)


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.bool_, np.str_])
@pytest.mark.parametrize("core", ["numpy._core", "numpy.core"])
def test_numbers_of_numpy_beside_the_weights(tmp_path: Path, kind: Any, core: str) -> None:
    net, path = tiny20(), tmp_path / "a.pt"
    torch.save(
        {"net": net.state_dict(), "acc": kind(1)}, path, _use_new_zipfile_serialization=False
    )
    known = b"cnumpy._core.multiarray\n"  # NumPy 1 has it under another name
    assert known in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(known, f"c{core}.multiarray\n".encode()))
    assert same(load_model(path)[0], net, 32)


def test_averaged_parameters_alone_keep_the_networks_statistics(tmp_path: Path) -> None:
    oracle, other = tiny20(), ResNet(tiny20().arch)
    shadow = {f"module.{key}": parameter.data for key, parameter in oracle.named_parameters()}
    model = other.state_dict() | {k: v for k, v in oracle.state_dict().items() if "running_" in k}
    for averaged in (shadow, {"decay": 0.999, "shadow": shadow}):
        torch.save({"model": model, "ema": averaged}, tmp_path / "a.pt")
        net, _, report = load_model(tmp_path / "a.pt")
        assert same(net, oracle, 32)
        assert "averaged (EMA) weights taken, from 'ema" in str(report)
        assert "running statistics, which they lack, are those of the network" in str(report)


def test_averaged_parameters_of_another_network_are_left(tmp_path: Path) -> None:
    oracle = tiny20()
    shadow = {f"other.{key}": parameter.data for key, parameter in oracle.named_parameters()}
    torch.save({"model": oracle.state_dict(), "ema": shadow}, tmp_path / "a.pt")
    net, _, report = load_model(tmp_path / "a.pt")
    assert same(net, oracle, 32)
    assert "averaged (EMA) weights in 'ema' left: they have no running statistics" in str(report)


@pytest.mark.parametrize("key", ["teacher", "state", "weights", "network", "\x1b[31m"])
def test_the_one_unknown_wrapper_that_holds_tensors_is_taken(tmp_path: Path, key: str) -> None:
    oracle, path = tiny20(), tmp_path / "a.pt"
    beside = {"best": torch.tensor(0.9), "criterion": {"weight": torch.ones(10)}}
    for inner in (oracle.state_dict(), {"model": oracle.state_dict()}):
        torch.save({key: inner, "epoch": 3, **beside}, path)
        net, _, report = load_model(path)
        assert same(net, oracle, 32)
        assert "note: weights taken from " in str(report)
        assert "\x1b" not in str(report)


def test_of_several_unknown_wrappers_none_is_taken(tmp_path: Path) -> None:
    state, path = tiny20().state_dict(), tmp_path / "a.pt"
    torch.save({"student": state, "tea\x1bcher": state}, path)
    text = refusal(lambda: load_model(path))
    assert text.startswith(f"{path}: holds tensors in student, tea\\x1bcher; which of them")
    assert "torch.load(FILE)[KEY]" in text
    torch.save({"params": ResNet(tiny20().arch).state_dict(), "params_ema": state}, path)
    assert same(load_model(path)[0], tiny20(), 32)


def test_a_counter_beside_the_weights_is_not_taken_for_them(tmp_path: Path) -> None:
    oracle = tiny20()
    ema = {"decay": 0.9, "updates": torch.tensor(7)}
    torch.save({"model": oracle.state_dict(), "ema": ema}, tmp_path / "a.pt")
    net, _, report = load_model(tmp_path / "a.pt")
    assert same(net, oracle, 32)
    assert "EMA" not in str(report)


def test_safetensors_are_known_by_content(tmp_path: Path) -> None:
    oracle = tiny20()
    save_file(oracle.state_dict(), tmp_path / "weights.pth")
    torch.save(oracle.state_dict(), tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        net, card, _ = load_model(tmp_path / name)
        assert card is None
        assert same(net, oracle, 32)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_files_that_hold_no_weights_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    save_file(small().state_dict(), whole)
    torch.save(small().state_dict(), tmp_path / "whole.pt")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    loop: dict[str, object] = {"epoch": 1}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    data, zipped = whole.read_bytes(), (tmp_path / "whole.pt").read_bytes()
    for name, content, expected in [
        ("empty.pt", b"", "an empty file"),
        ("page.pt", b"<html>not found</html>", "a web page"),
        ("page.safetensors", b"\n<!DOCTYPE html><html></html>", "a web page"),
        ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("text.pt", b"not found", "not a weight file"),
        ("short.safetensors", data[:5], "not a weight file"),
        ("header.safetensors", data[:200], "not a safetensors file, or damaged"),
        ("body.safetensors", data[:-100], "damaged or truncated safetensors"),
        ("half.pt", zipped[: len(zipped) // 2], "or cut short; fetch it anew"),
        ("other.pt", b"\x80\x02garbage", "not a weight file, or damaged"),
        ("plain.pt", pickle.dumps({"a": 1}), "not a weight file, or damaged"),
        ("script.pt", None, "not a weight file, or damaged"),
        ("loop.pt", None, "holds no tensors"),
        ("list.pt", None, "holds no tensors"),
        ("absent.pt", None, "no such file"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        text = refusal(functools.partial(read_state, tmp_path / name))
        assert text.startswith(str(tmp_path / name)), text
        assert expected in text
    assert "not a run" in refusal(lambda: read_state(tmp_path))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model.safetensors.index.json": "{}"}, "in several files"),
        ({"config.json": "{}"}, "nor a folder with config.json and model.safetensors"),
        ({"model.safetensors": None, "config.json": "{"}, "config.json: not JSON, or damaged"),
        ({"model.safetensors": None, "config.json": "[1]"}, "config.json: not a JSON object"),
        ({"model.safetensors": None, "config.json": '{"model_type": "bert"}'}, "'bert' is not"),
        (
            {"model.safetensors": None, "config.json": '{"model_type": "resnet", "depths": [-1]}'},
            "config.json: depths.0: ",
        ),
        (
            {
                "model.safetensors": None,
                "config.json": '{"model_type": "resnet", "downsample_in_first_stage": true}',
            },
            "config.json: downsample_in_first_stage: ",
        ),
        (
            {"model.safetensors": None, "config.json": '{"model_type": "resnet", "id2label": '
             '{"0": "a", "2": "b"}}'},
            "id2label: not one name for each of 0 to 1",
        ),
        (
            {"model.safetensors": None, "config.json": '{"architecture": "resnet5\\u001b"}'},
            "config.json: resnet5\\x1b is not a network that Skipway has",
        ),
        (
            {"model.safetensors": None, "config.json": '{"architecture": "resnet18", '
             '"model_args": {"act_layer": "silu"}, "pretrained_cfg": {}}'},
            "model_args.act_layer: not a choice that Skipway has",
        ),
    ],
)  # fmt: skip
def test_folders_that_cannot_be_used_say_what_is_wrong(
    tmp_path: Path, files: dict[str, str | None], expected: str
) -> None:
    for name, text in files.items():
        if text is None:
            save_weights(tmp_path / name, small(), None)
        else:
            (tmp_path / name).write_text(text)
    assert expected in refusal(lambda: load_model(tmp_path))


def test_hostile_names_are_shown_harmless(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[31m.pt"
    torch.save({"\x1b]0;title\x07": torch.zeros(2)}, path)
    text = refusal(lambda: load_model(path))
    assert "\\x1b[31m.pt" in text
    assert "\x1b" not in text


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("how", ["zip", "legacy", "2", "3", "4", "5"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pt"
    evil = {
        "state_dict": small().state_dict(), "args": argparse.Namespace(lr=0.1),
        "acc": np.float64(0.9), "epoch": Hostile(mark),
    }  # fmt: skip
    if how in ("zip", "legacy"):
        torch.save(evil, path, _use_new_zipfile_serialization=how == "zip")
    else:
        del evil["state_dict"]
        path.write_bytes(pickle.dumps(evil, protocol=int(how)))
    text = refusal(lambda: read_state(path))
    assert text.startswith(f"{path}: this pickle wants to run code ({os.system.__module__}.system)")
    assert "refused" in text
    assert "state_dict()" in text
    assert not mark.exists()
    pickle.loads(pickle.dumps(Hostile(mark)))  # the trap does work when it is sprung
    assert mark.exists()


def test_a_pickled_module_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet18(), tmp_path / "whole.pt")
    text = refusal(lambda: read_state(tmp_path / "whole.pt"))
    assert "torchvision.models.resnet.ResNet" in text


# --- the merge -----------------------------------------------------------------------------------


def test_the_report_says_what_was_loaded_made_anew_and_ignored() -> None:
    oracle, net = small(), small(num_classes=4)
    before = net.fc.weight.detach().clone()
    state = oracle.state_dict() | {"aux.weight": torch.zeros(2), "optimizer.\x1b": torch.zeros(2)}
    report = load_weights(net, state)
    reason = "the file has 10 classes, this network 4"
    assert report.made_anew == (("fc.weight", reason), ("fc.bias", reason))
    assert report.ignored == ("aux.weight", "optimizer.\x1b")
    assert set(report.loaded) == set(net.state_dict()) - {"fc.weight", "fc.bias"}
    assert report.share == 1.0
    assert torch.equal(net.fc.weight, before)
    lines = report.lines()
    assert lines[0].startswith(f"weights: {len(report.loaded)} tensors loaded, 100.0% of")
    assert lines[1:] == [
        f"made anew: fc.weight, fc.bias ({reason})",
        "ignored: aux.weight, optimizer.\\x1b",
    ]
    assert str(report) == "\n".join(lines)
    x = torch.randn(1, 3, 32, 32)
    assert torch.allclose(net.embed(x), oracle.embed(x))


def test_a_file_without_classifier_leaves_it_as_initialised() -> None:
    state = {k: v for k, v in small().state_dict().items() if not k.startswith("fc.")}
    report = load_weights(small(), state)
    assert report.made_anew == (("fc.weight", "not in the file"), ("fc.bias", "not in the file"))


def test_batch_counters_may_be_absent() -> None:
    state = {k: v for k, v in small().state_dict().items() if "num_batches" not in k}
    assert load_weights(small(), state, minimum=1.0).made_anew == ()


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("before", "after"), [(3, 1), (3, 2), (3, 4), (3, 7), (4, 3), (1, 3)])
def test_other_channels_keep_the_response_to_equal_channels(
    before: int, after: int, deep: bool
) -> None:
    stem = {"stem": "deep"} if deep else {}
    oracle, net = small(in_channels=before, **stem), small(in_channels=after, **stem)
    report = load_weights(net, oracle.state_dict(), minimum=1.0)
    key = "conv1.0.weight" if deep else "conv1.weight"
    assert report.notes == (f"{key} adapted from {before} to {after} input channels",)
    x = torch.randn(2, 1, 32, 32)
    want = oracle(x.expand(-1, before, -1, -1))
    assert torch.allclose(net(x.expand(-1, after, -1, -1)), want, atol=1e-4)


def test_one_channel_is_the_sum_over_channels() -> None:
    oracle, net = small(), small(in_channels=1)
    load_weights(net, oracle.state_dict())
    want = oracle.conv1.get_parameter("weight").sum(1, keepdim=True)
    assert torch.allclose(net.conv1.get_parameter("weight"), want)


def test_an_error_leaves_the_network_as_it_was_and_lists_both_sides() -> None:
    net = small()
    before = copy.deepcopy(net.state_dict())
    oracle = torchvision.models.resnet18(num_classes=10)
    text = refusal(lambda: load_weights(net, oracle.state_dict()))
    problem, file, network = text.splitlines()
    assert "tensors have other shapes" in problem
    assert "the file fits resnet18" in problem
    assert "conv1.weight [64, 3, 7, 7]" in file
    assert "conv1.weight [16, 3, 3, 3]" in network
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())


def test_too_little_in_common_is_an_error_with_both_lists() -> None:
    net, state = small(), timm.create_model("vit_tiny_patch16_224").state_dict()
    text = refusal(lambda: load_weights(net, state))
    assert "holds 0.0% of this network's parameters, not the 50% needed" in text
    assert "cls_token" in text.splitlines()[1]
    assert "conv1.weight" in text.splitlines()[2]
    assert "holds 0.0%" in refusal(lambda: load_weights(net, {}))


def test_the_threshold_counts_parameters_without_the_classifier() -> None:
    oracle, net = small(), small(num_classes=3)
    state = {k: v for k, v in oracle.state_dict().items() if not k.startswith("layer3.")}
    body = sum(p.numel() for n, p in net.named_parameters() if not n.startswith("fc."))
    kept = sum(p.numel() for n, p in oracle.named_parameters() if n in state and "fc" not in n)
    share = kept / body
    assert 0.1 < share < 0.9
    assert load_weights(net, state, minimum=share).share == share
    assert "not the" in refusal(lambda: load_weights(net, state, minimum=share + 1e-6))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({"depths": (1, 1, 1)}, {"depths": (2, 1, 1)}), ({"shortcut": "A"}, {"shortcut": "B"})],
)
def test_parts_of_another_network_are_not_dropped(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    net, other = (
        ResNet(architecture("resnet20", **({"depths": (1, 1, 1)} | fields)))
        for fields in (ours, theirs)
    )
    text = refusal(lambda: load_weights(net, other.state_dict()))
    assert "parts of another network" in text
    assert "layer" in text.splitlines()[1]


def test_norms_without_statistics_are_refused() -> None:
    state = {k: v for k, v in small().state_dict().items() if "running" not in k}
    assert "no running statistics" in refusal(lambda: load_weights(small(), state))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_refused_by_name(value: float) -> None:
    net, state = small(), small().state_dict()
    state["layer2.0.conv1.weight"][1, 2, 0, 0] = value
    before = copy.deepcopy(net.state_dict())
    text = refusal(lambda: load_weights(net, {f"module.{k}": v for k, v in state.items()}))
    assert "module.layer2.0.conv1.weight holds NaN or infinity" in text
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype) -> None:
    oracle, net = small(), small()
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in oracle.state_dict().items()}
    load_weights(net, state)
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[key].to(tensor.dtype))
        assert tensor.dtype == oracle.state_dict()[key].dtype


def test_integers_are_no_weights() -> None:
    state = small().state_dict()
    state["conv1.weight"] = state["conv1.weight"].to(torch.int8)
    text = refusal(lambda: load_weights(small(), state))
    assert "conv1.weight is no dense floating-point tensor (torch.int8)" in text
    assert "torch.int8" in refusal(lambda: load_weights(small(in_channels=1), state))


@pytest.mark.parametrize("shape", [(), (5,), (16, 0, 3, 3), (16, 3), (2**40, 0), (16, 3, 3, 3, 1)])
@pytest.mark.parametrize("key", ["conv1.weight", "fc.weight", "layer1.0.conv2.weight"])
def test_odd_shapes_are_refused(tmp_path: Path, key: str, shape: tuple[int, ...]) -> None:
    state = tiny20().state_dict() | {key: torch.zeros(shape)}
    save_weights(tmp_path / "w.safetensors", state, None)
    assert fitting(state) is None
    assert "fit no known network" in refusal(lambda: load_model(tmp_path / "w.safetensors"))
    assert key in refusal(lambda: load_weights(tiny20(), state))


# --- create_model, cards and saving --------------------------------------------------------------


def card_of(net: ResNet, model: str = "resnet20") -> Card:
    return Card(
        model=model,
        architecture=net.arch,
        classes=tuple(f"class {i} ✓" for i in range(net.arch.num_classes)),
        preprocess=Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.2,) * 3),
        recipe={"lr": 0.1},
    )


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, again = create_model("resnet20", seed=7), create_model("resnet20", seed=7)
    other = create_model("resnet20", seed=8)
    assert torch.equal(torch.get_rng_state(), before)
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key])
    assert not torch.equal(first.fc.weight, other.fc.weight)
    create_model("resnet20")
    assert not torch.equal(torch.get_rng_state(), before)


def test_create_model_sets_fields_classes_and_channels() -> None:
    net = create_model("resnet20", 5, 4, shortcut="C", seed=0)
    assert net.arch == architecture("resnet20", num_classes=5, in_channels=4, shortcut="C")
    assert net(torch.zeros(1, 4, 32, 32)).shape == (1, 5)
    assert create_model("resnet20").arch == ARCHITECTURES["resnet20"]


def test_create_model_names_what_is_wrong() -> None:
    assert "'resnet18'" in refusal(lambda: create_model("resnet81"))
    assert "shortcut" in refusal(lambda: create_model("resnet18", shortcutt="A"))
    assert "num_classes" in refusal(lambda: create_model("resnet18", 0))
    narrowing: dict[str, Any] = {"widths": (64, 32, 16, 8), "shortcut": "A"}
    assert "A cannot reduce" in refusal(lambda: create_model("resnet18", **narrowing))


def test_create_model_says_aloud_what_was_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "w.safetensors"
    oracle = small(num_classes=6)
    save_weights(path, oracle, None)
    fields: dict[str, Any] = {"depths": (1, 1, 1), "shortcut": "B"}
    with caplog.at_level(logging.INFO, "skipway"):
        net = create_model("resnet20", weights=path, **fields)
    assert net.arch.num_classes == 6
    assert same(net, oracle, 32)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    caplog.clear()
    net = create_model("resnet20", 2, weights=path, **fields)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "made anew: fc.weight, fc.bias (the file has 6 classes, this network 2)" in caplog.text


def test_what_shapes_cannot_tell_is_read_from_the_card(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oracle = ResNet(architecture("resnet20", shortcut="A-split"))
    save_weights(tmp_path / "w.safetensors", oracle, card_of(oracle))
    create_model("resnet20", weights=tmp_path / "w.safetensors")
    assert "shortcut: trained with 'A-split', this network has 'A'" in caplog.text


@pytest.mark.parametrize("shortcut", ["A", "A-split", "B", "none"])
def test_a_saved_network_is_rebuilt_from_its_file_alone(tmp_path: Path, shortcut: str) -> None:
    oracle = lively(create_model("resnet20", 7, seed=1, shortcut=shortcut))
    oracle.to(memory_format=torch.channels_last)
    card = card_of(oracle, "custom")
    path = tmp_path / "w.safetensors"
    save_weights(path, oracle, card)
    state = torch.get_rng_state()
    net, read, report = load_model(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert read == card == read_card(path)
    assert net.arch == card.architecture
    assert not net.training
    assert report.notes == ()
    assert same(net, oracle, 32)
    assert all(torch.equal(net.state_dict()[k], v) for k, v in oracle.state_dict().items())
    data = path.read_bytes()
    save_weights(path, oracle.state_dict(), card)
    assert path.read_bytes() == data


def test_half_precision_and_shared_tensors_can_be_saved(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    state = {"a": shared, "b": shared.t(), "n": torch.tensor(3)}
    save_weights(tmp_path / "w.safetensors", state, None, torch.bfloat16)
    read, card = read_state(tmp_path / "w.safetensors")
    assert card is None
    assert read["a"].dtype == read["b"].dtype == torch.bfloat16
    assert torch.equal(read["b"].float(), shared.t())
    assert torch.equal(read["n"], torch.tensor(3))


def test_a_card_that_disagrees_with_the_tensors_is_refused(tmp_path: Path) -> None:
    net, path = tiny20(), tmp_path / "w.safetensors"
    for fields in (
        {"depths": (3, 3, 2)},
        {"depths": (3, 3, 4)},
        {"depths": (3, 3, 9000)},
        {"stem": "imagenet"},
        {"shortcut": "A"},
        {"in_channels": 3, "widths": (16, 32, 48)},
        {"order": "pre"},
    ):
        other = architecture("resnet20", **({"shortcut": "B"} | fields))
        card = card_of(net).model_copy(update={"architecture": other})
        save_weights(path, net, card)
        text = refusal(lambda: load_model(path))
        assert text.startswith(f"{path}: its card's architecture (resnet20) and its tensors")
    save_weights(path, net, card_of(net).model_copy(update={"classes": ("one",)}))
    assert "the card is not valid" in refusal(lambda: load_model(path))
    head = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    save_weights(path, head, None)
    assert "lacks fc.weight, fc.bias" in refusal(lambda: load_model(path))


def test_the_card_is_plain_json_in_the_metadata(tmp_path: Path) -> None:
    net = tiny20()
    save_weights(tmp_path / "w.safetensors", net, card_of(net))
    data = (tmp_path / "w.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"][METADATA_KEY])["classes"][0] == "class 0 ✓"


def test_training_goes_on_from_weights_of_another_network_with_a_note(tmp_path: Path) -> None:
    net = create_model("resnet50v1", 5, width=0.125, bn_eps=1e-3)
    save_weights(tmp_path / "w.safetensors", net, card_of(net))
    state, card = read_state(tmp_path / "w.safetensors")
    for name in ("resnet50", "resnet50v1"):
        other = create_model(name, 5, width=0.125)
        notes = " ".join(load_start(other, state, card).notes)
        assert "bn_eps: trained with 0.001, this network has 1e-05" in notes
        assert ("stride_in: trained with '1x1'" in notes) == (name == "resnet50")


# --- atomic writes -------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert len(os.listdir(tmp_path)) == 2  # in the same folder, or no rename is atomic
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), FileNotFoundError()])
def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    if isinstance(error, OSError):
        error.filename = "another file"

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"new")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_refused_place_names_the_file(tmp_path: Path) -> None:
    """What refuses the write refuses to take it back too."""
    (tmp_path / "file").write_bytes(b"")

    def write() -> None:
        with atomic_write(tmp_path / "file" / "a") as file:
            file.write(b"new")

    assert refusal(write).startswith(f"{tmp_path / 'file' / 'a'}: cannot be written: Not a dir")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_refused_write_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"new")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, full)
        text = refusal(write)
    assert text.startswith(f"{path}: cannot be written: No space left on device")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
    write()
    assert path.read_bytes() == b"new"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no" / "w.safetensors"
    assert refusal(lambda: save_weights(path, small(), None)).startswith(f"{path}: cannot be")


@pytest.mark.parametrize("call", ["save_weights(path, state, None)", "checkpoint(path, state)"])
def test_a_full_disk_keeps_the_previous_weights(tmp_path: Path, call: str) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, small(), None)
    old = path.read_bytes()
    code = f"""
import resource, sys, torch
from skipway.errors import InputError
from skipway.files import atomic_write
from skipway.weights import save_weights
def checkpoint(path, state):
    with atomic_write(path) as file:
        torch.save(state, file)
path, state = sys.argv[1], {{"a": torch.zeros(100_000)}}
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    {call}
except InputError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{path}: cannot be written: File too large")
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [path.name]
