"""The seam between the page of a run and what each task shows on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skipway.report.commands import Line
from skipway.report.markup import Html
from skipway.report.run import Run


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
    counted: str
    """What the splits count by class, with a capital."""
    total: str
    """The row of the images of each split, above the counts."""
    untested: str | None = None
    """Why two runs cannot be compared image by image; None where they can."""
    pictures: str = "pictures"
    """The class of the style sheet for training images."""
