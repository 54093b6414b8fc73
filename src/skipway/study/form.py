"""The form of a study: a claim of a paper, what was run for it, expected beside obtained.

A study is cut into *cells*, each one thing to compute (a training of one seed, a measurement) that
its settings decide wholly. Cells are cached by their settings, so that a study goes on where it was
stopped and can be split over machines (`store`).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from skipway.report.markup import Html

Verdict = Literal["reproduced", "contradicted", "inconclusive"]
WORDS: Mapping[Verdict, str] = {
    "reproduced": "reproduced",
    "contradicted": "contradicted",
    "inconclusive": "inconclusive at this budget",
}
NOTHING_DUE = "nothing is expected at this scale"
"""In place of the verdict of a study that expects no number."""
CONTROL_WORDS: Mapping[Verdict, str] = {**WORDS, "reproduced": "holds", "contradicted": "fails"}
"""Of a `Finding.control`."""


@dataclass(frozen=True)
class Expected:
    """Where a number must lie for the claim to hold."""

    words: str
    """The claim on this number, as "8.75 % ± 0.4" or "above 0"."""
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number of a study: what was expected of it, what was obtained, and what follows."""

    name: str
    values: tuple[float, ...]
    """One a seed, where the number is `drawn`; else one."""
    expected: Expected | None = None
    """None where the paper says nothing: a number to be read, that decides nothing."""
    unit: str = ""
    """"%", "points" or nothing."""
    places: int = 2
    """Digits after the point that are shown."""
    drawn: bool = True
    """Whether another seed would give another value. What is counted or computed is not drawn: it
    has no interval."""
    sampled: tuple[float, float] | None = None
    """The 95 % interval of a number that other images rather than other seeds would change."""
    known_deviation: float | None = None
    """Between seeds, as published: what fewer than `_KNOWN` of them know less well. It is taken in
    place of their own unless that is larger, of two as much larger as chance makes it in 5 %."""
    control: bool = False
    """Whether it tests the experiment and not the claim: a net that has learned something, an
    identity of arithmetic. It decides with the others, and is not counted with them."""
    aside: bool = False
    """Whether it is of what the user gave, as weights: it is judged by itself, and no part of what
    the study claims."""
    note: str = ""
    """Why it differs, where it does."""

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean; not a number where there is no value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float | None:
        """The standard deviation between seeds; None below two of them, and where one gave no
        finite number."""
        if not self.drawn or self.n < 2 or not all(map(math.isfinite, self.values)):
            return None
        return statistics.stdev(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the mean by Student's t, or by `known_deviation`; None of one seed
        without that. Of a number that is not drawn, the number itself."""
        if self.sampled is not None:
            return self.sampled
        if not self.drawn:
            return (self.mean, self.mean) if self.values else None
        allowed = (self.known_deviation or 0.0) * (1.96 if self.n == 2 else 1.0)
        apart = self.n >= 2 and (self.deviation or 0.0) > allowed
        if self.known_deviation is not None and 1 <= self.n < _KNOWN and not apart:
            half = 1.96 * self.known_deviation / math.sqrt(self.n)
            return self.mean - half, self.mean + half
        if self.deviation is None:
            return None
        from scipy.special import stdtrit

        half = float(stdtrit(self.n - 1, 0.975)) * self.deviation / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def exact(self) -> bool:
        """Whether it is counted or computed, so that nothing drawn anew would change it."""
        return not self.drawn and self.sampled is None

    @property
    def verdict(self) -> Verdict | None:
        """Reproduced where all of the interval is as expected, contradicted where none of it is;
        None where nothing was expected."""
        if self.expected is None:
            return None
        ends, low, high = self.interval, self.expected.low, self.expected.high
        if ends is None or not all(map(math.isfinite, ends)):
            return "inconclusive"
        if low <= ends[0] and ends[1] <= high:
            return "reproduced"
        return "contradicted" if ends[1] < low or high < ends[0] else "inconclusive"

    # In words

    @property
    def judged(self) -> str:
        """The verdict; empty where nothing was expected."""
        words = CONTROL_WORDS if self.control else WORDS
        return words[self.verdict] if self.verdict else ""

    def figure(self, value: float) -> str:
        """A value in the digits that are shown; a dash where it is no finite number."""
        if not math.isfinite(value):
            return "–"
        return f"{round(value, self.places) + 0.0:,.{self.places}f}".replace("-", "−")

    @property
    def obtained(self) -> str:
        """The mean with its deviation and unit, as "8.81 ± 0.12 %"."""
        spread = "" if self.deviation is None else f" ± {self.figure(self.deviation)}"
        return f"{self.figure(self.mean)}{spread} {self.unit}".rstrip()

    @property
    def between(self) -> str | None:
        """The interval, as "8.60 to 9.02"; None where there is none, or none is needed."""
        ends = None if self.exact else self.interval
        if ends is None or not all(map(math.isfinite, ends)):
            return None
        return " to ".join(map(self.figure, ends))


_KNOWN = 5
"""Seeds from which on their own deviation is taken: as many as the paper's has."""


def verdict(findings: Sequence[Finding]) -> Verdict:
    """Of a whole study: contradicted where one number is, reproduced where all are of which
    something was expected."""
    told = {finding.verdict for finding in claimed(findings)}
    if "contradicted" in told:
        return "contradicted"
    return "reproduced" if told == {"reproduced"} else "inconclusive"


def claimed(findings: Sequence[Finding]) -> list[Finding]:
    """Those that the verdict of a study comes from."""
    return [f for f in findings if f.expected is not None and not f.aside]


def tally(findings: Sequence[Finding]) -> str:
    """How many of the numbers of which something was expected came out how, as "16 of 17 numbers
    reproduced, 1 inconclusive"; empty for fewer than two. Controls are told where one does not
    hold."""
    due = claimed(findings)
    told = Counter(finding.verdict for finding in due if not finding.control)
    controls = [finding.verdict == "reproduced" for finding in due if finding.control]
    if told.total() < 2:
        return ""
    said = [f"{told['reproduced']} of {told.total()} numbers reproduced"]
    said += [f"{told[v]} {v}" for v in ("contradicted", "inconclusive") if told[v]]
    if not all(controls):
        said.append(f"{sum(controls)} of {len(controls)} controls hold")
    return ", ".join(said)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A protocol of a study at one cost."""

    name: str
    """"paper" is the paper's own."""
    protocol: str
    """What is run, in a sentence or two."""
    deviations: tuple[str, ...] = ()
    """Each way in which it is not the paper's, and why."""
    seeds: int = 1
    """By default."""
    minutes: float
    """About, on 2 cores, with that many seeds."""
    claim: str = ""
    """What is claimed at this scale, in a sentence, where it is not all that the study claims."""


@dataclass(frozen=True)
class Cell:
    """One thing to compute."""

    name: str
    """As "plain56, seed 0"."""
    settings: Mapping[str, Any]
    """JSON; decides the result, together with the data and the version."""
    cost: float = 1.0
    """Relative to the other cells, to share them evenly among machines."""
    stands_for: Mapping[str, Any] = field(default_factory=dict)
    """What else decides the result, as the rows that names in the settings stand for; JSON."""


@dataclass(frozen=True)
class Done:
    """A cell with its result."""

    cell: Cell
    result: Mapping[str, Any]
    """JSON."""
    seconds: float


@dataclass(frozen=True)
class Weights:
    """What is to be scored, known by what it holds: what it scored stays when its file has gone."""

    path: str
    """Or a hub's name."""
    identity: str
    """The sha256 of the file, or the hub's name."""


@dataclass(frozen=True)
class Given:
    """What a study was asked for beside its scale; a study refuses what it does not know."""

    data: str | None = None
    """A folder or name of data, in place of the study's own."""
    weights: tuple[Weights, ...] = ()
    imagenet: str | None = None
    precision: str = "float32"
    """Of training."""
    device: str = "auto"
    threads: int | None = None
    runs: Path = Path("studies/runs")
    """Where the trainings of all studies are, so that two that need the same share it."""

    def chosen_device(self) -> str:
        """The device that is asked for, else a GPU where there is one, as training chooses. Raises
        InputError for a GPU that is not there."""
        import torch

        from skipway.predictor import check_device_name
        from skipway.training.plan import check_device

        if self.device != "auto":
            check_device_name(self.device)
            check_device(self.device)
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Picture:
    """A plot of a study."""

    name: str
    """Of its file, without the ending."""
    figure: Html
    """As `report.plot` makes it: one ``svg`` with a heading and a caption."""
    wide: bool = False
    """Whether it needs the whole width of a page."""


@dataclass(frozen=True)
class Told:
    """What a study has to say of the cells that are done."""

    findings: Sequence[Finding]
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    """What a reader must know beside them, a paragraph each."""
    deviations: Sequence[str] = ()
    """Further ones from the paper's protocol, of what was given or where it was run."""
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]] = ()
    """Title, head and rows."""
    animations: Mapping[str, str] = field(default_factory=dict)
    """SVG documents by the name of their file, without the ending."""


