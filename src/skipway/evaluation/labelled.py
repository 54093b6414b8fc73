"""The labelled images that a model is scored on, and what of them it was trained on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from skipway.card import Card, last_part
from skipway.data import DataSet, Split, open_data, open_split
from skipway.errors import InputError, harmless
from skipway.predictor import Predictor


@dataclass(frozen=True)
class Labelled:
    """A split whose labels count the classes of a model."""

    data: str
    name: str
    """train, val, test or all."""
    split: Split
    notes: tuple[str, ...] = ()
    """What a reader of the score must know."""


def open_labelled(
    predictor: Predictor,
    model: str,
    data: str,
    split: str | None = None,
    like: Card | None = None,
) -> Labelled:
    """A split of the data for a model that its user calls `model`.

    `split`: None takes what its training held out, where this is its data, else what `open_split`
    takes. Splits that the data does not have are made with the seed and the share of `like`, by
    default of the model's own card. Raises InputError.
    """
    notes = []
    card = like or predictor.card
    seed, val = _seed_and_val(card)
    if split is None:
        split, said = _held_out(card, data, seed, val)
        notes += said
    known = predictor.classes if predictor.classes_known else None
    name, found, classes = open_split(data, split, known, seed, val)
    if len(classes) != len(predictor.classes):
        raise InputError(
            f"{harmless(model)} has {len(predictor.classes)} outputs without class names, "
            f"{harmless(data)} {len(classes)} classes\nScore it on all of its classes."
        )
    if known is None:
        notes.append("class names are not in the file: taken from the data in its order")
    notes += [f"note: {note}" for note in found.notes]
    return Labelled(data, name, found, tuple(notes))


def open_as_labelled(
    card: Card, data: str, split: str | None = None
) -> tuple[Labelled, tuple[str, ...]]:
    """A split of the data whose labels count the data's own classes, and these: for what a model
    says of any classes. The arguments are as in `open_labelled`. Raises InputError."""
    notes: list[str] = []
    seed, val = _seed_and_val(card)
    if split is None:
        split, notes = _held_out(card, data, seed, val)
    name, found, classes = open_split(data, split, None, seed, val)
    return Labelled(data, name, found, (*notes, *(f"note: {n}" for n in found.notes))), classes


def trained_on(card: Card, images: Labelled) -> int:
    """How many of the images are known to have trained the model of the card."""
    made = _own_data(card, images.data, *_seed_and_val(card))
    return 0 if made is None else made.learned_from(images.split)


def _seed_and_val(card: Card) -> tuple[int, Any]:
    return card.setting("seed", 0), card.setting("data.val", "auto")


def _own_data(card: Card, data: str, seed: int, val: Any) -> DataSet | None:
    """The data as the model's training split it, where it is that data."""
    if card.provenance.get("data") is None:
        return None
    with contextlib.suppress(InputError):  # not a set to train on: then not the run's
        made = open_data(data, val, seed, unseen=card.task == "embed")
        if made.digest() == card.provenance["data"]:
            return made
    return None


def _held_out(card: Card, data: str, seed: int, val: Any) -> tuple[str | None, list[str]]:
    """As `default_split`."""
    made = _own_data(card, data, seed, val)
    held = None if made is None else tuple(s for s in ("test", "val") if s in made.splits)
    split, notes = default_split(card, data, held)
    return split, [f"note: {note}" for note in notes]


def default_split(
    card: Card, data: str, held: tuple[str, ...] | None
) -> tuple[str | None, list[str]]:
    """The split to score a model on where none is asked for, and what is to be said.

    held: what its training held out, where this is its data, the first to be taken; None for other
    data. None is left to what the data has.
    """
    if held:
        return held[0], []
    if held is not None:
        return None, ["nothing was held out; these images were trained on"]
    known = card.provenance.get("data") is not None
    if known and card.recipe.get("data_path") in (data, last_part(data)):  # ONNX has the latter
        note = "the images are not those of training; where there are no splits, those that are "
        return None, [f"{note}scored may have been trained on"]
    return None, []
