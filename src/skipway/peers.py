"""What other libraries keep beside their weights: networks, class names, preprocessing, both ways.

The peers are torchvision, timm and transformers (Hugging Face). Each has a function that says which
network it builds where it is given one of ours: what differs is what it cannot express.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, Field, JsonValue, PositiveInt, ValidationError

from skipway.architecture import ARCHITECTURES, Architecture, name_of
from skipway.card import Card
from skipway.errors import InputError, harmless, nearest, plain_words
from skipway.images import IMAGENET_MEAN, IMAGENET_STD, Channels, Preprocess, plain_preprocess

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Config = dict[str, Any]

NOT_STATED: str = Card.model_fields["licence"].default
"""A card's licence where nothing is known."""

# --- architectures -------------------------------------------------------------------------------


def canonical(arch: Architecture) -> Architecture:
    """The same function of images, without what only training uses and with `width` multiplied."""
    return dataclasses.replace(
        arch,
        widths=tuple(max(round(w * arch.width), 1) for w in arch.widths[: len(arch.depths)]),
        stem_width=max(round(arch.stem_width * arch.width), 1),
        width=1.0,
        zero_init_last=False,
        drop_path=0.0,
        dropout=0.0,
        block_dropout=0.0,
        init="he",
        checkpointing=False,
        bn_momentum=0.1,
        input_size=224,
        source="",
    )


def _known(arch: Architecture, input_size: int) -> tuple[str, Architecture]:
    """The row that an architecture is, and it with the row's source; else "custom"."""
    arch = dataclasses.replace(arch, input_size=input_size)
    name = name_of(arch)
    row = ARCHITECTURES.get(name)
    return name, dataclasses.replace(arch, source=row.source) if row else arch


@cache
def torchvision_names() -> tuple[str, ...]:
    """The residual networks that torchvision has a function for; timm has the same names."""
    from torchvision import models

    return tuple(name for name in TIMM_NAMES if hasattr(models, name))


def as_torchvision(arch: Architecture) -> Architecture:
    """What ``torchvision.models.ResNet`` builds for it: four stages, stride in the 3x3."""
    return Architecture(
        block=arch.block,
        depths=(*arch.depths, 1, 1, 1)[:4],
        groups=arch.groups,
        base_width=arch.base_width,
        num_classes=arch.num_classes,
    )


_Classes = Annotated[int, Field(gt=0, le=1_000_000)]
"""How many: each is given a name, before the weights are looked at."""