def claim_of(study: Study, scale: Scale) -> str:
    """What is claimed at that scale."""
    return scale.claim or study.CLAIM


class Study(Protocol):
    """A claim and how it is checked. A module of this package with these names is one, and stands
    in `STUDIES`."""

    NAME: str
    TITLE: str
    SOURCE: str
    """Paper, table or figure."""
    CLAIM: str
    """In one sentence."""
    DATA: str
    """Name of the data that is taken where none is given; empty where it needs none."""
    STORY: str
    """What it shows, for a reader who has never heard of a residual network."""
    SCALES: Sequence[Scale]
    """From the cheapest to the paper's own."""
    REVISION: int
    """To be raised when the same settings would give another result."""

    def data(self, given: Given) -> str:
        """The digest of the data that is measured on; empty where there is none. Raises InputError
        for what it cannot use, and for what was given that it does not know."""

    def cells(self, scale: Scale, seeds: int, given: Given) -> Sequence[Cell]:
        """All there is to compute, seed by seed."""

    def compute(self, cell: Cell, place: Path, given: Given, say: Callable[[str], None]) -> Any:
        """The result of a cell, as JSON. `place`: its own folder, where what was begun is gone on
        with; it is removed when the result is kept. ``seconds`` and ``environment`` in the result,
        where it has them, say what it took and where; else the clock and this machine do."""

    def seconds(self, cell: Cell, given: Given) -> float:
        """About how long `compute` takes on this machine, or what is left of it."""

    def reached(self, cell: Cell, place: Path, given: Given, data: str) -> str | None:
        """How far a cell that is not done is, as "step 12,000 of 64,000"; None where it has not
        begun or does not know. `place`: as of `compute`. data: the digest of the data, which need
        not be there, and neither need torch."""

    def told(self, done: Sequence[Done], scale: Scale) -> Told:
        """What follows from the cells that are done; some may be missing."""
