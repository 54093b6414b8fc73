"""What gradient flow is expected to be, from theory and the papers, beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from skipway.study.flow_nets import (
    NETS,
    TRAINED,
    Initial,
    Net,
    Number,
    Trained,
    between,
    held,
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
    "precision, is flushed to 0, as in every training here. Beyond 3.4e38 it overflows.",
    "Popular texts say that residual nets were made against vanishing gradients. Their authors "
    "wrote that batch norm had ended those, and that the trouble of deep plain nets is another. At "
    "their first weights, deep plain nets with batch norm have exploding gradients (Yang et al. "
    "2019).",
    "The bounds of the findings come from theory. Of residual nets with batch norm a factor of "
    "ten at any depth was expected at first, from sums of branches of variance 1 (De and Smith "
    "2020). That leaves out that the norm inside a branch removes the mean of what a ReLU gives, "
    "and so amplifies (Yang et al. 2019): with it the power of the gradient grows by 1 + 2.15 / u "
    "at unit u, and so the gradient about as the number of units. That is no exponential, but more "
    "than a factor of ten. A first look at nets of 20 and 110 layers led there.",
)


def at_first(initial: Initial) -> list[Finding]:
    def ratios(layers: int, kind: str, norm: str, init: str) -> tuple[float, ...]:
        return tuple(ratio(nets[Net(kind, norm, init).key]) for nets in initial.get(layers, ()))

    def growth(kind: str) -> tuple[float, ...]:
        """Of the power of the activations a unit, He without norm, at 110 layers."""
        found = []
        for nets in initial.get(110, ()):
            values = nets[Net(kind, "none", "he").key]["activation_rms"]
            first, last = held(values[1]), held(values[-2])
            found.append((last / first) ** (2 / (units(110) - 1)))
        return tuple(found)

    he, xavier = (ratios(110, "plain", "none", init) for init in ("he", "xavier"))
    silent = [nets[Net("plain", "none", "xavier").key] for nets in initial.get(998, ())]
    exact = 2 ** (-(between(110) - 2) / 2) * (2 / 3)
    return [
        Finding(
            name="plain, no norm, Xavier, 110 layers: first over last unit's gradient, power of 10",
            values=xavier,
            expected=Expected("below -12: it vanishes", high=-12),
            places=1,
            note="A ReLU halves the power and Xavier's scale does not make up for it: a factor of "
            "0.71 a layer (1502.01852, section 2.2), 10^-16 over 106 of them; four powers of ten "
            "are left to the luck of the draw.",
        ),
        Finding(
            name="the same a layer, over that of He's draw, scaled",
            values=tuple(
                10 ** ((x - h) / between(110)) for x, h in zip(xavier, he, strict=True)
            ),
            expected=Expected(
                f"{exact ** (1 / between(110)):.3f} ± 0.005",
                low=exact ** (1 / between(110)) - 0.005,
                high=exact ** (1 / between(110)) + 0.005,
            ),
            places=3,
            note="By arithmetic: a ReLU net without norm and bias scales with each weight, by "
            "2^(-1/2) where a convolution keeps its channels, by (2/3)^(1/2) where it doubles "
            "them.",
        ),
        Finding(
            name="plain, no norm, Xavier, 998 layers: units whose gradient is exactly 0",
            values=tuple(
                100 * statistics.fmean(v == 0 for v in nets["gradient_rms"][1:-1])
                for nets in silent
            ),
            expected=Expected("above 90 %", low=90),
            unit="%",
            places=1,
            note="0.71 a layer is past float32 after about 250 layers; on the way forward the "
            "activations end as zeros too, and a ReLU at 0 passes nothing back.",
        ),
        Finding(
            name="plain, no norm, He, 110 layers: power of 10",
            values=he,
            expected=Expected("-6 to 1: it wanders, it does not vanish", low=-6, high=1),
            places=1,
            note="In expectation it is kept but for the zeros around the image (-0.9 at 110 "
            "layers) and the halvings (-0.6). A narrow net wanders around that, and its "
            "logarithm tends down (Hanin 2018, 1801.03744): hence the deviation between seeds.",
        ),
        Finding(
            name="plain, batch norm, 110 layers: power of 10",
            values=ratios(110, "plain", "batch", "he"),
            expected=Expected("above -1: it does not vanish", low=-1),
            places=1,
            note="2015, section 4.1: batch norm ensures that signals do not vanish.",
        ),
        Finding(
            name="the same a layer",
            values=tuple(
                10 ** (r / between(110)) for r in ratios(110, "plain", "batch", "he")
            ),
            expected=Expected("1 to 1.22: it grows", low=1, high=1.22),
            places=3,
            note="Yang et al. 2019: in wide nets the norm of the gradient grows by "
            "(π / (π - 1))^(1/2) = 1.21 a layer, towards the input.",
        ),
        *(
            Finding(
                name=f"{words}, batch norm, 998 layers: power of 10",
                values=ratios(998, kind, "batch", "he"),
                expected=Expected(
                    "-1 to 3: as a power of the depth, at most", low=-1, high=3
                ),
                places=1,
                note=f"Growth as the number of units to the power of 1.1, {units(998)}^1.1 = "
                "10^2.9, bounds it; see the notes.",
            )
            for words, kind in (("residual", "residual"), ("pre-activation", "preactivation"))
        ),
        Finding(
            name="pre-activation, no norm, He, 110 layers: power of activations, times a unit",
            values=growth("preactivation"),
            expected=Expected("1.7 to 2.1: they double", low=1.7, high=2.1),
            note="A branch puts out the power that it is given, so a sum has twice that "
            "(1901.09321, section 2); the zeros around the image take up to 16 % of a branch's.",
        ),
        Finding(
            name="residual, no norm, He, 110 layers: power of activations, times a unit",
            values=growth("residual"),
            expected=Expected("2 to 2.5", low=2, high=2.5),
            note="2.3 by integration: what is given is not negative, so its branch has twice the "
            "power, and the ReLU after the sum leaves most of it.",
        ),
    ]  # fmt: skip


def later(through: Trained, depth: int) -> list[Finding]:
    def worst(net: Net) -> tuple[float, ...]:
        return tuple(
            min(ratio(frame) for frame in result["frames"]) for result in through.get(net.key, ())
        )

    lasting = [
        Finding(
            name=f"{net.named}, {depth} layers in training: least power of 10",
            values=worst(net),
            expected=Expected("above -1.5: it never vanishes", low=-1.5),
            places=1,
            note="A tenth, and a third for what batches and steps add.",
        )
        for net in TRAINED
        if net.norm == "batch"
    ]
    chance = Expected("2.3 ± 0.05: ln 10, chance", low=2.25, high=2.35)
    losses = [
        Finding(
            name=f"{net.named}, {depth} layers: training loss at the end",
            values=tuple(result["losses"][-1][1] for result in through.get(net.key, ())),
            expected=chance if net.init == "xavier" else None,
        )
        for net in TRAINED
    ]
    return lasting + losses


def _shown(value: Number) -> str:
    return "overflows" if value is None else f"{value:.2g}"


def tables(initial: Initial) -> list[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
    """First over last unit's gradient of all nets at their first weights."""
    rows = []
    for net in NETS:
        means = [
            _shown(middle(left(nets[net.key]) for nets in initial[d])) for d in sorted(initial)
        ]
        rows.append([net.called, net.norm, net.init.title(), *means])
    head = ["kind", "norm", "initialisation", *(f"{d} layers" for d in sorted(initial))]
    title = "Gradient of the first unit over that of the last, geometric mean over seeds"
    return [(title, head, rows)] if initial else []
