"""Which page belongs to a run."""

from __future__ import annotations

from skipway.report import classification, detection, retrieval, segmentation
from skipway.report.run import Run
from skipway.report.task_page import TaskPage

PAGES = {
    "classify": classification.PAGE,
    "detect": detection.PAGE,
    "instance": detection.PAGE,
    "segment": segmentation.PAGE,
    "embed": retrieval.PAGE,
}
"""By task."""


def page_of(run: Run) -> TaskPage:
    """What the run's task shows; of a task without a page, as of classification."""
    return PAGES.get(run.task, classification.PAGE)
