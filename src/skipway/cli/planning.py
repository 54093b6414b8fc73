"""`skipway plan`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from skipway.cli.settings import with_settings
from skipway.cli.shared import Json, app, emit
from skipway.errors import InputError, harmless, missing_part


@app.command()
@with_settings()
def plan(
    data: str | None,
    given: Mapping[str, Any],
    measure: Annotated[
        float, typer.Option(min=1, help="Seconds, at most, of training steps to measure.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Tell what `train` would do with the same options, when it would end and what memory it takes.

    Trains for about a minute on the data and writes nothing.
    """
    try:
        from skipway.training import expect
        from skipway.training.progress import duration
        from skipway.training.record import setting_flags
    except ImportError as error:
        raise missing_part("plan", "train", error) from None
    if not data:
        raise InputError("DATA is missing; see skipway plan --help")
    planned, found = expect(data, given, measure)
    config = planned.config
    parts = {
        "preparing": found.preparing,
        "training": found.training,
        "evaluating": found.evaluating,
        "ending": found.ending,
    }
    if as_json:
        emit(
            {
                "seconds": round(found.seconds, 1),
                "parts": {name: round(seconds, 1) for name, seconds in parts.items()},
                "memory_mib": round(found.memory_mib),
                "steps": found.steps,
                "length": config.schedule.length,
                "model": config.model.name,
                "batch_size": config.batch_size,
                "accumulate": config.accumulate,
            }
        )
        return
    of = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
    print(f"{duration(found.seconds)} in all: {of}; {found.memory_mib:,.0f} MiB")
    print(harmless(shlex.join(["skipway", "train", data, *setting_flags(given)])))
