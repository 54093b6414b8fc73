"""Runs side by side: what differs, and what of the difference is more than chance."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skipway.errors import InputError, harmless
from skipway.metrics import PairedAccuracy, holm
from skipway.report.average_precision import main_kind
from skipway.report.by_task import page_of
from skipway.report.markup import flat, shown
from skipway.report.pairing import By, Pairing, pair_images
from skipway.report.run import CACHED, Run, read_run
from skipway.report.task_page import TaskPage
from skipway.report.values import dig, mapping, number, objects

LARGEST = len(string.ascii_uppercase)
"""Runs that can be compared at once: each has a letter."""
NOT_SETTINGS = ("data_path",)
"""Of the configuration: told with the data."""


@dataclass(frozen=True)
class Pair:
    """Two runs on the same images. `reason` says why nothing else is known where it is so."""

    first: str
    """The run's letter."""
    second: str
    reason: str | None = None
    n: int | None = None
    both: int | None = None
    """Images that both got right."""
    only_first: int | None = None
    only_second: int | None = None
    difference: float | None = None
    """Second minus first accuracy."""
    interval: tuple[float, float] | None = None
    """Its 95 % interval, `metrics.paired_interval`."""
    p: float | None = None
    """Of McNemar's exact test."""
    p_adjusted: float | None = None
    """For all pairs of this comparison together (Holm)."""
    paired_by: By | None = None
    """How the images of the two runs were told to be the same."""
    verified: bool | None = None
    """Whether their contents were compared, not the paths alone."""
    note: str | None = None
    """How far the pairing can be trusted, in words; None where nothing need be said."""

    @property
    def clear(self) -> bool:
        """Whether chance alone hardly explains the difference."""
        return self.p_adjusted is not None and self.p_adjusted < 0.05


@dataclass(frozen=True)
class Comparison:
    """Two or more runs, lettered in the order given."""

    runs: dict[str, Run]
    settings: list[tuple[str, list[str | None]]]
    """Those that are not the same everywhere: key, and the value in each run."""
    pairs: list[Pair]

    def summary(self) -> dict[str, Any]:
        """Everything in numbers, as JSON."""
        return {
            "runs": [{"letter": letter, **facts(run)} for letter, run in self.runs.items()],
            "settings": {key: dict(zip(self.runs, row, strict=True)) for key, row in self.settings},
            "pairs": [asdict(pair) for pair in self.pairs],
            "classes": [
                {"class": name, self.page.by_class.key: dict(zip(self.runs, row, strict=True))}
                for name, row in self.by_class()
                if self.page.by_class is not None
            ],
        }

    @property
    def page(self) -> TaskPage:
        """What the task of the runs, which is one, shows."""
        return page_of(next(iter(self.runs.values())))

    @property
    def scored_by_class(self) -> list[Run]:
        """The runs that something is known of each class of."""
        return [run for run in self.runs.values() if run.confusion is not None]

    def by_class(self) -> list[tuple[str, list[float | None]]]:
        """The task's measure of each class in each run, the largest difference first; empty where
        the runs have other classes. None where a run knows nothing of the class."""
        scored, kind = self.scored_by_class, self.page.by_class
        if kind is None or len(scored) < 2 or any(r.classes != scored[0].classes for r in scored):
            return []
        none: list[float | None] = [None] * len(scored[0].classes)
        columns = [none if r.confusion is None else kind.values(r) for r in self.runs.values()]
        rows = list(zip(scored[0].classes, map(list, zip(*columns, strict=True)), strict=True))
        return sorted(rows, key=lambda row: -_range(row[1]))


