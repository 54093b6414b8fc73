"""The networks: counts of every row, one contract for all of them, and each field."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skipway.architecture import ARCHITECTURES, Architecture, architecture, count
from skipway.errors import InputError
from skipway.resnet import Blur, DropPath, ResNet, SqueezeExcite, ZeroPad


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, bound: float = 1e-5) -> bool:
    assert actual.shape == expected.shape
    return bool((actual - expected).abs().max() <= bound * expected.abs().max())


# Counts

COUNTS: dict[str, tuple[int, int]] = {
    # Learnable parameters, multiply-adds of convolutions and classifier at the native size.
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnet50v1": (25_557_032, 3_857_973_248),
    "resnet101v1": (44_549_160, 7_570_194_432),
    "resnet152v1": (60_192_808, 11_282_415_616),
    "resnet18_cifar": (11_173_962, 555_422_720),
    "resnet34_cifar": (21_282_122, 1_159_402_496),
    "resnet50_cifar": (23_520_842, 1_297_829_888),
    "resnet101_cifar": (42_512_970, 2_509_983_744),
    "resnet152_cifar": (58_156_618, 3_722_137_600),
    "resnet8_speedrun": (2_057_434, 149_064_192),
    "plain18": (11_515_688, 1_794_805_760),
    "plain34": (21_623_848, 3_644_493_824),
    "resnet20": (269_722, 40_551_040),
    "resnet32": (464_154, 68_862_592),
    "resnet44": (658_586, 97_174_144),
    "resnet56": (853_018, 125_485_696),
    "resnet110": (1_727_962, 252_887_680),
    "resnet1202": (19_421_274, 2_829_238_912),
    "plain20": (269_722, 40_551_040),
    "plain32": (464_154, 68_862_592),
    "plain44": (658_586, 97_174_144),
    "plain56": (853_018, 125_485_696),
    "plain110": (1_727_962, 252_887_680),
    "preresnet110": (1_727_962, 252_887_680),
    "preresnet164": (1_703_258, 244_500_992),
    "preresnet1001": (10_327_706, 1_487_849_984),
    "preresnet50": (25_549_352, 4_089_184_256),
    "preresnet101": (44_541_480, 7_801_405_440),
    "preresnet152": (60_185_128, 11_513_626_624),
    "preresnet200": (64_666_152, 15_007_481_856),
    "resnet50d": (25_576_264, 4_328_824_832),
    "resnext50_32x4d": (25_028_904, 4_230_479_872),
    "resnext101_32x8d": (88_791_336, 16_414_015_488),
    "wide_resnet50_2": (68_883_240, 11_398_021_120),
    "wide_resnet101_2": (126_886_696, 22_753_050_624),
    "wrn28_10": (36_479_194, 5_243_328_768),
    "wrn16_4": (2_748_890, 392_612_352),
    "seresnet50": (28_088_024, 4_091_699_200),
}


def test_every_row_has_its_counts() -> None:
    assert ARCHITECTURES.keys() == COUNTS.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    assert count(ARCHITECTURES[name]) == COUNTS[name]


@pytest.mark.parametrize(
    ("name", "fields", "parameters", "macs"),
    [
        ("resnet18", {"shortcut": "A"}, 11_515_688, 1_794_805_760),
        ("resnet34", {"shortcut": "A"}, 21_623_848, 3_644_493_824),
        ("resnet34", {"shortcut": "A-split"}, 21_623_848, 3_644_493_824),
        ("resnet34", {"shortcut": "C"}, 22_716_840, None),
        ("resnet50_cifar", {"stride_in": "1x1"}, 23_520_842, 1_222_332_416),
        ("resnet101_cifar", {"stride_in": "1x1"}, 42_512_970, 2_434_486_272),
        ("resnet152_cifar", {"stride_in": "1x1"}, 58_156_618, 3_646_640_128),
    ],
)
def test_counts_with_fields(
    name: str, fields: dict[str, Any], parameters: int, macs: int | None
) -> None:
    found = count(architecture(name, **fields))
    assert found == (parameters, macs if macs is not None else found[1])


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_projections_add_the_same_to_every_cifar_net(depth: int) -> None:
    # 16x32 and 32x64 weights with a gamma and a beta for each output.
    parameters, macs = count(architecture(f"resnet{depth}", shortcut="B"))
    assert parameters - COUNTS[f"resnet{depth}"][0] == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64 == 2752
    assert macs - COUNTS[f"resnet{depth}"][1] == 16 * 32 * 16**2 + 32 * 64 * 8**2


def test_counts_of_the_1001_layer_net() -> None:
    # The first 1x1 of two units at twice the height and width: 64 (128) to 32 (64) channels less
    # what the 3x3 then does not save.
    moved = count(architecture("preresnet1001", stride_in="3x3"))
    assert moved[0] == COUNTS["preresnet1001"][0]
    extra = 3 * (64 * 32 * 16**2) + 3 * (128 * 64 * 8**2)
    assert moved[1] - COUNTS["preresnet1001"][1] == extra
    # The paper's 10.2M is without batch norm.
    with torch.device("meta"):
        net = ResNet(ARCHITECTURES["preresnet1001"])
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    affine = sum(2 * m.num_features for m in norms)
    assert COUNTS["preresnet1001"][0] - affine == 10_178_490


@pytest.mark.parametrize(("name", "n", "k"), [("wrn28_10", 4, 10), ("wrn16_4", 2, 4)])
def test_counts_of_wide_nets_by_hand(name: str, n: int, k: int) -> None:
    """1605.07146, Table 1, added up."""
    parameters, macs = 3 * 16 * 9, 3 * 16 * 9 * 32**2
    inputs = 16
    for width, size in ((16 * k, 32), (32 * k, 16), (64 * k, 8)):
        for j in range(n):
            weights = inputs * width * 9 + width * width * 9
            weights += inputs * width if j == 0 else 0
            parameters += weights + 2 * inputs + 2 * width
            macs += weights * size**2
            inputs = width
    parameters += 2 * inputs + inputs * 10 + 10
    macs += inputs * 10
    assert COUNTS[name] == (parameters, macs)


# One contract for all rows

HEAVY = {
    "resnet1202", "preresnet1001", "preresnet200", "resnet152", "resnet152v1", "resnet152_cifar",
    "preresnet152", "resnext101_32x8d", "wide_resnet101_2", "resnet101v1", "resnet101_cifar",
    "preresnet101", "wrn28_10", "wide_resnet50_2",
}  # fmt: skip


OF_EACH_KIND = {
    "resnet18", "resnet50v1", "resnet8_speedrun", "resnet20", "plain20", "preresnet50",
    "resnet50d", "resnext50_32x4d", "wrn16_4",
}  # fmt: skip


def rows(slow: set[str]) -> list[Any]:
    """Every row's name, some marked slow."""
    assert slow <= ARCHITECTURES.keys()
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in ARCHITECTURES]


