"""The signal through depth: what passes each block, in words and in pictures.

The thresholds are wide, so that a healthy network is told nothing. They follow He et al. 2015
(1512.03385), sections 4.1 and 4.2, where healthy gradients and responses of all depths lie within
about a factor of ten, and where plain nets fail although no gradient vanishes; Glorot and Bengio
2010, figures 6 and 7, where a fading signal falls by a constant factor a layer; Yang et al. 2019
(1902.08129), where batch norm without shortcuts makes gradients grow by one; Zhang et al. 2019
(1901.09321) and De and Smith 2020 (2002.10444), where unscaled branches double the variance a
block; and the rule of thumb that a step changes weights by about a thousandth.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skipway.errors import harmless
from skipway.report.markup import Html, details, joined, marked_list, percent, shown, table, tag
from skipway.report.plot import Axis, Line, decades, plot, shares
from skipway.report.run import Run
from skipway.report.values import mapping, number

FADED = 1e-3
"""Early gradients under the largest, or activations under the stem's, from which they fade."""
EXPLODED = 1e3
"""Activations, and early gradients over late ones, from which they explode."""
DEAD = 0.5
"""Share of dead channels from which a block counts as dying."""
IDLE, DROWNED = 0.01, 30.0
"""RMS of the branch over the shortcut's: below it adds nothing, above it is all there is."""
LARGE_UPDATE, SMALL_UPDATE = 0.1, 1e-5
"""Of the weights' norm, a step, in the median block; in the first epoch three times as large."""

STATISTICS = {
    "activation_rms": "Activation, RMS",
    "activation_mean": "Activation, mean size",
    "residual_ratio": "Branch over shortcut",
    "dead_channels": "Dead channels",
    "gradient_norm": "Gradient norm",
    "weight_norm": "Weight norm",
    "update_ratio": "Update over weight",
}
"""What `probes.Signal` records of each part, by key, in words."""


@dataclass(frozen=True)
class Finding:
    """One thing that looks unhealthy (`warn`) or should be meant (`note`)."""

    kind: Literal["warn", "note"]
    name: str
    """Of the illness, the same in every run."""
    what: str
    where: str
    """Blocks, or epochs."""
    advice: str
    """What to try."""


@dataclass(frozen=True)
class _Look:
    """An epoch's means by statistic and part (`probes.Signal`); None where one is not finite."""

    epoch: float
    values: dict[str, dict[str, float | None]]

    def of(self, statistic: str) -> dict[str, float]:
        """The finite values by part, from input to output."""
        found = self.values.get(statistic, {})
        return {part: value for part, value in found.items() if value is not None}


def _looks(rows: Sequence[Mapping[str, Any]]) -> list[_Look]:
    found = []
    for row in rows:
        kept = mapping(row.get("signal"))
        values = {key: _values(key, kept.get(key)) for key in STATISTICS if mapping(kept.get(key))}
        if values:
            found.append(_Look(number(row.get("epoch")) or 0, values))
    return found


def _values(statistic: str, by_part: Any) -> dict[str, float | None]:
    top = 1.0 if statistic == "dead_channels" else math.inf
    numbers = {part: number(value) for part, value in mapping(by_part).items()}
    return {part: None if v is None else min(max(v, 0.0), top) for part, v in numbers.items()}


# In words


