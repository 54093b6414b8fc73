"""Segmenters: torchvision's own models as the oracle, dilation against the strides that it stands
for, one contract for all heads and rows, and files."""

from __future__ import annotations

import copy
import io
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as theirs
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.models import segmentation
from torchvision.models.segmentation.deeplabv3 import ASPP

from skipway.architecture import ARCHITECTURES, Architecture, architecture, replaced
from skipway.card import Card
from skipway.errors import InputError
from skipway.heads import SegmenterConfig
from skipway.images import plain_preprocess
from skipway.norms import FrozenBatchNorm
from skipway.resnet import ResNet, backbone_of
from skipway.segmenters import Segmenter, build_segmenter
from skipway.segmenters.dilation import Dilated, dilate
from skipway.segmenters.parts import OfImage
from skipway.training.optim import freeze
from skipway.weights import load_segmenter, load_weights, save_weights

HEADS: dict[str, dict[str, Any]] = {
    "unet": {"head": "unet", "widths": (16, 12, 8, 8, 4)},
    "fcn": {"head": "fcn"},
    "fcn-16-auxiliary": {"head": "fcn", "output_stride": 16, "auxiliary": True},
    "deeplabv3": {"head": "deeplabv3", "channels": 16, "auxiliary": True},
    "deeplabv3plus": {"head": "deeplabv3plus", "channels": 16},
}
CLASSES = 5
SIZES = [(64, 96), (75, 53), (33, 47)]


def tiny(row: str = "resnet18", **fields: Any) -> Architecture:
    """A row with at most one unit a stage and an eighth of its width."""
    arch = ARCHITECTURES[row]
    depths = tuple(min(depth, 1) for depth in arch.depths)
    return replaced(arch, **({"width": 0.125, "depths": depths} | fields))


def small(head: str, arch: Architecture | None = None, seed: int = 0, **fields: Any) -> Segmenter:
    torch.manual_seed(seed)
    return build_segmenter(arch or tiny(), SegmenterConfig(**(HEADS[head] | fields)), CLASSES)


def pictures(size: tuple[int, int], count: int = 2, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, *size, generator=generator)


def randomise(net: nn.Module) -> None:
    """Statistics and weights of norms as after a training, and no dropout."""
    generator = torch.Generator().manual_seed(1)
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            low, high = (0.1, 0.3) if name.endswith("bn3") else (0.5, 1.0)
            tensors = module.state_dict()
            tensors["running_mean"].normal_(0, 0.1, generator=generator)
            tensors["running_var"].uniform_(0.5, 1.5, generator=generator)
            tensors["weight"].uniform_(low, high, generator=generator)
            tensors["bias"].normal_(0, 0.1, generator=generator)
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def loss_of(outputs: dict[str, Tensor]) -> Tensor:
    """A loss that every logit has a part in."""
    terms = [F.cross_entropy(x, x.detach().argmin(1)) for x in outputs.values()]
    return torch.stack(terms).sum()


# --- torchvision's own models -----------------------------------------------------------------

_LONG = [pytest.mark.slow]  # what they have the others have too
MODELS = [
    ("fcn_resnet50", True),
    pytest.param("fcn_resnet50", False, marks=_LONG),
    pytest.param("deeplabv3_resnet50", True, marks=_LONG),
    ("deeplabv3_resnet50", False),
    pytest.param("fcn_resnet101", False, marks=_LONG),
    pytest.param("fcn_resnet101", True, marks=_LONG),
    pytest.param("deeplabv3_resnet101", False, marks=_LONG),
    pytest.param("deeplabv3_resnet101", True, marks=_LONG),
]