def smallest(arch: Architecture) -> int:
    return 8 if arch.stem == "cifar" else 32


@pytest.mark.parametrize("name", rows(slow=HEAVY))
@torch.no_grad()
def test_contract(name: str) -> None:
    arch = ARCHITECTURES[name]
    torch.manual_seed(5)
    net = ResNet(arch).eval()
    state = net.state_dict()

    torch.manual_seed(5)
    again = ResNet(arch)
    assert list(again.state_dict()) == list(state)
    for key, value in again.state_dict().items():
        assert torch.equal(value, state[key]), key
    del again

    state, dtype = settle(net).state_dict(), net.fc.weight.dtype
    least = smallest(arch)
    square = noise(1, 3, least, least).to(dtype)
    odd = noise(1, 3, least + 9, least + 25, seed=1).to(dtype)
    assert net(square).shape == (1, arch.num_classes)
    logits = assert_outputs(net, odd)

    # The state dict round trip, once for each number of channels. On other channels the weights
    # of the first convolution are made so that the logits must be the same.
    first = next(iter(state))
    weight = state[first]
    for channels, filters, x in (
        (3, weight, odd),
        (1, weight.sum(1, keepdim=True), odd[:, :1]),
        (4, F.pad(weight, (0, 0, 0, 0, 0, 1)), F.pad(odd, (0, 0, 0, 0, 0, 1), value=9.0)),
    ):
        with torch.device("meta"):
            other = ResNet(dataclasses.replace(arch, in_channels=channels)).eval()
        other.load_state_dict(state | {first: filters}, assign=True)
        y = other(x)
        assert close(y, net(odd[:, :1].expand(-1, 3, -1, -1)) if channels == 1 else logits)


