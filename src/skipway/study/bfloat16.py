"""Whether half the bits train as well: the CIFAR networks in bfloat16 beside float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from skipway.errors import InputError
from skipway.study import trainings
from skipway.study.form import Cell, Done, Expected, Finding, Given, Scale, Told
from skipway.study.he2015_cifar import PROTOCOL, SHORT

NAME = "bfloat16"
TITLE = "Half the bits, the same network"
SOURCE = "Kalamkar et al. 2019 (1905.12322), on the nets of He et al. 2015 (1512.03385)"
CLAIM = "ResNet-20 trained in bfloat16 reaches the test error of one trained in float32."
STORY = (
    "A number of 16 bits is moved and multiplied in half the time of one of 32, where a processor "
    "knows it. bfloat16 keeps the range of 32 bits and gives up digits: two to three are left. A "
    "training can bear that, since its gradient is an estimate from a few images in any case, as "
    "long as the weights themselves, to which many small steps are added, stay in 32 bits."
)
DATA = trainings.DATA
REVISION = trainings.REVISION
PRECISIONS = ("float32", "bf16")
WITHIN = 0.5
"""Points of test error by which bfloat16 may miss float32."""
SCALES = (
    Scale(
        name="short",
        protocol=f"ResNet-20 in float32 and in bfloat16, its weights in float32 in both. "
        f"{PROTOCOL}, a tenth from step 2,000 and a hundredth from 3,000 of 4,000.",
        deviations=(
            *trainings.ALIKE,
            "a sixteenth of the steps, so that no number of the paper is due",
        ),
        seeds=8,
        minutes=240,
    ),
)
NOTES = (
    "The difference is taken seed by seed: both start from the same weights and see the same "
    f"images in the same order. {WITHIN:g} points either way, chosen before a net was trained, are "
    "about three times the deviation that the paper gives between its own runs of 110 layers.",
)


def data(given: Given) -> str:
    if given.precision != Given.precision:
        raise InputError("--precision: this study compares both; leave it out")
    return trainings.digest(given)


def cells(scale: Scale, seeds: int, given: Given) -> Sequence[Cell]:
    found = []
    for seed in range(seeds):
        for precision in PRECISIONS:
            cell = trainings.training("resnet20", seed, SHORT, replace(given, precision=precision))
            found.append(replace(cell, name=f"{cell.name}, {precision}"))
    return found


compute, seconds = trainings.compute, trainings.training_seconds
reached = trainings.reached


def told(done: Sequence[Done], scale: Scale) -> Told:
    found: dict[str, dict[int, float]] = {precision: {} for precision in PRECISIONS}
    for one in done:
        settings = one.cell.settings
        found[settings["precision"]][settings["seed"]] = trainings.tested_error(one.result)
    float32, bf16 = (found[precision] for precision in PRECISIONS)
    findings = [
        Finding(
            name="resnet20, test error in bfloat16 minus in float32",
            values=tuple(bf16[seed] - float32[seed] for seed in sorted(float32.keys() & bf16)),
            expected=Expected(f"within {WITHIN} points", -WITHIN, WITHIN),
            unit="points",
        ),
        *(
            Finding(name=f"resnet20, test error, {precision}", values=tuple(of.values()), unit="%")
            for precision, of in found.items()
        ),
    ]
    kept = trainings.judged(findings, done)
    return Told(kept, notes=NOTES, deviations=trainings.deviations(done))