def findings(rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What looks unhealthy in a run's rows of metrics, the gravest first.

    Judged at the last epoch that was looked at, the size of the updates over all of them.
    """
    looks = _looks(rows)
    if not looks:
        return []
    last = looks[-1]
    return [
        *_large_updates(looks), *_not_finite(last), *_exploding(last), *_fading(last),
        *_dead(last), *_branches(last), *_small_updates(looks), *_still(last), *_frozen(last),
    ]  # fmt: skip


def _not_finite(look: _Look) -> Iterator[Finding]:
    # A ratio to a shortcut or a weight that is 0 is not finite either, and no sign of overflow.
    keys = ("activation_rms", "gradient_norm", "weight_norm")
    order = _order(look)
    broken = {p for key in keys for p, v in look.values.get(key, {}).items() if v is None}
    if broken:
        yield Finding(
            "warn",
            "overflow",
            "Activations, gradients or weights were not finite numbers.",
            _where(broken, order),
            "Lower --lr, lengthen schedule.warmup, or try --set optim.clip=1 and --precision "
            "float32.",
        )


def _exploding(look: _Look) -> Iterator[Finding]:
    activations, order = look.of("activation_rms"), _order(look)
    first = next((v for v in activations.values() if v > 0), 1.0)
    large = [p for p, v in activations.items() if v > EXPLODED * max(first, 1.0)]
    if large:
        worst = max(activations[p] for p in large)
        yield Finding(
            "warn",
            "exploding activations",
            f"Activations grow to {worst:.2g} (root mean square) from {first:.2g} behind the stem.",
            _where(large, order),
            "Batch norm in each branch, or branches that start at zero (--set "
            "model.architecture.zero_init_last=true; Zhang et al. 2019, De and Smith 2020), keep "
            "the variance from growing with each block; a lower --lr keeps weights from growing.",
        )
    depth = _by_depth(look)
    if depth is None:
        return
    early, late, gradients = depth
    if late > 0 and early > EXPLODED * late:
        large = [p for p, v in gradients.items() if v > EXPLODED * late]
        yield Finding(
            "warn",
            "exploding gradients",
            f"Gradients grow on their way back: {early:.2g} in the early blocks, {late:.2g} in "
            "the late ones.",
            _where(large, order),
            "Shortcuts (--set model.architecture.shortcut=B), fewer blocks, He initialisation (He "
            "et al. 2015, 1502.01852), a longer schedule.warmup, or --set optim.clip=1.",
        )


def _fading(look: _Look) -> Iterator[Finding]:
    activations, order = look.of("activation_rms"), _order(look)
    first = next(iter(activations.values()), 0.0)
    small = [p for p, v in list(activations.items())[:-1] if 0 < v < FADED * first]
    if small:
        worst = min(activations[p] for p in small)
        yield Finding(
            "warn",
            "vanishing activations",
            f"The signal fades with depth: from {first:.2g} (root mean square) behind the stem to "
            f"{worst:.2g}.",
            _where(small, order),
            "Larger initial weights (He et al. 2015, 1502.01852), batch norm, or shortcuts (--set "
            "model.architecture.shortcut=B).",
        )
    depth = _by_depth(look)
    if depth is None:
        return
    early, _, gradients = depth
    top = max(look.of("gradient_norm").values())
    if early < FADED * top:
        small = [p for p, v in gradients.items() if v < FADED * top]
        yield Finding(
            "warn",
            "vanishing gradients",
            f"The gradient fades on its way back: {early:.2g} in the early blocks, {top:.2g} where "
            "it is largest. Early blocks hardly learn.",
            _where(small, order),
            "Shortcuts (--set model.architecture.shortcut=B; He et al. 2015, 1512.03385), batch "
            "norm, and He initialisation (1502.01852) let it pass; dead channels block it.",
        )


def _dead(look: _Look) -> Iterator[Finding]:
    channels = look.of("dead_channels")
    dying = [p for p, v in channels.items() if v > DEAD]
    if dying:
        worst = max(channels[p] for p in dying)
        yield Finding(
            "warn",
            "dead channels",
            f"ReLUs put out nothing but 0 in up to {percent(worst, 0)} of a block's channels: "
            "these carry no signal, and no gradient comes back through them.",
            _where(dying, _order(look)),
            "Lower --lr or lengthen schedule.warmup: one step too large can push a bias so far "
            "down that no image reaches it. With shortcut A, zero_init_last keeps the appended "
            "channels at 0 for good: use shortcut B. Of given weights, look at the biases.",
        )


def _large_updates(looks: Sequence[_Look]) -> Iterator[Finding]:
    medians = _median_updates(looks)
    limits = {
        epoch: LARGE_UPDATE if place else 3 * LARGE_UPDATE for place, epoch in enumerate(medians)
    }
    large = {epoch: size for epoch, size in medians.items() if size > limits[epoch]}
    if large:
        yield Finding(
            "warn",
            "updates too large",
            f"A step changed the weights of the median block by up to {max(large.values()):.2g} of "
            "their norm; about 0.001 is usual, ten times that early on.",
            _where_epochs(large, medians),
            "Lower --lr by a factor of ten, lengthen schedule.warmup, or try --set optim.clip=1.",
        )


def _small_updates(looks: Sequence[_Look]) -> Iterator[Finding]:
    medians = _median_updates(looks)
    if medians and max(medians.values()) < SMALL_UPDATE:
        yield Finding(
            "warn",
            "updates too small",
            f"At no time did a step change the weights of the median block by more than "
            f"{max(medians.values()):.1g} of their norm; about 0.001 is usual.",
            _where_epochs(medians, medians),
            "Raise --lr by a factor of ten until the training loss is unsteady, then go back once.",
        )


def _branches(look: _Look) -> Iterator[Finding]:
    ratios, order = look.of("residual_ratio"), _order(look)
    idle = [p for p, v in ratios.items() if v < IDLE]
    if idle:
        yield Finding(
            "warn",
            "idle branches",
            f"The branch adds as little as {min(ratios[p] for p in idle):.1g} times the shortcut: "
            "these blocks pass on what they get.",
            _where(idle, order),
            "A branch that starts at zero (zero_init_last) has not begun to learn: raise --lr or "
            "train longer. One that weight decay has emptied is not needed: use a shallower "
            "network, or lower optim.weight_decay.",
        )
    drowned = [p for p, v in ratios.items() if v > DROWNED]
    if drowned:
        yield Finding(
            "warn",
            "drowned shortcuts",
            f"The branch is up to {max(ratios[p] for p in drowned):.3g} times the shortcut: these "
            "blocks act as a plain net's, and little passes them unchanged.",
            _where(drowned, order),
            "Start branches at zero (--set model.architecture.zero_init_last=true; De and Smith "
            "2020, 2002.10444), lower --lr, and keep batch norm's gammas under weight decay (--set "
            "optim.decay_all=true).",
        )


def _still(look: _Look) -> Iterator[Finding]:
    updates = look.of("update_ratio")
    still = [p for p, v in updates.items() if v == 0]
    if still and len(still) < len(updates):
        yield Finding(
            "warn",
            "weights that do not move",
            "The steps change nothing here, though other blocks move.",
            _where(still, _order(look)),
            "Look at the learning rate of these parameters, and whether a gradient reaches them.",
        )


def _frozen(look: _Look) -> Iterator[Finding]:
    gradients = look.values.get("gradient_norm", {})
    frozen = [p for p in look.values.get("activation_rms", {}) if p not in gradients]
    if gradients and frozen:
        yield Finding(
            "note",
            "frozen",
            "These blocks are frozen: images pass them, and training leaves them as they were.",
            _where(frozen, _order(look)),
            "Right where weights were given and --freeze asks for it; else train them too.",
        )


def _order(look: _Look) -> list[str]:
    """Every part, from input to output."""
    seen = sorted(look.values.values(), key=len, reverse=True)  # one that has most has the order
    return list(dict.fromkeys(itertools.chain(*seen)))


def _by_depth(look: _Look) -> tuple[float, float, dict[str, float]] | None:
    """Median gradient of the first and the last third of the parts before the classifier, and all
    of them; None where they are too few to have a depth."""
    ratios = look.of("residual_ratio")
    gradients = {
        part: value
        for part, value in list(look.of("gradient_norm").items())[:-1]
        if ratios.get(part, 1) >= IDLE  # a branch that adds nothing gets no gradient, rightly
    }
    if len(gradients) < 4:
        return None
    values, third = list(gradients.values()), math.ceil(len(gradients) / 3)
    return statistics.median(values[:third]), statistics.median(values[-third:]), gradients


def _median_updates(looks: Sequence[_Look]) -> dict[float, float]:
    """The update of the median part of those that move, by epoch."""
    by_epoch = {look.epoch: list(look.of("update_ratio").values()) for look in looks}
    moving = {epoch: [v for v in values if v > 0] or values for epoch, values in by_epoch.items()}
    return {epoch: statistics.median(values) for epoch, values in moving.items() if values}


def _spans(places: Sequence[int], names: Sequence[str]) -> str:
    """Names at rising places, those that follow each other as first to last."""
    spans = []
    for _, group in itertools.groupby(enumerate(places), lambda pair: pair[1] - pair[0]):
        run = [place for _, place in group]
        first, last = names[run[0]], names[run[-1]]
        spans += [first] if len(run) == 1 else [f"{first} to {last}"]
    shown_ = spans if len(spans) <= 4 else [*spans[:3], f"{len(spans) - 3} more"]
    return ", ".join(shown_)


def _where(parts: Sequence[str] | set[str], order: Sequence[str]) -> str:
    places = [place for place, part in enumerate(order) if part in parts]
    return _spans(places, [harmless(part) for part in order])


def _where_epochs(epochs: Mapping[float, Any], of: Mapping[float, Any]) -> str:
    names = [f"{epoch:g}" for epoch in of]
    word = "epoch" if len(epochs) == 1 else "epochs"
    return f"{word} {_spans([i for i, epoch in enumerate(of) if epoch in epochs], names)}"


# On the page


@dataclass(frozen=True)
class _Picture:
    """A statistic by depth; `healthy` says how it looks where all is well."""

    statistic: str
    title: str
    label: str
    healthy: str


PICTURES = (
    _Picture(
        "activation_rms",
        "Activation scale",
        "root mean square, log scale",
        "Healthy: no steady rise or fall over many blocks.",
    ),
    _Picture(
        "residual_ratio",
        "Branch over shortcut",
        "RMS of F(x) over RMS of x, log scale",
        "Healthy: around 1, less in deeper nets.",
    ),
    _Picture(
        "dead_channels",
        "Dead channels",
        "of the channels, 0 for a whole batch",
        "Healthy: near 0.",
    ),
    _Picture(
        "gradient_norm",
        "Gradient",
        "L2 norm, log scale",
        "Healthy: early and late blocks within about a factor of ten.",
    ),
    _Picture(
        "update_ratio",
        "Update over weight",
        "share of the norm, a step, log scale",
        "Healthy: about 0.001, ten times that early on.",
    ),
)


def signal(run: Run) -> Html | None:
    """The section: what looks unhealthy, then pictures; None where nothing was looked at."""
    looks = _looks(run.epochs)
    if not looks:
        return None
    figures = [_figure(picture, looks) for picture in PICTURES]
    return joined(
        [_words(findings(run.epochs), looks[-1]), tag("div", *figures, class_="plots"),
         _numbers(looks[-1])]
    )  # fmt: skip


def _words(found: Sequence[Finding], look: _Look) -> Html:
    if not found:
        said = "Nothing looks unhealthy. " + " ".join(_summary(look))
        return tag("p", said)
    return marked_list(
        (
            "!" if f.kind == "warn" else "i",
            f.kind,
            tag("p", tag("b", f"{f.name.capitalize()}: {f.where}. "), f.what, " ", f.advice),
        )
        for f in found
    )


def _summary(look: _Look) -> Iterator[str]:
    sentences = {
        "activation_rms": "activations have a root mean square of {} to {}",
        "residual_ratio": "branches add {} to {} times the shortcut",
        "gradient_norm": "gradients have norms of {} to {}",
        "update_ratio": "a step changes weights by {} to {} of their norm",
    }
    said = [
        sentence.format(f"{min(values):.2g}", f"{max(values):.2g}")
        for key, sentence in sentences.items()
        if (values := look.of(key).values())
    ]
    if said:
        yield f"At epoch {look.epoch:g}, from block to block: {'; '.join(said)}."


def _figure(picture: _Picture, looks: Sequence[_Look]) -> Html | None:
    chosen = {0: "early", len(looks) // 2: "middle", len(looks) - 1: "late"}
    order, dead = _order(looks[-1]), picture.statistic == "dead_channels"
    lines = []
    for place, style in chosen.items():
        values = looks[place].of(picture.statistic)
        points = [
            (float(x), values[part])
            for x, part in enumerate(order)
            if part in values and (dead or values[part] > 1e-300)
        ]
        if points:
            lines.append(Line(f"epoch {looks[place].epoch:g}", points, style))
    if not lines:
        return None
    names = [harmless(part) for part in order]
    y = shares(picture.label)
    if not dead:
        y = decades(picture.label, [value for line in lines for _, value in line.points])
    x, borders = _depth_axis(names)
    return plot(picture.title, _caption(picture, lines[-1], names), x, y, lines, borders)


def _caption(picture: _Picture, line: Line, names: Sequence[str]) -> str:
    form = ".1%" if picture.statistic == "dead_channels" else ".2g"
    smallest, low = min(line.points, key=lambda point: point[1])
    largest, high = max(line.points, key=lambda point: point[1])
    if low == high:
        said = f"{shown(low, form)} in every block" if high else "none in any block"
    else:
        said = (
            f"{shown(low, form)} in {names[int(smallest)]} to {shown(high, form)} in "
            f"{names[int(largest)]}"
        )
    return f"At {line.name}: {said}. {picture.healthy}"


def _depth_axis(names: Sequence[str]) -> tuple[Axis, list[tuple[float, str]]]:
    """Blocks from input to output, a tick in the middle of each stage, marks between the stages."""
    ticks, borders, start = [], [], 0
    for stage, group in itertools.groupby(name.split(".")[0] for name in names):
        length = len(list(group))
        ticks.append((start + (length - 1) / 2, stage))
        borders.append((start - 0.5, ""))
        start += length
    return Axis("block, from the input to the output", 0, max(start - 1, 1), ticks), borders[1:]


def _numbers(look: _Look) -> Html:
    order, columns = _order(look), {key: look.of(key) for key in STATISTICS if key in look.values}
    gradients, weights = look.of("gradient_norm"), look.of("weight_norm")
    columns["gradient_ratio"] = {
        p: gradients[p] / w for p, w in weights.items() if w and p in gradients
    }

    def cells(part: str) -> Iterator[str | None]:
        yield harmless(part)
        for key, values in columns.items():
            yield shown(values.get(part), ".1%" if key == "dead_channels" else ".3g")

    head = ["Block", *(STATISTICS.get(key, "Gradient over weight") for key in columns)]
    rows = [list(cells(part)) for part in order]
    return details(f"The numbers by block, epoch {look.epoch:g}", table(head, rows))