def settle(net: ResNet) -> ResNet:
    """Makes nets of a thousand layers fit for comparisons; leaves others as they are.

    At the start their activations overflow, so they get the running statistics of a batch; and
    they amplify rounding errors of float32 to some 1e-3 of the logits, so they become float64.
    """
    if len(net.units()) > 100:
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
            norm.momentum = 1.0
        net.train()(noise(2, 3, 16, 16))
        net.eval().double()
    return net


def assert_outputs(net: ResNet, x: Tensor) -> Tensor:
    """Logits of the right shape, and features, embedding and logits that agree."""
    logits, features, embedding = net(x), net.features(x), net.embed(x)
    assert logits.shape == (x.shape[0], net.arch.num_classes)
    assert torch.isfinite(logits).all()
    assert torch.equal(net.fc(embedding), logits)
    assert features.keys() == net.strides.keys() == net.channels.keys()
    assert list(features) == [f"c{i + 2}" for i in range(len(net.arch.depths))]
    for stage, feature in features.items():
        size = [-(-side // net.strides[stage]) for side in x.shape[2:]]
        assert feature.shape == (x.shape[0], net.channels[stage], *size)
    assert embedding.shape == (x.shape[0], features[stage].shape[1])
    assert close(features[stage].mean((2, 3)), embedding)
    assert (features[stage] >= 0).all()
    return logits


@pytest.mark.parametrize("name", rows(slow=ARCHITECTURES.keys() - OF_EACH_KIND))
@torch.no_grad()
def test_export(name: str) -> None:
    arch = ARCHITECTURES[name]
    net = settle(ResNet(arch).eval())
    size, dtype = smallest(arch), net.fc.weight.dtype
    program = torch.export.export(net, (noise(1, 3, size, size).to(dtype),))
    x = noise(1, 3, size, size, seed=1).to(dtype)
    assert close(program.module()(x), net(x))


def test_strides_and_channels() -> None:
    net = ResNet(ARCHITECTURES["resnet50"])
    assert net.strides == {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
    assert net.channels == {"c2": 256, "c3": 512, "c4": 1024, "c5": 2048}
    net = ResNet(ARCHITECTURES["resnet20"])
    assert net.strides == {"c2": 1, "c3": 2, "c4": 4}
    assert net.channels == {"c2": 16, "c3": 32, "c4": 64}


def test_different_seeds_give_different_nets() -> None:
    torch.manual_seed(1)
    one = ResNet(ARCHITECTURES["resnet20"])
    torch.manual_seed(2)
    assert not torch.equal(one.conv1.weight, ResNet(ARCHITECTURES["resnet20"]).conv1.weight)


def test_initialisation_has_the_fan_out_deviation() -> None:
    net = ResNet(ARCHITECTURES["resnet50"])
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 100_000:
            kernel = module.kernel_size[0] * module.kernel_size[1]
            expected = (2 / (module.out_channels * kernel)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.02)
            assert abs(module.weight.mean().item()) < 0.02 * expected


def test_xavier_scales_the_draws_of_he() -> None:
    """Both are normal; the ratio of deviations is that of the formulas (Glorot and Bengio 2010,
    eq. 12, over 1502.01852, eq. 14), for each convolution by its own fans."""
    nets = []
    for init in ("he", "xavier"):
        torch.manual_seed(0)
        nets.append(ResNet(architecture("resnet20", init=init)))
    he, xavier = (dict(net.named_modules()) for net in nets)
    found = {name: m for name, m in xavier.items() if isinstance(m, nn.Conv2d)}
    assert len(found) == 19
    for name, module in found.items():
        inputs, outputs = module.in_channels * 9, module.out_channels * 9
        ratio = (2 / (inputs + outputs) / (2 / outputs)) ** 0.5
        torch.testing.assert_close(module.weight, he[name].weight * ratio)


# Any combination of fields


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    """Small nets of every kind."""
    stages = draw(st.integers(1, 3))
    block = draw(st.sampled_from(["basic", "bottleneck"]))
    shortcut = draw(st.sampled_from(["A", "A-split", "B", "C", "D", "none"]))
    fields: dict[str, Any] = {}
    if block == "bottleneck":
        fields |= {
            "groups": draw(st.sampled_from([1, 2])),
            "base_width": draw(st.sampled_from([16, 64, 96])),
            "stride_in": draw(st.sampled_from(["3x3", "1x1"])),
        }
    if shortcut != "none":
        fields |= {"drop_path": draw(st.sampled_from([0.0, 0.2]))}
    return Architecture(
        block=block,
        depths=tuple(draw(st.integers(1, 2)) for _ in range(stages)),
        widths=tuple(sorted(draw(st.integers(5, 9)) for _ in range(stages))),
        stem=draw(st.sampled_from(["imagenet", "deep", "cifar"])),
        stem_width=draw(st.integers(2, 5)),
        shortcut=shortcut,
        order=draw(st.sampled_from(["post", "pre"])),
        norm=draw(st.sampled_from(["batch", "none"])),
        init=draw(st.sampled_from(["he", "xavier"])),
        width=draw(st.sampled_from([0.5, 1.0, 1.5])),
        squeeze=draw(st.sampled_from([0, 4, 100])),
        antialias=draw(st.booleans()),
        checkpointing=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.1])),
        block_dropout=draw(st.sampled_from([0.0, 0.1])),
        in_channels=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(1, 5)),
        input_size=draw(st.integers(8, 40)),
        **fields,
    )


