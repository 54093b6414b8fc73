"""The labelled images that a model is scored on, and what of them it was trained on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
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
    known = predictor.classes if predictor.classes_known else None
    name, found, classes, notes = _opened(like or predictor.card, data, split, known)
    if len(classes) != len(predictor.classes):
        raise InputError(
            f"{harmless(model)} has {len(predictor.classes)} outputs without class names, "
            f"{harmless(data)} {len(classes)} classes\nScore it on all of its classes."
        )
    if known is None:
        notes.append("class names are not in the file: taken from the data in its order")
    return Labelled(data, name, found, (*notes, *found.notes))


def open_as_labelled(
    card: Card, data: str, split: str | None = None
) -> tuple[Labelled, tuple[str, ...]]:
    """A split of the data whose labels count the data's own classes, and these: for what a model
    says of any classes. The arguments are as in `open_labelled`. Raises InputError."""
    name, found, classes, notes = _opened(card, data, split, None)
    return Labelled(data, name, found, (*notes, *found.notes)), classes


def trained_on(card: Card, images: Labelled) -> int | None:
    """How many of the images are known to have trained the model of the card; None where the data
    has changed since, so that any of them may have."""
    made = _own_data(card, images.data, *_seed_and_val(card))
    if made is None:
        open_to_it = images.split.drawn or images.name.endswith(("train", "all"))  # or half of all
        return None if open_to_it and _lies_there(card, images.data) else 0
    return made.learned_from(images.split)


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


def _opened(
    card: Card, data: str, asked: str | None, classes: Sequence[str] | None
) -> tuple[str, Split, tuple[str, ...], list[str]]:
    """As `open_split`, for a model of that card, and what must be known of the split; where none
    is asked for, as `default_split`."""
    seed, val = _seed_and_val(card)
    split = asked
    said: list[str] = []
    if asked is None:
        made = _own_data(card, data, seed, val)
        held = None if made is None else tuple(s for s in ("test", "val") if s in made.splits)
        split, said = default_split(card, data, held)
    name, found, names = open_split(data, split, classes, seed, val)
    if asked is not None and found.drawn and _own_data(card, data, seed, val) is None:
        said = drawn_anew(card, data, name, found)
    return name, found, names, said


def drawn_anew(card: Card, data: str, name: str, split: Split) -> list[str]:
    """What is to be said of a split that was asked for, of data that are not, or no longer, those
    of the model's training."""
    if not split.drawn or not _lies_there(card, data):
        return []
    return [
        f"the images are not those of training; {name} is drawn anew, and those that are scored "
        "may have been trained on"
    ]


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
    if _lies_there(card, data):
        note = "the images are not those of training; where there are no splits, those that are "
        return None, [f"{note}scored may have been trained on"]
    return None, []


def _lies_there(card: Card, data: str) -> bool:
    """Whether data are where the images of the model's training were, whatever is there now."""
    place = card.recipe.get("data_path")
    if card.provenance.get("data") is None or not isinstance(place, str):
        return False
    if os.path.exists(place) and os.path.exists(data):
        return os.path.realpath(place) == os.path.realpath(data)
    return last_part(place) == last_part(data)  # exports and copies of a card have no more
