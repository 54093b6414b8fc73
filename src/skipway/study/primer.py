"""What a reader is told who has never heard of a residual network, and where popular texts err."""

from __future__ import annotations

from collections.abc import Sequence

from skipway.architecture import ARCHITECTURES, architecture, count
from skipway.report.markup import (
    Html,
    details,
    fact_list,
    joined,
    large,
    marked_list,
    table,
    tag,
)

INTRODUCTION = (
    "A deep network turns an image into an answer in many small steps: each layer makes new "
    "features out of those of the layer before it. More layers can express more, so deeper should "
    "be better. Yet plainly stacked, Kaiming He and his colleagues found in 2015, deeper networks "
    "come out worse, even on the very images that they learn from.",
    "Residual networks add a shortcut around every few layers: y = F(x) + x. What comes in is "
    "handed on unchanged, and the layers F learn only what to add to it. To do nothing is then "
    "easy, and a network of a hundred layers should train as readily as one of twenty.",
    "These are claims, and claims can be checked. Below, what the papers say stands beside what "
    "was obtained here, with how sure it is.",
)
POPULAR, PAPER_CIFAR = ARCHITECTURES["resnet18_cifar"], ARCHITECTURES["resnet20"]
NETS = {
    "“CIFAR ResNet-18”, the popular": POPULAR,
    "ResNet-20, the paper’s": PAPER_CIFAR,
    "ResNet-34": architecture("resnet34", shortcut="A"),
    "ResNet-101": ARCHITECTURES["resnet101v1"],
    "ResNet-152": ARCHITECTURES["resnet152v1"],
}
"""As the paper has them (2015, Tables 1, 2 and 6), but for the popular one."""
DEEP = ("ResNet-34", "ResNet-101", "ResNet-152")


WORDS = (
    ("Convolution", "a layer that slides small filters over an image or over features; 3×3 is the "
     "size of the filters in pixels."),
    ("ReLU", "what follows a layer: negative numbers become 0, the others stay."),
    ("Batch norm", "brings each channel to mean 0 and deviation 1 over the images of a step, then "
     "scales and shifts it as is learned."),
    ("Unit, block", "two layers, or three, with the shortcut around them; in a plain net the same "
     "without it."),
    ("Option A, B, C", "shortcuts where the shape changes: A pads with zeros and has no weights, B "
     "has a convolution there, C everywhere."),
    ("Pre-activation", "the later unit (He et al. 2016): norm and ReLU before each convolution, "
     "nothing after the sum."),
    ("Gradient", "how the error would change with each number in the net; a training walks down "
     "it, step by step."),
    ("He, Xavier", "two scales of the random first weights; He’s is made for ReLU, Xavier’s is "
     "smaller by the root of two."),
    ("Root mean square", "the size of many numbers in one: the root of the mean of their squares."),
    ("Seed", "the number that random draws start from: another one gives other first weights and "
     "another order of the images."),
    ("CIFAR-10", "60,000 photographs of 32 px in ten classes, of which 10,000 are for testing."),
)  # fmt: skip


def introduction() -> Html:
    """The first words of the page, beside a plain and two residual units."""
    said = tag("div", *(tag("p", text) for text in INTRODUCTION), class_="lead")
    meant = details("Words used here", fact_list(WORDS))
    return joined([tag("div", said, _units(), class_="row opening"), meant])


Parts = Sequence[tuple[str, int]]
"""What a unit is made of, from left to right, with the widths of the boxes."""
CONV, NORM, RELU = ("3×3", 38), ("BN", 30), ("ReLU", 40)
GAP = 13
"""Pixels between two boxes, for an arrow."""


def _units() -> Html:
    """Two layers without a shortcut, with it, and in the order of the later paper."""
    said = (
        "Two layers, each a convolution with batch norm and ReLU. In a residual unit x itself is "
        "added before the last ReLU; with pre-activation norm and ReLU come first, and nothing "
        "after the sum"
    )
    layer = (CONV, NORM, RELU)
    drawing = tag(
        "svg",
        *_unit("plain", "Plain", 42, (*layer, *layer)),
        *_unit("residual", "Residual", 132, (*layer, *layer[:-1]), after=(RELU,)),
        *_unit("preactivation", "Pre-activation", 222, (NORM, RELU, CONV) * 2),
        class_="plot", viewBox="0 0 400 244", role="img", aria_label=said,
    )  # fmt: skip
    caption = (
        "Two layers of a network: 3×3 convolutions, batch norm (BN) and ReLU. What they add to x "
        "is F(x)."
    )
    return tag("figure", drawing, tag("figcaption", caption))