@given(architectures())
@settings(max_examples=60, derandomize=True)
def test_any_combination_of_fields(arch: Architecture) -> None:
    """It infers, it counts as an independent counter counts, and every parameter learns."""
    torch.manual_seed(0)
    net = ResNet(arch).eval()
    x = noise(1, arch.in_channels, arch.input_size, arch.input_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x)
    # The blur is no weighted layer of the net; its multiply-adds are not part of the count.
    blurs = sum(y.numel() * 9 for y in blurred(net, x))
    parameters = sum(p.numel() for p in net.parameters())
    assert count(arch) == (parameters, counter.get_total_flops() // 2 - blurs)
    with torch.no_grad():
        assert_outputs(net, noise(2, arch.in_channels, 9, 14))

    net.train()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, std=0.5)  # A dead ReLU would hide a missing gradient.
    net(noise(16, arch.in_channels, 18, 18)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def blurred(net: ResNet, x: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    blurs = [m for m in net.modules() if isinstance(m, Blur)]
    hooks = [m.register_forward_hook(lambda _m, _x, y: outputs.append(y)) for m in blurs]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return outputs


# Fields


def test_shortcuts_are_where_the_paper_puts_them() -> None:
    """2015, section 4.1, on ResNet-34: 3 units change the shape, 13 do not."""

    def kinds(shortcut: str) -> list[str]:
        net = ResNet(architecture("resnet34", shortcut=shortcut))
        return [type(unit.downsample).__name__ for unit in net.units().values()]

    changing = {3, 7, 13}
    for shortcut, kind in (("A", "ZeroPad"), ("A-split", "ZeroPad"), ("B", "Sequential")):
        assert kinds(shortcut) == [kind if i in changing else "Identity" for i in range(16)]
    assert kinds("C") == ["Sequential"] * 16


@torch.no_grad()
@pytest.mark.parametrize(("shortcut", "start"), [("A", 0), ("A-split", 8)])
def test_zero_padded_shortcut(shortcut: str, start: int) -> None:
    unit = ResNet(architecture("resnet20", shortcut=shortcut)).eval().units()["layer2.0"]
    nn.init.zeros_(unit.bn2.weight)
    x = noise(2, 16, 7, 10).abs()
    y = unit(x)
    assert y.shape == (2, 32, 4, 5)
    assert torch.equal(y[:, start : start + 16], x[:, :, ::2, ::2])
    assert y[:, :start].count_nonzero() == y[:, start + 16 :].count_nonzero() == 0


@torch.no_grad()
def test_pooled_shortcut_sees_every_pixel() -> None:
    """ResNet-D exists because a strided 1x1 ignores three quarters of its input."""
    x = torch.zeros(1, 64, 8, 8)
    x[:, :, 1::2, 1::2] = 1
    seen = {}
    for shortcut in ("B", "D"):
        net = ResNet(architecture("resnet18", shortcut=shortcut)).eval()
        seen[shortcut] = net.units()["layer2.0"].downsample(x).abs().max().item()
    assert seen["B"] == 0
    assert seen["D"] > 0


@torch.no_grad()
def test_plain_units_have_no_shortcut() -> None:
    for order in ("post", "pre"):
        net = ResNet(architecture("plain20", order=order)).eval()
        unit = net.units()["layer1.1"]
        for module in (unit.conv2, unit.bn2):
            nn.init.zeros_(module.weight)
        assert unit(noise(1, 16, 8, 8)).count_nonzero() == 0


def test_stems() -> None:
    def shapes(stem: str) -> list[tuple[int, ...]]:
        net = ResNet(architecture("resnet18", stem=stem))
        convolutions = [m for m in net.conv1.modules() if isinstance(m, nn.Conv2d)]
        return [(*m.weight.shape, m.stride[0]) for m in convolutions]

    assert shapes("imagenet") == [(64, 3, 7, 7, 2)]
    assert shapes("cifar") == [(64, 3, 3, 3, 1)]
    assert shapes("deep") == [(32, 3, 3, 3, 2), (32, 32, 3, 3, 1), (64, 32, 3, 3, 1)]


def test_width_multiplies_every_width() -> None:
    halved = ResNet(architecture("resnet50", width=0.5)).state_dict()
    by_hand = ResNet(architecture("resnet50", widths=(32, 64, 128, 256), stem_width=32))
    shapes = {n: v.shape for n, v in by_hand.state_dict().items()}
    assert {n: v.shape for n, v in halved.items()} == shapes
    assert count(architecture("resnext50_32x4d", width=0.1))[0] > 0


def test_groups() -> None:
    net = ResNet(architecture("resnet50", groups=32, base_width=4))
    for unit in net.units().values():
        assert unit.conv2.groups == 32
    assert net.units()["layer1.0"].conv2.weight.shape == (128, 4, 3, 3)
    assert count(net.arch) == COUNTS["resnext50_32x4d"]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "seresnet50", "preresnet110", "wrn16_4"])
