"""The networks against independent ones: torchvision, timm, and references written out here.

The weights of the reference are transplanted, so equal outputs mean equal networks. Gammas,
betas and statistics are random first; then one train-mode pass settles the statistics.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skipway.architecture import architecture, count
from skipway.resnet import ResNet

BOUND = 1e-5
"""Largest difference over largest value, float32."""


def same(name: str) -> str:
    return name


def difference(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-20)).item()


def randomise(net: nn.Module, size: int) -> None:
    """Random affine parameters and statistics, the latter then settled on one batch."""
    generator = torch.Generator().manual_seed(7)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.5, 0.5, generator=generator)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.momentum = 0.9
        net.train()(torch.randn(4, 3, size, size, generator=generator))
    for norm in norms:
        norm.momentum = 0.1


def transplanted(net: ResNet, oracle: nn.Module, rename: Callable[[str], str]) -> ResNet:
    """The net with the oracle's values, every name of both sides used."""
    ours = net.state_dict()
    theirs = {rename(name): value for name, value in oracle.state_dict().items()}
    assert theirs.keys() == ours.keys()
    net.load_state_dict({n: v.reshape(ours[n].shape).clone() for n, v in theirs.items()})
    return net


def compare(
    net: ResNet,
    oracle: nn.Module,
    *,
    rename: Callable[[str], str] = same,
    size: int = 64,
    train: bool = True,
    gradients: bool = False,
) -> None:
    """Equal outputs in eval and train mode, equal running statistics, equal gradients."""
    randomise(oracle, size)
    transplanted(net, oracle, rename)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = oracle.eval()(x)
        assert logits.std() > 1e-3
        assert difference(net.eval()(x), logits) <= BOUND
    if not train:
        return
    with torch.set_grad_enabled(gradients):
        expected, actual = oracle.train()(x), net.train()(x)
    assert difference(actual, expected) <= BOUND
    theirs = {rename(name): value for name, value in oracle.named_buffers()}
    compared = 0
    for name, value in net.named_buffers():
        if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            assert difference(value.float(), theirs[name].float()) <= BOUND, name
            compared += 1
    assert compared == 3 * sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    if not gradients:
        return
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    expected.backward(direction)
    actual.backward(direction)
    grads = {rename(n): p.grad for n, p in oracle.named_parameters()}
    for name, parameter in net.named_parameters():
        theirs_grad = grads[name]
        assert parameter.grad is not None
        assert theirs_grad is not None
        assert theirs_grad.abs().max() > 0, name
        grad = theirs_grad.reshape(parameter.shape)
        assert difference(parameter.grad, grad) <= BOUND, name


def deep(value: object) -> Any:
    """A parameter of a net that takes long to build and to run."""
    return pytest.param(value, marks=pytest.mark.slow)


# torchvision


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        deep("resnet152"),
        "resnext50_32x4d",
        deep("resnext101_32x8d"),
        "wide_resnet50_2",
        deep("wide_resnet101_2"),
    ],
)
def test_equals_torchvision(name: str) -> None:
    compare(
        ResNet(architecture(name)),
        torchvision.models.get_model(name),
        gradients=name in ("resnet18", "resnet50", "resnext50_32x4d"),
    )


