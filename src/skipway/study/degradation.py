"""Deeper plain nets train worse, deeper residual nets do not: He et al. 2015, Fig. 1 and 6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from skipway.study import trainings
from skipway.study.curves import Curve, curves, highest
from skipway.study.form import Cell, Done, Expected, Finding, Given, Picture, Scale, Told

NAME = "degradation"
TITLE = "Deeper and worse: the degradation problem"
SOURCE = "He et al. 2015 (1512.03385), sections 4.1 and 4.2, Figures 1 and 6"
CLAIM = (
    "A plain net of 56 layers has a higher training error than one of 20; a residual net of 56 "
    "layers has not."
)
STORY = (
    "A deeper net can do all that a shallower one can: its further layers need only pass on what "
    "they are given. Yet plain stacks of layers learn worse when they are deeper, and on the very "
    "images they are trained on, so that it is not overfitting: the optimiser does not find what "
    "is there. Shortcuts make passing on the easy thing to do, and depth no longer hurts."
)
REVISION = trainings.REVISION
NETS = {"plain": ("plain20", "plain56"), "residual": ("resnet20", "resnet56")}
SMALL: Mapping[str, Any] = {
    **trainings.PAPER,
    "data.size": 16,
    "data.take": 2500,
    "augment.flip": False,
    "augment.pad_crop": 0,
    "optim.lr": 0.02,
    "schedule.length": "40 epochs",
    "schedule.milestones": ("50 %", "75 %"),
}
"""Few images, as they are: a net that can be trained has learned them by heart in 800 steps."""
LONGER: Mapping[str, Any] = {**SMALL, "schedule.length": "120 epochs"}
"""Of the plain nets too: three times the iterations, as the authors tried it on ImageNet with 18
and 34 layers (section 4.1, in a footnote)."""
LEAST = 1.0
"""Points of training error by which a net must be worse to count as degraded, and may be worse
without it."""

SCALES = (
    Scale(
        name="small",
        protocol="250 training images of each class of CIFAR-10, drawn by seed, at 16 px, as they "
        "are; batch 128, 40 epochs (800 steps) of SGD at 0.02, a tenth from the 21st and a "
        "hundredth from the 31st on. The plain nets also three times as long, as the authors tried "
        "it on ImageNet with 18 and 34 layers.",
        deviations=(
            "2,500 training images in place of 50,000, neither moved nor mirrored, so that a net "
            "that can be trained has learned them by heart in the time",
            "16 px in place of 32, so a quarter of the work",
            "800 steps in place of 64,000, at a rate of 0.02 in place of 0.1, at which deep nets "
            "of either kind begin late",
            trainings.NORMED,
        ),
        seeds=3,
        minutes=75,
        claim="A plain net of 56 layers has a higher training error than one of 20, after three "
        "times the steps too; a residual net of 56 layers has not.",
    ),
    Scale(
        name="paper",
        protocol="CIFAR-10, all 50,000 training images, batch 128, 64,000 steps of SGD at 0.1, a "
        "tenth from step 32,000 and a hundredth from 48,000.",
        deviations=(trainings.NORMED,),
        seeds=3,
        minutes=9_000,
    ),
)


data = trainings.digest


def cells(scale: Scale, seeds: int, given: Given) -> Sequence[Cell]:
    settings = SMALL if scale.name == "small" else trainings.PAPER
    nets = [net for kind in NETS.values() for net in kind]
    found = []
    for seed in range(seeds):
        found += [trainings.training(net, seed, settings, given) for net in nets]
        if scale.name == "small":
            again = (trainings.training(net, seed, LONGER, given) for net in NETS["plain"])
            found += [replace(cell, name=f"{cell.name}, three times as long") for cell in again]
    return found


compute, seconds = trainings.compute, trainings.training_seconds
reached = trainings.reached


def told(done: Sequence[Done], scale: Scale) -> Told:
    lengths = LONGER["schedule.length"]
    longer = [one for one in done if one.cell.settings.get("schedule.length") == lengths]
    runs = trainings.by_seed([one for one in done if one not in longer])
    runs_longer = trainings.by_seed(longer)
    train, train_longer = _last_errors(runs), _last_errors(runs_longer)
    worse = {kind: _worse(train, *nets) for kind, nets in NETS.items()}
    seeds = sorted(worse["plain"].keys() & worse["residual"].keys())
    findings = [
        Finding(
            name="plain, 56 less 20 layers, training error",
            values=tuple(worse["plain"].values()),
            expected=Expected(f"more than {LEAST:g} point: the deeper is worse", low=LEAST),
            unit="points",
        ),
        Finding(
            name="residual, 56 less 20 layers, training error",
            values=tuple(worse["residual"].values()),
            expected=Expected(f"at most {LEAST:g} point: the deeper is not worse", high=LEAST),
            unit="points",
        ),
        Finding(
            name="what the shortcuts take off that difference",
            values=tuple(worse["plain"][s] - worse["residual"][s] for s in seeds),
            expected=Expected(f"more than {LEAST:g} point", low=LEAST),
            unit="points",
        ),
    ]
    if scale.name == "small":
        findings.append(
            Finding(
                name="plain, 56 less 20 layers, training error, three times as long",
                values=tuple(_worse(train_longer, *NETS["plain"]).values()),
                expected=Expected(f"more than {LEAST:g} point: the deeper is worse", low=LEAST),
                unit="points",
                note="Section 4.1, in a footnote, of 18 and 34 layers on ImageNet: three times the "
                "iterations did not end it.",
            )
        )
    for net in (net for kind in NETS.values() for net in kind):
        tested = [trainings.tested_error(found) for found in runs.get(net, {}).values()]
        errors = tuple(train.get(net, {}).values())
        long = tuple(train_longer.get(net, {}).values())
        findings += [
            Finding(name=f"{net}, training error", values=errors, unit="%"),
            Finding(name=f"{net}, training error, three times as long", values=long, unit="%"),
            Finding(name=f"{net}, test error", values=tuple(tested), unit="%"),
        ]
    return Told(
        trainings.judged(findings, done),
        _pictures(runs, runs_longer),
        NOTES,
        deviations=trainings.deviations(done),
    )


def _last_errors(runs: trainings.Runs) -> dict[str, dict[int, float]]:
    """`trainings.last_error` by net and seed."""
    return {
        net: {seed: trainings.last_error(found) for seed, found in of.items()}
        for net, of in runs.items()
    }


def _worse(train: Mapping[str, Mapping[int, float]], shallow: str, deep: str) -> dict[int, float]:
    """By how many points the deeper net's training error is higher, by seed."""
    less, more = train.get(shallow, {}), train.get(deep, {})
    return {seed: more[seed] - less[seed] for seed in sorted(less.keys() & more.keys())}