def test_zero_init_last_starts_every_unit_as_its_shortcut(name: str) -> None:
    torch.manual_seed(0)
    net = ResNet(architecture(name, zero_init_last=True)).eval()
    checked = 0
    for unit_name, unit in net.units().items():
        inputs = next(m for m in unit.modules() if isinstance(m, nn.Conv2d)).in_channels
        x = noise(1, inputs, 8, 8)
        if isinstance(unit.downsample, nn.Identity) and unit_name != "layer1.0":
            expected = x if net.arch.order == "pre" else x.relu()
            with torch.no_grad():
                assert torch.equal(unit(x), expected)
            checked += 1
    assert checked >= 3


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_a_net_without_norms_has_none_and_is_what_the_papers_write(block: str, order: str) -> None:
    torch.manual_seed(0)
    arch = architecture("resnet20", block=block, order=order, shortcut="B", norm="none")
    net = ResNet(arch)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    x, given = noise(2, 3, 16, 16), noise(2, 3, 16, 16).clone()
    y = net.conv1(x) if order == "pre" else net.conv1(x).relu()
    for unit in net.units().values():
        shortcut = y.relu() if order == "pre" and unit.shared else y
        inner = y.relu() if order == "pre" else y
        last = 3 if block == "bottleneck" else 2
        for i in range(1, last + 1):
            inner = unit.get_submodule(f"conv{i}")(inner)
            inner = inner.relu() if i < last else inner
        y = inner + unit.downsample(shortcut)
        y = y if order == "pre" else y.relu()
    torch.testing.assert_close(net(x), net.fc(y.relu().mean((2, 3))))
    assert torch.equal(x, given)