def _range(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return max(known) - min(known) if known else 0.0


def compare(paths: Sequence[Path]) -> Comparison:
    """The runs in those directories. Raises InputError where one is no run, or is given twice."""
    if len(paths) < 2:
        raise InputError("compare: give two runs or more")
    if len(paths) > LARGEST:
        raise InputError(f"compare: {len(paths)} runs; {LARGEST} at most fit on a page")
    places = [path.resolve() for path in paths]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise InputError(f"compare: {paths[i]} is given twice")
    runs = dict(zip(string.ascii_uppercase, map(read_run, paths), strict=False))
    first, *others = runs.values()
    for other in others:
        if other.task != first.task:
            raise InputError(
                f"compare: {harmless(first.path)} was trained for {harmless(first.task)}, "
                f"{harmless(other.path)} for {harmless(other.task)}; compare runs of one task"
            )
    pairs = [_pair(*two) for two in itertools.combinations(runs.items(), 2)]
    return Comparison(runs, list(_settings(list(runs.values()))), _adjusted(pairs))


def facts(run: Run) -> dict[str, Any]:
    """What is told of one run; None where it is not known."""
    return {
        "run": str(run.path),
        "name": run.name,
        "task": run.task,
        "model": run.model,
        "data": run.data,
        "status": dig(run.record, "status"),
        "params": number(dig(run.record, "params")),
        "epochs": len(run.epochs),
        "split": dig(run.record, "result", "split"),
        "n": run.scored,
        "accuracy": run.metric("accuracy"),
        "miou": run.metric("miou"),
        "ap": run.metric(main_kind(run).key("ap")),
        "ap50": run.metric(main_kind(run).key("ap50")),
        "interval": run.interval,
        "leaked": run.leaked,
        "loss": run.metric("loss"),
        "ece": run.metric("ece"),
        "seconds": run.seconds,
        "images_per_second": run.speed,
        "on_cached_features": run.on_features,
        "memory_mib": run.memory,
        "device": dig(run.record, "environment", "device"),
    }


def speed_in_words(run: Run) -> str | None:
    """Training images a second, and what trained on them where that was the classifier alone."""
    return shown(run.speed, unit=f" ({CACHED})" if run.on_features else "")


def _settings(runs: Sequence[Run]) -> Iterator[tuple[str, list[str | None]]]:
    flats = [dict(flat(mapping(run.record.get("config")))) for run in runs]
    keys = list(dict.fromkeys(itertools.chain(*flats)))
    for key in keys:
        values = [settings.get(key) for settings in flats]
        group = any(other.startswith(f"{key}.") for other in keys)  # empty in one, told by others
        if key not in NOT_SETTINGS and not group and len(set(values)) > 1:
            yield key, values


def _pair(one: tuple[str, Run], other: tuple[str, Run]) -> Pair:
    (first, a), (second, b) = one, other
    for letter, run in (one, other):
        if page_of(run).scores(run)[0][1] is None:
            status = dig(run.record, "status")
            why = f"its status is {status}" if status not in (None, "finished") else "no held-out"
            return Pair(first, second, f"{letter} has no score: {why}")
    if a.split != b.split:
        return Pair(first, second, f"{first} was scored on {a.split}, {second} on {b.split} images")
    if untested := page_of(a).untested:
        return Pair(first, second, untested)
    for letter, run in (one, other):
        if run.outcomes is None or not isinstance(dig(run.evaluation, "images", "digest"), str):
            why = f"{letter} did not keep the outcome of each image; train it anew to compare"
            return Pair(first, second, why)
    pairing = pair_images(a, b)
    if isinstance(pairing, str):
        return Pair(first, second, pairing)
    return Pair(
        first,
        second,
        **vars(PairedAccuracy.of(*_right(a, b, pairing))),
        paired_by=pairing.by,
        verified=pairing.verified,
        note=pairing.note,
    )


def _right(a: Run, b: Run, pairing: Pairing) -> tuple[Any, Any]:
    """Whether each run got each image right, in the order of the first."""
    assert a.outcomes is not None
    assert b.outcomes is not None
    return a.outcomes.correct, b.outcomes.correct[pairing.order]


def _adjusted(pairs: list[Pair]) -> list[Pair]:
    """The pairs with their p adjusted for how many were tested."""
    tested = [pair.p for pair in pairs if pair.p is not None]
    adjusted = iter(holm(np.array(tested)).tolist())
    return [
        pair if pair.p is None else Pair(**(vars(pair) | {"p_adjusted": next(adjusted)}))
        for pair in pairs
    ]


def disagreements(
    a: Run, b: Run, pairing: Pairing
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images that only `a` got right, and that only `b` did: index in the loser's split, name
    (None where it was not kept), label, the two answers, and the picture where one was."""
    assert a.outcomes is not None
    assert b.outcomes is not None
    right, other_right = _right(a, b, pairing)
    places = np.stack([np.arange(len(right)), pairing.order], axis=1)
    answers = [
        [run.classes[k] for k in run.outcomes.predicted[own].tolist()]
        for run, own in ((a, places[:, 0]), (b, places[:, 1]))
        if run.outcomes is not None
    ]
    found = []
    for mask, side, loser in ((right & ~other_right, 1, b), (other_right & ~right, 0, a)):
        assert loser.outcomes is not None
        kept = {
            row.get("index"): row.get("image")
            for row in objects(loser.evaluation.get("mistakes"))
            if isinstance(row.get("index"), int)
        }
        only = np.flatnonzero(mask)
        sure = loser.outcomes.confidence[places[only, side]]
        rows = []
        for i in only[np.argsort(-sure, kind="stable")].tolist():
            own = int(places[i, side])
            rows.append(
                {
                    "index": own,
                    "name": loser.names.get(own),
                    "label": loser.classes[loser.outcomes.label[own]],
                    "answers": (answers[0][i], answers[1][i]),
                    "image": kept.get(own),
                }
            )
        found.append(rows)
    return found[0], found[1]