def _unit(kind: str, title: str, y: int, parts: Parts, after: Parts | None = None) -> list[Html]:
    """A unit whose layers stand at the height `y`. after: what follows the sum; None without a
    sum in a plain unit, and nothing follows it in the others."""
    adds = kind != "plain"
    drawn = [tag("text", "x", class_="name", x=2, y=y + 4)]
    at = 13
    for label, width in parts:
        drawn += [*_arrow(kind, at, y, at + GAP), *_box(label, at + GAP, width, y)]
        at += GAP + width
    if adds:
        middle = at + GAP + 9
        path = f"M19 {y}V{y - 32}H{middle}V{y - 14}"
        drawn += [
            *_arrow(kind, at, y, at + GAP),
            tag("path", class_=f"line {kind}", d=path),
            tag("path", class_=f"dot {kind}", d=f"M{middle - 4} {y - 16}h8l-4 7z"),
            tag("text", "shortcut: x as it is", class_="tick", x=(19 + middle) / 2, y=y - 37,
                text_anchor="middle"),
            tag("circle", class_=f"line {kind}", cx=middle, cy=y, r=9),
            tag("path", class_=f"line {kind}", d=f"M{middle - 5} {y}h10M{middle} {y - 5}v10"),
        ]  # fmt: skip
        at = middle + 9
    for label, width in after or ():
        drawn += [*_arrow(kind, at, y, at + GAP), *_box(label, at + GAP, width, y)]
        at += GAP + width
    named = tag("text", title, class_="name", x=0, y=y - (50 if adds else 26), font_weight=600)
    return [named, *drawn, *_arrow(kind, at, y, at + GAP)]


def _box(label: str, left: int, width: int, y: int) -> list[Html]:
    middle = {"x": left + width / 2, "y": y + 4, "text_anchor": "middle"}
    return [
        tag("rect", class_="box", x=left, y=y - 13, width=width, height=26, rx=4),
        tag("text", label, class_="name", **middle),
    ]


def _arrow(kind: str, start: int, y: int, end: int) -> list[Html]:
    """From left to right."""
    return [
        tag("path", class_=f"line {kind}", d=f"M{start} {y}H{end - 5}"),
        tag("path", class_=f"dot {kind}", d=f"M{end - 7} {y - 4}v8l7 -4z"),
    ]


def corrections() -> Html:
    """Where popular texts err, each number by `architecture.count`."""
    units = {name: "-".join(map(str, arch.depths)) for name, arch in NETS.items()}
    popular, paper = count(POPULAR), count(PAPER_CIFAR)
    v1, v15 = (large(count(ARCHITECTURES[name])[1]) for name in ("resnet50v1", "resnet50"))
    said = (
        "Units in the four stages: "
        + ", ".join(f"{name} has {units[name]}" for name in DEEP)
        + " (2015, Table 1). Other numbers are not these nets.",
        "The stem for ImageNet is one 7×7 convolution of stride 2, then a 3×3 max-pool of stride "
        "2. A single 3×3 convolution is the stem of the CIFAR nets; three of them are a later "
        "change (ResNet-C, and D after it).",
        "The “ResNet-18” that tutorials train on CIFAR-10 is not the paper’s net for CIFAR-10. It "
        "is the ImageNet net with another stem, with "
        f"{popular[0] / paper[0]:.0f} times the parameters and {popular[1] / paper[1]:.1f} times "
        "the multiply-adds of ResNet-20. The paper’s have 6n + 2 layers, three stages of 16, 32 "
        "and 64 channels, and shortcuts without parameters.",
        "ResNet-50 strides in the first 1×1 convolution of a stage, as the authors published it: "
        f"{v1} multiply-adds. Most libraries stride in the 3×3: {v15}, with as many parameters, "
        "under the same name.",
    )
    rows = [(name, units[name], *map(large, count(arch))) for name, arch in NETS.items()]
    counted = table(
        ("Net", "Units per stage", "Parameters", "Multiply-adds"),
        rows,
        caption="One image at the net’s own size, 32 or 224 px; convolutions and classifier. As in "
        "the paper: ResNet-34 without projections, the deeper ones with the stride in the 1×1.",
    )
    errors = marked_list(("≠", None, tag("p", text)) for text in said)
    return joined([errors, tag("div", counted, class_="titled")])
