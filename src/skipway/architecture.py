"""The networks of the papers as rows of one table. No torch: the card of a model needs it too.

Sources: He et al. 2015, "Deep Residual Learning for Image Recognition" (1512.03385), below
"2015"; He et al. 2016, "Identity Mappings in Deep Residual Networks" (1603.05027), "2016".
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from skipway.errors import InputError, harmless, nearest

Shortcut = Literal["A", "A-split", "B", "C", "D", "none"]
FIELDS_FROM_DATA = ("num_classes", "in_channels", "input_size")
"""Of an architecture, what the data decides in a training."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One residual network, every choice a field. Raises ValueError where fields contradict."""

    # In a card no unknown field is passed over; `settings` tells what each is.
    __pydantic_config__: ClassVar = {"extra": "forbid", "use_attribute_docstrings": True}

    block: Literal["basic", "bottleneck"]
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 (2015, Fig. 5)."""
    depths: tuple[int, ...]
    """Residual units per stage."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """Inner channels per stage; a bottleneck puts out four times as many."""
    stem: Literal["imagenet", "deep", "cifar", "whitened"] = "imagenet"
    """7x7/2 and max-pool; three 3x3 and max-pool (ResNet-D); one 3x3/1 without a pool; one frozen
    2x2/1 that makes patches of the training images uncorrelated, both signs of each (2404.00498,
    section 3.2), after which the first stage halves too."""
    stem_width: int = 64
    """Channels that the stem puts out."""
    shortcut: Shortcut = "B"
    """2015, section 4.1. A: zero-padded channels appended (A-split: half on each side).
    B: projection where the shape changes. C: projection everywhere. D: average pool before the
    projection (1812.01187). none: a plain net."""
    subsample: Literal["stride", "max-pool"] = "stride"
    """How a basic unit halves: its first convolution strides, or a 2x2 max-pool follows it."""
    stride_in: Literal["3x3", "1x1"] = "3x3"
    """Where a bottleneck strides: 3x3 (torchvision's v1.5) or the first 1x1 (2015)."""
    order: Literal["post", "pre"] = "post"
    """Activation after the addition (2015), or batch norm and ReLU before each weight (2016)."""
    width: float = 1.0
    """Multiplies every width, the stem's too."""
    groups: int = 1
    """Groups of the bottleneck's 3x3 (ResNeXt, 1611.05431)."""
    base_width: int = 64
    """Inner channels per group where the stage's width is 64 (wide bottlenecks: 128)."""
    squeeze: int = 0
    """Squeeze-and-excitation with this reduction (1709.01507); 0 is none."""
    antialias: bool = False
    """Blur before sub-sampling in stem and branch (1904.11486)."""
    zero_init_last: bool = False
    """Start the last gamma of each branch at 0 (1706.02677, section 5.1); with order pre or without
    norms, where a convolution comes last, its weights."""
    drop_path: float = 0.0
    """Stochastic depth: drop rate of the last unit, rising linearly from 0 (1603.09382)."""
    dropout: float = 0.0
    """Rate of dropout before the classifier (1207.0580)."""
    block_dropout: float = 0.0
    """Rate of dropout in each residual unit, before its second convolution (1605.07146, section
    3.3: 0.3 for wide nets on CIFAR)."""
    norm: Literal["batch", "none"] = "batch"
    """Batch norm after each convolution (with order pre, before it), or no norm anywhere, as in
    studies of initialisation."""
    init: Literal["he", "xavier"] = "he"
    """Variance of a convolution's first weights: 2 / fan-out (1502.01852, eq. 14), made for ReLU,
    or 2 / (fan-in + fan-out) (Glorot and Bengio 2010, eq. 12), made for units that are linear
    around 0."""
    checkpointing: bool = False
    """Recompute each unit's activations in the backward pass instead of keeping them."""
    bn_eps: float = 1e-5
    """Added to the variances of batch norm."""
    bn_momentum: float = 0.1
    """Weight of the newest batch in the running statistics (PyTorch's convention)."""
    in_channels: int = 3
    """Channels of the image."""
    num_classes: int = 1000
    """Outputs of the classifier."""
    input_size: int = 224
    """Native height and width in pixels."""
    source: str = ""
    """Paper and section."""

    def __post_init__(self) -> None:
        for name in ("depths", "widths"):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not values:
                raise ValueError(f"{name}: {values!r} is not a list of whole numbers, one a stage")
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise ValueError(f"{name}: {values!r} are not all positive whole numbers")
            object.__setattr__(self, name, tuple(values))
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                known = ", ".join(choices)
                raise ValueError(f"{name}: {value!r} is not one of {known}")
        if sum(self.depths) > _MOST_UNITS:
            raise ValueError(f"depths: more than {_MOST_UNITS:,} units")
        if len(self.depths) > len(self.widths):
            raise ValueError(f"depths: {self.depths} needs at most {len(self.widths)} stages")
        for name in _COUNTS:
            value, least = getattr(self, name), 0 if name == "squeeze" else 1
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: {value!r} is not a whole number of at least {least}")
        if not isinstance(self.width, (int, float)) or not 0 < self.width < math.inf:
            raise ValueError(f"width: {self.width!r} is not a positive number")
        for name in ("drop_path", "dropout", "block_dropout"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name}: {value!r} is not a number in [0, 1)")
        for name in ("bn_eps", "bn_momentum"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise ValueError(f"{name}: {value!r} is not a number in (0, 1]")
        for name in ("antialias", "zero_init_last", "checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not true or false")
        if not isinstance(self.source, str):
            raise ValueError("source: not a text")
        self._check_block()
        self._check_shortcut()

    def _check_block(self) -> None:
        bottleneck_only = (self.groups, self.base_width, self.stride_in)
        if self.block == "basic" and bottleneck_only != (1, 64, "3x3"):
            raise ValueError(
                "groups, base_width, stride_in: basic blocks have none of them; use bottleneck"
            )
        if self.subsample == "max-pool" and (
            self.block != "basic" or self.order != "post" or self.antialias
        ):
            raise ValueError(
                "subsample: a max-pool halves in basic blocks of order post, without antialias"
            )
        if self.stem == "whitened" and (self.order != "post" or self.norm == "none"):
            raise ValueError("stem: whitened needs batch norm after it, order post")

    def _check_shortcut(self) -> None:
        if self.shortcut == "none" and (self.zero_init_last or self.drop_path):
            # What a plain net's branch does not pass on is lost.
            raise ValueError("zero_init_last, drop_path: a plain net has no shortcut to rely on")
        widths = [w * self.expansion for w in self.widths[: len(self.depths)]]
        channels = [self.stem_width, *widths]
        if self.shortcut in ("A", "A-split") and channels != sorted(channels):
            raise ValueError("shortcut: A cannot reduce channels; use B, C or D")

    @property
    def stem_channels(self) -> int:
        """Channels that the stem puts out, `width` counted."""
        return max(round(self.stem_width * self.width), 1)

    @property
    def stem_stride(self) -> int:
        """The stride of the stem, its max-pool counted."""
        return 4 if self.stem in ("imagenet", "deep") else 1

    def halves(self, stage: int) -> bool:
        """Whether a stage, counted from 0, halves height and width."""
        return stage > 0 or self.stem == "whitened"

    @property
    def expansion(self) -> int:
        """Output channels of a unit over its stage's width."""
        return 4 if self.block == "bottleneck" else 1


UNSEEN = ("subsample", "shortcut", "stride_in", "antialias", "bn_eps")
"""Fields that change a network's answers and leave no trace in the shapes of its tensors."""

_CHOICES: dict[str, tuple[Any, ...]] = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "deep", "cifar", "whitened"),
    "subsample": ("stride", "max-pool"),
    "shortcut": get_args(Shortcut),
    "stride_in": ("3x3", "1x1"),
    "order": ("post", "pre"),
    "norm": ("batch", "none"),
    "init": ("he", "xavier"),
}

