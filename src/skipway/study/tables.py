"""The sizes of the networks beside what the papers print, and weights under the papers' test views:
He et al. 2015, Tables 1 to 3 and 6; He et al. 2016, Table 4."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipway.architecture import Architecture, architecture, count, name_of
from skipway.errors import InputError, harmless
from skipway.report.markup import duration
from skipway.report.plot import Line, decades, linear, plot
from skipway.study.form import Cell, Done, Expected, Finding, Given, Picture, Scale, Told

if TYPE_CHECKING:
    from skipway.data import Split
    from skipway.predictor import Predictor

NAME = "tables"
TITLE = "What the networks weigh, and what they cost"
SOURCE = (
    "He et al. 2015 (1512.03385), Tables 1 to 3 and 6; He et al. 2016 (1603.05027), Tables 3 and 4"
)
CLAIM = (
    "The networks have the parameters and multiply-adds that the papers print, and shortcuts "
    "without projections add none of either."
)
STORY = (
    "Depth alone does not make a network expensive. A residual network of 152 layers takes fewer "
    "multiplications for an image than VGG-16 does with 16, and a shortcut that only adds what "
    "came in costs nothing at all: with or without it, a network has the same size. Both can be "
    "counted without training anything, and counting shows what a name means: networks of one name "
    "stride in different places, and what is often called ResNet-18 for CIFAR is 41 times as large "
    "as the smallest network that the paper trained there."
)
REVISION = 1
SCALES = (
    Scale(
        name="paper",
        protocol="Counted by arithmetic, for one image of 224 px or, of the CIFAR networks, 32 px: "
        "multiply-adds of convolutions and classifier, and learnable parameters. Weights, where "
        "they are given, are scored on ImageNet's validation images with the short side at 256 px: "
        "on the centre of 224 px, and on the corners and the centre, mirrored too.",
        deviations=(
            "weights get their pixels with the mean, the deviation and the interpolation that "
            "their own card names; the paper subtracts the mean of each pixel",
            "of ten crops the logits are averaged; Krizhevsky et al. 2012, whose protocol it is, "
            "average probabilities",
        ),
        minutes=0.1,
    ),
)


# What the papers print


@dataclass(frozen=True)
class Net:
    """A network, and what a paper prints of its size."""

    name: str
    layers: int
    """As its name says; only convolutions and the classifier count, without projections."""
    arch: Architecture
    printed: str = ""
    """To the paper's digits: multiply-adds in 10^9 of ImageNet's networks, parameters in 10^6 of
    CIFAR's; empty where it prints none."""
    meant: bool = True
    """Whether it is the network that was printed, rather than a later one of its name."""
    norms: bool = True
    """Whether the parameters of batch norm are in the number that is printed."""

    @property
    def blocks(self) -> str:
        """Residual units by stage, as "3-4-6-3"."""
        return "-".join(map(str, self.arch.depths))


def _imagenet() -> tuple[Net, ...]:
    found = []
    for layers, printed in ((18, "1.8"), (34, "3.6")):
        found += [
            Net(
                f"ResNet-{layers}, option {shortcut}",
                layers,
                architecture(f"resnet{layers}", shortcut=shortcut),
                printed,
                meant=shortcut == "A",
            )
            for shortcut in ("A", "B", "C")
        ]
    for layers, printed in ((50, "3.8"), (101, "7.6"), (152, "11.3")):
        first, later = architecture(f"resnet{layers}v1"), architecture(f"resnet{layers}")
        found += [
            Net(f"ResNet-{layers}, stride in the 1x1", layers, first, printed),
            Net(f"ResNet-{layers} v1.5, stride in the 3x3", layers, later, printed, meant=False),
        ]
    return tuple(found)


IMAGENET = _imagenet()
"""2015, Table 1. Its networks of 18 and 34 layers have no projections (option A, as in Table 2),
the others have them where the shape changes, and stride in the first 1x1."""
VGG = (("VGG-16", 15.3), ("VGG-19", 19.6))
"""Their multiply-adds in 10^9, as 2015, section 4.1 gives them."""

