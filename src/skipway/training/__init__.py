"""Training: a run from a plan, started or resumed."""

from skipway.training.callbacks import Callback, TensorBoard
from skipway.training.progress import TrainingProgress
from skipway.training.run import expect, find_rate, resume, start
from skipway.training.trainer import Interrupted, Result

__all__ = [
    "Callback",
    "Interrupted",
    "Result",
    "TensorBoard",
    "TrainingProgress",
    "expect",
    "find_rate",
    "resume",
    "start",
]