@pytest.mark.parametrize(("name", "auxiliary"), MODELS)
def test_torchvisions_models_load_and_tell_the_same(
    name: str, auxiliary: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    other = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=auxiliary
    )
    randomise(other)
    torch.save(other.state_dict(), tmp_path / "net.pth")
    own, card = load_segmenter(tmp_path / "net.pth")
    assert not own.training
    assert list(own.state_dict()) == list(other.state_dict())
    with torch.no_grad():
        for size in ((48, 40), (41, 53)):
            images = pictures(size)
            found, expected = own(images)["out"], other.eval()(images)["out"]
            assert expected.std() > 0.02
            assert (found - expected).abs().max() <= 1e-5
        randomise(own)
        found, expected = own.train()(images), other.train()(images)
        assert list(found) == list(expected) == ["out", "aux"][: 1 + auxiliary]
        for key, logits in found.items():
            assert (logits - expected[key]).abs().max() <= 1e-5
    head, _, row = name.partition("_")
    assert (card.task, card.model, len(card.classes)) == ("segment", row, 21)
    assert card.segmenter == SegmenterConfig(head=head, auxiliary=auxiliary)
    assert card.classes[:3] == ("background", "aeroplane", "bicycle")
    assert card.classes[-1] == "tvmonitor"
    assert (card.preprocess.resize, card.preprocess.mean) == ("fit", (0.485, 0.456, 0.406))


def test_other_classes_and_what_training_put_before_names(tmp_path: Path) -> None:
    arch = architecture("resnet20")
    state = build_segmenter(arch, SegmenterConfig(head="deeplabv3", channels=8), 3).state_dict()
    wrapped = {f"module.{k}": v for k, v in state.items() if "num_batches" not in k}
    torch.save({"model": wrapped, "epoch": 3}, tmp_path / "net.pth")
    own, card = load_segmenter(tmp_path / "net.pth")
    assert card.classes == ("0", "1", "2")
    assert (card.model, card.segmenter) == ("resnet20", own.config)
    assert own.config == SegmenterConfig(head="deeplabv3", channels=8)
    for name, tensor in own.state_dict().items():
        assert "num_batches" in name or torch.equal(tensor, state[name])


def test_dilated_stages_are_torchvisions() -> None:
    def geometry(net: nn.Module) -> dict[str, Any]:
        return {
            name: (m.stride, m.padding, m.dilation, m.groups, m.weight.shape)
            for name, m in net.named_modules()
            if isinstance(m, nn.Conv2d)
        }

    for row, stride in itertools.product(("resnet50", "resnext50_32x4d"), (8, 16, 32)):
        with torch.device("meta"):
            own = ResNet(architecture(row))
            dilate(own, stride)
            other = getattr(theirs, row)(
                replace_stride_with_dilation=[False, stride < 16, stride < 32]
            )
        assert geometry(own) == geometry(other)
        assert list(own.state_dict()) == list(other.state_dict())
        assert own.strides == {"c2": 4, "c3": 8, "c4": min(stride, 16), "c5": stride}


# --- dilation -----------------------------------------------------------------------------------