@pytest.mark.parametrize("order", ["post", "pre"])
def test_without_norms_zero_init_last_starts_the_last_convolution_at_zero(order: str) -> None:
    net = ResNet(architecture("resnet20", order=order, norm="none", zero_init_last=True))
    for unit in net.units().values():
        padded = order == "post" and isinstance(unit.downsample, ZeroPad)
        assert bool(unit.get_submodule("conv2").weight.any()) == padded


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_zero_init_last_still_learns(block: str, order: str, norm: str, shortcut: str) -> None:
    torch.manual_seed(0)
    fields: dict[str, Any] = {"block": block, "order": order, "norm": norm}
    fields |= {"shortcut": shortcut, "zero_init_last": True}
    net = ResNet(architecture("resnet20", **fields)).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(3):
        optimizer.zero_grad()
        net(noise(8, 3, 16, 16, seed=step)).square().sum().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.count_nonzero() > 0, name


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.3).train()
    y = drop(torch.ones(20_000, 2, 1, 2))
    assert torch.equal(y, y[:, :1, :, :1].expand_as(y))
    kept = y[:, 0, 0, 0]
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    # Four standard errors of the mean of a Bernoulli variable scaled by 1 / 0.7.
    assert kept.mean().item() == pytest.approx(1, abs=4 * (0.3 / 0.7 / 20_000) ** 0.5)
    x = noise(3, 2, 4, 4)
    assert torch.equal(drop.eval()(x), x)


