"""What a reader is told who has never heard of a residual network, and where popular texts err."""

from __future__ import annotations

from skipway.architecture import ARCHITECTURES, architecture, count
from skipway.report.markup import Html, joined, large, marked_list, table, tag

INTRODUCTION = (
    "A deep network turns an image into an answer in many small steps: each layer makes new "
    "features out of those of the layer before it. More layers can express more, so deeper should "
    "be better. Yet plainly stacked, the paper says, deeper networks come out worse, even on the "
    "very images that they learn from.",
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


def introduction() -> Html:
    """The first words of the page, beside a plain and a residual unit."""
    words = tag("div", *(tag("p", text) for text in INTRODUCTION), class_="lead")
    return tag("div", words, _units(), class_="row opening")


def _units() -> Html:
    """Two layers without and with a shortcut."""
    said = "x passes two layers; in the residual unit x itself is added to what they make of it"
    drawing = tag(
        "svg", *_unit("plain", "Plain", 46, "y = F(x)"),
        *_unit("residual", "Residual", 140, "y = F(x) + x"),
        class_="plot", viewBox="0 0 380 170", role="img", aria_label=said,
    )  # fmt: skip
    caption = "Two layers of a network. Batch norm and ReLU are left out of the drawing."
    return tag("figure", drawing, tag("figcaption", caption))


def _unit(kind: str, title: str, y: int, end: str) -> list[Html]:
    """A unit whose layers stand at the height `y`."""
    adds = kind == "residual"
    parts = [
        tag("text", title, class_="name", x=0, y=y - (44 if adds else 30), font_weight=600),
        tag("text", "x", class_="name", x=6, y=y + 4),
        *_arrow(kind, 18, y, 62),
        *_arrow(kind, 142, y, 172),
        *_arrow(kind, 252, y, 278 if adds else 296),
        tag("text", end, class_="name", x=308 if adds else 302, y=y + 4),
    ]
    for left in (62, 172):
        parts.append(tag("rect", class_="box", x=left, y=y - 16, width=80, height=32, rx=4))
        middle = {"x": left + 40, "y": y + 4, "text_anchor": "middle"}
        parts.append(tag("text", "3×3 conv", class_="name", **middle))
    if adds:
        path = f"M34 {y}V{y - 32}H287V{y - 14}"
        parts += [
            tag("path", class_=f"line {kind}", d=path),
            tag("path", class_=f"dot {kind}", d=f"M283 {y - 16}h8l-4 7z"),
            tag("text", "shortcut: x as it is", class_="tick", x=160, y=y - 38,
                text_anchor="middle"),
            tag("circle", class_=f"line {kind}", cx=287, cy=y, r=9),
            tag("path", class_=f"line {kind}", d=f"M282 {y}h10M287 {y - 5}v10"),
        ]  # fmt: skip
    return parts


def _arrow(kind: str, start: int, y: int, end: int) -> list[Html]:
    """From left to right."""
    return [
        tag("path", class_=f"line {kind}", d=f"M{start} {y}H{end - 6}"),
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