@pytest.mark.parametrize("depth", [50, *map(deep, (101, 152))])
def test_v1_equals_torchvision_with_the_stride_moved_to_the_1x1(depth: int) -> None:
    oracle = torchvision.models.get_model(f"resnet{depth}")
    for layer in (oracle.layer2, oracle.layer3, oracle.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    compare(ResNet(architecture(f"resnet{depth}v1")), oracle)


# timm


@pytest.mark.parametrize(
    ("theirs", "name", "fields"),
    [
        ("resnet50d", "resnet50d", {}),
        ("seresnet50", "seresnet50", {}),
        ("resnetblur50", "resnet50", {"antialias": True}),
        ("resnetblur18", "resnet18", {"antialias": True}),
        ("resnetblur50d", "resnet50d", {"antialias": True}),
        ("resnet18d", "resnet18", {"stem": "deep", "shortcut": "D"}),
        ("resnet50c", "resnet50", {"stem": "deep"}),
        ("seresnext50_32x4d", "resnext50_32x4d", {"squeeze": 16}),
        ("resnext50d_32x4d", "resnext50_32x4d", {"stem": "deep", "shortcut": "D"}),
    ],
)
def test_equals_timm(theirs: str, name: str, fields: dict[str, object]) -> None:
    oracle = timm.create_model(theirs)
    # At 72 px the stages are 18, 9, 5 and 3 px: pooled shortcuts and blurs meet odd sizes.
    net = ResNet(architecture(name, **fields))
    compare(net, oracle, size=72, gradients=name == "seresnet50")


def test_basic_squeeze_and_excitation_equals_timm() -> None:
    # timm has at least 8 squeezed channels, so a reduction of 16 differs where there are 64.
    se = functools.partial(timm.layers.SEModule, rd_ratio=1 / 8)
    oracle = timm.create_model("seresnet18", block_args={"attn_layer": se})
    compare(ResNet(architecture("resnet18", squeeze=8)), oracle)


def from_resnetv2(name: str) -> str:
    """timm's name of a pre-activation parameter in torchvision's style."""
    name = re.sub(r"^stem\.conv\.", "conv1.", name)
    name = re.sub(
        r"^stem\.(conv|norm)(\d)\.",
        lambda m: f"conv1.{3 * (int(m[2]) - 1) + (m[1] == 'norm')}.",
        name,
    )
    name = re.sub(r"^stages\.(\d)\.blocks\.", lambda m: f"layer{int(m[1]) + 1}.", name)
    name = re.sub(r"\.norm(\d)\.", r".bn\1.", name)
    return name.replace("head.fc.", "fc.")


@pytest.mark.parametrize("depth", [50, 101, *map(deep, (152, 200))])
def test_preactivation_equals_timm(depth: int) -> None:
    layers = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3], 152: [3, 8, 36, 3], 200: [3, 24, 36, 3]}
    oracle = timm.create_model("resnetv2_50", layers=layers[depth])
    compare(
        ResNet(architecture(f"preresnet{depth}")),
        oracle,
        rename=lambda name: from_resnetv2(name).replace("downsample.conv", "downsample.0"),
        gradients=depth == 50,
    )


def test_preactivation_with_deep_stem_and_pooled_shortcut_equals_timm() -> None:
    compare(
        ResNet(architecture("preresnet50", stem="deep", shortcut="D")),
        timm.create_model("resnetv2_50d"),
        rename=lambda name: from_resnetv2(name).replace("downsample.conv", "downsample.1"),
    )


@pytest.mark.parametrize("depth", [18, 34])
def test_basic_preactivation_equals_timm(depth: int) -> None:
    oracle = timm.create_model(f"resnetv2_{depth}")
    # timm feeds the first shortcut with the sum; after the paper's appendix it is the activation.
    oracle.stages[0].blocks[0].downsample = nn.Identity()
    compare(
        ResNet(architecture(f"resnet{depth}", order="pre")),
        oracle,
        rename=lambda name: from_resnetv2(name).replace("downsample.conv", "downsample.0"),
    )


def test_drop_path_rates_equal_timm() -> None:
    oracle = timm.create_model("resnet50", drop_path_rate=0.3)
    rates = [m.drop_prob for m in oracle.modules() if type(m).__name__ == "DropPath"]
    net = ResNet(architecture("resnet50", drop_path=0.3))
    ours = [getattr(unit.drop, "rate", 0.0) for unit in net.units().values()]
    assert ours[0] == 0
    assert ours[-len(rates) :] == pytest.approx(rates)
    assert ours[-1] == 0.3


# The reference of the CIFAR-stem nets, written out from its description