def test_drop_path_rises_linearly_and_vanishes_in_eval() -> None:
    net = ResNet(architecture("resnet20", drop_path=0.4)).eval()
    rates = [getattr(unit.drop, "rate", 0.0) for unit in net.units().values()]
    assert rates == pytest.approx([0.4 * i / 8 for i in range(9)])
    without = ResNet(architecture("resnet20")).eval()
    without.load_state_dict(net.state_dict())
    x = noise(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(net(x), without(x))
        assert not close(net.train()(x), without.train()(x))


@pytest.mark.parametrize("order", ["post", "pre"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_dropout_is_before_second_convolutions_and_the_classifier(block: Any, order: Any) -> None:
    """Of the rate that was asked for, the rest scaled up; and only in training."""
    fields: dict[str, Any] = {"block": block, "order": order, "shortcut": "B", "width": 0.5}
    net = ResNet(architecture("resnet20", **fields, dropout=0.75, block_dropout=0.25))
    without = ResNet(architecture("resnet20", **fields))
    assert net.state_dict().keys() == without.state_dict().keys()
    without.load_state_dict(net.state_dict())
    assert count(net.arch) == count(without.arch)
    x = noise(64, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(net.eval()(x), without.eval()(x))

    into: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if name.endswith("relu"):  # what conv2 would be given, no value of it 0 before
            module.register_forward_hook(lambda m, i, y: torch.ones_like(y))
        elif name.endswith("conv2"):
            module.register_forward_pre_hook(lambda m, i, n=name: into.update({n: i[0]}))
    with torch.no_grad():
        net.train()(x)
        ones = torch.ones(4000, net.fc.in_features)
        nn.init.eye_(net.fc.weight)
        nn.init.zeros_(net.fc.bias)
        into["fc"] = net.fc(ones)[:, : min(net.fc.weight.shape)]
    assert len(into) == 10
    for name, seen in into.items():
        rate = 0.75 if name == "fc" else 0.25
        values = seen.unique()
        assert values.tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-6), name
        share = (seen == 0).double().mean().item()
        deviation = (rate * (1 - rate) / seen.numel()) ** 0.5
        assert share == pytest.approx(rate, abs=5 * deviation), name
    assert torch.equal(net.fc.eval()(ones), F.linear(ones, net.fc.weight))


def test_recomputed_units_drop_the_same_again() -> None:
    found = []
    for checkpointing in (False, True):
        fields = {"block_dropout": 0.3, "width": 0.5, "checkpointing": checkpointing}
        torch.manual_seed(0)
        net = ResNet(architecture("resnet20", **fields)).train()
        net(noise(2, 3, 8, 8)).sum().backward()
        found.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # type: ignore[arg-type]


@torch.no_grad()
def test_squeeze_and_excitation_weighs_channels_by_their_mean() -> None:
    se = SqueezeExcite(8, 4)
    x = noise(2, 8, 5, 3)
    hidden = x.mean((2, 3)) @ se.fc1.weight[:, :, 0, 0].T + se.fc1.bias
    weight = torch.sigmoid(hidden.relu() @ se.fc2.weight[:, :, 0, 0].T + se.fc2.bias)
    assert close(se(x), x * weight[:, :, None, None])


def test_squeeze_reduces_every_unit() -> None:
    net = ResNet(ARCHITECTURES["seresnet50"])
    assert {unit.se.fc1.out_channels for unit in net.units().values()} == {16, 32, 64, 128}


@torch.no_grad()
def test_blur_is_the_binomial_filter() -> None:
    blur = Blur(2, 2)
    assert close(blur(torch.full((1, 2, 7, 9), 3.0)), torch.full((1, 2, 4, 5), 3.0))
    x = noise(1, 2, 7, 9)
    window = x[:, :, 1:4, 3:6]
    weights = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    assert close(blur(x)[:, :, 1, 2], (window * weights).sum((2, 3)))
    assert blur(x[:, :, :1, :1]).shape == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", {}),
        ("resnet50", {}),
        ("resnet50v1", {}),
        ("preresnet50", {}),
        ("resnet20", {}),
        ("resnet18", {"shortcut": "D", "stem": "deep"}),
    ],
)
def test_antialias_leaves_no_strided_weight_in_a_branch(name: str, fields: dict[str, Any]) -> None:
    plain = ResNet(architecture(name, **fields)).eval()
    net = ResNet(architecture(name, antialias=True, **fields)).eval()
    assert net.state_dict().keys() == plain.state_dict().keys()
    for unit in net.units().values():
        for convolution in (getattr(unit, f"conv{i}", None) for i in (1, 2, 3)):
            assert convolution is None or convolution.stride == (1, 1)
    strided = sum(s > 1 for s in net.strides.values()) - (net.arch.stem != "cifar")
    expected = strided + (net.arch.stem != "cifar")
    assert sum(isinstance(m, Blur) for m in net.modules()) == expected
    with torch.no_grad():
        assert_outputs(net, noise(1, 3, 33, 47))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet20", {}),
        ("resnet20", {"drop_path": 0.5}),
        ("plain20", {}),
        ("preresnet164", {"depths": (2, 2, 2)}),
        ("resnet50", {"widths": (8, 8, 16, 16), "squeeze": 4, "antialias": True}),
    ],
)
def test_checkpointing_changes_nothing_but_memory(name: str, fields: dict[str, Any]) -> None:
    torch.manual_seed(0)
    kept = ResNet(architecture(name, **fields)).train()
    recomputed = ResNet(architecture(name, checkpointing=True, **fields)).train()
    recomputed.load_state_dict(copy.deepcopy(kept.state_dict()))
    calls = {"kept": 0, "recomputed": 0}
    for label, net in (("kept", kept), ("recomputed", recomputed)):

        def called(*_: Any, label: str = label) -> None:
            calls[label] += 1

        net.units()["layer2.0"].conv1.register_forward_hook(called)
    for step in range(2):
        x = noise(4, 3, 32, 32, seed=step)
        outputs = []
        for net in (kept, recomputed):
            torch.manual_seed(step)
            net.zero_grad()
            y = net(x)
            y.square().sum().backward()
            outputs.append(y.detach())
        assert torch.equal(*outputs)
    assert calls == {"kept": 2, "recomputed": 4}
    ours = dict(recomputed.named_parameters())
    for parameter, value in kept.named_parameters():
        assert value.grad is not None
        assert torch.equal(ours[parameter].grad, value.grad), parameter
    for key, value in kept.state_dict().items():
        assert torch.equal(recomputed.state_dict()[key], value), key
    assert recomputed.get_buffer("layer1.0.bn1.num_batches_tracked") == 2


