"""`skipway study`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skipway.cli.shared import Json, Precision, Threads, app, emit, print_table
from skipway.errors import GateNotMet, InputError, harmless, missing_part, nearest

if TYPE_CHECKING:
    from skipway.study.form import Finding, Study
    from skipway.study.store import Outcome


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            metavar="list|NAME|report",
            help="list, the name of a study, or report: one page of all that were run.",
        ),
    ],
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="MINUTES|SCALE",
            help="What fits into so many minutes, or a scale, as paper; the cheapest by default.",
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Repetitions; as its scale says by default.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what was asked for last.")
    ] = False,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Share I of N of a scale, as 1/2; copy the folders together."
        ),
    ] = "1/1",
    data: Annotated[
        str | None,
        typer.Option(
            help="Other data with train and test, in place of cifar10 or gradient-flow's digits."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="Of tables: weights to score.")
    ] = None,
    imagenet: Annotated[
        str | None, typer.Option(metavar="DIR", help="Of tables: ImageNet's validation images.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where studies are kept.")] = Path("studies"),
    precision: Annotated[
        Precision, typer.Option(help="float32 or bf16, of training.")
    ] = Precision.float32,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check what the papers claim: run a study, and show expected beside obtained.

    What was computed is kept and never computed again; a study that was stopped goes on. Exit code
    1 where the claim is contradicted.
    """
    try:
        from skipway.study import STUDIES
        from skipway.study.form import Given
        from skipway.study.imagenet import identified
        from skipway.study.running import Asked, run_study
    except ImportError as error:
        raise missing_part("study", "train", error) from None
    if name in ("list", "report"):
        own = (budget, seeds, data, weights, imagenet, threads)
        others = resume or part != "1/1" or precision is not Precision.float32 or device != "auto"
        if others or any(value is not None for value in own):
            raise InputError(f"{name}: takes --out and --json alone")
        _list(STUDIES.values(), as_json) if name == "list" else _report(out, as_json)
        return
    if name not in STUDIES:
        known = ", ".join(STUDIES)
        hint = nearest(name, [*STUDIES, "list", "report"])
        raise InputError(
            f"no study {harmless(name)!r}.{hint}\nStudies: {known}; or list, or report"
        )
    _need("scipy", "torch")
    given = Given(
        data,
        tuple(map(identified, weights or ())),
        imagenet,
        precision.value,
        device,
        threads,
        out / "runs",
    )
    if device != "auto":
        given.chosen_device()  # told before anything is measured or written
    asked = Asked(budget, seeds, resume, _part(part))
    outcome = run_study(STUDIES[name], asked, given, out, _say)
    if as_json:
        emit(_json(outcome, out))
    else:
        _print(outcome, out)
    if outcome.verdict == "contradicted":
        raise GateNotMet(f"{name}: contradicted by what was obtained")


def _say(line: str) -> None:
    print(harmless(line), file=sys.stderr, flush=True)


def _part(text: str) -> tuple[int, int]:
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise InputError(f"--part {harmless(text)}: give one of some parts, as 1/2 and 2/2")


def _list(studies: Any, as_json: bool) -> None:
    from skipway.report.markup import duration

    if as_json:
        emit([_study_json(study) for study in studies])
        return
    for study in studies:
        scales = ", ".join(f"{s.name} (about {duration(60 * s.minutes)})" for s in study.SCALES)
        print(f"{study.NAME}\n  {study.CLAIM}\n  {study.SOURCE}\n  scales: {scales}\n")


def _study_json(study: Study) -> dict[str, Any]:
    from skipway.study.form import claim_of

    scales = [
        {
            "name": s.name,
            "claim": claim_of(study, s),
            "protocol": s.protocol,
            "seeds": s.seeds,
            "minutes": s.minutes,
        }
        for s in study.SCALES
    ]
    return {"name": study.NAME, "source": study.SOURCE, "claim": study.CLAIM, "scales": scales}


def _need(*packages: str) -> None:
    """Raise InputError for packages of the install for training that are not there."""
    for package in packages:
        if find_spec(package) is None:
            raise missing_part("study", "train", ModuleNotFoundError(name=package))


def _report(out: Path, as_json: bool) -> None:
    _need("scipy")
    from skipway.study.form import tally
    from skipway.study.page import write_page
    from skipway.study.running import outcomes

    found, wrong = outcomes(out)
    for error in wrong if found else ():
        for line in f"left out: {error}".splitlines():
            _say(line)
    if not found and wrong:
        raise wrong[0]
    if not found:
        what = "no study is there" if out.is_dir() or not out.exists() else "is no folder"
        raise InputError(f"--out {harmless(out)}: {what}\nRun one first, as skipway study tables.")
    left_out = [str(error).splitlines()[0] for error in wrong]
    page = write_page(found, out / "report.html", left_out)
    if as_json:
        studies = [_json(outcome, out) for outcome in found]
        emit({"report": str(page), "studies": studies, "left_out": left_out})
        return
    for outcome in found:
        counts = tally(outcome.told.findings)
        said = f"{outcome.judged}{f' ({counts})' if counts else ''}"
        name = f"{outcome.study.NAME}, {outcome.scale.name}"
        if outcome.done < outcome.cells:
            said += f", of {outcome.done:,} of {outcome.cells:,} results"
        print(f"{name}: {said if outcome.done else 'nothing is computed yet'}")
        for line in outcome.reached:
            print(f"  {line}")
    print(f"the page: {harmless(page)}")


def _json(outcome: Outcome, out: Path) -> dict[str, Any]:
    from skipway.study.store import finding_json

    return {
        "study": outcome.study.NAME,
        "scale": outcome.scale.name,
        "seeds": outcome.seeds,
        "verdict": outcome.verdict if outcome.expects else None,
        "computed": outcome.done,
        "cells": outcome.cells,
        "reached": list(outcome.reached),
        "seconds": outcome.seconds,
        "findings": [finding_json(finding) for finding in outcome.told.findings],
        "folder": str(out / outcome.study.NAME / outcome.scale.name),
    }


def _print(outcome: Outcome, out: Path) -> None:
    from skipway.report.markup import duration
    from skipway.study.form import tally

    study, scale = outcome.study, outcome.scale
    print(f"{study.TITLE}\n{study.SOURCE}\n{outcome.claim}\n\n{scale.protocol}")
    for deviation in outcome.deviations:
        print(f"  not as the paper: {deviation}")
    print()
    print_table([HEAD, *map(_row, outcome.told.findings)])
    if outcome.done < outcome.cells:
        print(f"\n{outcome.done} of {outcome.cells} results are there.")
        for line in outcome.reached:
            print(f"  {line}")
    if counts := tally(outcome.told.findings):
        print(f"\n{counts}")
    print(f"\n{outcome.judged}, in {duration(outcome.seconds)} of computing")
    print(f"plots and raw data: {harmless(out / study.NAME / scale.name)}")
    print(f"the page of all studies: skipway study report --out {harmless(out)}")


HEAD = ("", "expected", "obtained", "95 % interval", "n", "")


def _row(finding: Finding) -> tuple[str, ...]:
    return (
        finding.name,
        finding.expected.words if finding.expected else "",
        finding.obtained,
        finding.between or "",
        f"{finding.n}",
        finding.judged,
    )