_MOST_UNITS = 10_000
_COUNTS = (
    "stem_width", "groups", "base_width", "squeeze", "in_channels", "num_classes", "input_size"
)  # fmt: skip


def architecture(name: str, **fields: Any) -> Architecture:
    """The row of that name with fields replaced. Raises InputError for unknown names and values."""
    if name not in ARCHITECTURES:
        raise InputError(
            f"unknown model {name!r}.{nearest(name, ARCHITECTURES)}\nList them with: skipway models"
        )
    return replaced(ARCHITECTURES[name], **fields)


def replaced(arch: Architecture, **fields: Any) -> Architecture:
    """The architecture with fields replaced. Raises InputError for unknown names and values."""
    known = [f.name for f in dataclasses.fields(Architecture)]
    for key in fields:
        if key not in known:
            hint = nearest(key, known) or f" Fields: {', '.join(known)}."
            raise InputError(f"unknown architecture field {harmless(key)!r}.{hint}")
    try:
        return dataclasses.replace(arch, **fields)
    except (ValueError, TypeError) as error:
        raise InputError(f"model: {error}") from None


def name_of(arch: Architecture) -> str:
    """The row that an architecture is, whatever its classes, channels and size, and whichever side
    shortcut A pads on; else "custom"."""
    if arch.shortcut == "A-split":
        arch = dataclasses.replace(arch, shortcut="A")
    own = {
        key: getattr(arch, key) for key in ("num_classes", "in_channels", "input_size", "source")
    }
    rows = ARCHITECTURES.items()
    return next((n for n, row in rows if dataclasses.replace(row, **own) == arch), "custom")


