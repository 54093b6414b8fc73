"""By which names a run has its average precision, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

from skipway.report.run import Run
from skipway.report.values import dig, number


@dataclass(frozen=True)
class Kind:
    """Average precision of boxes or of masks."""

    prefix: str
    """Before the metric's name."""
    name: str = ""
    """Of what it is; empty where there is but one."""

    @property
    def ap(self) -> str:
        """In words."""
        return f"AP{self.of}"

    @property
    def of(self) -> str:
        return f" of {self.name.lower()}" if self.name else ""

    def key(self, metric: str) -> str:
        """The metric's name in a run's result; in its rows ``val_`` stands before it."""
        return self.prefix + metric


MASKS, BOXES, PLAIN = Kind("mask_", "Masks"), Kind("box_", "Boxes"), Kind("")


def kinds(run: Run) -> list[Kind]:
    """Those that the run was measured by, the one that chose its epoch first; one at least."""

    def measured(kind: Kind) -> bool:
        key = kind.key("ap")
        return run.metric(key) is not None or bool(run.series(f"val_{key}"))

    masks = [MASKS] if measured(MASKS) else []
    if measured(BOXES):
        return [*masks, BOXES]
    if masks and measured(PLAIN):
        return [*masks, Kind("", BOXES.name)]
    return masks or [PLAIN]


def main_kind(run: Run) -> Kind:
    """The first of `kinds`."""
    return kinds(run)[0]


def kept(run: Run) -> str:
    """Which scores count: detections below the detector's own threshold are not there."""
    least = number(dig(run.record, "config", "detector", "score_threshold"))
    return "at a score that is kept" if least is None else f"above a score of {least:g}"
