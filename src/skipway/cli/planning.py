"""`skipway plan`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from skipway.cli import settings
from skipway.cli.shared import Json, app, emit
from skipway.errors import InputError, harmless, missing_part


@app.command()
def plan(
    data: settings.Data = None,
    model: settings.ModelName = None,
    recipe: settings.Recipe = None,
    epochs: settings.Epochs = None,
    minutes: settings.Minutes = None,
    patience: settings.Patience = None,
    batch_size: settings.BatchSize = None,
    lr: settings.LearningRate = None,
    seed: settings.Seed = None,
    val: settings.Val = None,
    weights: settings.Weights = None,
    freeze: settings.Freeze = None,
    device: settings.Device = None,
    workers: settings.Workers = None,
    threads: settings.Threads = None,
    precision: settings.Precision = None,
    on_bad: settings.OnBad = None,
    set_: settings.Settings = None,
    measure: Annotated[
        float, typer.Option(min=1, help="Seconds, at most, of training steps to measure.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Tell what `train` would do with the same options, when it would end and what memory it takes.

    Trains for about a minute on the data and writes nothing.
    """
    try:
        from skipway.config import from_flags
        from skipway.training import expect
        from skipway.training.progress import duration
        from skipway.training.record import setting_flags
    except ImportError as error:
        raise missing_part("plan", "train", error) from None
    if not data:
        raise InputError("DATA is missing; see skipway plan --help")
    given = settings.parsed(set_) | from_flags(
        {
            "model": model,
            "recipe": recipe,
            "epochs": epochs,
            "minutes": minutes,
            "patience": patience,
            "batch_size": batch_size,
            "lr": lr,
            "seed": seed,
            "val": val,
            "weights": weights,
            "freeze": freeze,
            "device": device,
            "workers": workers,
            "threads": threads,
            "precision": precision,
            "on_bad": on_bad,
        }
    )
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
    print(shlex.join(["skipway", "train", harmless(data), *setting_flags(given)]))
