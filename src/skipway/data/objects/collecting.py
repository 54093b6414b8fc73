"""Annotations of forms that have a file for each image, collected one after the other."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skipway.data.objects.checking import Listing
from skipway.data.objects.shapes import ShapeList
from skipway.data.problems import Fault, Problem

Array = npt.NDArray[Any]

_NOTHING = (0.0, 0.0, 0.0, 0.0)


class Collected:
    """The images and annotations of one split as they are read."""

    def __init__(self, masks: bool) -> None:
        self.names: list[str] = []
        self.files: list[str] = []
        self.said = array("q")
        self.image_faults: dict[int, Fault] = {}
        self.images, self.labels, self.ids = array("q"), array("q"), array("q")
        self.written, self.crowd = array("d"), array("b")
        self.shapes = ShapeList() if masks else None
        self.faults: dict[int, Fault] = {}
        self.stray: list[Problem] = []

    def image(
        self, name: str, file: Path, height: int = 0, width: int = 0, fault: Fault | None = None
    ) -> None:
        """The next image and the file that annotates it; 0 is a side that the file leaves out."""
        if fault:
            self.image_faults[len(self.names)] = fault
        self.names.append(name)
        self.files.append(str(file))
        self.said.extend((height, width))

    def add(
        self,
        number: int,
        label: int,
        written: Sequence[float] | None,
        crowd: bool = False,
        shape: object = None,
        fault: Fault | None = None,
    ) -> None:
        """An annotation of the last image: its row, its class and what was written."""
        row = len(self.ids)
        self.images.append(len(self.names) - 1)
        self.labels.append(label)
        self.ids.append(number)
        self.written.extend(written or _NOTHING)
        self.crowd.append(crowd)
        if self.shapes is not None and (wrong := self.shapes.add(shape)):
            fault = fault or Fault("no-mask" if shape is None else "broken-mask", wrong)
        if fault:
            self.faults[row] = fault

    def listing(
        self,
        path: Path,
        root: Path,
        categories: Sequence[str],
        corners: Callable[[Array, Array], Array],
        shares: bool = False,
    ) -> Listing:
        return Listing(
            path=str(path),
            root=root,
            names=self.names,
            files=self.files,
            said=np.array(self.said, np.int64).reshape(-1, 2),
            image=np.array(self.images, np.int64),
            labels=np.array(self.labels, np.int64),
            ids=np.array(self.ids, np.int64),
            written=np.array(self.written, np.float64).reshape(-1, 4),
            corners=corners,
            crowd=np.array(self.crowd, bool),
            areas=np.full(len(self.ids), np.nan),
            shapes=None if self.shapes is None else self.shapes.finish()[0],
            categories=tuple(categories),
            image_faults=self.image_faults,
            faults=self.faults,
            stray=self.stray,
            shares=shares,
        )
