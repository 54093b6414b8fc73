"""One map of an image, and the picture that is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway import heatmap
from skipway.answers import Score
from skipway.errors import InputError, harmless, nearest
from skipway.images import Geometry, ImageLike, Preprocess, decode

Array = npt.NDArray[Any]


def as_input(preprocess: Preprocess, source: ImageLike) -> tuple[Array, Geometry, Array]:
    """An image as it is shown, [H, W, 3], where it goes in the model's input, and that, float32
    [C, h, w]. Raises DecodeError."""
    image = decode(source, 3)
    own = image if preprocess.channels == 3 else decode(source, preprocess.channels)
    framed, geometry = preprocess.frame(own)
    return image, geometry, preprocess.normalise(framed)


@dataclass(frozen=True)
class Explanation:
    """Where a model sees something in an image."""

    image: Array
    """uint8 or uint16 [H, W, 3], as decoded."""
    heat: Array
    """float32 [h, w] over the model's input."""
    geometry: Geometry
    asked: Score
    """The class that the map is of."""
    best: Score
    """The model's answer."""
    said: str
    """How the map was made."""
    what: str = ""
    """Of the class, what the map is of, where it is not the whole image."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same as JSON."""
    mark: Callable[[Array], Array] | None = None
    """Shows it on a panel of the picture, uint8 [h, w, 3]."""
    title: str = ""
    """What the map is of, where that is no class."""

    @property
    def peak(self) -> tuple[int, int] | None:
        """The pixel (x, y) of the image where the map is highest; None where it is empty."""
        return heatmap.peak(self.heat, self.geometry)

    def over_image(self) -> Array:
        """The map over the image, float32 [H, W]; NaN where the model did not see it."""
        return heatmap.over_original(self.heat, self.geometry)

    def picture(self) -> bytes:
        """The image and the map on it with a caption, as PNG; see `heatmap.picture`."""
        title = self.title or _shown(self.asked) + self.what
        if self.best.label != self.asked.label:
            title += f" (the answer is {_shown(self.best)})"
        notes = [self.said]
        if self.peak is None:
            notes.append("nothing in the image speaks for it")
        (right, bottom), scale = self.geometry.size[::-1], self.geometry.scale
        share = np.prod(self.heat.shape) / (right * scale[0] * bottom * scale[1])
        if share < 0.995:
            notes.append(f"hatched: cut off before the model, {1 - share:.0%} of the image")
        return heatmap.picture(self.image, self.heat, self.geometry, title, notes, self.mark)


def _shown(answer: Score) -> str:
    label = answer.label if len(answer.label) <= 60 else answer.label[:59] + "…"
    return f"{label} {answer.score:.1%}"


def class_index(name: str, classes: Sequence[str], origin: str) -> int:
    """The output of a class. Raises InputError where the model has none of this name."""
    if name in classes:
        return classes.index(name)
    few = f"\nIt has {', '.join(map(harmless, classes))}" if len(classes) <= 20 else ""
    raise InputError(
        f"--class {harmless(name)}: {harmless(origin)} has no such class."
        f"{harmless(nearest(name, classes))}{few}"
    )


def checked_stage(stage: str | None, stages: Sequence[str]) -> str:
    """That stage, None is the last. Raises InputError where the network has no such stage."""
    if stage is not None and stage not in stages:
        raise InputError(
            f"--stage {harmless(stage)}: this network has {', '.join(stages)}."
            f"{nearest(stage, stages)}"
        )
    return stage or stages[-1]
