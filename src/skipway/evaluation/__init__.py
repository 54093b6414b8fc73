"""A model on labelled images: its scores, how sure they are, and what they depend on.

None of it needs torch by itself.
"""

from skipway.evaluation.labelled import (
    Labelled,
    default_split,
    drawn_anew,
    open_labelled,
    trained_on,
)
from skipway.evaluation.scoring import Views, score, scores, views_of

__all__ = [
    "Labelled",
    "Views",
    "default_split",
    "drawn_anew",
    "open_labelled",
    "score",
    "scores",
    "trained_on",
    "views_of",
]