def test_checkpointing_leaves_frozen_statistics_alone() -> None:
    net = ResNet(architecture("resnet20", checkpointing=True)).train()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()
    before = copy.deepcopy(net.state_dict())
    other = copy.deepcopy(net)
    other.eval()
    x = noise(2, 3, 16, 16)
    for model in (net, other):
        model(x).square().sum().backward()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key
    theirs = dict(other.named_parameters())
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad, theirs[name].grad), name


def test_normalisation_constants_reach_every_norm() -> None:
    net = ResNet(architecture("resnet50d", bn_eps=1e-3, bn_momentum=0.01, shortcut="D"))
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


# Bad fields


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("resnet20", {"shortct": "A"}, "'shortcut'"),
        ("resnet20", {"antialiased": True}, "'antialias'"),
        ("resnt50", {}, "'resnet50'"),
        ("preresnet1002", {}, "'preresnet1001'"),
        ("resnet20", {"shortcut": "E"}, "shortcut: 'E'"),
        ("resnet20", {"stem": "vgg"}, "stem: 'vgg'"),
        ("resnet20", {"order": None}, "order: None"),
        ("resnet20", {"norm": "layer"}, "norm: 'layer' is not one of batch, none"),
        ("resnet20", {"init": 0}, "init: 0 is not one of he, xavier"),
        ("resnet8_speedrun", {"norm": "none"}, "stem: whitened needs batch norm"),
        ("resnet20", {"groups": 2}, "groups"),
        ("resnet20", {"stride_in": "1x1"}, "stride_in"),
        ("plain20", {"zero_init_last": True}, "zero_init_last"),
        ("plain20", {"drop_path": 0.1}, "drop_path"),
        ("resnet20", {"drop_path": 1.0}, "drop_path"),
        ("resnet20", {"drop_path": "0.1"}, "drop_path"),
        ("resnet20", {"width": 0}, "width"),
        ("resnet20", {"width": float("nan")}, "width"),
        ("resnet20", {"width": "2"}, "width"),
        ("resnet20", {"squeeze": -1}, "squeeze"),
        ("resnet20", {"in_channels": 0}, "in_channels"),
        ("resnet20", {"num_classes": 2.5}, "num_classes"),
        ("resnet20", {"depths": ()}, "depths"),
        ("resnet20", {"depths": 3}, "depths"),
        ("resnet20", {"depths": (3, 0, 3)}, "depths"),
        ("resnet20", {"depths": (3, 3, 3, 3)}, "depths"),
        ("resnet20", {"widths": (16, 32, 0)}, "widths"),
        ("resnet20", {"widths": (64, 32, 16)}, "shortcut"),
        ("resnet20", {"stem_width": 64}, "shortcut"),
    ],
)
def test_bad_fields_are_said(name: str, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        architecture(name, **fields)
    text = str(caught.value)
    assert said in text
    assert len(text.splitlines()) <= 3
    assert caught.value.exit_code == 2


def test_bad_names_are_shown_harmless() -> None:
    with pytest.raises(InputError) as caught:
        architecture("res\x1b[31mnet\u202e")
    assert text_is_plain(str(caught.value))
    with pytest.raises(InputError) as caught:
        architecture("resnet20", **{"short\x1b[31mcut": "A"})
    assert text_is_plain(str(caught.value))


def text_is_plain(text: str) -> bool:
    return all(char == "\n" or char.isprintable() for char in text)


def test_fields_replace_and_rows_stay() -> None:
    arch = architecture("resnet20", num_classes=7, depths=[1, 1, 1])
    assert (arch.num_classes, arch.depths) == (7, (1, 1, 1))
    assert ARCHITECTURES["resnet20"].num_classes == 10
    assert hash(arch) == hash(architecture("resnet20", num_classes=7, depths=(1, 1, 1)))
