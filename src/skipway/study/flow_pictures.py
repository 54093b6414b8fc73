"""Pictures of what was measured of gradient flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from skipway.report.markup import Html
from skipway.report.plot import Axis, Line, linear, plot
from skipway.study.flow_nets import (
    INITS,
    KINDS,
    NETS,
    NORMS,
    TRAINED,
    Flow,
    Initial,
    Net,
    Number,
    Trained,
    common,
    held,
    left,
    losses,
    middle,
    units,
)  # fmt: skip
from skipway.study.flow_panels import Panel, Trace, animation, panels
from skipway.study.form import Picture

SHOWN = 110
"""Layers of the nets whose units are shown one by one."""


def _back(flow: Flow) -> list[Number]:
    """The gradient at each unit over that at the last one, from the last one back."""
    back = flow["gradient_rms"][-2:0:-1]
    last = held(back[0])
    return [None if v is None else v / last for v in back]


def _forward(flow: Flow) -> list[Number]:
    return list(flow["activation_rms"][1:-1])


def _trace(
    name: str,
    style: str,
    seeds: Sequence[Sequence[Number]],
    frames: Sequence[Sequence[Number]] = (),
) -> Trace:
    """The middle of what seeds gave, and their range."""
    at = list(zip(*seeds, strict=True))
    centre = [middle(values) for values in at]
    low = [min(values, key=held) for values in at]
    high = [max(values, key=held) for values in at]
    several = len(seeds) > 1
    return Trace(name, style, frames or [centre], low if several else (), high if several else ())


def _by_unit(
    seeds: Sequence[Mapping[str, Flow]],
    norm: str,
    init: str,
    of: Callable[[Flow], list[Number]],
    label: str,
) -> Panel:
    traces = [
        _trace(net.called, net.kind, [of(nets[net.key]) for nets in seeds])
        for net in (Net(kind, norm, init) for kind in KINDS)
    ]
    title = f"{'no norm' if norm == 'none' else 'batch norm'}, {init.title()}"
    return Panel(title, *_units(label, units(SHOWN)), traces)


def _units(label: str, last: int) -> tuple[Axis, Sequence[int]]:
    """The axis of so many units in three stages, with the last of each as ticks, and all units."""
    ticks = [(n, str(n)) for n in (1, last // 3, 2 * last // 3, last)]
    return Axis(label, 1, last, ticks), range(1, last + 1)


def stills(initial: Initial) -> list[Picture]:
    pictures = []
    nets = list(initial.get(SHOWN, {}).values())
    if nets:
        back = [
            [_by_unit(nets, norm, init, _back, "units back from the output") for init in INITS]
            for norm in NORMS
        ]
        figure = panels(
            "The gradient on its way back",
            f"Nets of {SHOWN} layers at their first weights, {len(nets)} seeds (lines: geometric "
            "mean; areas: range). The gradient of the loss with respect to each unit's output, "
            "over that at the last unit. Left is where it starts, right the first unit; the steps "
            "at 18 and 36 units are where the image is halved.",
            "gradient, root mean square, over that at the last unit",
            back,
        )
        pictures.append(Picture("gradient-flow-units", figure, wide=True))
    if len(initial) > 1 and (seeds := common(initial, initial)):
        pictures.append(Picture("gradient-flow-depth", _over_depth(initial, seeds), wide=True))
    for norm, title, told in (
        ("none", "The signal on its way forward, without norm",
         "The sums of residual nets are expected to grow exponentially."),
        ("batch", "The signal on its way forward, with batch norm",
         "On a finer axis. Where a sum is not cut at 0, as with pre-activation, it is expected "
         "to grow as the root of its branches since the image was last halved."),
    ) if nets else ():  # fmt: skip
        along = [_by_unit(nets, norm, init, _forward, "unit") for init in INITS]
        caption = f"The same nets: the root mean square of each unit's output. {told}"
        figure = panels(title, caption, "activation, root mean square", [along])
        pictures.append(Picture(f"gradient-flow-activations-{norm}", figure, wide=True))
    return pictures


def _over_depth(initial: Initial, seeds: Sequence[int]) -> Html:
    depths = sorted(initial)
    axis = Axis("layers", depths[0], depths[-1], [(d, str(d)) for d in depths], log=True)
    row = []
    for norm in NORMS:
        traces = []
        shown = [net for net in NETS if net.norm == norm and (norm == "none" or net.init == "he")]
        for net in shown:
            by_seed = [[left(initial[depth][seed][net.key]) for depth in depths] for seed in seeds]
            name = net.called if norm == "batch" else f"{net.called}, {net.init.title()}"
            traces.append(_trace(name, net.style, by_seed))
        title = "batch norm" if norm == "batch" else "no norm (dashed: Xavier)"
        row.append(Panel(title, axis, depths, traces))
    return panels(
        "What is left of the gradient at the first unit",
        "Over that at the last unit, at first weights, by depth; both axes are logarithmic. On the "
        "line 0 it is exactly 0 in float32, as where the signal on its way forward is 0 already; "
        "on the line ∞ it has overflowed.",
        "gradient of the first unit over that of the last",
        [row],
    )


def _moments(through: Trained, nets: Sequence[Net]) -> list[int]:
    """Steps that all seeds of the nets were measured at."""
    results = [result for net in nets for result in through[net.key]]
    return sorted(set.intersection(*({f["step"] for f in r["frames"]} for r in results)))


def _shown(through: Trained) -> list[tuple[str, list[Net]]]:
    """A title and nets of what is trained: those without norm, those with batch norm."""
    rows = [
        (title, [net for net in TRAINED if net.norm == norm and net.key in through])
        for norm, title in (("none", "no norm"), ("batch", "batch norm"))
    ]
    return [row for row in rows if row[1]]


def _short(net: Net) -> str:
    one_of_two = net.norm == "none" and net.kind == "plain"
    return f"plain, {net.init.title()}" if one_of_two else net.called


def courses(through: Trained, depth: int) -> list[Picture]:
    row = []
    for title, nets in _shown(through):
        steps = _moments(through, nets)
        traces = []
        for net in nets:
            seeds = [
                [left(frame) for frame in result["frames"] if frame["step"] in steps]
                for result in through[net.key]
            ]
            traces.append(_trace(_short(net), net.style, seeds))
        ticks = [(step, str(step)) for step in steps[:: max((len(steps) - 1) // 4, 1)]]
        row.append(Panel(title, Axis("step", steps[0], steps[-1], ticks), steps, traces))
    if not row:
        return []
    figure = panels(
        "What is left of it through training",
        f"Nets of {depth} layers in the first steps of training: the gradient of the first unit "
        "over that of the last (lines: geometric mean; areas: range over seeds).",
        "gradient of the first unit over that of the last",
        [row],
    )
    pictures = [Picture("gradient-flow-course", figure, wide=True)]
    if learned := _learned(through, depth):
        pictures.append(Picture("gradient-flow-loss", learned))
    return pictures


def _learned(through: Trained, depth: int) -> Html | None:
    """The training loss of the nets with batch norm; None where none was trained."""
    lines, bands, classes = [], [], 0
    tops: list[float] = []
    for net in (net for net in TRAINED if net.norm == "batch" and net.key in through):
        courses = [losses(result["losses"]) for result in through[net.key]]
        classes = max(result["classes"] for result in through[net.key])
        steps = [step for step, _ in courses[0]]
        at = list(zip(*([loss for _, loss in course] for course in courses), strict=True))
        lines.append(Line(net.called, [*zip(steps, map(fmean, at), strict=True)], net.style))
        bands.append((net.style, [*zip(steps, map(min, at), map(max, at), strict=True)]))
        tops += map(max, at)
    if not lines:
        return None
    return plot(
        "And what they learn meanwhile",
        f"The nets of {depth} layers with batch norm: the training loss, each point the mean over "
        "the steps of an epoch (lines: mean over seeds; areas: range). The thin line is that of "
        "guessing. A gradient that does not vanish is not enough: the authors conjecture that "
        "deep plain nets converge at an exponentially low rate, and leave the reason open (2015, "
        "section 4.1).",
        linear("step", lines[0].points[-1][0], whole=True),
        linear("training loss", max(tops)),
        lines,
        bands=bands,
        levels=[(math.log(classes), "guessing")],
    )


def films(through: Trained, depth: int) -> dict[str, str]:
    """The gradient and the signal by unit, step by step, of the first seed: SVG documents by
    name."""
    if not through:
        return {}
    backward = _film(
        through,
        depth,
        _back,
        "units back from the output",
        "The gradient on its way back, step by step",
        "the gradient of the loss with respect to each unit's output, over that at the last unit. "
        "Left is where it starts, right the first unit.",
        "gradient, root mean square, over that at the last unit",
    )
    forward = _film(
        through,
        depth,
        _forward,
        "unit",
        "The signal on its way forward, step by step",
        "the root mean square of each unit's output. Without norm residual sums are large at first "
        "and soon learn not to be; what vanishes on its way through a plain net stays away.",
        "activation, root mean square",
    )
    return {"gradient-flow-training": backward, "gradient-flow-forward": forward}


def _film(
    through: Trained,
    depth: int,
    of: Callable[[Flow], list[Number]],
    label: str,
    title: str,
    told: str,
    measured: str,
) -> str:
    row, names = [], []
    along = _units(label, units(depth))
    seeds = {through[net.key][0]["seed"] for _, nets in _shown(through) for net in nets}
    seed = f"seed {seeds.pop()}" if len(seeds) == 1 else "the first seed of each"
    for norm, nets in _shown(through):
        steps = _moments(through, nets)
        names = [f"step {step}" for step in steps]
        traces = [
            Trace(
                _short(net), net.style,
                [of(f) for f in through[net.key][0]["frames"] if f["step"] in steps],
            )
            for net in nets
        ]  # fmt: skip
        row.append(Panel(norm, *along, traces))
    caption = f"Nets of {depth} layers in training, {seed}: {told}"
    return animation(title, caption, measured, row, names)