NOTES = (
    "Training error is that of the images as they are trained on, each before the step that "
    "learned from it, as the paper's curves are, over the last epoch; the difference is taken seed "
    "by seed. One point is the least that counts as a difference, chosen beforehand.",
    "The small scale was another at first: all 50,000 images in four epochs at the paper's rate of "
    "0.1. That is the beginning of a training alone, where deep nets of either kind are behind: "
    "after three of them the residual net of 56 layers erred 16 points more often than that of 20 "
    "(one seed). The paper begins more slowly with 110 layers for that reason. On few images, at a "
    "lower rate, three of the four nets come to their end: both residual ones and the plain one of "
    "20 layers know the images by heart, all or all but a few percent. The plain one of 56 layers "
    "does not: it has hardly begun when the rate falls, and stays where it is. Three times as long "
    "it comes further, and the difference is less than half. So the sign of the difference is the "
    "paper's, its size is not: the paper's is one of a few points, between trainings of 64,000 "
    "steps. That residual nets do not differ is a floor, as both err on no image; and test errors "
    "of so few images say little.",
    "The longer trainings were added after the others had been seen, with the same bound.",
)


def _pictures(runs: trainings.Runs, longer: trainings.Runs) -> list[Picture]:
    """One figure a kind, and one of what was trained for longer, on the same axis of errors; the
    deeper net is the heavier line."""

    def drawn(kind: str, runs: trainings.Runs) -> list[Curve]:
        return [
            Curve(net, f"{kind} {weight}", trainings.errors_by_seed(runs[net]))
            for net, weight in zip(NETS[kind], ("training", "training heavy"), strict=True)
            if net in runs
        ]

    figures = [(kind, f"{kind.capitalize()} nets", drawn(kind, runs)) for kind in NETS]
    figures.append(("longer", "Plain nets, three times as long", drawn("plain", longer)))
    shown = [curve for _, _, some in figures for curve in some]
    caption = "Training error by step: the mean over seeds, their range as a band."
    return [
        Picture(f"degradation-{name}", curves(title, caption, some, top=highest(shown)))
        for name, title, some in figures
        if some
    ]
