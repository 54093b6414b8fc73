"""Deeper plain nets train worse, deeper residual nets do not: He et al. 2015, Fig. 1 and 6."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    "is there. Shortcuts make passing on the easy thing to do, and the training error no longer "
    "rises with depth."
)
DATA = trainings.DATA
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
            *trainings.NOT_CAFFES,
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
        deviations=trainings.ALIKE,
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
    train, train_longer = (_each(some, trainings.last_error) for some in (runs, runs_longer))
    tested = _each(runs, trainings.tested_error)
    worse = {kind: _worse(train, *nets) for kind, nets in NETS.items()}
    seeds = sorted(worse["plain"].keys() & worse["residual"].keys())
    findings = [
        Finding(
            name="plain56 minus plain20, training error",
            values=tuple(worse["plain"].values()),
            expected=Expected(f"more than {LEAST:g} point: the deeper is worse", low=LEAST),
            unit="points",
        ),
        Finding(
            name="resnet56 minus resnet20, training error",
            values=tuple(worse["residual"].values()),
            expected=Expected(f"at most {LEAST:g} point: the deeper is not worse", high=LEAST),
            unit="points",
        ),
        Finding(
            name="the plain difference minus the residual one",
            values=tuple(worse["plain"][s] - worse["residual"][s] for s in seeds),
            unit="points",
        ),
    ]
    if scale.name == "small":
        findings.append(
            Finding(
                name="plain56 minus plain20, training error, three times as long",
                values=tuple(_worse(train_longer, *NETS["plain"]).values()),
                expected=Expected(f"more than {LEAST:g} point: the deeper is worse", low=LEAST),
                unit="points",
                note="Section 4.1, in a footnote, of 18 and 34 layers on ImageNet: three times the "
                "iterations did not end it.",
            )
        )
    findings += [
        Finding(
            name=f"{deep} minus {shallow}, test error",
            values=tuple(_worse(tested, shallow, deep).values()),
            unit="points",
        )
        for shallow, deep in NETS.values()
    ]
    for net in (net for kind in NETS.values() for net in kind):
        findings += [
            Finding(name=f"{net}, {what}", values=tuple(errors.get(net, {}).values()), unit="%")
            for what, errors in (
                ("training error", train),
                ("training error, three times as long", train_longer),
                ("test error", tested),
            )
        ]
    return Told(
        trainings.judged(findings, done),
        _pictures(runs, runs_longer),
        (*NOTES, SMALL_NOTE) if scale.name == "small" else NOTES,
        deviations=trainings.deviations(done),
    )


def _each(
    runs: trainings.Runs, error: Callable[[Mapping[str, Any]], float]
) -> dict[str, dict[int, float]]:
    """An error in % of each training, by net and seed."""
    return {net: {seed: error(one) for seed, one in of.items()} for net, of in runs.items()}


def _worse(errors: Mapping[str, Mapping[int, float]], shallow: str, deep: str) -> dict[int, float]:
    """By how many points the deeper net's error is higher, by seed."""
    less, more = errors.get(shallow, {}), errors.get(deep, {})
    return {seed: more[seed] - less[seed] for seed in sorted(less.keys() & more.keys())}


SMALL_NOTE = (
    "The sign of the differences is what this scale tests, not their size, which in the paper is a "
    "few points, between trainings of 64,000 steps. In 800 steps of few images a plain net of 56 "
    "layers may hardly have begun, and three times as long it may still be on its way; nets that "
    "know all their images by heart differ by nothing, which is a floor. Test errors of so few "
    "images say little."
)
NOTES = (
    "Training error is that of the images as they are trained on, each before the step that "
    "learned from it, over the last epoch; the difference is taken seed by seed. One point is the "
    "least that counts as a difference, chosen beforehand.",
    "The claim is of training errors, by which overfitting is no answer. A deeper residual net may "
    "err more on other images, as that of 1202 layers does in the paper.",
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