class ReferenceBasic(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = reference_shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ReferenceBottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut = reference_shortcut(inputs, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + self.shortcut(x))


def reference_shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ReferenceResNet(nn.Module):
    """3x3 64 stride 1, BN, ReLU; four layers at 64 to 512; average pool; classifier."""

    def __init__(
        self,
        block: type[ReferenceBasic] | type[ReferenceBottleneck],
        num_blocks: tuple[int, ...],
        classifier: str,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for i, width in enumerate((64, 128, 256, 512)):
            blocks = []
            for j in range(num_blocks[i]):
                blocks.append(block(inputs, width, 2 if i > 0 and j == 0 else 1))
                inputs = width * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.pool = nn.AdaptiveAvgPool2d(1)
        setattr(self, classifier, nn.Linear(inputs, 10))
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return getattr(self, self.classifier)(self.pool(x).flatten(1))


@pytest.mark.parametrize(
    ("depth", "block", "num_blocks", "classifier"),
    [
        (18, ReferenceBasic, (2, 2, 2, 2), "fc"),
        (18, ReferenceBasic, (2, 2, 2, 2), "linear"),
        (34, ReferenceBasic, (3, 4, 6, 3), "linear"),
        (50, ReferenceBottleneck, (3, 4, 6, 3), "linear"),
        (101, ReferenceBottleneck, (3, 4, 23, 3), "linear"),
        pytest.param(152, ReferenceBottleneck, (3, 8, 36, 3), "fc", marks=pytest.mark.slow),
    ],
)
def test_cifar_stem_equals_the_reference(
    depth: int,
    block: type[ReferenceBasic] | type[ReferenceBottleneck],
    num_blocks: tuple[int, ...],
    classifier: str,
) -> None:
    def rename(name: str) -> str:
        return name.replace("shortcut.", "downsample.").replace("linear.", "fc.")

    compare(
        ResNet(architecture(f"resnet{depth}_cifar")),
        ReferenceResNet(block, num_blocks, classifier),
        rename=rename,
        size=32 if depth < 50 else 16,
        train=depth == 18,
        gradients=depth == 18,
    )


# The nets of the CIFAR sections as functions of named tensors, each written from its paper


class Tensors:
    """Named tensors and the three operations of the papers on them."""

    def __init__(self, state: dict[str, Tensor], training: bool) -> None:
        self.state, self.training = state, training

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def bn(self, name: str, x: Tensor) -> Tensor:
        s = self.state
        mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        weight, bias = s[f"{name}.weight"], s[f"{name}.bias"]
        return F.batch_norm(x, mean, var, weight, bias, self.training, 0.1, 1e-5)

    def classify(self, x: Tensor) -> Tensor:
        return F.linear(x.mean(dim=(2, 3)), self.state["fc.weight"], self.state["fc.bias"])


def he2015(t: Tensors, x: Tensor, n: int, shortcut: str) -> Tensor:
    """2015, section 4.2: 3x3 conv, then 3 stages of n units of two 3x3, all shortcuts option A."""
    x = F.relu(t.bn("bn1", t.conv("conv1", x)))
    for stage in (1, 2, 3):
        for j in range(n):
            unit = f"layer{stage}.{j}"
            stride = 2 if stage > 1 and j == 0 else 1
            y = F.relu(t.bn(f"{unit}.bn1", t.conv(f"{unit}.conv1", x, stride)))
            y = t.bn(f"{unit}.bn2", t.conv(f"{unit}.conv2", y))
            if shortcut != "none":
                if stride == 2:
                    x = option_a(x, half_before=shortcut == "A-split")
                y = y + x
            x = F.relu(y)
    return t.classify(x)


def option_a(x: Tensor, half_before: bool) -> Tensor:
    """Twice the channels, zero where new, of every second pixel."""
    batch, channels, height, width = x.shape
    y = x.new_zeros(batch, 2 * channels, (height + 1) // 2, (width + 1) // 2)
    start = channels // 2 if half_before else 0
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            y[:, start : start + channels, row, column] = x[:, :, 2 * row, 2 * column]
    return y


def he2016_110(t: Tensors, x: Tensor) -> Tensor:
    """2016, eq. 4-5 and appendix: BN-ReLU once after conv1, at the end, and before each weight."""
    x = F.relu(t.bn("layer1.0.bn1", t.conv("conv1", x)))
    for stage in (1, 2, 3):
        for j in range(18):
            unit = f"layer{stage}.{j}"
            first, stride = stage == j + 1 == 1, 2 if stage > 1 and j == 0 else 1
            a = x if first else F.relu(t.bn(f"{unit}.bn1", x))
            y = t.conv(f"{unit}.conv1", a, stride)
            y = t.conv(f"{unit}.conv2", F.relu(t.bn(f"{unit}.bn2", y)))
            x = y + (option_a(a, half_before=False) if stride == 2 else x)
    return t.classify(F.relu(t.bn("norm", x)))


def he2016_164(t: Tensors, x: Tensor) -> Tensor:
    """2016, appendix: 9n+2 bottlenecks of 64, 128, 256; widening units share BN-ReLU."""
    x = t.conv("conv1", x)
    for stage in (1, 2, 3):
        for j in range(18):
            unit = f"layer{stage}.{j}"
            stride = 2 if stage > 1 and j == 0 else 1
            a = F.relu(t.bn(f"{unit}.bn1", x))
            shortcut = t.conv(f"{unit}.downsample.0", a, stride) if j == 0 else x
            y = F.relu(t.bn(f"{unit}.bn2", t.conv(f"{unit}.conv1", a, stride)))
            y = F.relu(t.bn(f"{unit}.bn3", t.conv(f"{unit}.conv2", y)))
            x = shortcut + t.conv(f"{unit}.conv3", y)
    return t.classify(F.relu(t.bn("norm", x)))


def zagoruyko2016(t: Tensors, x: Tensor, n: int) -> Tensor:
    """1605.07146, Table 1 and section 2: widened pre-activation units of two 3x3."""
    x = t.conv("conv1", x)
    for stage in (1, 2, 3):
        for j in range(n):
            unit = f"layer{stage}.{j}"
            stride = 2 if stage > 1 and j == 0 else 1
            a = F.relu(t.bn(f"{unit}.bn1", x))
            shortcut = t.conv(f"{unit}.downsample.0", a, stride) if j == 0 else x
            y = t.conv(f"{unit}.conv1", a, stride)
            x = shortcut + t.conv(f"{unit}.conv2", F.relu(t.bn(f"{unit}.bn2", y)))
    return t.classify(F.relu(t.bn("norm", x)))


FUNCTIONS: list[tuple[str, dict[str, str], Callable[[Tensors, Tensor], Tensor]]] = [
    ("resnet20", {}, lambda t, x: he2015(t, x, 3, "A")),
    ("resnet20", {"shortcut": "A-split"}, lambda t, x: he2015(t, x, 3, "A-split")),
    ("resnet56", {}, lambda t, x: he2015(t, x, 9, "A")),
    ("resnet110", {}, lambda t, x: he2015(t, x, 18, "A")),
    ("plain20", {}, lambda t, x: he2015(t, x, 3, "none")),
    ("preresnet110", {}, he2016_110),
    ("preresnet164", {}, he2016_164),
    ("wrn16_4", {}, lambda t, x: zagoruyko2016(t, x, 2)),
    ("wrn28_10", {}, lambda t, x: zagoruyko2016(t, x, 4)),
]


@pytest.mark.parametrize(
    ("name", "fields", "reference"),
    FUNCTIONS,
    ids=["-".join([name, *fields.values()]) for name, fields, _ in FUNCTIONS],
)
def test_equals_the_paper_written_out(
    name: str, fields: dict[str, str], reference: Callable[[Tensors, Tensor], Tensor]
) -> None:
    torch.manual_seed(1)
    net = ResNet(architecture(name, **fields))
    randomise(net, 17)
    state = {n: v.clone() for n, v in net.state_dict().items()}
    for parameter, _ in net.named_parameters():
        state[parameter].requires_grad_()
    x = torch.randn(4, 3, 17, 17, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = reference(Tensors(state, training=False), x)
        assert difference(net.eval()(x), expected) <= BOUND
    expected, actual = reference(Tensors(state, training=True), x), net.train()(x)
    assert difference(actual, expected) <= BOUND
    for buffer, value in net.named_buffers():
        if "running" in buffer:
            assert difference(value, state[buffer]) <= BOUND, buffer
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    expected.backward(direction)
    actual.backward(direction)
    for parameter, value in net.named_parameters():
        grad = state[parameter].grad
        assert grad is not None
        assert grad.abs().max() > 0, parameter
        assert value.grad is not None
        assert difference(value.grad, grad) <= BOUND, parameter


# Counts


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        *((f"resnet{depth}", f"resnet{depth}") for depth in (18, 34, 50, 101, 152)),
        *((f"preresnet{depth}", f"resnetv2_{depth}") for depth in (50, 101, 152)),
        ("preresnet200", "resnetv2_50"),
        ("resnet50d", "resnet50d"),
        ("resnext50_32x4d", "resnext50_32x4d"),
        ("resnext101_32x8d", "resnext101_32x8d"),
        ("wide_resnet50_2", "wide_resnet50_2"),
        ("wide_resnet101_2", "wide_resnet101_2"),
        ("seresnet50", "seresnet50"),
    ],
)
def test_counts_equal_those_of_torch_on_timm(name: str, oracle: str) -> None:
    fields = {"layers": [3, 24, 36, 3]} if name == "preresnet200" else {}
    with torch.device("meta"):
        net, x = timm.create_model(oracle, **fields).eval(), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        net(x)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    assert count(architecture(name)) == (parameters, counter.get_total_flops() // 2)
