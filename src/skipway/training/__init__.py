"""Training: a run from a plan, started or resumed."""

from skipway.training.progress import TrainingProgress
from skipway.training.run import Interrupted, Result, resume, start

__all__ = ["Interrupted", "Result", "TrainingProgress", "resume", "start"]
