"""A study run at a budget: what fits, cell by cell, and the outcome."""

from __future__ import annotations

import shlex
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from skipway.errors import InputError, SkipwayError, harmless, nearest
from skipway.files import Busy
from skipway.report.document import as_svg
from skipway.report.markup import plural
from skipway.study import STUDIES
from skipway.study.form import Cell, Done, Given, Scale, Study
from skipway.study.store import Outcome, Plan, Store, alone_at, as_json

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """How much of a study is asked for."""

    budget: str | None = None
    """Minutes, or the name of a scale (or "paper": the last); None is the first."""
    seeds: int | None = None
    resume: bool = False
    """Whether to go on with what was asked for last, in place of choosing anew."""
    part: tuple[int, int] = (1, 1)
    """(2, 3) computes the second of three parts, for another machine to compute the others."""


def run_study(study: Study, asked: Asked, given: Given, out: Path, say: Say) -> Outcome:
    """Compute what is asked for and not computed yet, and write the outcome.

    Everything is kept cell by cell: a study that was stopped or killed goes on, and what another
    process is computing is left to it. What was asked for before, of the same data in the same
    precision, stays a part of the study, and `Asked.resume` computes what is left of that; of
    others only the cells stay, and the outcome is replaced. Raises InputError for what cannot be
    used, and for a budget in which not one seed can be computed.
    """
    if asked.resume:
        scale, plan, store = _going_on(study, asked, given, out)
        here = replace(
            plan.given,
            data=given.data or plan.given.data,
            device=given.device,
            threads=given.threads,
            runs=given.runs,
        )
        seeds = plan.seeds
    else:
        scale, seeds, plan, store = _planned(study, asked, given, out, say)
        here = plan.given
    mine = _share(study.cells(scale, seeds, here), asked.part)
    left = [cell for cell in mine if store.done(cell, plan.data) is None]
    anew = not asked.resume and here == given  # the images were looked at just now
    if left and not anew and study.data(here) != plan.data:
        raise InputError(
            f"{harmless(here.imagenet or here.data or 'the data')}: has other images than when "
            f"{study.NAME} began\nPut them back as they were, or give another --out."
        )
    for place, cell in enumerate(left, 1):
        say(f"{study.NAME} {place}/{len(left)}: {cell.name}")
        try:
            _compute(study, store, cell, plan.data, here, say)
        except Busy:
            say(f"{cell.name}: another process computes it; left to it")
        except (KeyboardInterrupt, SkipwayError) as error:
            code = getattr(error, "exit_code", _SIGNAL + signal.SIGINT)
            if code < _SIGNAL:
                raise
            again = SkipwayError(
                f"stopped. Go on with:\n  {_command(study, plan, asked, out, here)}"
            )
            again.exit_code = code
            raise again from None
    found, done = _outcome(study, scale, plan, store, out)
    for picture in found.told.pictures:
        store.write(f"{picture.name}.svg", as_svg(picture.figure))
    for name, drawing in found.told.animations.items():
        store.write(f"{name}.svg", drawing)
    store.write("study.json", as_json(found, done))
    return found


_SIGNAL = 128
"""Exit codes from here on are those of signals."""


def _compute(study: Study, store: Store, cell: Cell, data: str, given: Given, say: Say) -> None:
    place, began = store.place(cell, data), time.perf_counter()
    with alone_at(place):
        if store.done(cell, data) is not None:  # by another process, since the list was made
            return
        place.mkdir(exist_ok=True)
        result = study.compute(cell, place, given, say)
        store.finish(cell, data, result, time.perf_counter() - began)
        shutil.rmtree(place, ignore_errors=True)


def _share(cells: Sequence[Cell], part: tuple[int, int]) -> list[Cell]:
    """One of so many parts of about equal cost, in the order in which they were."""
    costs = [0.0] * part[1]
    mine = []
    for place in sorted(range(len(cells)), key=lambda i: -cells[i].cost):
        least = costs.index(min(costs))
        costs[least] += cells[place].cost
        if least == part[0] - 1:
            mine.append(place)
    return [cells[place] for place in sorted(mine)]


def _planned(
    study: Study, asked: Asked, given: Given, out: Path, say: Say
) -> tuple[Scale, int, Plan, Store]:
    """The scale and the seeds to be computed now, and the plan that they become a part of."""
    data = study.data(given)
    scale, seeds = _chosen(study, asked, given, out, data, say)
    store = Store(out, study, scale.name)
    plan = _joined(store, scale, seeds, given, data)
    store.keep(plan)
    return scale, seeds, plan, store


