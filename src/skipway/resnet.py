"""The residual network: one module that is driven by an `Architecture`.

Sources: He et al. 2015, "Deep Residual Learning for Image Recognition" (1512.03385), below
"2015"; He et al. 2016, "Identity Mappings in Deep Residual Networks" (1603.05027), "2016".
Parameter names are torchvision's, so that its weights load as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skipway.architecture import Architecture


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps height and width at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def norm(arch: Architecture, channels: int) -> nn.Module:
    """The norm of so many channels, nothing where the net has none."""
    if arch.norm == "none":
        return nn.Identity()
    return nn.BatchNorm2d(channels, arch.bn_eps, arch.bn_momentum)


class ZeroPad(nn.Module):
    """Shortcut A: every stride-th pixel, missing channels zero (2015, section 4.1)."""

    def __init__(self, inputs: int, outputs: int, stride: int, split: bool) -> None:
        super().__init__()
        self.stride = stride
        missing = outputs - inputs
        self.before = missing // 2 if split else 0
        self.after = missing - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


class SqueezeExcite(nn.Module):
    """Channels weighted by what all pixels say (1709.01507, section 3)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, max(channels // reduction, 1), 1)
        self.fc2 = nn.Conv2d(max(channels // reduction, 1), channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * weight.sigmoid()


class DropPath(nn.Module):
    """Stochastic depth: in training the branch of a whole image is dropped (1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class Whitening(nn.Conv2d):
    """A 2x2 convolution that keeps height and width; its filters are made from the training images
    (`training.whitening`)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Classifier(nn.Linear):
    """The classifier behind dropout (1207.0580): in training a value of an embedding is 0 with
    probability `rate`, the others are scaled up by 1 / (1 - rate)."""

    def __init__(self, inputs: int, outputs: int, rate: float) -> None:
        super().__init__(inputs, outputs)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, self.rate, self.training))


class Blur(nn.Module):
    """Binomial 3x3 low-pass, then sub-sampling (1904.11486, section 3.2)."""

    kernel: Tensor

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        row = torch.tensor([0.25, 0.5, 0.25])
        kernel = (row[:, None] * row).expand(channels, 1, 3, 3).clone()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect" if min(x.shape[2:]) > 1 else "replicate")
        return F.conv2d(x, self.kernel, stride=self.stride, groups=self.channels)


class Unit(nn.Module):
    """One residual unit after 2015, eq. 1-2: ``y = ReLU(F(x) + shortcut(x))``.

    Input [B, inputs, H, W], output [B, width * expansion, H / stride, W / stride]. Subclasses
    give F as `branch`; its last operation is a batch norm, in `PreUnit` and in nets without norms a
    convolution.
    """

    conv1: nn.Module
    conv2: nn.Module
    conv3: nn.Module
    bn1: nn.Module
    bn2: nn.Module
    bn3: nn.Module

    def __init__(
        self, arch: Architecture, inputs: int, width: int, stride: int, first: bool, drop: float
    ) -> None:
        super().__init__()
        outputs = width * arch.expansion
        changes = stride != 1 or inputs != outputs
        self.shared = changes or first
        self.blur1: nn.Module = nn.Identity()
        self.blur2: nn.Module = nn.Identity()
        pools = stride > 1 and arch.subsample == "max-pool"
        for i, (cin, cout, kernel, step, groups) in enumerate(
            self.plan(arch, inputs, width, 1 if pools else stride), 1
        ):
            if arch.antialias and step > 1:
                self.add_module(f"blur{i}", Blur(cout, step))
                step = 1
            self.add_module(f"conv{i}", conv(cin, cout, kernel, step, groups))
            channels = cin if arch.order == "pre" else cout
            self.add_module(f"bn{i}", norm(arch, channels))
        self.pool: nn.Module = nn.Identity()
        if pools:
            self.pool = nn.MaxPool2d(2, ceil_mode=True)
        # Without a norm before it, the first ReLU of a pre-activation unit takes what its shortcut
        # needs.
        self.relu = nn.ReLU(inplace=arch.norm != "none" or arch.order == "post")
        self.se = SqueezeExcite(outputs, arch.squeeze) if arch.squeeze else nn.Identity()
        self.drop = DropPath(drop) if drop else nn.Identity()
        self.dropout = nn.Dropout(arch.block_dropout) if arch.block_dropout else nn.Identity()
        self.plain = arch.shortcut == "none"
        self.downsample: nn.Module = nn.Identity()
        if not self.plain and (changes or arch.shortcut == "C"):
            self.downsample = projection(arch, inputs, outputs, stride)

    @staticmethod
    def plan(
        arch: Architecture, inputs: int, width: int, stride: int
    ) -> list[tuple[int, int, int, int, int]]:
        """The convolutions of F: channels in, channels out, kernel, stride, groups."""
        if arch.block == "basic":
            return [(inputs, width, 3, stride, 1), (width, width, 3, 1, 1)]
        inner = max(int(width * arch.base_width / 64), 1) * arch.groups
        in_1x1, in_3x3 = (stride, 1) if arch.stride_in == "1x1" else (1, stride)
        return [
            (inputs, inner, 1, in_1x1, 1),
            (inner, inner, 3, in_3x3, arch.groups),
            (inner, width * arch.expansion, 1, 1, 1),
        ]

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def residual(self, x: Tensor) -> Tensor:
        """F(x), with squeeze-and-excitation and stochastic depth where the net has them."""
        return self.drop(self.se(self.branch(x)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.residual(x)
        if not self.plain:
            y = y + self.downsample(x)
        return F.relu(y, inplace=True)


class BasicUnit(Unit):
    def branch(self, x: Tensor) -> Tensor:
        x = self.blur1(self.relu(self.bn1(self.pool(self.conv1(x)))))
        return self.bn2(self.conv2(self.dropout(x)))


class BottleneckUnit(Unit):
    def branch(self, x: Tensor) -> Tensor:
        x = self.blur1(self.relu(self.bn1(self.conv1(x))))
        x = self.blur2(self.relu(self.bn2(self.conv2(self.dropout(x)))))
        return self.bn3(self.conv3(x))


class PreUnit(Unit):
    """One residual unit after 2016, eq. 4-5: ``y = x + F(x)``, F = weight(ReLU(BN(.))) repeated.

    Where the shape changes, and in the first unit of the net, the shortcut is fed by the first
    activation too (2016, appendix; in the authors' code every unit that changes the channels).
    """

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        y = self.residual(activated)
        if not self.plain:
            y = y + self.downsample(activated if self.shared else x)
        return y


class PreBasicUnit(PreUnit):
    def branch(self, x: Tensor) -> Tensor:
        x = self.blur1(self.conv1(x))
        return self.conv2(self.dropout(self.relu(self.bn2(x))))


class PreBottleneckUnit(PreUnit):
    def branch(self, x: Tensor) -> Tensor:
        x = self.blur1(self.conv1(x))
        x = self.blur2(self.conv2(self.dropout(self.relu(self.bn2(x)))))
        return self.conv3(self.relu(self.bn3(x)))


UNITS: dict[tuple[str, str], type[Unit]] = {
    ("basic", "post"): BasicUnit,
    ("bottleneck", "post"): BottleneckUnit,
    ("basic", "pre"): PreBasicUnit,
    ("bottleneck", "pre"): PreBottleneckUnit,
}


def projection(arch: Architecture, inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut of a unit that changes the shape (2015, section 3.3 and 4.1)."""
    if arch.shortcut in ("A", "A-split"):
        return ZeroPad(inputs, outputs, stride, split=arch.shortcut == "A-split")
    steps: list[nn.Module] = []
    if arch.shortcut == "D":
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
        steps, stride = [pool if stride > 1 else nn.Identity()], 1
    steps.append(conv(inputs, outputs, 1, stride))
    if arch.order == "post":
        steps.append(norm(arch, outputs))
    return nn.Sequential(*steps)


class ResNet(nn.Module):
    """A residual network after its `Architecture`.

    Input: float [B, in_channels, H, W], normalised as the model's card says; H and W at least
    32 px with an ImageNet stem and 8 px with the CIFAR stem. Output: logits
    [B, num_classes]. `strides` and `channels` give, by stage name, the stride against the input
    in pixels and the channels of `features`.

    To have logits and embedding from one pass: ``e = net.embed(x); logits = net.fc(e)``.
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        stem_width = arch.stem_channels
        self.conv1 = stem(arch, stem_width)
        self.bn1 = norm(arch, stem_width) if arch.order == "post" else nn.Identity()
        self.relu = nn.ReLU(inplace=True) if arch.order == "post" else nn.Identity()
        self.maxpool = max_pool(arch, stem_width)
        stride = arch.stem_stride
        inputs = stem_width
        self.strides: dict[str, int] = {}
        self.channels: dict[str, int] = {}
        unit, rates = UNITS[arch.block, arch.order], drop_rates(arch)
        for i, (depth, width) in enumerate(zip(arch.depths, arch.widths, strict=False)):
            width = max(round(width * arch.width), 1)
            units = []
            for j in range(depth):
                step = 2 if arch.halves(i) and j == 0 else 1
                units.append(unit(arch, inputs, width, step, i == j == 0, next(rates)))
                inputs = width * arch.expansion
                stride *= step
            self.add_module(f"layer{i + 1}", nn.Sequential(*units))
            self.strides[f"c{i + 2}"] = stride
            self.channels[f"c{i + 2}"] = inputs
        self.norm = norm(arch, inputs) if arch.order == "pre" else nn.Identity()
        self.fc = nn.Linear(inputs, arch.num_classes)
        if arch.dropout:
            self.fc = Classifier(inputs, arch.num_classes, arch.dropout)
        self.initialise()

    def initialise(self) -> None:
        """He initialisation with the fan-out (1502.01852, section 2.2, the backward case), or
        Xavier's, normal too: from one seed the same draws, scaled."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                if self.arch.init == "he":
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                else:
                    nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.arch.zero_init_last:
            for unit in self.units().values():
                if self.arch.order == "post" and isinstance(unit.downsample, ZeroPad):
                    continue  # the padded channels would be 0 on both sides, for good
                # Before a ReLU a gamma of 0 would stay 0: its gradient is 0 as well.
                kind = "conv" if self.arch.order == "pre" or self.arch.norm == "none" else "bn"
                last = kind + ("3" if self.arch.block == "bottleneck" else "2")
                nn.init.zeros_(unit.get_submodule(last).get_parameter("weight"))

    def stages(self) -> list[nn.Sequential]:
        """The stages, each a sequence of units: conv2_x to conv5_x in 2015, Table 1."""
        return [getattr(self, f"layer{i + 1}") for i in range(len(self.arch.depths))]

    def units(self) -> dict[str, Unit]:
        """All residual units by name (``layer1.0``), from input to output."""
        return {n: m for n, m in self.named_modules() if isinstance(m, Unit)}

    def stem(self, x: Tensor) -> Tensor:
        """What the stem puts out before its max-pool: [B, arch.stem_channels, h, w], half the
        input's height and width where it strides.

        In a pre-activation net it is the convolution's output.
        """
        stem: Tensor = self.relu(self.bn1(self.conv1(x)))
        return stem

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """The output of each stage, `c2` onwards: [B, channels[c], H / strides[c], W / strides[c]].

        In a pre-activation net all but the last are the sums before any batch norm and ReLU.
        """
        return self.after(self.stem(x))

    def after(self, stem: Tensor) -> dict[str, Tensor]:
        """The same, from the output of the stem."""
        x = self.maxpool(stem)
        features = {}
        for name, stage in zip(self.strides, self.stages(), strict=True):
            for unit in stage:
                x = recomputed(unit, x) if self.arch.checkpointing and self.training else unit(x)
            features[name] = x
        if self.arch.order == "pre":
            features[name] = F.relu(self.norm(x))
        return features

    def embed(self, x: Tensor) -> Tensor:
        """The globally average-pooled last stage: [B, channels of the last stage]."""
        *_, last = self.features(x).values()
        return last.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.embed(x))


def stem(arch: Architecture, width: int) -> nn.Module:
    """The first convolution: [B, in_channels, H, W] to [B, width, H / s, W / s], s 2 or 1."""
    if arch.stem == "imagenet":
        return conv(arch.in_channels, width, 7, 2)
    if arch.stem == "cifar":
        return conv(arch.in_channels, width, 3)
    if arch.stem == "whitened":
        return Whitening(arch.in_channels, width, 2, bias=False).requires_grad_(False)
    half = max(width // 2, 1)
    layers: list[nn.Module] = []
    for inputs, stride in ((arch.in_channels, 2), (half, 1)):
        layers += [
            conv(inputs, half, 3, stride),
            norm(arch, half),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, conv(half, width, 3))


def max_pool(arch: Architecture, width: int) -> nn.Module:
    """The stem's 3x3 max-pool, none with the CIFAR and the whitened stem."""
    if arch.stem_stride == 1:
        return nn.Identity()
    if arch.antialias:
        return nn.Sequential(nn.MaxPool2d(3, 1, 1), Blur(width, 2))
    return nn.MaxPool2d(3, 2, 1)


def drop_rates(arch: Architecture) -> Iterator[float]:
    """Stochastic depth's rate of each unit, linear from 0 to `drop_path`."""
    units = sum(arch.depths)
    return (arch.drop_path * i / max(units - 1, 1) for i in range(units))


@contextlib.contextmanager
def statistics_held(module: nn.Module) -> Iterator[None]:
    """Batch norms in training normalise by the batch as ever, and do not count it: another forward
    pass of it does. They save as many tensors for the backward pass, so that statistics stay in
    use, at momentum 0."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    kept = [(m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


def recomputed(unit: nn.Module, x: Tensor) -> Tensor:
    """``unit(x)`` whose activations are computed again in the backward pass."""

    y: Tensor = checkpoint(
        unit,
        x,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), statistics_held(unit)),
    )
    return y


def as_read(body: ResNet, stage: str, x: Tensor) -> Tensor:
    """A stage's output as the next stage reads it.

    A pre-activation net puts out sums that no norm has seen (`ResNet.features`). The next stage
    starts from their batch norm and ReLU (2016, appendix: shared by both branches of a unit that
    changes the shape), which are trained already; so no norm is added.
    """
    following = list(body.strides).index(stage) + 1
    if body.arch.order == "post" or following == len(body.strides):
        return x
    unit = body.stages()[following][0]
    assert isinstance(unit, PreUnit)
    with statistics_held(unit.bn1):  # the unit itself counts this batch
        return F.relu(unit.bn1(x))


def backbone_of(net: nn.Module) -> ResNet:
    """The residual network of a model: itself, or what its heads stand on."""
    body = net if isinstance(net, ResNet) else net.body
    assert isinstance(body, ResNet)
    return body
