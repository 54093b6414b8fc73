"""The sizes of the networks beside what the papers print: He et al. 2015, Tables 1 and 6, and He et
al. 2016, Table 4. Where weights are given, what they score too (`imagenet`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any

from skipway.architecture import Architecture, architecture, count
from skipway.errors import InputError
from skipway.report.plot import Line, decades, linear, plot
from skipway.study import imagenet
from skipway.study.form import Cell, Done, Expected, Finding, Given, Picture, Scale, Told
from skipway.study.trainings import told_apart

NAME = "tables"
TITLE = "What the networks weigh, and what they cost"
SOURCE = "He et al. 2015 (1512.03385), Tables 1 to 3 and 6; He et al. 2016 (1603.05027), Table 4"
CLAIM = (
    "The networks have the parameters and multiply-adds that the papers print, that of 1001 layers "
    "only without those of batch norm; shortcuts without projections add none of either."
)
STORY = (
    "Depth alone does not make a network expensive. A residual network of 152 layers takes fewer "
    "multiplications for an image than VGG-16 does with 16, and a shortcut that only adds what "
    "came in costs nothing at all: with or without it, a network has the same size. Both can be "
    "counted without training anything, and counting shows what a name means: networks of one name "
    "stride in different places, and what is often called ResNet-18 for CIFAR is 41 times as large "
    "as the smallest network that the paper trained there."
)
DATA = ""
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
    """Whether the parameters of batch norm are in the number that is printed, as we count."""

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


# The study


def data(given: Given) -> str:
    """The digest of the validation images where there are weights to be scored on them.

    Raises InputError where they cannot be: it opens each of the weights.
    """
    if given.data is not None:
        raise InputError("--data: tables has --weights and --imagenet in its place")
    return imagenet.digest(given)


def cells(scale: Scale, seeds: int, given: Given) -> Sequence[Cell]:
    nets = {net.name: told_apart(net.arch) for net in (*IMAGENET, *CIFAR, *CALLED)}
    nets |= {name: told_apart(architecture(name)) for name, _ in TWINS}
    sizes = Cell("the sizes", {"what": "sizes"}, cost=0, stands_for=nets)
    return [sizes, *imagenet.cells(given)]


def compute(cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> Any:
    if "weights" in cell.settings:
        return imagenet.score(cell, place, given, say)
    return {
        "nets": {net.name: _size(net.arch) for net in IMAGENET},
        "cifar": {net.name: _size(net.arch) for net in (*CIFAR, *CALLED)},
        "twins": {
            name: {"plain": _size(architecture(name)), "residual": _size(residual)}
            for name, residual in TWINS
        },
    }


def seconds(cell: Cell, given: Given) -> float:
    return imagenet.seconds(cell, given) if "weights" in cell.settings else 0.1


def reached(cell: Cell, place: Path, given: Given, data: str) -> str | None:
    return imagenet.reached(place)


def told(done: Sequence[Done], scale: Scale) -> Told:
    sizes = next((one.result for one in done if "what" in one.cell.settings), None)
    scored = [one.result for one in done if "weights" in one.cell.settings]
    findings = [finding for result in scored for finding in imagenet.findings(result)]
    tables = [imagenet.table(scored)] if scored else []
    notes = list(dict.fromkeys(note for result in scored for note in result["notes"]))
    if any(finding.expected for finding in findings):
        notes.append(imagenet.NOTE)
    if sizes is None:
        return Told(findings, notes=notes, tables=tables)
    return Told(
        findings=[*_sizes(sizes), *findings],
        pictures=_pictures(sizes),
        notes=[*NOTES, *notes],
        tables=[*_tables(sizes), *tables],
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
        value, bare = (size[way] / 1e6 for way in ("parameters", "without_norms"))
        found.append(
            Finding(
                name=f"{net.name}, parameters in 10⁶",
                values=(value,),
                expected=as_printed(net.printed) if net.norms else None,
                places=3,
                drawn=False,
                note=_cut(value, net.printed)
                if net.norms
                else f"{net.printed} is printed, as it is without batch norm's: {bare:.3f}",
            )
        )
    for what, words in (("parameters", "parameters"), ("macs", "multiply-adds")):
        apart = [abs(t["residual"][what] - t["plain"][what]) for t in sizes["twins"].values()]
        found.append(
            Finding(
                name=f"most {words} that option A's shortcuts add to any of {len(apart)} networks",
                values=(float(max(apart)),),
                expected=Expected("none", 0, 0),
                places=0,
                drawn=False,
                control=True,
            )
        )
    more = [_projections(architecture("resnet34", shortcut=shortcut)) for shortcut in "BC"]
    every = [*IMAGENET, *CIFAR]
    right = sum(_layers(net.arch) == net.layers for net in every)
    large, small = sizes["cifar"][CALLED[0].name], sizes["cifar"][CIFAR[0].name]
    found += [
        Finding(
            name="ResNet-34: projections of option C beyond option B's",
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
            control=True,
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
    "pooling and the additions of shortcuts are not, a few in a hundred at most. Many counters "
    "give twice these numbers. The layers in a name are convolutions and the classifier, without "
    "projections.",
    "A printed number counts as met where ours becomes its digits by rounding or by cutting; the "
    "tables say which. No single rule gives all of Table 1: 7.570 and 11.282 are printed as 7.6 "
    "and 11.3, so rounded, but 3.858 as 3.8. All three would be rounded if the paper's counts were "
    "8 to 20 million below ours, at most half a percent; what it left out we do not know.",
    "Where a bottleneck strides decides which ResNet-50 it is. The authors' models halve in the "
    "first 1x1, which takes 3.86 billion multiply-adds as in Table 1; most that is in use today "
    "halves in the 3x3, takes 4.09 billion, and is called v1.5. Here the former are resnet50v1, "
    "resnet101v1 and resnet152v1; resnet50, resnet101 and resnet152 are v1.5.",
    "In 34 layers 3.6 is option A, rounded, whose shortcuts have no parameters; option B takes "
    "3.664, which is rounded to 3.7, and option C 3.831.",
    "The two papers do not count parameters alike: 19.4 million of 1202 layers are met only with "
    "the scales and shifts of batch norm (19.33 without), 10.2 million of 1001 layers only without "
    "(10.33 with). We count with them, and expect nothing of the latter.",
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
