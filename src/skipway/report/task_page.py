"""The seam between the page of a run and what each task shows on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skipway.report.commands import Line
from skipway.report.markup import Html
from skipway.report.run import Run


@dataclass(frozen=True)
class ByClass:
    """How well each class does, in a comparison."""

    name: str
    """With a capital."""
    key: str
    """In JSON."""
    said: str
    """What it is, behind its name and a colon."""
    values: Callable[[Run], Sequence[float | None]]
    """In the order of `Run.classes`; None for a class of which nothing is known."""


@dataclass(frozen=True)
class TaskPage:
    """What a task shows in its own way; a part that returns None is left out."""

    what: Callable[[Run], list[tuple[str, object]]]
    """Facts of the first card, beside those of every run."""
    how_good: Callable[[Run], list[object]]
    """Content of the second card."""
    next: Callable[[Run], Sequence[Line]]
    """Of the fourth card."""
    words: Callable[[Run], Html | None]
    """What the numbers mean."""
    course: Callable[[Run], Html | None]
    """How the training went."""
    errors: Callable[[Run], Html | None]
    """Where it errs."""
    use: Callable[[Run], Sequence[Line]]
    """Commands and Python for a finished run."""
    seen: Callable[[dict[str, Any]], list[Html | None]]
    """The caption of a training image as the network saw it."""
    scores: Callable[[Run], list[tuple[str, str | None]]]
    """How good the run is, by column of a comparison; the first is None where it was not scored."""
    measure: str
    """The main metric in words, as they stand in a sentence."""
    value: Callable[[Run], float | None]
    """The main metric, 0..1."""
    counted: str
    """What the splits count by class, with a capital."""
    total: str
    """The row of the images of each split, above the counts."""
    by_class: ByClass | None = None
    """Where runs of the task can be compared class by class."""
    untested: str | None = None
    """Why two runs cannot be compared image by image; None where they can."""
    pictures: str = "pictures"
    """The class of the style sheet for training images."""

    @property
    def title(self) -> str:
        """The main metric with a capital."""
        return self.measure[0].upper() + self.measure[1:]