def _joined(store: Store, scale: Scale, seeds: int, given: Given, data: str) -> Plan:
    """What is asked for, together with what was asked for before of the same data."""
    before = store.plan()
    if before is not None and (before.data == data or not given.weights):
        kept = dict.fromkeys((*before.given.weights, *given.weights))
        imagenet = given.imagenet or before.given.imagenet
        given = replace(given, weights=tuple(kept), imagenet=imagenet)
        if before.data != data:
            data = before.data if kept else data
        elif before.given.precision == given.precision:
            seeds = max(seeds, before.seeds)
    return Plan(scale.name, seeds, given, data)


def _command(
    study: Study, plan: Plan, asked: Asked | None, out: Path, here: Given | None = None
) -> str:
    """What goes on with a study where `asked` is given, what makes the same anew where not. here:
    as it is asked for on this machine, where the data may be elsewhere than planned."""
    words = ["skipway", "study", study.NAME, "--budget", plan.scale]
    if asked is not None:
        words += ["--resume"]
        if asked.part != (1, 1):
            words += ["--part", f"{asked.part[0]}/{asked.part[1]}"]
        if here is not None and here.data is not None and here.data != plan.given.data:
            words += ["--data", here.data]
    else:
        words += ["--seeds", str(plan.seeds)]
        words += ["--data", plan.given.data] if plan.given.data else []
        for weights in plan.given.weights:
            words += ["--weights", weights.path]
        words += ["--imagenet", plan.given.imagenet] if plan.given.imagenet else []
        if plan.given.precision != Given.precision:
            words += ["--precision", plan.given.precision]
    words += ["--out", str(out)] if out != Path("studies") else []
    return shlex.join(words)


def _outcome(
    study: Study, scale: Scale, plan: Plan, store: Store, out: Path
) -> tuple[Outcome, Sequence[Done]]:
    cells = study.cells(scale, plan.seeds, plan.given)
    found = [(cell, store.done(cell, plan.data)) for cell in cells]
    there = [one for _, one in found if one is not None]
    done = [one for one, _ in there]
    known = replace(plan.given, runs=out / "runs")
    reached = [
        f"{cell.name}: {step}"
        for cell, one in found
        if one is None
        and (step := study.reached(cell, store.place(cell, plan.data), known, plan.data))
    ]
    name = plan.given.imagenet or plan.given.data or study.DATA
    outcome = Outcome(
        study,
        scale,
        plan.seeds,
        study.told(done, scale),
        len(done),
        len(cells),
        reached,
        sum(one.seconds for one in done),
        list(dict.fromkeys(machine for _, machine in there)),
        f"{name} (digest {plan.data[:12]})" if plan.data else "",
        _command(study, plan, None, out),
        store.remarks(),
        list(dict.fromkeys(c.settings["precision"] for c in cells if "precision" in c.settings)),
    )
    return outcome, done


def outcomes(out: Path) -> tuple[list[Outcome], list[InputError]]:
    """All that lies in a folder of studies, in the order of `STUDIES`, cheap scales first; and what
    is wrong with others, that are damaged or of another version."""
    found, wrong = [], []
    for study in STUDIES.values():
        for scale in study.SCALES:
            store = Store(out, study, scale.name)
            try:
                if (plan := store.plan()) is not None:
                    found.append(_outcome(study, scale, plan, store, out)[0])
            except InputError as error:
                wrong.append(error)
    return found, wrong


