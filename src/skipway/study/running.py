"""A study run at a budget: what fits, cell by cell, and the outcome."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skipway.errors import InputError, SkipwayError, harmless, nearest
from skipway.report.document import as_svg
from skipway.study import STUDIES
from skipway.study.form import Cell, Done, Given, Scale, Study
from skipway.study.store import Outcome, Plan, Store, as_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """How much of a study is asked for."""

    budget: str | None = None
    """Minutes, or the name of a scale, as "paper"; None is the cheapest scale."""
    seeds: int | None = None
    resume: bool = False
    """Whether to go on with what was asked for last, in place of choosing anew."""
    part: tuple[int, int] = (1, 1)
    """(2, 3) computes the second of three parts, for another machine to compute the others."""


def run_study(study: Study, asked: Asked, given: Given, out: Path, say: Say) -> Outcome:
    """Compute what is asked for and not computed yet, and write the outcome.

    Everything is kept cell by cell: a study that was stopped or killed goes on. Raises InputError
    for what cannot be used, and a budget in which not one seed can be computed.
    """
    if asked.resume:
        scale, plan, store = _going_on(study, asked, given, out)
        given = replace(plan.given, device=given.device, threads=given.threads, runs=given.runs)
        if study.data(given) != plan.data:
            raise InputError(
                f"--resume: {harmless(given.data or 'the data')} has other images than when "
                f"{study.NAME} began\nPut them back as they were, or leave out --resume."
            )
    else:
        data = study.data(given)
        scale, seeds = _chosen(study, asked, given, out, data, say)
        plan = Plan(scale.name, seeds, given, data)
        store = Store(out, study, scale.name)
        store.keep(plan)
    cells = study.cells(scale, plan.seeds, given)
    mine = cells[asked.part[0] - 1 :: asked.part[1]]
    for place, cell in enumerate(mine, 1):
        if store.done(cell, plan.data) is None:
            say(f"{study.NAME} {place}/{len(mine)}: {cell.name}")
            _compute(study, store, cell, plan.data, given, say)
    found, done = _outcome(study, scale, plan, store)
    for picture in found.told.pictures:
        store.write(f"{picture.name}.svg", as_svg(picture.figure))
    for name, drawing in found.told.animations.items():
        store.write(f"{name}.svg", drawing)
    store.write("study.json", as_json(found, done))
    return found


def _compute(study: Study, store: Store, cell: Cell, data: str, given: Given, say: Say) -> None:
    place = store.place(cell, data)
    spent = place / "seconds"
    before = float(spent.read_text()) if spent.exists() else 0.0
    began = time.perf_counter()
    try:
        result = study.compute(cell, place, given, say)
    except SkipwayError as error:
        if error.exit_code < 128:
            raise
        # a signal: what was begun is kept
        spent.write_text(f"{before + time.perf_counter() - began:.1f}")
        again = SkipwayError(f"stopped. Go on with:\n  skipway study {study.NAME} --resume")
        again.exit_code = error.exit_code
        raise again from None
    store.finish(cell, data, result, before + time.perf_counter() - began)
    shutil.rmtree(place, ignore_errors=True)


def _outcome(
    study: Study, scale: Scale, plan: Plan, store: Store
) -> tuple[Outcome, Sequence[Done]]:
    cells = study.cells(scale, plan.seeds, plan.given)
    there = [found for cell in cells if (found := store.done(cell, plan.data)) is not None]
    done = [one for one, _ in there]
    outcome = Outcome(
        study,
        scale,
        plan.seeds,
        study.told(done, scale),
        len(done),
        len(cells),
        sum(one.seconds for one in done),
        list(dict.fromkeys(machine for _, machine in there)),
        f"skipway study {study.NAME} --budget {scale.name} --seeds {plan.seeds}",
    )
    return outcome, done


def outcomes(out: Path) -> list[Outcome]:
    """All that lies in a folder of studies, in the order of `STUDIES`, cheap scales first. Raises
    InputError for what is damaged or of another version."""
    found = []
    for study in STUDIES.values():
        for scale in study.SCALES:
            store = Store(out, study, scale.name)
            if (plan := store.plan()) is not None:
                found.append(_outcome(study, scale, plan, store)[0])
    return found


def _going_on(study: Study, asked: Asked, given: Given, out: Path) -> tuple[Scale, Plan, Store]:
    """What was asked for last, of the scale that is named, or of any."""
    if asked.seeds is not None or given.data is not None or given.weights or given.imagenet:
        raise InputError(
            "--resume: a study goes on as it was asked for; leave out --seeds, --data, --weights "
            "and --imagenet"
        )
    scales = [s for s in study.SCALES if asked.budget in (None, s.name)]
    stores = [(scale, Store(out, study, scale.name)) for scale in scales]
    begun = [(s, store) for s, store in stores if (store.folder / "plan.json").exists()]
    if not begun:
        raise InputError(
            f"--resume: nothing of {study.NAME} is in {harmless(out)}\n"
            f"Start with: skipway study {study.NAME}"
        )
    scale, store = max(begun, key=lambda b: (b[1].folder / "plan.json").stat().st_mtime)
    plan = store.plan()
    assert plan is not None
    return scale, plan, store


def _chosen(
    study: Study, asked: Asked, given: Given, out: Path, data: str, say: Say
) -> tuple[Scale, int]:
    """The scale and the seeds: as named, or the most that fits into the minutes."""
    named = {scale.name: scale for scale in study.SCALES}
    budget = asked.budget or study.SCALES[0].name
    if budget in named:
        return named[budget], asked.seeds or named[budget].seeds
    try:
        minutes = float(budget)
    except ValueError:
        raise InputError(
            f"--budget {harmless(budget)}: give minutes, or one of "
            f"{', '.join(named)}.{nearest(budget, named)}"
        ) from None
    if not 0 < minutes < float("inf"):
        raise InputError(f"--budget {harmless(budget)}: give minutes above 0")
    for scale in reversed(study.SCALES):
        store = Store(out, study, scale.name)
        store.plan()
        least = asked.seeds or 1
        need = _minutes(study, scale, least, store, data, given)
        if need > minutes:
            continue
        seeds = least
        while asked.seeds is None and seeds < scale.seeds:
            more = _minutes(study, scale, seeds + 1, store, data, given)
            if more > minutes:
                break
            seeds, need = seeds + 1, more
        say(f"{study.NAME}: scale {scale.name}, seeds {seeds}, about {need:.0f} of {minutes:g} min")
        return scale, seeds
    raise InputError(
        f"--budget {minutes:g}: too small; {study.NAME} at its smallest scale takes about "
        f"{need:.1f} minutes here with {least} seed{'s' * (least > 1)}\n"
        "Give more minutes."
    )


def _minutes(
    study: Study, scale: Scale, seeds: int, store: Store, data: str, given: Given
) -> float:
    """About how long what is not computed yet would take."""
    left = [c for c in study.cells(scale, seeds, given) if store.done(c, data) is None]
    return sum(_timed(study, cell, given) for cell in left) / 60


def _timed(study: Study, cell: Cell, given: Given) -> float:
    """A cell's seconds, measured once for cells that take equally long."""
    same = {k: v for k, v in cell.settings.items() if k != "seed"}
    key = study.NAME, repr(sorted(same.items())), given
    if key not in _PACES:
        _PACES[key] = study.seconds(cell, given)
    return _PACES[key]


_PACES: dict[object, float] = {}
