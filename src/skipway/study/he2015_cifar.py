"""The CIFAR-10 networks at the paper's scale: He et al. 2015, Table 6."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from skipway.study import trainings
from skipway.study.curves import Curve, curves
from skipway.study.form import Cell, Done, Expected, Finding, Given, Picture, Scale, Told

NAME = "he2015-cifar"
TITLE = "ResNet-20 as in the paper"
SOURCE = "He et al. 2015 (1512.03385), section 4.2 and Table 6"
CLAIM = "ResNet-20, with 0.27 million parameters, reaches a test error of 8.75 % on CIFAR-10."
STORY = (
    "A network is one thing, the training that makes it good another, and much of what is said of "
    "residual nets rests on trainings that differ from the paper's. Here is the paper's own: the "
    "same images, the same 64,000 steps, the same rates, from random weights to the number in the "
    "table."
)
REVISION = 1
PAPER = {"resnet20": 8.75, "resnet32": 7.51, "resnet44": 7.17, "resnet56": 6.97, "resnet110": 6.61}
"""Test error in %, Table 6; of 110 the mean of its five runs."""
TOLERANCE = 0.4
"""Points around the paper's number, whose runs it gives one of (110: ± 0.16)."""
DEVIATION = 0.16
"""Points between seeds: of the paper's five runs of 110 layers, the only ones it repeats."""
ALIKE = 0.5
"""Points of test error by which bfloat16 may miss float32 on a short training."""
_ALIKE = (
    trainings.NORMED,
    "all 50,000 training images, where the paper leaves open whether its 45,000 or all",
)
_PROTOCOL = (
    "CIFAR-10, 50,000 training images, padded by 4 px, cropped and mirrored at random, per-pixel "
    "mean subtracted; batch 128, SGD with momentum 0.9, weight decay 0.0001, rate 0.1"
)
SCALES = (
    Scale(
        name="short",
        protocol=f"{_PROTOCOL}, a tenth from step 2,000 and a hundredth from 3,000 of 4,000.",
        deviations=(*_ALIKE, "a sixteenth of the steps, so that no number of the paper is due"),
        seeds=2,
        minutes=60,
    ),
    Scale(
        name="precision",
        protocol=f"ResNet-20 in float32 and in bfloat16. {_PROTOCOL}, a tenth from step 2,000 and "
        "a hundredth from 3,000 of 4,000.",
        deviations=(*_ALIKE, "a sixteenth of the steps, so that no number of the paper is due"),
        seeds=3,
        minutes=90,
    ),
    Scale(
        name="paper",
        protocol=f"{_PROTOCOL}, a tenth from step 32,000 and a hundredth from 48,000 of 64,000. "
        "The plain net of 20 layers once.",
        deviations=_ALIKE,
        seeds=2,
        minutes=1_200,
    ),
    Scale(
        name="depths",
        protocol=f"{_PROTOCOL} (110 layers: 0.01 for the first 400 steps), a tenth from step "
        "32,000 and a hundredth from 48,000 of 64,000. For each depth the plain net too.",
        deviations=_ALIKE,
        seeds=5,
        minutes=60_000,
    ),
)


def data(given: Given) -> str:
    return trainings.digest(given)


def cells(scale: Scale, seeds: int, given: Given) -> Sequence[Cell]:
    settings = dict(trainings.PAPER)
    if scale.name in ("short", "precision"):
        settings |= {"schedule.length": "4000 steps", "schedule.milestones": ("50 %", "75 %")}
    found = []
    for seed in range(seeds):
        if scale.name == "precision":
            for precision in ("float32", "bf16"):
                cell = trainings.training(
                    "resnet20", seed, settings, replace(given, precision=precision)
                )
                found.append(replace(cell, name=f"{cell.name}, {precision}"))
            continue
        for depth in (20, 32, 44, 56, 110) if scale.name == "depths" else (20,):
            slow = trainings.SLOW_START if depth == 110 else {}
            for kind in ("resnet", "plain"):
                if kind == "resnet" or seed == 0 or scale.name == "depths":
                    found.append(
                        trainings.training(f"{kind}{depth}", seed, {**settings, **slow}, given)
                    )
    return found


def compute(cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> Any:
    return trainings.train_cell(cell, given, say)


def seconds(cell: Cell, given: Given) -> float:
    return trainings.training_seconds(cell, given)


def told(done: Sequence[Done], scale: Scale) -> Told:
    if scale.name == "precision":
        return _precision(done)
    runs = trainings.by_seed(done)
    findings = []
    for net in sorted(runs, key=_depth):
        tested = tuple(map(trainings.tested_error, runs[net].values()))
        due = PAPER.get(net) if scale.name != "short" and trainings.is_cifar10(done) else None
        expected = None
        if due is not None:
            words = f"{due} % ± {TOLERANCE}"
            expected = Expected(words, due - TOLERANCE, due + TOLERANCE)
        findings += [
            Finding(
                name=f"{net}, test error",
                values=tested,
                expected=expected,
                unit="%",
                known_deviation=None if due is None else DEVIATION,
            ),
            Finding(
                name=f"{net}, training error",
                values=tuple(map(trainings.last_error, runs[net].values())),
                unit="%",
            ),
        ]
    return Told(findings, _pictures(runs), NOTES, deviations=trainings.deviations(done))


NOTES = (
    "The test images are scored once, with the weights after the last step; the paper's plain nets "
    "stand in Fig. 6 as curves alone.",
    f"Of one or two seeds the interval takes the deviation as known, {DEVIATION} points, that of "
    "the paper's five runs of 110 layers; of more it is the seeds' own.",
)


def _precision(done: Sequence[Done]) -> Told:
    """What bfloat16 changes, seed by seed."""
    found: dict[str, dict[int, float]] = {"float32": {}, "bf16": {}}
    for one in done:
        settings = one.cell.settings
        found[settings["precision"]][settings["seed"]] = trainings.tested_error(one.result)
    seeds = sorted(found["float32"].keys() & found["bf16"].keys())
    findings = [
        Finding(
            name="resnet20, test error in bfloat16 less in float32",
            values=tuple(found["bf16"][seed] - found["float32"][seed] for seed in seeds),
            expected=Expected(f"within {ALIKE} points", -ALIKE, ALIKE),
            unit="points",
        ),
        *(
            Finding(name=f"resnet20, test error, {precision}", values=tuple(of.values()), unit="%")
            for precision, of in found.items()
        ),
    ]
    kept = [finding for finding in findings if finding.values]
    return Told(kept, deviations=trainings.deviations(done))


def _depth(net: str) -> tuple[int, str]:
    return int("".join(filter(str.isdecimal, net))), net


def _pictures(runs: trainings.Runs) -> list[Picture]:
    """Each kind's training error, and what the paper's networks make of the test images."""
    if not runs:
        return []
    drawn = [
        Curve(
            net,
            f"{'plain' if net.startswith('plain') else 'residual'} training",
            trainings.errors_by_seed(runs[net]),
        )
        for net in sorted(runs, key=_depth)
    ]
    published = [(PAPER[net], f"{net}, paper, test") for net in sorted(runs) if net in PAPER]
    caption = (
        "Training error by step: the mean over seeds, their range as a band. The thin line is the "
        "paper's test error."
    )
    return [Picture("he2015-cifar", curves("Training error", caption, drawn, published))]