def count(arch: Architecture) -> tuple[int, int]:
    """Learnable parameters, and multiply-adds of convolutions and classifier for one image.

    At the native size; batch norm, ReLU, pooling and addition are not counted, as in 2015,
    Table 1. By arithmetic alone: nothing is built.
    """
    params = macs = 0

    def conv(inputs: int, outputs: int, kernel: int, size: int, groups: int = 1) -> None:
        nonlocal params, macs
        weights = outputs * (inputs // groups) * kernel**2
        params, macs = params + weights, macs + weights * size**2

    def norm(channels: int) -> None:
        nonlocal params
        if arch.norm == "batch":
            params += 2 * channels

    def scaled(width: int) -> int:
        return max(round(width * arch.width), 1)

    def halved(size: int) -> int:  # what convolutions, pools and blurs with stride 2 leave
        return (size + 1) // 2

    size, channels = arch.input_size, arch.stem_channels
    post = arch.order == "post"
    if arch.stem == "deep":
        size, half = halved(size), max(channels // 2, 1)
        for inputs, outputs in ((arch.in_channels, half), (half, half), (half, channels)):
            conv(inputs, outputs, 3, size)
        norm(half)
        norm(half)
    elif arch.stem == "imagenet":
        size = halved(size)
        conv(arch.in_channels, channels, 7, size)
    elif arch.stem == "whitened":
        conv(arch.in_channels, channels, 2, size)
    else:
        conv(arch.in_channels, channels, 3, size)
    if post:
        norm(channels)
    if arch.stem_stride > 1:
        size = halved(size)
    for i, (depth, width) in enumerate(zip(arch.depths, map(scaled, arch.widths), strict=False)):
        outputs = width * arch.expansion
        for j in range(depth):
            strides = arch.halves(i) and j == 0
            after = halved(size) if strides else size
            # there the blur or the pool strides
            at = size if arch.antialias or arch.subsample == "max-pool" else after
            if arch.block == "basic":
                plan = [(channels, width, 3, at, 1), (width, width, 3, after, 1)]
            else:
                inner = max(int(width * arch.base_width / 64), 1) * arch.groups
                early = arch.stride_in == "1x1"
                plan = [
                    (channels, inner, 1, at if early else size, 1),
                    (inner, inner, 3, after if early else at, arch.groups),
                    (inner, outputs, 1, after, 1),
                ]
            for convolution in plan:
                conv(*convolution)
                norm(convolution[1] if post else convolution[0])
            if arch.squeeze:
                fewer = max(outputs // arch.squeeze, 1)
                conv(outputs, fewer, 1, 1)
                conv(fewer, outputs, 1, 1)
                params += fewer + outputs
            changes = strides or channels != outputs
            if arch.shortcut == "C" or (arch.shortcut in ("B", "D") and changes):
                conv(channels, outputs, 1, after)
                if post:
                    norm(outputs)
            size, channels = after, outputs
    if not post:
        norm(channels)
    conv(channels, arch.num_classes, 1, 1)
    return params + arch.num_classes, macs


def _imagenet(block: Literal["basic", "bottleneck"], *depths: int, **fields: Any) -> Architecture:
    return Architecture(block=block, depths=depths, **fields)


def _cifar(n: int, **fields: Any) -> Architecture:
    """2015, section 4.2: 3x3 conv 16, then n units each of 16, 32 and 64 at 32, 16 and 8 px."""
    defaults: dict[str, Any] = {
        "block": "basic", "depths": (n, n, n), "widths": (16, 32, 64), "stem": "cifar",
        "stem_width": 16, "shortcut": "A", "num_classes": 10, "input_size": 32,
        "source": "2015, section 4.2 and Table 6",
    }  # fmt: skip
    return Architecture(**(defaults | fields))


def _wide(n: int, k: int) -> Architecture:
    """1605.07146, Table 1: pre-activation, n units a stage, k times as wide."""
    widths = (16 * k, 32 * k, 64 * k)
    return _cifar(n, widths=widths, shortcut="B", order="pre", source="1605.07146, Table 1")


_DEPTHS: dict[int, tuple[Literal["basic", "bottleneck"], tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
    200: ("bottleneck", (3, 24, 36, 3)),
}


def _table() -> dict[str, Architecture]:
    rows: dict[str, Architecture] = {}
    for depth in (18, 34, 50, 101, 152):
        block, depths = _DEPTHS[depth]
        stride = "" if block == "basic" else "; stride in the 3x3 (v1.5)"
        rows[f"resnet{depth}"] = _imagenet(block, *depths, source=f"2015, Table 1{stride}")
    for depth in (50, 101, 152):
        block, depths = _DEPTHS[depth]
        rows[f"resnet{depth}v1"] = _imagenet(
            block, *depths, stride_in="1x1", source="2015, Table 1; stride in the first 1x1"
        )
    for depth in (18, 34, 50, 101, 152):
        block, depths = _DEPTHS[depth]
        rows[f"resnet{depth}_cifar"] = _imagenet(
            block, *depths, stem="cifar", num_classes=10, input_size=32,
            source="2015, Table 1, with the stem of section 4.2 (not a net of the paper)",
        )  # fmt: skip
    for depth in (18, 34):
        block, depths = _DEPTHS[depth]
        rows[f"plain{depth}"] = _imagenet(
            block, *depths, shortcut="none", source="2015, section 3.3 and Table 2"
        )
    for depth in (20, 32, 44, 56, 110, 1202):
        rows[f"resnet{depth}"] = _cifar((depth - 2) // 6)
    for depth in (20, 32, 44, 56, 110):
        rows[f"plain{depth}"] = _cifar(
            (depth - 2) // 6, shortcut="none", source="2015, section 4.2 and Fig. 6"
        )
    rows["preresnet110"] = _cifar(18, order="pre", source="2016, Table 2")
    for depth in (164, 1001):
        rows[f"preresnet{depth}"] = _cifar(
            (depth - 2) // 9, block="bottleneck", shortcut="B", order="pre", stride_in="1x1",
            source="2016, Tables 3 and 4, appendix",
        )  # fmt: skip
    for depth in (50, 101, 152, 200):
        block, depths = _DEPTHS[depth]
        rows[f"preresnet{depth}"] = _imagenet(block, *depths, order="pre", source="2016, Table 5")
    r50, r101 = _DEPTHS[50][1], _DEPTHS[101][1]
    rows["resnet50d"] = _imagenet(
        "bottleneck", *r50, stem="deep", shortcut="D", source="1812.01187, section 4.1"
    )
    resnext = "1611.05431, Table 1 and section 5.1"
    rows["resnext50_32x4d"] = _imagenet("bottleneck", *r50, groups=32, base_width=4, source=resnext)
    rows["resnext101_32x8d"] = _imagenet(
        "bottleneck", *r101, groups=32, base_width=8, source=resnext
    )
    wide = "1605.07146, section 3.4"
    rows["wide_resnet50_2"] = _imagenet("bottleneck", *r50, base_width=128, source=wide)
    rows["wide_resnet101_2"] = _imagenet("bottleneck", *r101, base_width=128, source=wide)
    rows["resnet8_speedrun"] = Architecture(
        block="basic", depths=(1, 1, 1), widths=(64, 256, 256), stem="whitened", stem_width=24,
        shortcut="D", subsample="max-pool", num_classes=10, input_size=32,
        source="2404.00498, section 3, with residual units (not a net of a paper)",
    )  # fmt: skip
    rows["wrn28_10"] = _wide(4, 10)
    rows["wrn16_4"] = _wide(2, 4)
    rows["seresnet50"] = _imagenet("bottleneck", *r50, squeeze=16, source="1709.01507, Table 2")
    return rows


ARCHITECTURES: dict[str, Architecture] = _table()
"""Every architecture by name."""