DILATED = [
    ("resnet18", {}),
    ("resnet50", {}),
    ("resnet50v1", {}),  # strides in its first 1x1
    ("resnet50d", {}),  # averages before its projections
    ("preresnet50", {}),
    ("plain34", {}),
    ("resnext50_32x4d", {"width": 0.25}),
    ("resnet18", {"shortcut": "A"}),
    ("resnet50", {"shortcut": "C"}),
    ("resnet18", {"subsample": "max-pool"}),
]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(("row", "fields"), DILATED)
def test_a_dilated_network_is_the_strided_one_where_that_has_pixels(
    row: str, fields: dict[str, Any], output_stride: int
) -> None:
    arch = tiny(row, **({"depths": (1, 1, 2, 2)} | fields))
    torch.manual_seed(0)
    strided, dilated = ResNet(arch).eval(), ResNet(arch).eval()
    randomise(strided)
    dilate(dilated, output_stride)
    dilated.load_state_dict(strided.state_dict())
    assert list(dilated.state_dict()) == list(strided.state_dict())
    for size in ((64, 96), (97, 70), (40, 33)):
        images = pictures(size)
        with torch.no_grad():
            expected, found = strided.features(images), dilated.features(images)
        for name, stride in dilated.strides.items():
            assert stride == min(strided.strides[name], output_stride)
            assert found[name].shape[2:] == tuple(-(-side // stride) for side in size)
            step = strided.strides[name] // stride
            kept = found[name][:, :, ::step, ::step]
            assert expected[name].abs().max() > 0.1
            torch.testing.assert_close(kept, expected[name], rtol=1e-4, atol=1e-5)


def test_a_network_that_blurs_is_not_dilated() -> None:
    blurred = tiny("resnet18", antialias=True)
    with pytest.raises(InputError, match="output_stride: a network with antialias"):
        small("fcn", blurred)
    assert small("fcn", blurred, output_stride=32).body.strides["c5"] == 32
    assert small("fcn", tiny("resnet20", antialias=True)).body.strides["c4"] == 4
    small("unet", blurred)


def test_dilated_convolutions_stay_in_float32_under_autocast_on_a_cpu() -> None:
    conv, images = Dilated(3, 4, 2), pictures((9, 9))
    plain = nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False)
    plain.load_state_dict(conv.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = conv(images.bfloat16()), plain(images)
    assert (found.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(found, plain(images.bfloat16().float()))
    assert conv.bfloat16()(images.bfloat16()).dtype == torch.bfloat16


# --- heads against the papers' words, written out ---------------------------------------------


def conv_norm_relu(module: nn.Sequential, x: Tensor, first: int = 0) -> Tensor:
    conv, norm = module[first], module[first + 1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    x = F.conv2d(x, conv.weight, None, 1, conv.kernel_size[0] // 2)
    mean, variance = norm.running_mean, norm.running_var
    return F.batch_norm(x, mean, variance, norm.weight, norm.bias).relu()


def stages_of(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Of torchvision's network: the stem before its pool, and the four stages."""
    maps = [net.relu(net.bn1(net.conv1(x)))]
    x = net.maxpool(maps[0])
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x)
    return maps


def as_torchvision(own: Segmenter, other: nn.Module) -> nn.Module:
    other.fc = nn.Identity()
    other.load_state_dict(own.body.state_dict())
    return other.eval()


@pytest.mark.parametrize("size", [(64, 96), (75, 53)])
@torch.no_grad()
def test_a_unet_by_hand(size: tuple[int, int]) -> None:
    own = small("unet", architecture("resnet18")).eval()
    randomise(own)
    images = pictures(size)
    maps = stages_of(as_torchvision(own, theirs.resnet18()), images)
    x = maps.pop()
    for step in own.classifier.steps:
        finer = maps.pop()
        x = F.interpolate(x, finer.shape[2:], mode="bilinear", align_corners=False)
        x = torch.cat((x, finer), 1)
        x = conv_norm_relu(step, conv_norm_relu(step, x), 3)
    assert not maps
    assert x.shape[1:] == (8, -(-size[0] // 2), -(-size[1] // 2))
    last = own.classifier.classify
    x = F.conv2d(x, last.weight, last.bias)
    expected = F.interpolate(x, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(own(images)["out"], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_deeplabv3plus_by_hand() -> None:
    arch, size = architecture("resnet50", depths=(1, 1, 2, 2)), (75, 53)
    own = small("deeplabv3plus", arch).eval()
    randomise(own)
    other = theirs.ResNet(
        theirs.resnet.Bottleneck, [1, 1, 2, 2], replace_stride_with_dilation=[False, False, True]
    )
    pyramid = ASPP(2048, [6, 12, 18], 16).eval()
    pyramid.load_state_dict(own.classifier.pyramid.state_dict())
    images = pictures(size)
    _, c2, *_, c5 = stages_of(as_torchvision(own, other), images)
    assert c5.shape[2:] == (5, 4)
    low = conv_norm_relu(own.classifier.low, c2)
    assert low.shape[1:] == (48, 19, 14)
    x = F.interpolate(pyramid(c5), (19, 14), mode="bilinear", align_corners=False)
    refine = own.classifier.refine
    x = conv_norm_relu(refine, conv_norm_relu(refine, torch.cat((x, low), 1)), 3)
    last = own.classifier.classify
    x = F.conv2d(x, last.weight, last.bias)
    expected = F.interpolate(x, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(own(images)["out"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("row", "stride", "rates"),
    [
        ("resnet18", 8, [12, 24, 36]),
        ("resnet18", 16, [6, 12, 18]),
        ("resnet18", 32, [3, 6, 9]),
        ("resnet20", 32, [12, 24, 36]),
    ],
)
def test_rates_follow_the_stride(row: str, stride: int, rates: list[int]) -> None:
    net = small("deeplabv3", tiny(row, width=1.0), output_stride=stride)
    found = [conv[0].dilation[0] for conv in net.classifier[0].convs[1:-1]]
    assert found == rates


def test_a_unet_goes_back_as_far_as_there_are_maps() -> None:
    def read(arch: Architecture) -> tuple[tuple[str, ...], list[int]]:
        with torch.device("meta"):
            head = build_segmenter(arch, SegmenterConfig(), CLASSES).classifier
        return head.reads, [step[0].out_channels for step in head.steps]

    imagenet = ("c5", "c4", "c3", "c2", "stem")
    assert read(architecture("resnet18")) == (imagenet, [128, 64, 32, 32])
    assert read(architecture("resnet20")) == (("c4", "c3", "c2"), [32, 16])
    assert read(architecture("resnet18_cifar")) == (imagenet[:-1], [32, 32, 16])
    assert read(architecture("resnet8_speedrun")) == (("c4", "c3", "c2", "stem"), [32, 32, 16])
    deep = architecture("resnet18", depths=(1,) * 6, widths=(8,) * 6)
    assert read(deep) == (("c7", "c6", *imagenet), [128, 128, 128, 64, 32, 32])
    assert read(architecture("resnet20", depths=(3,))) == (("c2",), [])


# --- one contract for all heads and rows ------------------------------------------------------


_KINDS = {tiny(row, width=1.0, source=""): row for row in reversed(ARCHITECTURES)}
"""Rows that differ in more than depth."""


@pytest.mark.parametrize("row", _KINDS.values())
def test_every_row_carries_every_head(row: str) -> None:
    arch = tiny(row, width=1.0)
    with torch.device("meta"):
        for fields in (HEADS["unet"], HEADS["deeplabv3plus"] | {"auxiliary": True}):
            net = build_segmenter(arch, SegmenterConfig(**fields), CLASSES)
            outputs = net(torch.empty(2, arch.in_channels, 75, 50))
            assert list(outputs) == ["out", "aux"][: 1 + net.config.auxiliary]
            assert all(x.shape == (2, CLASSES, 75, 50) for x in outputs.values())
            assert backbone_of(net) is net.body
            limit = net.config.output_stride
            assert max(net.body.strides.values()) <= limit


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [*SIZES, (32, 32), (7, 5), (1, 90)])
def test_logits_are_float32_at_the_size_of_any_input(head: str, size: tuple[int, int]) -> None:
    net, images = small(head).eval(), pictures(size)
    with torch.no_grad():
        outputs, again = net(images), net(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = net(images)
        alone = net(images[:1])
    assert list(outputs) == list(rounded) == ["out"]
    assert outputs["out"].shape == (2, CLASSES, *size)
    assert outputs["out"].dtype == rounded["out"].dtype == torch.float32
    assert torch.equal(outputs["out"], again["out"])
    torch.testing.assert_close(alone["out"], outputs["out"][:1], rtol=1e-4, atol=1e-5)
    spread = outputs["out"].std()
    assert (rounded["out"] - outputs["out"]).abs().max() < 0.1 * spread.clamp(min=1)


ROWS = [
    ("resnet18", "unet"),
    ("resnet18", "deeplabv3"),
    ("resnet18", "fcn-16-auxiliary"),
    ("resnet20", "unet"),
    ("resnet20", "fcn"),
    ("preresnet50", "deeplabv3plus"),
    ("preresnet50", "unet"),
    ("preresnet110", "deeplabv3"),
    ("resnet50d", "fcn"),
    ("resnext50_32x4d", "deeplabv3plus"),
    ("seresnet50", "deeplabv3"),
    ("plain34", "unet"),
    ("resnet18_cifar", "deeplabv3plus"),
    ("resnet8_speedrun", "unet"),
]


@pytest.mark.parametrize(
    ("row", "head", "norm"),
    [(*one, "batch") for one in ROWS] + [(*one, "group") for one in ROWS[:6]],
)
def test_a_gradient_reaches_every_parameter(row: str, head: str, norm: Any) -> None:
    arch = tiny(row, width=0.5 if "20" in row else 0.125)
    net = small(head, arch, norm=norm).to(memory_format=torch.channels_last)
    randomise(net)
    images = pictures((40, 56)).contiguous(memory_format=torch.channels_last)
    loss_of(net(images)).backward()
    for name, parameter in net.named_parameters():
        if name == "backbone.conv1.weight" and row == "resnet8_speedrun":
            assert parameter.grad is None  # whitening is not learned
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("head", HEADS)
def test_training_works_in_bfloat16_and_channels_last(head: str) -> None:
    net, images = small(head), pictures((64, 64))
    randomise(net)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    exact = loss_of(net(images))
    same = loss_of(last(images.contiguous(memory_format=torch.channels_last)))
    assert same.item() == pytest.approx(exact.item(), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(images)
    assert all(x.dtype == torch.float32 for x in outputs.values())
    loss = loss_of(outputs)
    assert loss.item() == pytest.approx(exact.item(), rel=0.1)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_of_one_trains(head: str) -> None:
    net = small(head)
    loss_of(net(pictures((64, 64), 1))).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())


def test_the_pooled_map_of_one_image_uses_running_statistics() -> None:
    pooling = OfImage(4, 6)
    randomise(pooling)
    norm = pooling[2]
    assert isinstance(norm, nn.BatchNorm2d)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = pictures((5, 7), 3, 4)
    one = pooling.train()(x[:1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    torch.testing.assert_close(one, pooling.eval()(x[:1]))
    assert one.shape == (1, 6, 5, 7)
    three = pooling.train()(x)  # of several it takes theirs
    assert not torch.allclose(three[:1], one)
    assert norm.num_batches_tracked == 1

    class Synchronised(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return x + 100

    norm.__class__ = Synchronised
    assert pooling.train()(x[:1]).min() > 50


def test_recomputed_activations_change_nothing() -> None:
    grads = []
    for checkpointing in (False, True):
        net = small("deeplabv3plus", tiny(checkpointing=checkpointing))
        randomise(net)
        loss_of(net(pictures((64, 64)))).backward()
        grads.append([p.grad for p in net.parameters()])
        counters = [b for n, b in net.named_buffers() if n.endswith("tracked")]
        assert {int(count) for count in counters} == {1}  # each batch counts once
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("head", HEADS)
def test_copies_and_pickles_stand_for_themselves(head: str) -> None:
    net, images = small(head).eval(), pictures((40, 56))
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    others = [copy.deepcopy(net), torch.load(file, weights_only=False)]
    with torch.no_grad():
        before = net(images)["out"]
        for parameter in net.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(net(images)["out"], before)
        for other in others:
            assert torch.equal(other(images)["out"], before)


def test_a_pre_activation_nets_stages_are_read_as_its_own_units_read_them() -> None:
    net = small("deeplabv3plus", tiny("preresnet50"))
    body, plain = net.body, copy.deepcopy(net.body)
    seen: dict[str, Tensor] = {}
    body.layer2[0].bn1.register_forward_hook(lambda _, __, y: seen.update(first=y.clone()))
    body.norm.register_forward_hook(lambda _, __, y: seen.update(last=y.clone()))
    read: dict[str, Tensor] = {}
    net.classifier.low.register_forward_pre_hook(lambda _, x: read.update(first=x[0]))
    net.classifier.pyramid.register_forward_pre_hook(lambda _, x: read.update(last=x[0]))
    images = pictures((64, 64))
    for mode in (True, False):
        net.train(mode)(images)
        for name, value in read.items():
            assert torch.allclose(value, seen[name].relu(), atol=1e-6)
    plain.train().features(images)  # each batch counts once in the running statistics
    for (name, one), two in zip(
        body.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


# --- norms, weights, files --------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_norms_are_the_configurations(head: str) -> None:
    group = small(head, norm="group")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in group.modules())
    frozen = small(head, norm="frozen")
    every = {n: m for n, m in frozen.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, module in every.items():
        assert isinstance(module, FrozenBatchNorm) == name.startswith("backbone."), name
    assert sum(not name.startswith("backbone.") for name in every) >= 1


@pytest.mark.parametrize("head", ["unet", "deeplabv3"])
def test_it_starts_from_a_classifiers_weights_and_is_frozen_in_parts(head: str) -> None:
    net, classifier = small(head, norm="frozen"), ResNet(tiny())
    randomise(classifier)
    report = load_weights(backbone_of(net), classifier.state_dict())
    assert report.share == 1
    assert report.ignored == ("fc.weight", "fc.bias")
    for name, tensor in net.body.state_dict().items():
        assert torch.equal(tensor, classifier.state_dict()[name])
    frozen = freeze(backbone_of(net), 3)
    assert not frozen.at(0)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    loss_of(net(pictures((64, 64)))).backward()
    optimizer.step()
    for name, tensor in net.body.named_parameters():
        held = name.startswith(("conv1", "layer1", "layer2")) or tensor.ndim == 1
        assert torch.equal(tensor, classifier.state_dict()[name]) == held, name


def card_of(net: Segmenter, arch: Architecture) -> Card:
    return Card(
        task="segment",
        model="custom",
        architecture=replaced(arch, num_classes=CLASSES),
        classes=tuple("abcde"),
        segmenter=net.config,
        preprocess=plain_preprocess(64, arch.in_channels, "fit"),
    )


@pytest.mark.parametrize(
    ("row", "head", "norm"),
    [
        ("resnet18", "unet", "frozen"),
        ("resnet18", "fcn-16-auxiliary", "batch"),
        ("resnet20", "unet", "group"),
        ("preresnet50", "deeplabv3plus", "batch"),
    ],
)
def test_a_segmenter_comes_back_from_its_file(
    row: str, head: str, norm: Any, tmp_path: Path
) -> None:
    arch = tiny(row)
    net = small(head, arch, norm=norm).eval()
    randomise(net)
    save_weights(tmp_path / "net.safetensors", net, card_of(net, arch))
    state = torch.random.get_rng_state()
    own, card = load_segmenter(tmp_path / "net.safetensors")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert card == card_of(net, arch)
    assert not own.training
    with torch.no_grad():
        assert torch.equal(own(pictures((40, 56)))["out"], net(pictures((40, 56)))["out"])


def test_files_that_are_no_segmenter_are_refused(tmp_path: Path) -> None:
    def refused(state: dict[str, Tensor], card: Card | None = None) -> str:
        save_weights(tmp_path / "net.safetensors", state, card)
        with pytest.raises(InputError) as error:
            load_segmenter(tmp_path / "net.safetensors")
        assert len(str(error.value).splitlines()) <= 3
        assert "net.safetensors" in str(error.value)
        return str(error.value)

    arch = tiny()
    net = small("deeplabv3", arch)
    card, state = card_of(net, arch), net.state_dict()
    assert "no segmenter" in refused(state)
    assert "no segmenter" in refused(ResNet(architecture("resnet20")).state_dict())
    with torch.device("meta"):
        mobile = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None)
    shapes = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in mobile.state_dict().items()}
    assert "no segmenter" in refused(shapes)
    classifier = card.model_copy(update={"task": "classify", "segmenter": None})
    assert "no segmenter" in refused(state, classifier)
    key = "classifier.0.project.0.weight"
    for changed in (
        {k: v for k, v in state.items() if k != key},
        state | {key: state[key][:3]},
        state | {"more": torch.zeros(3)},
    ):
        assert "disagree" in refused(changed, card)
    assert "NaN" in refused(state | {key: torch.full_like(state[key], torch.nan)}, card)


def test_a_small_file_does_not_make_a_huge_network(tmp_path: Path) -> None:
    state = small("deeplabv3", architecture("resnet20"), auxiliary=False).state_dict()
    state["classifier.0.project.0.weight"] = torch.zeros(10**6, 1, 1, 1)
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(InputError, match="has other parts"):
        load_segmenter(tmp_path / "net.pth")


# --- configuration ----------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_a_configuration_survives_json(head: str) -> None:
    config = SegmenterConfig(**HEADS[head])
    assert SegmenterConfig.model_validate_json(config.model_dump_json()) == config


def test_what_is_not_given_is_what_the_head_usually_has() -> None:
    strides = {
        head: SegmenterConfig(head=head).output_stride
        for head in ("unet", "fcn", "deeplabv3", "deeplabv3plus")
    }
    assert strides == {"unet": 32, "fcn": 8, "deeplabv3": 8, "deeplabv3plus": 16}
    assert SegmenterConfig(head="fcn", output_stride=16).output_stride == 16
    assert SegmenterConfig().head == "unet"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"output_stride": 16}, "output_stride: is of head fcn, deeplabv3, deeplabv3plus"),
        ({"head": "unet", "auxiliary": True}, "auxiliary: is of head"),
        ({"head": "unet", "channels": 128}, "channels: is of head deeplabv3"),
        ({"head": "fcn", "channels": 128}, "channels: is of head deeplabv3"),
        ({"head": "fcn", "rates": (1,)}, "rates: is of head deeplabv3"),
        ({"head": "deeplabv3plus", "widths": (1, 2, 3, 4, 5)}, "widths: is of head unet"),
        ({"head": "fcn", "output_stride": 4}, "8, 16 or 32"),
        ({"head": "deeplabv3", "rates": ()}, "at least 1"),
        ({"head": "deeplabv3", "rates": (0,)}, "greater than or equal to 1"),
        ({"widths": (8, 8, 8, 8)}, "widths"),
        ({"widths": (8, 8, 8, 8, 0)}, "greater than or equal to 1"),
        ({"head": []}, "unet"),
        ({"width": 3}, "not permitted"),
    ],
)
def test_settings_that_contradict_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SegmenterConfig(**fields)


def test_networks_that_are_too_short_are_refused() -> None:
    one = tiny(depths=(1,))
    with pytest.raises(InputError, match="two stages"):
        small("deeplabv3plus", one)
    with pytest.raises(InputError, match="two stages"):
        small("fcn-16-auxiliary", one)
    for head in ("unet", "fcn"):
        assert loss_of(small(head, one)(pictures((32, 32)))).isfinite()


def test_a_unets_decoder_costs_less_than_its_network() -> None:
    def cost(net: nn.Module, *inputs: Any) -> int:
        counts: list[int] = []
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda m, _, y: counts.append(y.numel() * m.weight[0].numel())
                )
        net(*inputs)
        return sum(counts)

    for row, size in (("resnet18", (360, 480)), ("resnet20", (32, 32))):
        with torch.device("meta"):
            net = build_segmenter(architecture(row), SegmenterConfig(), 12).eval()
            images = torch.empty(1, 3, *size)
            whole, body = cost(copy.deepcopy(net), images), cost(ResNet(net.body.arch), images)
        assert body < whole < 1.6 * body, row


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "head"),
    [
        ("resnet18", "unet"),
        *(
            pytest.param(row, head, marks=pytest.mark.slow)
            for row, head in [
                ("resnet18", "fcn"), ("resnet18", "deeplabv3"), ("resnet18", "deeplabv3plus"),
                ("preresnet50", "deeplabv3plus"), ("preresnet50", "unet"), ("resnet20", "unet"),
            ]
        ),
    ],
)  # fmt: skip
def test_squares_are_learned(row: str, head: str) -> None:
    net = small(head, tiny(row, width=1.0 if row == "resnet20" else 0.25))
    images, labels = 0.1 * pictures((64, 64), 4), torch.zeros(4, 64, 64, dtype=torch.int64)
    for i, label in enumerate((1, 2, 3, 4)):
        place = slice(8 * i, 8 * i + 32), slice(28 - 8 * i, 60 - 8 * i)
        labels[i][place] = label
        images[i, label % 3][place] += 1 + label // 3
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        sum(F.cross_entropy(x, labels) for x in net(images).values()).backward()
        optimizer.step()
    with torch.no_grad():
        found = net.eval()(images)["out"].argmax(1)
    assert (found == labels).float().mean() > 0.95
    for label in range(1, 5):
        own, there = found == label, labels == label
        assert (own & there).sum() / (own | there).sum() > 0.8