CIFAR = (
    *(
        Net(f"ResNet-{layers}", layers, architecture(f"resnet{layers}"), printed)
        for layers, printed in (
            (20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7"), (1202, "19.4")
        )
    ),
    Net("pre-activation 164", 164, architecture("preresnet164"), "1.7"),
    Net("pre-activation 1001", 1001, architecture("preresnet1001"), "10.2", norms=False),
)  # fmt: skip
"""2015, Table 6 and 2016, Table 4."""
CALLED = tuple(
    Net(f"“ResNet-{layers} for CIFAR”", layers, architecture(f"resnet{layers}_cifar"))
    for layers in (18, 34, 50, 101, 152)
)
"""ImageNet's networks behind another stem, which no paper of these trained."""
TWINS = (
    *((f"plain{layers}", architecture(f"resnet{layers}", shortcut="A")) for layers in (18, 34)),
    *((f"plain{layers}", architecture(f"resnet{layers}")) for layers in (20, 32, 44, 56, 110)),
)
"""Plain networks and the residual ones that they are compared with."""

TOLERANCE = 0.3
"""Points by which an error may miss what is published of its network."""


@dataclass(frozen=True)
class Published:
    """What a network scored on ImageNet's validation images."""

    errors: tuple[float, float | None]
    """Top-1 and top-5 error in %; None where it is not told."""
    source: str


TABLES = "2015, Tables 2 and 3"
AUTHORS = "the authors' repository"
ERRORS: dict[tuple[str, str, str], Published] = {
    ("resnet50v1", "B", "one"): Published((24.7, 7.8), AUTHORS),
    ("resnet101v1", "B", "one"): Published((23.6, 7.1), AUTHORS),
    ("resnet152v1", "B", "one"): Published((23.0, 6.7), AUTHORS),
    ("resnet18", "none", "ten-crop"): Published((27.94, None), TABLES),
    ("resnet18", "A", "ten-crop"): Published((27.88, None), TABLES),
    ("resnet34", "none", "ten-crop"): Published((28.54, 10.02), TABLES),
    ("resnet34", "A", "ten-crop"): Published((25.03, 7.76), TABLES),
    ("resnet34", "B", "ten-crop"): Published((24.52, 7.46), TABLES),
    ("resnet34", "C", "ten-crop"): Published((24.19, 7.40), TABLES),
    ("resnet50v1", "B", "ten-crop"): Published((22.85, 6.71), TABLES),
    ("resnet101v1", "B", "ten-crop"): Published((21.75, 6.05), TABLES),
    ("resnet152v1", "B", "ten-crop"): Published((21.43, 5.71), TABLES),
}
"""By the row of `ARCHITECTURES`, its shortcuts, and the views."""
VIEWS = {"one": "1 crop", "ten-crop": "10 crops"}
"""The protocols, as `evaluation.Views` has them."""
SIZE, SHORT_SIDE = 224, 256
"""Of a crop, and of the image that it is taken from, in pixels (2015, section 3.4)."""


# The study


def data(given: Given) -> str:
    """The digest of the validation images where there are weights to be scored on them.

    Raises InputError where they cannot be: it opens each of the weights.
    """
    if given.data is not None:
        raise InputError("--data: tables has --weights and --imagenet in its place")
    if bool(given.weights) != (given.imagenet is not None):
        lacks = "--imagenet" if given.weights else "--weights"
        raise InputError(
            f"{lacks}: --weights and --imagenet go together: what is scored, and on which images"
        )
    if given.imagenet is None:
        return ""
    _, split, classes = _validation(given.imagenet)
    for weights in given.weights:
        predictor = _opened(weights, given)
        _require(predictor, weights, split, classes, given.imagenet)
        _as_tested(predictor, weights)
    digest = hashlib.sha256(repr(classes).encode("utf-8", "surrogateescape"))
    digest.update(split.content())
    for name in split.names:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def cells(scale: Scale, seeds: int, given: Given) -> Sequence[Cell]:
    found = [Cell("the sizes", {"what": "sizes"})]
    # Files are known by their content: machines that share the work may have them elsewhere.
    for identity, weights in {_identity(weights): weights for weights in given.weights}.items():
        found += [
            Cell(f"{harmless(weights)}, {words}", {"weights": identity, "views": views})
            for views, words in VIEWS.items()
        ]
    return found


def compute(cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> Any:
    if "weights" in cell.settings:
        return _scored(cell, place, given, say)
    return {
        "nets": {net.name: _size(net.arch) for net in IMAGENET},
        "cifar": {net.name: _size(net.arch) for net in (*CIFAR, *CALLED)},
        "twins": {
            name: {"plain": _size(architecture(name)), "residual": _size(residual)}
            for name, residual in TWINS
        },
    }


def seconds(cell: Cell, given: Given) -> float:
    if "weights" not in cell.settings:
        return 0.1
    import numpy as np

    assert given.imagenet is not None
    _, split, _ = _validation(given.imagenet)
    weights = _weights_of(cell, given)
    predictor = _as_tested(_opened(weights, given), weights)
    x = np.zeros((_TIMED, predictor.card.preprocess.channels, SIZE, SIZE), np.float32)
    predictor.run(x)
    began = time.perf_counter()
    predictor.run(x)
    views = 10 if cell.settings["views"] == "ten-crop" else 1
    return (time.perf_counter() - began) / _TIMED * views * len(split)


_TIMED = 8
"""Images at once that are timed."""


def told(done: Sequence[Done], scale: Scale) -> Told:
    sizes = next((one.result for one in done if "what" in one.cell.settings), None)
    scored = [one.result for one in done if "weights" in one.cell.settings]
    findings = [finding for result in scored for finding in _errors(result)]
    tables = [_table_of(scored)] if scored else []
    notes = list(dict.fromkeys(note for result in scored for note in result["notes"]))
    if sizes is None:
        return Told(findings, notes=notes, tables=tables)
    return Told(
        [*_sizes(sizes), *findings],
        _pictures(sizes),
        [*NOTES, *notes],
        [*_tables(sizes), *tables],
    )


# Sizes


def _size(arch: Architecture) -> dict[str, int]:
    parameters, macs = count(arch)
    bare, _ = count(dataclasses.replace(arch, norm="none"))
    return {"parameters": parameters, "without_norms": bare, "macs": macs}


def _layers(arch: Architecture) -> int:
    """The stem's convolution, those of the units without projections, and the classifier."""
    return 2 + sum(arch.depths) * (3 if arch.block == "bottleneck" else 2)


def _projections(arch: Architecture) -> int:
    """The shortcuts that are projections."""
    if arch.shortcut == "C":
        return sum(arch.depths)
    if arch.shortcut != "B":
        return 0
    widths = [arch.stem_width, *(width * arch.expansion for width in arch.widths)]
    return sum(arch.halves(i) or widths[i] != widths[i + 1] for i, _ in enumerate(arch.depths))


def _step(printed: str) -> Decimal:
    """One of the last digit."""
    return Decimal(1).scaleb(int(Decimal(printed).as_tuple().exponent))


def as_printed(printed: str) -> Expected:
    """Every number that becomes those digits when it is rounded or when it is cut: the papers do
    not say which they did."""
    value, step = Decimal(printed), _step(printed)
    low, high = float(value - step / 2), float(value + step)
    return Expected(f"{printed} as printed, rounded or cut", low, math.nextafter(high, low))


def how_met(value: float, printed: str) -> str:
    """ "rounded", "cut" or "no": how a number becomes the digits that are printed."""
    step = _step(printed)
    if Decimal(f"{value:.{-int(step.as_tuple().exponent)}f}") == Decimal(printed):
        return "rounded"
    return "cut" if Decimal(value).quantize(step, ROUND_DOWN) == Decimal(printed) else "no"


def _sizes(sizes: Any) -> list[Finding]:
    found = [
        Finding(
            name=f"{net.name}, multiply-adds in 10⁹",
            values=((value := sizes["nets"][net.name]["macs"] / 1e9),),
            expected=as_printed(net.printed),
            places=3,
            drawn=False,
            note=_cut(value, net.printed),
        )
        for net in IMAGENET
        if net.meant
    ]
    for net in CIFAR:
        size = sizes["cifar"][net.name]
        value = size["parameters" if net.norms else "without_norms"] / 1e6
        found.append(
            Finding(
                name=f"{net.name}, parameters in 10⁶" + ("" if net.norms else ", no batch norm's"),
                values=(value,),
                expected=as_printed(net.printed),
                places=3,
                drawn=False,
                note=_cut(value, net.printed)
                if net.norms
                else f"with batch norm's {size['parameters'] / 1e6:.3f}, which is not printed so",
            )
        )
    for what, words in (("parameters", "parameters"), ("macs", "multiply-adds")):
        apart = [abs(t["residual"][what] - t["plain"][what]) for t in sizes["twins"].values()]
        found.append(
            Finding(
                name=f"{words} that shortcuts of option A add, of {len(apart)} networks the most",
                values=(float(max(apart)),),
                expected=Expected("none", 0, 0),
                places=0,
                drawn=False,
            )
        )
    more = [_projections(architecture("resnet34", shortcut=shortcut)) for shortcut in "BC"]
    every = [*IMAGENET, *CIFAR]
    right = sum(_layers(net.arch) == net.layers for net in every)
    large, small = sizes["cifar"][CALLED[0].name], sizes["cifar"][CIFAR[0].name]
    found += [
        Finding(
            name="projections that option C adds to option B in 34 layers",
            values=(float(more[1] - more[0]),),
            expected=Expected("13", 13, 13),
            places=0,
            drawn=False,
        ),
        Finding(
            name="networks with as many layers as their name says",
            values=(float(right),),
            expected=Expected(f"all {len(every)}", len(every), len(every)),
            places=0,
            drawn=False,
        ),
        *(
            Finding(
                name=f"{CALLED[0].name} over ResNet-20, {words}",
                values=(large[what] / small[what],),
                unit="times",
                places=1,
                drawn=False,
                note="no network of the paper",
            )
            for what, words in (("parameters", "parameters"), ("macs", "multiply-adds"))
        ),
    ]
    return found


def _cut(value: float, printed: str) -> str:
    if how_met(value, printed) != "cut":
        return ""
    rounded = Decimal(value).quantize(_step(printed))
    return f"it would be rounded to {rounded}: {printed} is {value:.3f} cut"


NOTES = (
    "What the papers call FLOPs are multiply-adds: a multiplication with the addition that follows "
    "counts once. Counted are convolutions, projections too, and the classifier; batch norm, ReLU, "
    "pooling and the additions of shortcuts are not, a few in a hundred at most. Many "
    "counters give twice these numbers.",
    "A printed number counts as met where ours becomes its digits by rounding or by cutting; the "
    "tables say which. No single rule gives all of Table 1: 7.570 and 11.282 are printed as 7.6 "
    "and 11.3, so rounded, but 3.858 as 3.8. All three would be rounded if the paper's counts were "
    "8 to 20 million below ours, at most half a percent; what it left out we do not know.",
    "Where a bottleneck strides decides which ResNet-50 it is. The paper's halves in its first 1x1 "
    "and takes 3.86 billion multiply-adds. Most that is in use today halves in the 3x3, takes 4.09 "
    "billion, and is called v1.5: as many parameters, but not the network of Table 1, and weights "
    "of one do not serve the other. Here Table 1 is resnet50v1, resnet101v1 and resnet152v1; "
    "resnet50, resnet101 and resnet152 are v1.5.",
    "In 34 layers 3.6 is option A, rounded, whose shortcuts have no parameters; option B takes "
    "3.664, which is rounded to 3.7, and option C 3.831.",
    "The two papers do not count parameters alike: 19.4 million of 1202 layers are met only with "
    "the scales and shifts of batch norm (19.33 without), 10.2 million of 1001 layers only without "
    "(10.33 with). For the latter we compare what fits, so that this number tests the network but "
    "not the way of counting.",
    "Blocks by stage, which are often given wrongly: ResNet-18 is 2-2-2-2, 34 is 3-4-6-3, 50 is "
    "3-4-6-3 too, with bottlenecks, 101 is 3-4-23-3, and 152 is 3-8-36-3. The stem for ImageNet is "
    "one 7x7 convolution with stride 2 and a 3x3 max-pool with stride 2, so that the first block "
    "sees 56 x 56 positions of an image of 224 px. Layers that are counted in a name are "
    "convolutions and the classifier; projections are not.",
    "The paper's networks for CIFAR have 6n + 2 layers and 16, 32 and 64 channels: 20, 32, 44, 56, "
    "110. What is often called ResNet-18 for CIFAR is ImageNet's network, with 64 to 512 channels, "
    "behind a 3x3 stem: 41 times the parameters of ResNet-20 and 13.7 times its multiply-adds. Its "
    "accuracy says nothing of the paper's.",
)

Table = tuple[str, Sequence[str], Sequence[Sequence[object]]]


def _tables(sizes: Any) -> list[Table]:
    imagenet = []
    for net in IMAGENET:
        size = sizes["nets"][net.name]
        value, printed = size["macs"] / 1e9, float(net.printed)
        imagenet.append(
            (
                net.name,
                net.blocks,
                _layers(net.arch),
                _projections(net.arch),
                f"{size['parameters']:,}",
                f"{value:.3f}",
                net.printed,
                f"{value / printed - 1:+.1%}".replace("%", " %"),
                how_met(value, net.printed),
            )
        )
    cifar = []
    for net in (*CIFAR, *CALLED):
        size = sizes["cifar"][net.name]
        ways = [size["parameters"], size["without_norms"]]
        met = [how_met(way / 1e6, net.printed) if net.printed else None for way in ways]
        cifar.append(
            (
                net.name,
                net.blocks,
                f"{ways[0]:,}",
                met[0],
                f"{ways[1]:,}",
                met[1],
                net.printed or None,
                f"{size['macs'] / 1e6:,.1f}",
            )
        )
    twins = [
        (name, *(f"{twin[kind][what]:,}" for what in ("parameters", "macs") for kind in twin))
        for name, twin in sizes["twins"].items()
    ]
    return [
        (
            "Networks for ImageNet at 224 px (2015, Table 1): multiply-adds in 10⁹",
            (
                "network", "blocks", "layers", "projections", "parameters", "multiply-adds",
                "printed", "difference", "met",
            ),
            imagenet,
        ),
        (
            "Networks for CIFAR at 32 px (2015, Table 6; 2016, Table 4): parameters, with batch "
            "norm's and without, and multiply-adds in 10⁶",
            (
                "network", "blocks", "parameters", "met", "without batch norm's", "met",
                "printed, in 10⁶", "multiply-adds",
            ),
            cifar,
        ),
        (
            "Plain networks and their residual twins, option A",
            (
                "plain", "parameters", "with shortcuts", "multiply-adds", "with shortcuts",
            ),
            twins,
        ),
    ]  # fmt: skip


def _pictures(sizes: Any) -> list[Picture]:
    meant = [net for net in IMAGENET if net.meant]
    ours = [(float(net.layers), sizes["nets"][net.name]["macs"] / 1e9) for net in meant]
    deep = plot(
        "Deeper than VGG, and cheaper",
        "Multiply-adds for an image of 224 px by the number of layers: computed as a line, what "
        "the paper prints as dots. Thin lines: what it gives for VGG-16 and VGG-19.",
        linear("layers", 160),
        linear("multiply-adds, 10⁹", 20),
        [Line("ResNet", ours, "residual")],
        dots=[(float(net.layers), float(net.printed), 4) for net in meant],
        levels=[(value, name) for name, value in VGG],
    )
    groups = (
        ("6n + 2", "residual", CIFAR[:-2]),
        ("pre-activation", "preactivation", CIFAR[-2:]),
        ("“for CIFAR”", "middle", CALLED),
    )
    lines = []
    for name, style, nets in groups:
        at = [sizes["cifar"][net.name] for net in nets]
        points = [(size["macs"] / 1e6, size["parameters"] / 1e6) for size in at]
        lines += [Line(name, points, style), *(Line("", [point], style) for point in points)]
    every = [point for line in lines for point in line.points]
    named = plot(
        "Two families of one name",
        "Parameters and multiply-adds for an image of 32 px. Blue: 20, 32, 44, 56, 110 and 1202 "
        "layers (2015). Green: 164 and 1001 (2016). Grey: what is called ResNet-18, 34, 50, 101 "
        "and 152 for CIFAR, ImageNet's networks behind another stem.",
        decades("multiply-adds, 10⁶", [x for x, _ in every]),
        decades("parameters, 10⁶", [y for _, y in every]),
        lines,
    )
    return [Picture("tables-depth", deep), Picture("tables-cifar", named)]


# Weights


def _validation(imagenet: str) -> tuple[str, Split, tuple[str, ...]]:
    """The validation images of a folder with their name there, and the classes that their labels
    count. Raises InputError."""
    from skipway.data import open_split

    name, split, classes = open_split(imagenet, None, None, 0, "auto")
    if name not in ("val", "all"):
        raise InputError(
            f"--imagenet {harmless(imagenet)}: has {name} but no val; give the folder that holds "
            "val, or val itself with its class folders"
        )
    return name, split, classes


def _opened(weights: str, given: Given) -> Predictor:
    """The weights as a classifier. Raises InputError."""
    from skipway.machine import cores
    from skipway.predictor import load

    return load(weights, given.threads or cores(), _device(weights, given))


def _as_tested(predictor: Predictor, weights: str) -> Predictor:
    """A classifier that sees images as the papers' tests show them: their sizes, its own mean,
    deviation and interpolation. Raises InputError."""
    from skipway.images import Preprocess
    from skipway.predictor import Predictor

    own = predictor.card.preprocess
    if not predictor.any_size and own.size != (SIZE, SIZE):
        raise InputError(
            f"--weights {harmless(weights)}: ONNX of {own.size[0]} x {own.size[1]} px; the papers' "
            f"tests take {SIZE} x {SIZE}"
        )
    fields = {"size": (SIZE, SIZE), "short_side": SHORT_SIDE, "resize": "crop"}
    try:
        shown = Preprocess.model_validate(own.model_dump() | fields)
    except ValueError:  # a mean of each pixel has one size
        raise InputError(
            f"--weights {harmless(weights)}: its mean of each pixel is of {own.size[0]} x "
            f"{own.size[1]} px; the papers' tests take {SIZE} x {SIZE}"
        ) from None
    card = predictor.card.model_copy(update={"preprocess": shown})
    return Predictor(predictor.run, card, predictor.origin, predictor.any_size)


def _device(weights: str, given: Given) -> str:
    from skipway.files import is_hub_name, weight_file
    from skipway.predictor import is_onnx

    if given.device != "auto":
        return given.device
    if not is_hub_name(weights) and is_onnx(weight_file(weights)):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _require(
    predictor: Predictor, weights: str, split: Split, classes: Sequence[str], imagenet: str
) -> None:
    """Raise InputError where the images are not of all classes that the weights tell apart, and of
    no others."""
    from skipway.data.forms.imagenet import in_models_order

    shown, folder = f"--weights {harmless(weights)}", f"--imagenet {harmless(imagenet)}"
    there = {classes[i] for i in set(split.labels.tolist())}
    n, known = len(predictor.classes), set(predictor.classes)
    by_name = predictor.classes_known and not known.isdisjoint(there)
    if len(there) > n:
        raise InputError(f"{shown}: tells {n:,} classes apart, {folder} has {len(there):,}")
    lacking = sorted((known if by_name else set(classes)) - there)
    if len(there) < n or lacking:
        few = ", ".join(map(harmless, lacking[:3])) + (", …" if len(lacking) > 3 else "")
        few = few or f"{n - len(there):,} class folders"
        raise InputError(
            f"{folder}: validation images of {len(there):,} of the {n:,} classes that "
            f"{harmless(weights)} tells apart; it lacks {few}"
        )
    if predictor.classes_known and not by_name and not in_models_order(classes, predictor.classes):
        raise InputError(
            f"{shown}: its classes, as {harmless(predictor.classes[0])!r}, are not those of "
            f"{folder}, as {harmless(classes[0])!r}"
        )


def _identity(weights: str) -> str:
    """What tells weights from others: of a hub their name, else the sha256 of the file, empty
    where it is no longer there: what was computed of it is then not found."""
    from skipway.files import is_hub_name, weight_file

    if is_hub_name(weights):
        return weights
    try:
        with weight_file(weights).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (InputError, OSError):
        return ""


def _weights_of(cell: Cell, given: Given) -> str:
    return next(w for w in given.weights if _identity(w) == cell.settings["weights"])


_BATCH = 64
"""Crops at once: of the deepest network on two cores a batch is below half a minute's work."""
KEPT_EVERY = 20.0
"""Seconds after which what was scored is written down."""


def _scored(cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> dict[str, Any]:
    """A weight file under one protocol, gone on with where it stopped."""
    import numpy as np

    from skipway.evaluation import Views, open_labelled
    from skipway.evaluation.scoring import outputs
    from skipway.files import atomic_write
    from skipway.machine import cores
    from skipway.metrics import Scored

    assert given.imagenet is not None
    weights = _weights_of(cell, given)
    predictor = _as_tested(_opened(weights, given), weights)
    name, _, _ = _validation(given.imagenet)
    images = open_labelled(predictor, weights, given.imagenet, name)
    n, kept = len(images.split), place / "scored.json"
    state: dict[str, Any] = {"done": 0, "wrong": [0, 0]}
    if kept.exists():
        state = json.loads(kept.read_text("utf-8"))
    done, (first, five) = state["done"], state["wrong"]
    if done:
        say(f"{cell.name}: going on after {done:,} of {n:,} images")

    def keep() -> None:
        with atomic_write(kept) as file:
            file.write(json.dumps({"done": done, "wrong": [first, five]}).encode())

    rest = images.split.take(np.arange(done, n))
    begun, last, before = time.monotonic(), time.monotonic(), done
    for index, logits in outputs(
        predictor,
        rest,
        given.threads or cores(),
        "error",
        Views(cell.settings["views"]),
        _BATCH,
        None,
        [],
    ):
        found = Scored.from_logits(logits, rest.labels[index], index)
        done += len(index)
        first += int((~found.correct).sum())
        five += int((~found.in_top5).sum())
        if (now := time.monotonic()) - last >= KEPT_EVERY:
            keep()
            last, left = now, (now - begun) / (done - before) * (n - done)
            say(f"{cell.name}: {done:,} of {n:,} images, {duration(left)} left")
    return {
        "weights": weights,
        "net": _net_of(predictor.card.architecture),
        "views": cell.settings["views"],
        "n": n,
        "wrong": [first, five],
        "stated": _stated(_digest_of(cell, predictor)),
        "told_by_card": predictor.classes_known,
        "notes": list(images.notes),
    }


def _net_of(arch: Architecture) -> list[str]:
    """The row of `ARCHITECTURES` with shortcut B, and the shortcut that it has; what only training
    sees does not count."""
    plain = dataclasses.replace(
        arch, shortcut="B", zero_init_last=False, drop_path=0.0, dropout=0.0, block_dropout=0.0,
        bn_momentum=0.1, checkpointing=False, init="he",
    )  # fmt: skip
    return [name_of(plain), "A" if arch.shortcut == "A-split" else arch.shortcut]


def _digest_of(cell: Cell, predictor: Predictor) -> str:
    """The sha256 of the weights, as their hub gave it where they come from one."""
    return str(predictor.card.provenance.get("sha256", cell.settings["weights"]))


def _stated(digest: str) -> list[Any] | None:
    """What torchvision states of weights of its own with that sha256: their name, and top-1 and
    top-5 error in % on ImageNet's validation images; None for all others."""
    from torch.hub import HASH_REGEX
    from torchvision.models import get_model_weights

    from skipway.peers import torchvision_names

    for model in torchvision_names():
        for member in get_model_weights(model):
            marked = HASH_REGEX.search(os.path.basename(member.url))
            if marked and marked[1] and digest.startswith(marked[1]):
                found = member.meta["_metrics"]["ImageNet-1K"]
                return [f"{model}.{member.name}", 100 - found["acc@1"], 100 - found["acc@5"]]
    return None


def _errors(result: Any) -> list[Finding]:
    row, shortcut = result["net"]
    published = ERRORS.get((row, shortcut, result["views"]))
    found = []
    for place, top in enumerate(("top-1", "top-5")):
        value = 100 * result["wrong"][place] / result["n"]
        figure = published.errors[place] if published else None
        said = [f"95 % interval of the {result['n']:,} images {_interval(result, place)} %"]
        if result["stated"]:
            name, *errors = result["stated"]
            said.append(f"torchvision states {errors[place]:.2f} % of {name}")
        if first := ERRORS.get((f"{row}v1", shortcut, result["views"])):
            said.append(
                f"published for the network that strides in the 1x1: {first.errors[place]:g} %"
            )
            if not result["told_by_card"]:
                said.append("that this one strides in the 3x3 is assumed: the file does not tell")
        expected = None
        if published and figure is not None:
            words = f"{figure:g} % ± {TOLERANCE} ({published.source})"
            expected = Expected(words, figure - TOLERANCE, figure + TOLERANCE)
        found.append(
            Finding(
                name=f"{harmless(result['weights'])}, {VIEWS[result['views']]}, {top} error",
                values=(value,),
                expected=expected,
                unit="%",
                drawn=False,
                note="; ".join(said),
            )
        )
    return found


def _interval(result: Any, place: int) -> str:
    from skipway.metrics import wilson_interval

    low, high = wilson_interval(result["wrong"][place], result["n"])
    return f"{100 * low:.2f} to {100 * high:.2f}"


def _table_of(scored: Sequence[Any]) -> Table:
    rows = []
    for result in scored:
        row, shortcut = result["net"]
        published = ERRORS.get((row, shortcut, result["views"]))
        rows.append(
            (
                harmless(result["weights"]),
                f"{row}, option {shortcut}",
                VIEWS[result["views"]],
                f"{result['n']:,}",
                *(
                    part
                    for place, figure in enumerate(published.errors if published else (None, None))
                    for part in (
                        f"{100 * result['wrong'][place] / result['n']:.2f}",
                        _interval(result, place),
                        None if figure is None else f"{figure:g}",
                    )
                ),
                published.source if published else None,
            )
        )
    return (
        "Weights on ImageNet's validation images: error in %, with its 95 % interval of the images",
        (
            "weights", "network", "view", "images", "top-1", "interval", "published", "top-5",
            "interval", "published", "where",
        ),
        rows,
    )  # fmt: skip
