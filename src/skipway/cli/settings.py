"""The settings of a training, as options of each command that plans one."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from skipway.cli.shared import Threads
from skipway.recipes import RECIPES

__all__ = [
    "BatchSize", "CheckpointEvery", "Data", "Device", "Epochs", "Freeze", "LearningRate", "Minutes",
    "ModelName", "OnBad", "Patience", "Precision", "Recipe", "Seed", "Settings", "Threads", "Val",
    "Weights", "Workers", "parsed",
]  # fmt: skip

Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="A folder, zip or tar of class folders, a CSV, a parquet or an .npz; or digits, "
        "mnist, fashion-mnist, cifar10 or cifar100.",
    ),
]
ModelName = Annotated[str | None, typer.Option(help="A name of `skipway models`.")]
Recipe = Annotated[str | None, typer.Option(help=", ".join(RECIPES) + ".")]
Epochs = Annotated[float | None, typer.Option(help="Length of the training.")]
Minutes = Annotated[
    float | None, typer.Option(help="Plan the length to end within so many minutes.")
]
BatchSize = Annotated[int | None, typer.Option(help="Images a step.")]
LearningRate = Annotated[float | None, typer.Option(help="The highest learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Decides every draw; 0 by default.")]
Val = Annotated[str | None, typer.Option(help="Share of train held out for validation, or none.")]
Patience = Annotated[
    int | None,
    typer.Option(help="Stop after so many epochs without a better validation metric."),
]
Weights = Annotated[str | None, typer.Option(help="A weight file to start from.")]
Freeze = Annotated[
    str | None,
    typer.Option(help="Freeze the stem (1), stages too (2, 3, …), or all of --weights."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")]
Workers = Annotated[int | None, typer.Option(help="Processes that decode images.")]
Precision = Annotated[str | None, typer.Option(help="float32 or bf16, of training.")]
OnBad = Annotated[str | None, typer.Option(help="error or skip: what to do with damaged images.")]
CheckpointEvery = Annotated[str | None, typer.Option(help="5m (minutes), 200 (steps) or 1 epoch.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of the run's configuration."),
]


def parsed(settings: list[str] | None) -> dict[str, Any]:
    """What was given with --set, by dotted key. Raises InputError."""
    from skipway.config import parse_setting

    return dict(map(parse_setting, settings or ()))
