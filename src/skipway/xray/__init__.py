"""The block X-ray: what each residual unit of a classifier adds, and what it costs to delete it.

A unit is deleted as in Veit et al. 2016 (1605.06431), section 4.1: its branch is removed and its
shortcut kept (`probes.without`). A plain net, which has no shortcuts, then passes on x alone; where
its unit changes the shape, option A's sub-sampling with channels of zeros stands in.

Here is what was found, which takes no torch: `measuring` finds it, `report.xray_picture` shows it.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

Interval = tuple[float, float]

IMAGES = 2000
"""That are looked at, by the command where nothing else is asked for and by the study."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One residual unit, in evaluation mode, over all images."""

    name: str
    """As "layer1.0"."""
    reshapes: bool
    """Whether it puts out another shape than it is given."""
    branch: float
    """Root mean square of F(x), just before the shortcut is added; in a plain net before the
    ReLU."""
    shortcut: float | None
    """That of the shortcut there; None in a plain net."""
    output_gradient: float
    """Root mean square of the gradient, with respect to the unit's output, of each image's own
    cross-entropy in nats."""
    weight_gradient: float
    """L2 norm of the gradient of the mean cross-entropy with respect to the unit's parameters."""
    accuracy: float
    """Of the net without this unit, 0..1."""
    loss: float
    """Its mean cross-entropy in nats."""
    cost: float
    """Accuracy of the whole net less `accuracy`."""
    interval: Interval
    """The 95 % interval of `cost`, image by image (`metrics.paired_interval`)."""
    stands_in: bool
    """Whether option A stood in for the shortcut that a plain net's unit does not have."""


@dataclass(frozen=True, kw_only=True)
class Xray:
    """The units of a network from input to output, and the network as a whole."""

    family: str
    """The class of the style sheet: residual, plain or preactivation."""
    classes: int
    n: int
    """Images."""
    accuracy: float
    """Of the whole net, 0..1."""
    interval: Interval
    """Its 95 % interval, Wilson's."""
    loss: float
    chance: float
    """The accuracy of one fixed answer, the best: the share of the most frequent class."""
    blocks: tuple[Block, ...]
    skipped: tuple[str, ...] = ()
    """Why each image that was left out was."""

    @property
    def costs(self) -> list[float]:
        """What deleting each unit takes off the accuracy, in points."""
        return [100 * block.cost for block in self.blocks]

    @property
    def median_cost(self) -> float:
        """Of `costs`."""
        return statistics.median(self.costs)

    @property
    def summary(self) -> str:
        """What deleting one unit costs, in a sentence."""
        low, high, middle = (points(f(self.costs)) for f in (min, max, statistics.median))
        several = f"{low} to {high} points (median {middle})"
        costs = several if len(self.blocks) > 1 else f"{low} points"
        return f"deleting one block costs {costs}; chance is {100 * self.chance:.3g} %"

    @property
    def caveat(self) -> str | None:
        """Which shortcuts were stood in for, in a sentence; None where none was."""
        names = [block.name for block in self.blocks if block.stands_in]
        if not names:
            return None
        change = "changes the shape and has" if len(names) == 1 else "change the shape and have"
        return (
            f"{', '.join(names)} {change} no shortcut: deleted, every second pixel with channels "
            "of zeros stands in (option A)"
        )

    def to_json(self) -> dict[str, Any]:
        """For programs; `from_json` reads it again."""
        return {
            "family": self.family,
            "classes": self.classes,
            "n": self.n,
            "accuracy": self.accuracy,
            "interval": self.interval,
            "loss": self.loss,
            "chance": self.chance,
            "median_cost": self.median_cost / 100,
            "blocks": [vars(block) for block in self.blocks],
            "skipped": len(self.skipped),
        }


def from_json(value: dict[str, Any]) -> Xray:
    """What `Xray.to_json` gave, without the reasons of what was skipped."""
    known = {name: value[name] for name in ("family", "classes", "n", "accuracy", "loss", "chance")}
    blocks = (Block(**{**block, "interval": tuple(block["interval"])}) for block in value["blocks"])
    return Xray(**known, interval=tuple(value["interval"]), blocks=tuple(blocks))


def points(value: float) -> str:
    """To a tenth, as in "8.1 points"."""
    return f"{round(value, 1) + 0.0:.1f}"  # + 0.0: none is -0.0
