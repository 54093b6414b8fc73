"""What gradient flow is expected to be, from theory and the papers, beside what was measured."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from skipway.study.flow_nets import (
    NETS,
    TRAINED,
    Initial,
    Net,
    Number,
    Trained,
    between,
    common,
    held,
    last_loss,
    left,
    middle,
    ratio,
    units,
)  # fmt: skip
from skipway.study.form import Expected, Finding

NOTES = (
    "The gradient is that of the loss with respect to the output of each unit, as root mean "
    "square over its elements, so that stages of other sizes compare. Two halvings of the image "
    "alone make it a quarter in any net: where every second pixel is taken, the others are not "
    "heard.",
    "With batch norm the initialisation matters little: the norm divides by whatever scale the "
    "weights have. Pre-activation nets feel it, as their branches end in a convolution.",
    "A 0 is exact: what is below 1.2e-38, the smallest number that float32 holds at full "
    "precision, is flushed to 0, as in every training on a processor here; a GPU goes on to "
    "1.4e-45. Beyond 3.4e38 it overflows.",
    "That residual nets avoid vanishing gradients is often said, by Veit et al. 2016 too "
    "(1605.06431). Their authors wrote that with batch norm neither signal nor gradient vanishes "
    "in plain nets, that gradients have “healthy norms”, and that the trouble of deep plain nets "
    "is another (2015, section 4.1). The first is tested here. The second is not so at first "
    "weights: there the gradient of deep plain nets with batch norm grows exponentially on its way "
    "back (Yang et al. 2019).",
    "With He's draw the gradient's mean square is kept in expectation, but for what the zeros "
    "around the image and the halvings take, which is arithmetic; with the fan-out form of it, "
    "which is meant here by He. One net lies below that (Hanin 2018, "
    "1801.03744): a product of random factors of mean 1 has a logarithm that drifts down. How fast "
    "depends on how alike the pixels are. If all are independent there is no drift; if all are "
    "alike, a layer of width n multiplies it by 2/n times a chi-square of as many degrees as "
    "ReLUs are open, about −5/(2n) a layer in its logarithm. The findings span both, and twice "
    "the deviation of the latter to each side. So He's scale slows the loss and does not end it: "
    "at 998 layers it is many powers of ten.",
    "Of residual nets with batch norm a factor of ten at any depth was expected at first, from "
    "sums of branches of variance 1 (De and Smith 2020), then growth with the number of units and "
    "an exponent of 1.1. First looks at small images were steeper than both in pre-activation "
    "nets. What had been left out: a norm divides by the deviation, which is less than the root "
    "mean square, as what a ReLU gives has a mean. So it amplifies the gradient's mean square: by "
    "π / (π − 1) = 1.47 where the values of a channel are spread normally over the pixels (Yang et "
    "al. 2019), by 2 where they are two, one as far above the mean as the other is below it. A "
    "unit has two norms, of which the one at the sum of u branches also divides the mean square by "
    "u: over all units that makes a power of their number. Of one channel the factor is larger "
    "where more of its pixels lie above the mean; over many, whose weights are as often negative "
    "as positive, 2 is the most in expectation. A narrow net may exceed it: the bounds were chosen "
    "by that factor and are no theorem. They tell a power from an exponential, not one exponent "
    "from another.",
)


# Theory


def he_range(layers: int, size: int = 32) -> tuple[float, float]:
    """Where `ratio` of a plain net without norm lies with He's draw, for images of `size` px: as
    low as two deviations below the middle if all pixels were alike, as high as two above it if they
    were independent (`NOTES`)."""
    import numpy as np

    n = (layers - 2) // 6
    # by stage, from the output: width and convolutions, those of the first unit left out
    stages = ((64, 2 * n), (32, 2 * n), (16, 2 * n - 2))
    # by row of the image; by column it is the same, so that their product's root is one of them
    kept = np.ones(size // 4)
    drift = variance = 0.0
    for width, convolutions in stages:
        for back in range(convolutions):
            if width > 16 and back == convolutions - 1:  # a stage's first takes every second pixel
                kept = np.stack([kept, np.zeros_like(kept)], axis=1).ravel()
            beside = np.pad(kept, 1)
            kept = (beside[:-2] + beside[1:-1] + beside[2:]) / 3
        middle_of_one, variance_of_one = alike(width)
        drift += convolutions * middle_of_one
        variance += convolutions * variance_of_one
    middle_of_all, decade = math.log10(kept.mean()), 2 * math.log(10)
    luck = 2 * math.sqrt(variance) / decade
    return middle_of_all + drift / decade - luck, middle_of_all + luck


def alike(width: int) -> tuple[float, float]:
    """Mean and variance of the logarithm of what a layer with He's draw and ReLU multiplies the
    mean square by, if all pixels are alike: 2 / width times a chi-square of k degrees, where k of
    the ReLUs are open, each with probability 1/2."""
    import numpy as np
    from scipy.special import comb, digamma, polygamma

    k = np.arange(1, width + 1)
    share = comb(width, k) / (2.0**width - 1)
    middles = digamma(k / 2) + math.log(4 / width)
    mean = share @ middles
    return float(mean), float(share @ ((middles - mean) ** 2 + polygamma(1, k / 2)))


def xavier_over_he(layers: int) -> float:
    """What `ratio` is with Xavier's draw less with He's, exactly: a ReLU net without norm and bias
    scales with each weight, by 2^(-1/2) where a convolution keeps its channels, by (2/3)^(1/2)
    where it doubles them, twice."""
    return math.log10(2 ** (-(between(layers) - 2) / 2) * (2 / 3))


# Numbers


def _a_layer(initial: Initial, layers: int, net: Net) -> tuple[float, ...]:
    """The factor by which the gradient changes at each layer on its way back, by seed; 0 where
    nothing is left of it in the end."""
    found = (left(nets[net.key]) for nets in initial.get(layers, {}).values())
    return tuple(math.inf if whole is None else _root(whole, layers) for whole in found)


def _root(factor: float, layers: int) -> float:
    """Of each layer, by that of all together."""
    return float(factor ** (1 / between(layers)))


def _unnormed(initial: Initial) -> list[Finding]:
    """Of plain nets without norm."""
    xavier, he = (Net("plain", "none", init) for init in ("xavier", "he"))
    found = []
    for net, layers, beside, note in (
        (xavier, 110, xavier_over_he(110), "A ReLU halves the mean square and Xavier's scale does "
         "not make up for it: 2^(−1/2) a layer beside He's (1502.01852, section 2.2)."),
        (he, 110, 0.0, "In so few layers the luck of the draw is as large as what is lost."),
        (he, 998, 0.0, "Zeros around the image and halvings take 8.6 powers of ten, the drift "
         "up to 22 more."),
    ):  # fmt: skip
        low, high = (end + beside for end in he_range(layers))
        rates = [_root(10**end, layers) for end in (low, high)]
        found.append(
            Finding(
                name=f"{net.named}, {layers} layers: share of gradient kept per layer",
                values=_a_layer(initial, layers, net),
                expected=Expected(f"{rates[0]:.3f} to {rates[1]:.3f}", *rates),
                places=3,
                note=f"{note} Of all layers together, {_decades(low)} to {_decades(high)}; the "
                "notes say how the range is derived.",
            )
        )
    exact = _root(10 ** xavier_over_he(110), 110)
    found.append(
        Finding(
            name="plain, no norm, 110 layers: gradient kept per layer, Xavier over He",
            values=tuple(
                _root(10 ** (ratio(nets[xavier.key]) - ratio(nets[he.key])), 110)
                for nets in initial.get(110, {}).values()
            ),
            expected=Expected(f"{exact:.3f} ± 0.005", exact - 0.005, exact + 0.005),
            places=3,
            control=True,
            note="By arithmetic: the same draw, scaled.",
        )
    )  # fmt: skip
    silent = [nets[xavier.key]["gradient_rms"][1:-1] for nets in initial.get(998, {}).values()]
    found.append(
        Finding(
            name=f"{xavier.named}, 998 layers: units with gradient exactly 0",
            values=tuple(100 * statistics.fmean(v == 0 for v in units) for units in silent),
            expected=Expected("above 90 %", low=90),
            unit="%",
            places=1,
            note="0.7 a layer is past float32 after 200 to 250 layers, on the signal's way forward "
            "already; a ReLU at 0 passes nothing back.",
        )
    )
    return found


DEEP = (110, 290, 998)
"""Layers of the nets whose growth is fitted with a power of the number of units."""
BENT: Mapping[str, tuple[int, int, int]] = {
    "plain": (20, 56, 290),
    "residual": (20, 110, 998),
    "preactivation": (20, 110, 998),
}
"""Layers of the nets by which a power is told from an exponential: far apart, as the luck of a draw
counts for less then. At 998 layers the gradient of a plain net with batch norm overflows."""
POWERS: Mapping[str, tuple[float, str]] = {
    "residual": (
        2.5,
        "Chosen below 1 / (1 - 2/π) = 2.75: as the sums are cut at 0, they vary by about 0.36 of "
        "the number of units, not by all of it; what is cut passes nothing back, which takes some "
        "off again.",
    ),
    "preactivation": (
        2.0,
        "Half the product of what the two norms of a unit amplify the mean square by: 1.47 each "
        "where values are spread normally, which makes 1.08; chosen for 2 each.",
    ),
}
"""Of the number of units, by which the gradient grows at most, and why."""


def _with_depth(initial: Initial, kind: str) -> list[Finding]:
    """Of nets with batch norm: whether the gradient grows with depth as a power of it or
    exponentially."""
    net = Net(kind, "batch", "he")

    def growth(depths: Sequence[int]) -> list[list[float]]:
        """Powers of ten by depth, of each seed."""
        seeds = common(initial, depths)
        return [[ratio(initial[d][seed][net.key]) for d in depths] for seed in seeds]

    bent = BENT[kind]
    power = _second_over_first([math.log(units(layers)) for layers in bent])
    exponential = _second_over_first(bent)
    bound = math.sqrt(power * exponential)
    as_power = Expected(f"0 to {bound:.1f}: a power", 0, bound)
    as_exponential = Expected(f"above {bound:.1f}: an exponential", low=bound)
    found = [
        Finding(
            name=f"{net.called}, batch norm: growth of the gradient in decades, {bent[1]} to "
            f"{bent[2]} over {bent[0]} to {bent[1]} layers",
            values=tuple(map(_second_over_first, growth(bent))),
            expected=as_power if kind in POWERS else as_exponential,
            note=f"A power of the number of units gives {power:.1f}, an exponential "
            f"{exponential:.1f}; the bound is their geometric mean.",
        )
    ]
    if kind in POWERS:
        most, why = POWERS[kind]
        across = [math.log10(units(layers)) for layers in DEEP]
        slopes = [statistics.linear_regression(across, each).slope for each in growth(DEEP)]
        found.append(
            Finding(
                name=f"{net.called}, batch norm, {DEEP[0]} to {DEEP[-1]} layers: p, where the "
                "gradient grows as units^p",
                values=tuple(slopes),
                expected=Expected(f"0 to {most:g}", 0, most),
                note=f"{why} The notes say more.",
            )
        )
    return found


def _second_over_first(of: Sequence[float]) -> float:
    """Of three values, how the second difference compares with the first; not a number where there
    is no first one."""
    first, second = (after - before for before, after in itertools.pairwise(of))
    return second / first if first else math.nan


def at_first(initial: Initial) -> list[Finding]:
    def growth(kind: str) -> tuple[float, ...]:
        """Of the mean square of the activations a unit, He without norm, over so many units that
        the luck of a draw counts for little; at 998 layers they overflow."""
        found = []
        for nets in initial.get(290, {}).values():
            values = nets[Net(kind, "none", "he").key]["activation_rms"]
            first, last = held(values[1]), held(values[-2])
            found.append((last / first) ** (2 / (units(290) - 1)))
        return tuple(found)

    return [
        *_unnormed(initial),
        Finding(
            name="plain, batch norm, He, 110 layers: gradient's factor per layer",
            values=_a_layer(initial, 110, Net("plain", "batch", "he")),
            expected=Expected("1 to 1.22: it does not vanish, it grows", low=1, high=1.22),
            places=3,
            note="2015, section 4.1: with batch norm signals do not vanish. Yang et al. "
            "2019: in wide nets the norm of the gradient grows by (π / (π - 1))^(1/2) = 1.21 a "
            "layer, towards the input.",
        ),
        *(finding for kind in BENT for finding in _with_depth(initial, kind)),
        *(
            Finding(
                name=f"{kind}, no norm, He, 290 layers: mean square of outputs, times per unit",
                values=growth(kind.replace("-", "")),
                expected=Expected(
                    f"{theory**0.5:.1f} to {theory**1.5:.1f}: nearer to {theory:g} than to 1",
                    theory**0.5,
                    theory**1.5,
                ),
                note=note,
            )
            for kind, theory, note in (
                (
                    "pre-activation",
                    2.0,
                    "In expectation 2: a branch puts out what it is given (1901.09321, "
                    "section 2). The zeros around the image take up to 16 % of a branch's, and one "
                    "net lies below the expectation; few seeds allow no narrower bound.",
                ),
                (
                    "residual",
                    2.3,
                    "2.3 at the first unit, by integration, and 2.4 from the fourth on: what is "
                    "given is not negative, so its branch puts out twice that, and the ReLU after "
                    "the sum leaves most of it.",
                ),
            )
        ),
    ]


def later(through: Trained, diverged: Mapping[str, int], depth: int) -> list[Finding]:
    """diverged: how many trainings of a net did, each of which leaves its number without value, so
    that nothing is reproduced by those that did not."""

    def numbers(net: Net, of: Callable[[Mapping[str, Any]], float]) -> tuple[float, ...]:
        there = map(of, through.get(net.key, ()))
        return (*there, *[math.nan] * diverged.get(net.key, 0))

    def least(result: Mapping[str, Any]) -> float:
        return min(ratio(frame) for frame in result["frames"])

    classes = {result["classes"] for results in through.values() for result in results}
    chance = _chance(max(classes, default=10))

    lasting = [
        Finding(
            name=f"{net.named}, {depth} layers in training: lowest log₁₀ of the first unit's "
            "gradient over the last one's",
            values=numbers(net, least),
            expected=Expected("above −1.5", low=-1.5),
            places=1,
            note="Beside the halvings, which take 0.6, about an eighth at least is left over these "
            "steps. Where it is least at the last of them, a longer training would take it "
            "lower.",
        )
        for net in TRAINED
        if net.norm == "batch"
    ]
    losses = [
        Finding(
            name=f"{net.named}, {depth} layers: training loss of the last epoch",
            values=numbers(net, lambda result: last_loss(result["losses"])),
            expected=chance if net.init == "xavier" else None,
        )
        for net in TRAINED
    ]
    return lasting + losses


def _chance(classes: int) -> Expected:
    """The cross-entropy of guessing."""
    loss = math.log(classes)
    return Expected(f"{loss:.1f} ± 0.05: ln {classes}, chance", loss - 0.05, loss + 0.05)


def _decades(power: float) -> str:
    return f"10^{power:.1f}".replace("-", "−")


def _shown(value: Number) -> str:
    return "overflows" if value is None else f"{value:.2g}"


def tables(initial: Initial) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
    """First over last unit's gradient of all nets at their first weights."""
    rows = []
    for net in NETS:
        means = [
            _shown(middle(left(nets[net.key]) for nets in initial[d].values()))
            for d in sorted(initial)
        ]
        rows.append([net.called, net.norm, net.init.title(), *means])
    head = ["kind", "norm", "initialisation", *(f"{d} layers" for d in sorted(initial))]
    title = "Gradient of the first unit over that of the last, geometric mean over seeds"
    return [(title, head, rows)] if initial else []