def _going_on(study: Study, asked: Asked, given: Given, out: Path) -> tuple[Scale, Plan, Store]:
    """What was asked for last, of the scale that is named, or of the one that was begun."""
    own = Given(given.data, device=given.device, threads=given.threads, runs=given.runs)
    if asked.seeds is not None or given != own:
        raise InputError(
            "--resume: a study goes on as it was asked for; leave out --seeds, --weights, "
            "--imagenet and --precision (--data says where the same data is now)"
        )
    named = _named(study)
    if asked.budget is not None and asked.budget not in named:
        raise InputError(
            f"--resume: goes on with what was chosen; leave out --budget {harmless(asked.budget)}, "
            f"or name the scale: {', '.join(scale.name for scale in study.SCALES)}"
        )
    wanted = study.SCALES if asked.budget is None else [named[asked.budget]]
    begun = [
        (scale, plan, store)
        for scale in wanted
        if (plan := (store := Store(out, study, scale.name)).plan()) is not None
    ]
    if not begun:
        raise InputError(
            f"--resume: nothing of {study.NAME} is in {harmless(out)}\n"
            f"Start with: skipway study {study.NAME}"
        )
    if len(begun) > 1:  # those of which something is left, if any
        begun = [one for one in begun if _left(study, *one)] or begun
    if len(begun) > 1:
        names = " or ".join(f"--budget {scale.name}" for scale, _, _ in begun)
        raise InputError(f"--resume: several scales were begun; give {names}")
    return begun[0]


def _left(study: Study, scale: Scale, plan: Plan, store: Store) -> bool:
    """Whether something of a plan is not computed yet."""
    cells = study.cells(scale, plan.seeds, plan.given)
    return any(store.done(cell, plan.data) is None for cell in cells)


def _named(study: Study) -> dict[str, Scale]:
    """Scales by what --budget may call them."""
    return {"paper": study.SCALES[-1]} | {scale.name: scale for scale in study.SCALES}


def _chosen(
    study: Study, asked: Asked, given: Given, out: Path, data: str, say: Say
) -> tuple[Scale, int]:
    """The scale and the seeds: as named, or the most that fits into the minutes.

    A scale that fits with all its seeds goes before a dearer one with fewer, by which nothing can
    be told. A scale is measured only where it may fit by what it is said to take, and by how long
    the cheapest takes here of what that is said to. Raises InputError.
    """
    named = _named(study)
    _check_seeds(study, asked, given)
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
    if asked.part != (1, 1):
        raise InputError(
            "--part: machines of other pace would choose other scales and seeds\n"
            f"Name the scale: --budget {' or '.join(named)}."
        )
    say(f"{study.NAME}: measuring how long {study.SCALES[0].name} takes here")

    def needed(scale: Scale, seeds: int) -> float:
        """Minutes, for what is not computed yet."""
        store = Store(out, study, scale.name)
        plan = _joined(store, scale, seeds, given, data)
        cells = study.cells(scale, seeds, plan.given)
        left = [cell for cell in cells if store.done(cell, plan.data) is None]
        return sum(study.seconds(cell, plan.given) for cell in left) / 60

    cheapest, *others = study.SCALES
    fewest = asked.seeds or 1
    least = needed(cheapest, fewest)
    pace = least / (cheapest.minutes * fewest / cheapest.seeds)
    dearer = [(scale, asked.seeds or scale.seeds) for scale in reversed(others)]
    wanted = [
        (scale, seeds)
        for scale, seeds in dearer
        if pace * scale.minutes * seeds / scale.seeds <= _DOUBTED * minutes
        or Store(out, study, scale.name).plan() is not None  # some of it may be there
    ]
    wanted += [(cheapest, asked.seeds or cheapest.seeds)]
    if asked.seeds is None:  # with fewer than its own, the cheapest alone, as many as fit
        wanted += [(cheapest, seeds) for seeds in range(cheapest.seeds - 1, 0, -1)]
    for scale, seeds in wanted:
        if scale is not cheapest:
            say(f"{study.NAME}: measuring how long {scale.name} takes here")
        if (need := needed(scale, seeds)) <= minutes:
            of = plural(seeds, "seed", "seeds")
            say(f"{study.NAME}: {scale.name}, {of}, about {need:.0f} of {minutes:g} min")
            return scale, seeds
    raise InputError(
        f"--budget {minutes:g}: too small; {study.NAME} at its smallest scale takes about "
        f"{least:.1f} minutes here with {plural(fewest, 'seed', 'seeds')}\n"
        "Give more minutes."
    )


_DOUBTED = 4.0
"""How far off the minutes that scales are said to take may be, of one beside another."""


def _check_seeds(study: Study, asked: Asked, given: Given) -> None:
    """Raise InputError where seeds are asked for that would change nothing."""
    first = study.SCALES[0]
    if (asked.seeds or 1) > 1 and len(study.cells(first, 1, given)) == len(
        study.cells(first, 2, given)
    ):
        raise InputError(f"--seeds {asked.seeds}: {study.NAME} draws nothing; leave it out")