class _ResNetConfig(BaseModel):
    """The part of transformers' ``ResNetConfig`` that decides the network and its classes."""

    model_type: Literal["resnet"]
    num_channels: PositiveInt = 3
    embedding_size: PositiveInt = 64
    hidden_sizes: tuple[PositiveInt, ...] = (256, 512, 1024, 2048)
    depths: tuple[PositiveInt, ...] = (3, 4, 6, 3)
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    hidden_act: Literal["relu"] = "relu"
    downsample_in_first_stage: Literal[False] = False
    downsample_in_bottleneck: bool = False
    num_labels: _Classes | None = None
    id2label: dict[int, str] | None = None

    def architecture(self, classes: int) -> Architecture:
        bottleneck = self.layer_type == "bottleneck"
        stages, expansion = len(self.depths), 4 if bottleneck else 1
        if len(self.hidden_sizes) != stages:
            raise ValueError(f"{len(self.hidden_sizes)} hidden_sizes for {stages} depths")
        if any(size % expansion for size in self.hidden_sizes):
            raise ValueError("hidden_sizes: a bottleneck's are multiples of 4")
        return Architecture(
            block=self.layer_type,
            depths=self.depths,
            widths=tuple(size // expansion for size in self.hidden_sizes),
            stem_width=self.embedding_size,
            stride_in="1x1" if bottleneck and self.downsample_in_bottleneck else "3x3",
            in_channels=self.num_channels,
            num_classes=classes,
        )


def _transformers_config(arch: Architecture) -> Config:
    arch = canonical(arch)
    return {
        "model_type": "resnet",
        "num_channels": arch.in_channels,
        "embedding_size": arch.stem_width,
        "hidden_sizes": [width * arch.expansion for width in arch.widths],
        "depths": list(arch.depths),
        "layer_type": arch.block,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": arch.stride_in == "1x1",
    }


def as_transformers(arch: Architecture) -> Architecture:
    """What transformers' ``ResNetForImageClassification`` builds for it."""
    config = _ResNetConfig.model_validate(_transformers_config(arch))
    return config.architecture(arch.num_classes)


# timm's names of networks that this package has too; what they mean is read from their parts.
TIMM_NAMES = (
    "resnet18", "resnet18d", "resnet26", "resnet26d", "resnet34", "resnet34d", "resnet50",
    "resnet50c", "resnet50d", "resnet50s", "resnet101", "resnet101c", "resnet101d", "resnet101s",
    "resnet152", "resnet152c", "resnet152d", "resnet152s", "resnet200", "resnet200d",
    "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext50d_32x4d",
    "resnext101_32x4d", "resnext101_32x8d", "resnext101_32x16d", "resnext101_32x32d",
    "resnext101_64x4d", "seresnet50", "seresnet101", "seresnet152", "seresnet152d", "seresnet200d",
    "seresnet269d", "seresnext26d_32x4d", "seresnext50_32x4d", "seresnext101_32x4d",
    "seresnext101_32x8d", "seresnext101d_32x8d", "seresnext101_64x4d", "resnetblur18",
    "resnetblur50", "resnetblur50d", "resnetblur101d",
    "resnetv2_50", "resnetv2_50d", "resnetv2_101", "resnetv2_101d", "resnetv2_152",
    "resnetv2_152d",
)  # fmt: skip
_NAME = re.compile(
    r"(?P<se>se)?(?P<wide>wide_)?resne[tx]t?(?P<blur>blur)?(?P<pre>v2_)?(?P<depth>\d+)"
    r"(?P<variant>[cds])?(_(?P<groups>\d+)x(?P<base>\d+)d|_2)?"
)
_DEPTHS = {
    18: (2, 2, 2, 2), 26: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
    152: (3, 8, 36, 3), 200: (3, 24, 36, 3), 269: (3, 30, 48, 8),
}  # fmt: skip


@cache
def timm_row(name: str) -> Architecture:
    """The architecture behind one of timm's names; torchvision's mean the same."""
    part = _NAME.fullmatch(name)
    if name not in TIMM_NAMES or part is None:
        raise InputError(
            f"{harmless(name)[:60]} is not a network that Skipway has.{nearest(name, TIMM_NAMES)}"
        )
    depth, variant = int(part["depth"]), part["variant"]
    return Architecture(
        block="basic" if depth in (18, 34) else "bottleneck",
        depths=_DEPTHS[depth],
        stem="deep" if variant else "imagenet",
        stem_width=128 if variant == "s" else 64,
        shortcut="D" if variant == "d" else "B",
        order="pre" if part["pre"] else "post",
        groups=int(part["groups"] or 1),
        base_width=int(part["base"] or (128 if part["wide"] else 64)),
        squeeze=16 if part["se"] else 0,
        antialias=bool(part["blur"]),
    )


def timm_name(arch: Architecture) -> tuple[str, Config]:
    """timm's name for it, or the nearest with the arguments that make it so."""
    arch = canonical(arch)
    exact = (name for name in TIMM_NAMES if _sized(timm_row(name), arch) == arch)
    name = next(exact, None)
    if name is not None:
        return name, {}
    if arch.order == "pre":
        widths = [4 * width for width in arch.widths]
        deep = {"stem_type": "deep", "avg_down": True} if arch.stem == "deep" else {}
        arguments = {"layers": [*arch.depths], "channels": widths, "stem_chs": arch.stem_width}
        return "resnetv2_50", arguments | deep
    small = "18" if arch.block == "basic" else "50"
    arguments = {"layers": [*arch.depths], "channels": [*arch.widths]}
    if arch.block == "bottleneck":
        arguments |= {"cardinality": arch.groups, "base_width": arch.base_width}
    if arch.stem == "deep":
        arguments |= {"stem_type": "deep", "stem_width": arch.stem_width // 2}
    if arch.shortcut == "D":
        arguments["avg_down"] = True
    if arch.squeeze:
        arguments["block_args"] = {"attn_layer": "se"}
    return f"resnet{'blur' if arch.antialias else ''}{small}", arguments


# Arguments of timm's that leave the answers as they are, and the plain values of others.
_TRAINING = {"drop_rate", "drop_path_rate", "drop_block_rate", "zero_init_last", "num_classes"}
_PLAIN = {"global_pool": "avg", "output_stride": 32}


def _timm_architecture(name: str, arguments: Config) -> Architecture:
    """What timm builds for a name and arguments. Raises ValueError for those of other networks."""
    row = timm_row(name)
    pre = row.order == "pre"
    given = {
        k: v for k, v in arguments.items() if k not in _TRAINING and (k, v) not in _PLAIN.items()
    }
    fields: dict[str, Any] = {"in_channels": given.pop("in_chans", 3)}
    if "layers" in given:
        fields["depths"] = tuple(given.pop("layers"))
    if "channels" in given:
        expansion = row.expansion if pre else 1
        fields["widths"] = tuple(width // expansion for width in given.pop("channels"))
    if "stem_chs" in given and pre:
        fields["stem_width"] = given.pop("stem_chs")
    if given.get("stem_type") == "deep":
        fields["stem"] = given.pop("stem_type")
    if "stem_width" in given and (fields.get("stem") or row.stem) == "deep" and not pre:
        fields["stem_width"] = 2 * given.pop("stem_width")
    if given.get("avg_down") is True:
        fields["shortcut"] = "D" if given.pop("avg_down") else "B"
    for theirs, ours in (("cardinality", "groups"), ("base_width", "base_width")):
        if theirs in given and not pre:
            fields[ours] = given.pop(theirs)
    if given.get("block_args") == {"attn_layer": "se"}:
        given.pop("block_args")
        fields["squeeze"] = 16
    if given:
        raise ValueError(f"model_args.{next(iter(given))}: not a choice that Skipway has")
    return dataclasses.replace(row, **fields)


def as_timm(arch: Architecture) -> Architecture:
    """What timm builds for it: ``ResNet``, or ``ResNetV2`` for pre-activation."""
    built = _sized(_timm_architecture(*timm_name(arch)), arch)
    arch = canonical(arch)
    if arch.order == "pre":
        # Widths are multiples of 8. Their first unit has a projection; in the basic one, which has
        # none, the shortcut goes round the first activation, as in no unit of ours.
        widths, stem_width = _eights(arch.widths), _eights((arch.stem_width,))[0]
        if stem_width == 4 * widths[0]:
            stem_width += 8
        return dataclasses.replace(
            built, block="bottleneck", widths=widths, groups=1, stem_width=stem_width
        )
    if len(arch.depths) != 4:
        depths, widths = (*arch.depths, 1, 1, 1)[:4], (*arch.widths, 512, 512, 512)[:4]
        built = dataclasses.replace(built, depths=depths, widths=widths)
    squeezed = [width * arch.expansion for width in arch.widths]
    if built.squeeze and any(width % 128 for width in squeezed):  # theirs are multiples of 8
        built = dataclasses.replace(built, squeeze=0)
    return built


def _sized(arch: Architecture, like: Architecture) -> Architecture:
    """The architecture with the channels and classes of another."""
    return dataclasses.replace(arch, in_channels=like.in_channels, num_classes=like.num_classes)


def _eights(numbers: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-number // 8) * 8 for number in numbers)


PEERS: dict[str, Callable[[Architecture], Architecture]] = {
    "torchvision": as_torchvision,
    "timm": as_timm,
    "huggingface": as_transformers,
}
"""By the names that commands take: what each builds where it is given one of our networks."""


def unlike(arch: Architecture, peer: str) -> dict[str, tuple[Any, Any]]:
    """The fields that a peer cannot express, each with the network's value and the peer's."""
    ours, theirs = canonical(arch), PEERS[peer](arch)
    telling = ("stem", "shortcut", "order")  # first, as what most differs
    fields = dict.fromkeys([*telling, *(field.name for field in dataclasses.fields(ours))])
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in fields}
    return {
        name: (mine, its)
        for name, (mine, its) in pairs.items()
        if mine != its and name not in ("input_size", "source")
    }


def check_expressible(arch: Architecture, peer: str) -> None:
    """Raise InputError where a peer cannot have this network, naming field and peers that can."""
    differing = unlike(arch, peer)
    if not differing:
        return
    field, (mine, its) = next(iter(differing.items()))
    able = [name for name in PEERS if not unlike(arch, name)]
    other = f"{' and '.join(able)} can: --to {able[0]}" if able else "no peer can"
    raise InputError(
        f"{field} = {mine!r}: {peer} has this network with {its!r} only;\n"
        f"{other}. Skipway's own form takes every network: --to skipway"
    )


# --- class names and preprocessing ---------------------------------------------------------------


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Class names made distinct: ImageNet's lists of others have two cranes."""
    counted = Counter(names)
    return tuple(f"{n} ({i})" if counted[n] > 1 else n for i, n in enumerate(names))


def _numbered(names: Mapping[int, str], what: str) -> tuple[str, ...]:
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{what}: not one name for each of 0 to {len(names) - 1}")
    return distinct([names[i] for i in range(len(names))])


class _Processor(BaseModel):
    """The part of transformers' ``preprocessor_config.json`` that is used."""

    image_processor_type: str = ""
    feature_extractor_type: str = ""
    do_resize: Literal[True] = True
    size: int | dict[str, int] = Field(default_factory=dict)
    crop_pct: float = Field(224 / 256, gt=0, le=1)
    do_center_crop: bool = False
    crop_size: int | dict[str, int] | None = None
    resample: Literal[0, 1, 2, 3] = 3
    do_rescale: bool = True
    rescale_factor: float = Field(1 / 255, gt=0)
    do_normalize: bool = True
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def preprocess(self, channels: int) -> Preprocess:
        kind = self.image_processor_type or self.feature_extractor_type
        kind = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
        if kind not in ("ConvNext", "ViT", "Bit", "CLIP"):
            raise ValueError(f"image_processor_type: {harmless(kind)[:40]!r} is not known")
        convnext = kind == "ConvNext"
        goal = _sides(self.size, square=kind == "ViT")
        short: int | None = None
        if convnext and isinstance(goal, int):
            size = (goal, goal)
            short = int(goal / self.crop_pct) if goal < 384 else None
        elif isinstance(goal, int) and self.do_center_crop:
            cropped = _sides(self.crop_size or {}, square=True)
            if isinstance(cropped, int):
                raise ValueError("crop_size: needs height and width")
            size, short = cropped, goal
            if short < max(size):
                raise ValueError(f"crop_size: {size} is larger than the short side, {short}")
        elif isinstance(goal, tuple) and not convnext:
            size = goal
            if self.do_center_crop and _sides(self.crop_size or {}, square=True) != size:
                raise ValueError("crop_size: a crop after squashing is not a choice of Skipway's")
        else:
            raise ValueError(f"size: {self.size!r} does not give images of one size")
        # pixels / 255 are what `Preprocess` normalises
        scale = 255 * (self.rescale_factor if self.do_rescale else 1.0)
        mean, std = (self.image_mean, self.image_std) if self.do_normalize else ((0.0,), (1.0,))
        mean, std = (x * channels if len(x) == 1 else x for x in (mean, std))
        exact = abs(scale - 1) < 1e-6
        return Preprocess(
            size=size,
            channels=_image_channels(channels),
            resize="crop" if short else "squash",
            short_side=short,
            odd_border="down" if short else "even",
            interpolation=_RESAMPLE[self.resample],
            mean=mean if exact else tuple(m / scale for m in mean),
            std=std if exact else tuple(s / scale for s in std),
        )


_RESAMPLE: tuple[Interpolation, ...] = ("nearest", "lanczos", "bilinear", "bicubic")
"""By Pillow's number of the filter."""


def _sides(size: int | dict[str, int], square: bool) -> int | tuple[int, int]:
    """A short side, or height and width; `square`: what a lone number means."""
    if isinstance(size, int):
        return (size, size) if square else size
    if size.keys() == {"shortest_edge"}:
        return size["shortest_edge"]
    if size.keys() == {"height", "width"}:
        return size["height"], size["width"]
    raise ValueError(f"size: {harmless(size)[:60]} is neither shortest_edge nor height and width")


def _image_channels(channels: int) -> Channels:
    known: dict[int, Channels] = {1: 1, 3: 3, 4: 4}
    if channels not in known:
        raise ValueError(f"{channels} input channels: images have 1, 3 or 4")
    return known[channels]


def _processor_config(preprocess: Preprocess) -> Config:
    """transformers' image processor that does the same: a short side and a crop, or both sides."""
    _check_plain(preprocess, "huggingface")
    height, width = preprocess.size
    common = {
        "do_convert_rgb": preprocess.channels == 3,
        "do_resize": True,
        "resample": _RESAMPLE.index(preprocess.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [*preprocess.mean],
        "image_std": [*preprocess.std],
    }
    size = {"height": height, "width": width}
    if preprocess.resize == "squash":
        return {"image_processor_type": "ViTImageProcessor", "size": size} | common
    short = preprocess.short_side or min(preprocess.size)
    if short < max(preprocess.size):
        _refuse(f"size = {preprocess.size}, short_side = {short}", "huggingface")
    crop = {"do_center_crop": True, "crop_size": size, "size": {"shortest_edge": short}}
    return {"image_processor_type": "BitImageProcessor"} | crop | common


class _PretrainedCfg(BaseModel):
    """The part of timm's ``pretrained_cfg`` that is used, with its defaults."""

    input_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    crop_pct: float = Field(0.875, gt=0)
    crop_mode: Literal["center", "squash"] = "center"
    num_classes: _Classes | None = None
    label_names: list[str] | dict[int, str] | None = None
    license: str = ""

    def preprocess(self, channels: int) -> Preprocess:
        _, height, width = self.input_size
        short = math.floor(height / self.crop_pct)
        if self.crop_mode == "squash" and self.crop_pct != 1:
            raise ValueError("crop_mode: a crop after squashing is not a choice of Skipway's")
        if self.crop_mode == "center" and (height != width or short < height):
            raise ValueError("input_size: for a crop, sides that differ are not known")
        mean, std = (x * channels if len(x) == 1 else x for x in (self.mean, self.std))
        return Preprocess(
            size=(height, width),
            channels=_image_channels(channels),
            resize="crop" if self.crop_mode == "center" else "squash",
            short_side=short if self.crop_mode == "center" else None,
            interpolation=self.interpolation,
            mean=mean,
            std=std,
        )


class _TimmConfig(BaseModel):
    """timm's ``config.json``; older ones have `pretrained_cfg`'s fields on the first level."""

    architecture: str
    num_classes: _Classes | None = None
    model_args: dict[str, Any] = {}
    label_names: list[str] | dict[int, str] | None = None
    pretrained_cfg: _PretrainedCfg


def _pretrained_cfg(preprocess: Preprocess) -> Config:
    """timm's way to say the same."""
    _check_plain(preprocess, "timm")
    height, width = preprocess.size
    squash = preprocess.resize == "squash"
    if not squash and height != width:
        _refuse(f"size = {preprocess.size}", "timm")
    short = preprocess.short_side or height
    shares = [1.0] if squash else [height / short, height / (short + 0.5)]
    return {
        "input_size": [preprocess.channels, height, width],
        "fixed_input_size": False,
        "interpolation": preprocess.interpolation,
        # they round down: of a share that comes out one pixel short, the next is taken
        "crop_pct": next(s for s in shares if squash or math.floor(height / s) == short),
        "crop_mode": "squash" if squash else "center",
        "mean": [*preprocess.mean],
        "std": [*preprocess.std],
    }


def _check_plain(preprocess: Preprocess, peer: str) -> None:
    if preprocess.resize in ("letterbox", "fit"):
        _refuse(f"resize = {preprocess.resize!r}", peer)
    if preprocess.pixel_mean is not None:
        _refuse("pixel_mean", peer)


def _refuse(what: str, peer: str) -> NoReturn:
    raise InputError(
        f"preprocess: {peer} has no {what}\n"
        "torchvision takes the weights alone: --to torchvision; Skipway's own form takes all: "
        "--to skipway"
    )


# --- a folder as transformers and timm save it ---------------------------------------------------


def folder_card(folder: Path) -> Card | None:
    """What ``config.json`` and ``preprocessor_config.json`` say, None without a config.json.

    ``provenance["assumed"]`` names what they do not say. Raises InputError naming file and key
    where they cannot be used, or mean another network.
    """
    path = folder / "config.json"
    if not path.exists():
        return None
    config = _stated(_json(path))
    with _naming(path):
        if "architecture" in config:
            return _timm_card(config)
        if config.get("model_type") != "resnet":
            kind = harmless(config.get("model_type"))[:40]
            raise ValueError(f"model_type: {kind!r} is not a network that Skipway has, 'resnet' is")
        parsed = _ResNetConfig.model_validate(config)
        count = len(parsed.id2label) if parsed.id2label else parsed.num_labels or 2
        arch = parsed.architecture(count)
        classes = tuple(f"LABEL_{i}" for i in range(count))
        if parsed.id2label:
            classes = _numbered(parsed.id2label, "id2label")
    assumed = _unnamed(classes)
    processor = folder / "preprocessor_config.json"
    if processor.exists():
        found = _json(processor)
        # null is what transformers' fast processors have for "not done"
        undone = {k: False for k, value in found.items() if value is None and k.startswith("do_")}
        with _naming(processor):
            parsed_processor = _Processor.model_validate(_stated(found) | undone)
            preprocess = parsed_processor.preprocess(arch.in_channels)
    else:
        preprocess, assumed = plain_preprocess(224, arch.in_channels), [*assumed, "preprocess"]
    with _naming(path):
        return peer_card(arch, classes, preprocess, assumed)


def _stated(config: Config) -> Config:
    """Without nulls, which timm and transformers have for "as by default"."""
    return {key: value for key, value in config.items() if value is not None}


def _unnamed(classes: tuple[str, ...]) -> list[str]:
    """["classes"] where they are called as transformers calls those without names."""
    return ["classes"] if classes == tuple(f"LABEL_{i}" for i in range(len(classes))) else []


def _timm_card(config: Config) -> Card:
    inner = config.get("pretrained_cfg", config)
    if isinstance(inner, dict):
        config = config | {"pretrained_cfg": _stated(inner)}
    parsed = _TimmConfig.model_validate(config)
    cfg = parsed.pretrained_cfg
    names, count = parsed.label_names or cfg.label_names, parsed.num_classes or cfg.num_classes
    count = count or 1000
    assumed: list[str] = []
    if names is not None:
        classes = _numbered(names if isinstance(names, dict) else dict(enumerate(names)), "labels")
        assumed = _unnamed(classes)
    elif count == 1000:  # what timm itself takes a thousand classes for
        classes = imagenet_classes()
    else:
        classes, assumed = tuple(str(i) for i in range(count)), ["classes"]
    arguments = {"in_chans": cfg.input_size[0]} | parsed.model_args
    arch = _timm_architecture(parsed.architecture, arguments)
    arch = dataclasses.replace(arch, num_classes=count)
    return peer_card(arch, classes, cfg.preprocess(arch.in_channels), assumed, cfg.license)


def peer_card(
    arch: Architecture,
    classes: tuple[str, ...],
    preprocess: Preprocess,
    assumed: list[str],
    licence: str = "",
) -> Card:
    name, arch = _known(arch, min(preprocess.size))
    provenance: dict[str, JsonValue] = {"assumed": [*assumed]} if assumed else {}
    return Card(
        model=name,
        architecture=arch,
        classes=classes,
        preprocess=preprocess,
        provenance=provenance,
        licence=licence or NOT_STATED,
    )


def _json(path: Path) -> Config:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{harmless(path)}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{harmless(path)}: not JSON, or damaged") from None
    if not isinstance(found, dict):
        raise InputError(f"{harmless(path)}: not a JSON object")
    return found


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about what a file says, with its name."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = plain_words(first["msg"])
        text = f"{where}: {message}" if where else message
        raise InputError(f"{harmless(path)}: {harmless(text)[:200]}") from None
    except (ValueError, TypeError, InputError) as error:
        raise InputError(f"{harmless(path)}: {harmless(error)[:200]}") from None


def peer_files(card: Card, peer: Literal["timm", "huggingface"]) -> dict[str, Config]:
    """The JSON files beside ``model.safetensors``, by name, that make a peer's network and
    preprocessing of a card; class names that were assumed are left out. Raises InputError where the
    peer has no equal."""
    check_expressible(card.architecture, peer)
    classes = [*card.classes]
    if peer == "huggingface":
        labels: Config = {
            "id2label": {str(i): name for i, name in enumerate(classes)},
            "label2id": {name: i for i, name in enumerate(classes)},
        }
        if not card.classes_known:
            labels = {"num_labels": len(classes)}
        head = {"architectures": ["ResNetForImageClassification"], "dtype": "float32"}
        return {
            "config.json": head | _transformers_config(card.architecture) | labels,
            "preprocessor_config.json": _processor_config(card.preprocess),
        }
    name, arguments = timm_name(card.architecture)
    channels = {"in_chans": card.architecture.in_channels}
    if channels["in_chans"] != 3:
        arguments = arguments | channels
    pre = card.architecture.order == "pre"
    stated = {} if card.licence == NOT_STATED else {"license": card.licence}
    return {
        "config.json": {
            "architecture": name,
            "num_classes": len(classes),
            "num_features": canonical(card.architecture).widths[-1] * card.architecture.expansion,
            "global_pool": "avg",
            **({"label_names": classes} if card.classes_known else {}),
            "pretrained_cfg": _pretrained_cfg(card.preprocess)
            | {
                "num_classes": len(classes),
                "pool_size": None,
                "first_conv": _first_conv(card.architecture.stem, pre),
                "classifier": "head.fc" if pre else "fc",
            }
            | stated,
        }
        | ({"model_args": arguments} if arguments else {})
    }


def _first_conv(stem: str, pre: bool) -> str:
    if pre:
        return "stem.conv1" if stem == "deep" else "stem.conv"
    return "conv1.0" if stem == "deep" else "conv1"


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's thousand classes in the usual order, as torchvision has them."""
    from torchvision.models import ResNet18_Weights

    return distinct(ResNet18_Weights.DEFAULT.meta["categories"])
