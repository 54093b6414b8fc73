"""What is wrong with annotated images, and what is in them, before anything is trained on them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from skipway.data import DataSet
from skipway.data.objects import KINDS, AnnotatedSplit, Problem, form_of, open_objects, problems
from skipway.data.preflight import Scan, find_copies, scan
from skipway.data.split import FolderReader
from skipway.errors import InputError, harmless
from skipway.images import verify

SHOWN = 5
"""Problems of a kind in the terminal; JSON has all."""
LEAK = {"leak": "images that are in two splits"}
"""What is only seen when every image is read, and does not stop a training."""


@dataclass(frozen=True)
class ObjectReport:
    """Problems of annotated data, and how many objects of each class the splits hold."""

    path: str
    form: str
    """COCO, VOC or YOLO."""
    problems: list[Problem]
    data: DataSet | None
    """Without what is at fault; None where nothing is left to be learned."""

    @property
    def ok(self) -> bool:
        """Whether a training would take the data as they are, and its scores could be trusted."""
        return not self.problems

    def _splits(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, split in self.data.splits.items() if self.data else ():
            assert isinstance(split, AnnotatedSplit)
            yield (
                name,
                {
                    "images": len(split),
                    "objects": int((~split.table.crowd).sum()),
                    "empty": int((np.diff(split.table.offsets) == 0).sum()),
                    "classes": self.data.counts(name) if self.data else {},
                },
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "form": self.form,
            "classes": list(self.data.classes) if self.data else [],
            "splits": dict(self._splits()),
            "notes": list(self.data.notes) if self.data else [],
            "problems": [asdict(problem) for problem in self.problems],
        }

    def lines(self) -> Iterator[str]:
        """The report for a terminal."""
        yield f"{harmless(self.path)}: {self.form}"
        for name, found in self._splits():
            counts = ", ".join(f"{n:,} {harmless(label)}" for label, n in found["classes"].items())
            yield f"  {name}: {found['images']:,} images, {found['objects']:,} objects: {counts}"
        for note in self.data.notes if self.data else ():
            yield f"  {harmless(note)}"
        yield from problem_lines(self.problems, KINDS)


def problem_lines(problems: Sequence[Problem], kinds: Mapping[str, str]) -> Iterator[str]:
    """Problems for a terminal, images in two splits before what training stops at, and what follows
    from them. kinds: what each is called."""
    twice = [problem for problem in problems if problem.kind in LEAK]
    stopping = [problem for problem in problems if problem.kind not in LEAK]
    if twice:
        yield from _by_kind(twice, LEAK)
        yield "scores on the later split will be too good"
    if stopping:
        yield from _by_kind(stopping, kinds)
        yield "train stops at these; --on-bad skip leaves out what is at fault"
    if not problems:
        yield "nothing is wrong"


def _by_kind(problems: Sequence[Problem], kinds: Mapping[str, str]) -> Iterator[str]:
    """The most frequent kind first."""
    for kind, n in Counter(problem.kind for problem in problems).most_common():
        yield f"PROBLEM: {n:,} {kinds[kind]}"
        of_kind = [problem for problem in problems if problem.kind == kind]
        yield from (f"  {problem}" for problem in of_kind[:SHOWN])
        if n > SHOWN:
            yield f"  and {n - SHOWN:,} more; --json lists all"


def leaks(data: DataSet, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """The images of each split that are in an earlier one too, by the scans of all of them."""
    for leak in find_copies(data, scans).leaks():
        for earlier, later in leak.pairs.tolist():
            twin = harmless(data.splits[leak.first].names[earlier])
            what = f"in {leak.second}, the same file as {twin} in {leak.first}"
            yield Problem(image_file(data, leak.second, later), None, "", "leak", what)


def unreadable(data: DataSet, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """The images that cannot be read, each by its file."""
    for name, found in scans.items():
        for i, why in found.failed:
            why = why.removeprefix(f"{harmless(data.splits[name].names[i])}: ")
            yield Problem(image_file(data, name, i), None, "", "unreadable-image", why)


def image_file(data: DataSet, split: str, i: int) -> str:
    """The path of image i of a split."""
    reader = data.splits[split].reader
    assert isinstance(reader, FolderReader)
    return os.path.join(reader.root, data.splits[split].names[i])


def check_objects(
    path: str, val: Any, seed: int, threads: int, masks: bool = False
) -> ObjectReport | None:
    """The report on annotations, with their masks or without, and on their images, each of which is
    read; None where the path holds none. Raises InputError for those that cannot be read at all."""
    form = form_of(path)
    if form is None:
        return None
    found = problems(path, masks)
    try:
        data = open_objects(path, val, seed, "skip", masks)
    except InputError:
        if not found:
            raise
        data = None
    if data is not None:
        scans = {name: scan(split, threads, verify) for name, split in data.splits.items()}
        found += [*unreadable(data, scans), *leaks(data, scans)]
    return ObjectReport(path, form, found, data)
