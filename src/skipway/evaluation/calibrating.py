"""Temperature scaling (1706.04599, section 4.2): one number that makes probabilities honest.

It is fitted on images that are not those that the result is told of, and kept in the card.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skipway.card import Card, Measured, copy_with_card, read_card
from skipway.data.split import hold_out
from skipway.errors import InputError, harmless
from skipway.evaluation.comparing import intervals
from skipway.evaluation.labelled import Labelled, open_labelled
from skipway.evaluation.scoring import Views, outputs, scores
from skipway.files import check_new, is_hub_name
from skipway.metrics import Scored, best_temperature
from skipway.predictor import Predictor, is_onnx

LEAST, MOST = 0.01, 100.0
"""Temperatures between which the best is looked for."""


@dataclass(frozen=True)
class Calibrated:
    """A temperature, and what it does to images that it was not fitted to."""

    temperature: float
    fitted_on: str
    """The split."""
    n: int
    """Its images."""
    before: Scored
    """At the card's former temperature."""
    after: Scored


def place(model: str, predictor: Predictor, out: str | None) -> Path:
    """Where the calibrated model goes: `out`, else beside the weights, for names in the working
    folder. Raises InputError where something is there, or the suffix is another."""
    suffix = ".onnx" if _is_onnx(predictor) else ".safetensors"
    if out is not None:
        target = Path(out)
        if target.suffix != suffix:
            raise InputError(f"--out {harmless(out)}: give a name that ends in {suffix}")
    elif is_hub_name(model):
        target = Path(f"{Path(model.partition(':')[2]).name}-calibrated{suffix}")
    elif Path(model).is_dir():
        target = Path(predictor.origin).with_name(f"calibrated{suffix}")
    elif Path(model).exists():
        target = Path(model).with_name(f"{Path(model).stem}-calibrated{suffix}")
    else:  # the name of a model that ships
        target = Path(f"{model}-calibrated{suffix}")
    check_new(target)
    return target


def apart(predictor: Predictor, model: str, images: Labelled) -> tuple[Labelled, Labelled]:
    """What is scored and what the temperature is fitted on: no image is in both.

    It is fitted on val. Where that is what is scored, or where all images are, either gets a half
    of them by class, as 1706.04599 (section 5) halves ImageNet's. Raises InputError where images of
    val are scored.
    """
    if images.name in ("val", "all"):
        scored, fitted = hold_out(images.split, 0.5, predictor.card.setting("seed", 0))
        name = f"half of {images.name}"
        return replace(images, name=name, split=scored), Labelled(images.data, name, fitted)
    try:
        fitted_on = open_labelled(predictor, model, images.data, "val")
    except InputError as error:
        raise InputError(f"--calibrate fits on val: {error}") from None
    shared = len({*images.split.names} & {*fitted_on.split.names})
    if shared:
        raise InputError(
            f"--calibrate fits on val, and {shared:,} of its images are among those of "
            f"{images.name}, which are scored\nGive another --split, as test."
        )
    return images, fitted_on


def calibrate(
    predictor: Predictor, images: Labelled, fitted_on: Labelled, threads: int, on_bad: str
) -> tuple[Calibrated, list[str]]:
    """The temperature that suits the images of `fitted_on` best, and `images` scored with it.

    Also why images were skipped. Raises InputError where no temperature is best.
    """
    skipped: list[str] = []
    parts = list(
        outputs(predictor, fitted_on.split, threads, on_bad, Views.one, 128, None, skipped)
    )
    if not parts:
        raise InputError(skipped[0] if skipped else "--calibrate: no images to fit on")
    index, logits = (np.concatenate(column) for column in zip(*parts, strict=True))
    found = best_temperature(logits, fitted_on.split.labels[index], LEAST, MOST)
    if not LEAST * 1.01 < found < MOST / 1.01:
        why = "all of them are right" if found < 1 else "the answers say nothing of the labels"
        raise InputError(
            f"--calibrate: no temperature is best for the {len(index):,} images of "
            f"{fitted_on.name}: {why}"
        )
    both, more = scores(
        predictor, images.split, [predictor.card.temperature, found], threads, on_bad
    )
    return Calibrated(found, fitted_on.name, len(index), *both), skipped + more


def write(predictor: Predictor, images: Labelled, calibrated: Calibrated, target: Path) -> None:
    """The model with that temperature in its card, whole or not at all; its weights stay as they
    are. Raises InputError."""
    card = _card(predictor.card, images, calibrated)
    source = Path(predictor.origin)
    if _is_onnx(predictor) or _has_card(predictor.origin):
        copy_with_card(source, target, card)
        return
    from skipway.weights import load_model, save_weights

    save_weights(target, load_model(predictor.origin)[0], card)


def _is_onnx(predictor: Predictor) -> bool:
    return not is_hub_name(predictor.origin) and is_onnx(Path(predictor.origin))


def _has_card(origin: str | os.PathLike[str]) -> bool:
    """Whether a file is safetensors with a card in it."""
    if is_hub_name(origin):
        return False
    try:
        return read_card(origin) is not None
    except InputError:  # not safetensors
        return False


def _card(card: Card, images: Labelled, calibrated: Calibrated) -> Card:
    """The card with the temperature; what a temperature changes was measured anew."""
    metrics, ends = calibrated.after.metrics(), intervals(calibrated.after)
    measured = [
        Measured(
            name=name,
            value=metrics[name],
            low=low,
            high=high,
            split=images.name,
            n=len(calibrated.after.label),
            data=images.data,
        )
        for name in ("loss", "ece")
        for low, high in (ends[name] or (None, None),)
    ]
    kept = [m for m in card.metrics if m.name not in ("loss", "ece")]
    told = {
        "temperature": calibrated.temperature,
        "data": images.data,
        "split": calibrated.fitted_on,
        "n": calibrated.n,
    }
    return card.model_copy(
        update={
            "temperature": calibrated.temperature,
            "metrics": (*kept, *measured),
            "provenance": card.provenance | {"calibrated": told},
        }
    )
