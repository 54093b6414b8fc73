"""The ways in which a weight file can be read: traits that its tensors do not show.

Not tried, as no network of this package has them: average pools or blurs of other sizes in place of
strides, a max-pool behind a 3x3 stem, dilation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipway.architecture import Architecture, replaced
from skipway.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess


@dataclass(frozen=True)
class Reading:
    """One way to read a weight file: traits that its tensors do not show."""

    stride_in: str
    """As `Architecture.stride_in`."""
    shortcut: str
    """As `Architecture.shortcut`."""
    antialias: bool
    bn_eps: float
    colour: str
    """RGB or BGR: the order in which the network takes the channels."""
    scaling: str
    """0..1 or 0..255: the values before normalisation."""
    normalisation: str
    """A name of `normalisations`."""
    resize: str
    """A name of `framings`."""


TRAITS = tuple(f.name for f in dataclasses.fields(Reading))

Constants = tuple[tuple[float, ...], tuple[float, ...]]

_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
# In the order RGB; published as (103.939, 116.779, 123.68) of 0..255 in the order BGR.
_CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
_KNOWN: dict[int, dict[str, Constants]] = {
    1: {
        "MNIST": ((0.1307,), (0.3081,)),
        "Fashion-MNIST": ((0.2860,), (0.3530,)),
        "0.5 and 0.25": ((0.5,), (0.25,)),
    },
    3: {
        "ImageNet": (IMAGENET_MEAN, IMAGENET_STD),
        "CIFAR-10": (_CIFAR10_MEAN, (0.2470, 0.2435, 0.2616)),
        "CIFAR-10 (std 0.20)": (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
        "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        "ImageNet, channels reversed": (IMAGENET_MEAN[::-1], IMAGENET_STD[::-1]),
    },
}


def normalisations(
    declared: Preprocess, mean: Sequence[float], std: Sequence[float]
) -> tuple[dict[tuple[str, str], Preprocess], tuple[str, str]]:
    """Preprocessing by (scaling, normalisation), and which of them is the declared one.

    `mean` and `std` are the images' own, of 0..1. Constants that belong to 0..1 and were used on
    0..255 as they are (a common mistake of training code) are readings too; means without
    deviations are in the unit of the values, as Caffe's.
    """
    channels = declared.channels
    one, none = (1.0,) * channels, (0.0,) * channels
    constants: dict[str, Constants] = {"none": (none, one)}
    constants["0.5 and 0.5"] = ((0.5,) * channels, (0.5,) * channels)
    constants |= _KNOWN.get(channels, {})
    constants["the data's mean and std"] = (tuple(mean), tuple(np.maximum(std, 1e-3).tolist()))
    means: dict[str, Constants] = {"the data's mean": (tuple(mean), one)}
    if channels == 3:
        means["Caffe's mean"] = (_CAFFE_MEAN, one)
    table: dict[tuple[str, str], Constants] = {}
    for name, (m, s) in constants.items():
        table["0..1", name] = (m, s)
        table["0..255", name] = (_over(m, 255), _over(s, 255))
    for name, (m, s) in means.items():
        table["0..1", name] = (m, s)
        table["0..255", name] = (m, _over(s, 255))
    own: Constants = (declared.mean, declared.std)
    ours = "0..255" if max(declared.std) < 0.02 else "0..1"
    known = [key for key, c in table.items() if np.allclose(c, own, rtol=2e-3, atol=1e-6)]
    made: dict[tuple[str, str], Preprocess] = {}
    if known and declared.pixel_mean is None:
        at = known[0]
    else:
        at, factor = (ours, "the card's"), 1 / 255 if ours == "0..255" else 255.0
        other = "0..1" if ours == "0..255" else "0..255"
        scaled = _over(own[0], factor), _over(own[1], factor)
        if declared.pixel_mean is None:
            table[other, "the card's"] = scaled
        else:  # a mean without deviation is in the unit of the values
            made[other, "the card's"] = updated(declared, std=scaled[1])
        if channels == 3 and own[0] != own[0][::-1] and declared.pixel_mean is None:
            table[ours, "the card's, channels reversed"] = (own[0][::-1], own[1][::-1])
    made |= {
        key: updated(declared, mean=m, std=s, pixel_mean=None) for key, (m, s) in table.items()
    }
    made[at] = declared  # to the last digit
    return made, at


def _over(values: Iterable[float], factor: float) -> tuple[float, ...]:
    return tuple(value / factor for value in values)


def updated(preprocess: Preprocess, **fields: Any) -> Preprocess:
    """The same with other fields, validated again."""
    return Preprocess.model_validate(preprocess.model_dump() | fields)


def framings(declared: Preprocess, sizes: Iterable[int]) -> dict[str, Preprocess]:
    """How an image is cut and resized, by name: the declared way first.

    `sizes` are other heights and widths to try, cut as declared. With a per-pixel mean only the
    declared size is possible.
    """
    size = min(declared.size)
    ways = [declared]
    for fields in (
        {"resize": "crop", "short_side": size},
        {"resize": "crop", "short_side": round(size * 256 / 224)},
        {"resize": "squash", "short_side": None},
        {"resize": "letterbox", "short_side": None},
    ):
        ways.append(updated(declared, **fields))
    if declared.pixel_mean is None:
        for other in sizes:
            short = declared.short_side and max(round(declared.short_side * other / size), other)
            ways.append(updated(declared, size=(other, other), short_side=short))
    named: dict[str, Preprocess] = {}
    for way in ways:
        name = f"{way.resize} {way.size[0]}x{way.size[1]}"
        if way.resize == "crop":
            name += f" of {way.short_side or min(way.size)}"
        named.setdefault(name, way)
    return named


def as_read(declared: Architecture, reading: Reading) -> Architecture:
    """The network under a reading. Raises InputError where there is none."""
    fields: dict[str, Any] = {
        key: getattr(reading, key) for key in ("stride_in", "shortcut", "antialias", "bn_eps")
    }
    if reading.shortcut == "none":  # what serves training alone and a plain net cannot have
        fields |= {"zero_init_last": False, "drop_path": 0.0}
    return replaced(declared, **fields)
