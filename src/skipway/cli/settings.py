"""The settings of a training, as options of each command that plans one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from skipway.cli.shared import Threads
from skipway.recipes import RECIPES

__all__ = ["with_settings"]

Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA",
        help="Class folders, or a zip or tar of them, a CSV, a parquet or an .npz; COCO, YOLO or "
        "Pascal VOC for detect and instance; images/ and masks/ for segment; or digits, mnist, "
        "fashion-mnist, cifar10 or cifar100.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of `skipway settings`."),
]
_OPTIONS: dict[str, Any] = {
    "task": Annotated[
        str | None,
        typer.Option(
            help="classify, detect (boxes), instance (boxes and masks), segment (pixels) or embed "
            "(vectors)."
        ),
    ],
    "model": Annotated[str | None, typer.Option(help="A name of `skipway models`.")],
    "recipe": Annotated[
        str | None, typer.Option(help=", ".join(RECIPES) + "; see `skipway recipes`.")
    ],
    "epochs": Annotated[float | None, typer.Option(help="Length of the training.")],
    "minutes": Annotated[
        float | None, typer.Option(help="Plan the length to end within so many minutes.")
    ],
    "patience": Annotated[
        int | None,
        typer.Option(help="Stop after so many epochs without a better validation metric."),
    ],
    "batch_size": Annotated[int | None, typer.Option(help="Images a step.")],
    "lr": Annotated[float | None, typer.Option(help="The highest learning rate.")],
    "seed": Annotated[int | None, typer.Option(help="Decides every draw; 0 by default.")],
    "val": Annotated[
        str | None, typer.Option(help="Share of train held out for validation, or none.")
    ],
    "weights": Annotated[
        str | None, typer.Option(help="A run, a weight file or a hub's name to start from.")
    ],
    "freeze": Annotated[
        str | None,
        typer.Option(
            help="With --weights: freeze the stem (1), stages too (2, 3, …), or all but the "
            "classifier (all)."
        ),
    ],
    "device": Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")],
    "workers": Annotated[int | None, typer.Option(help="Processes that decode images.")],
    "threads": Threads,
    "precision": Annotated[str | None, typer.Option(help="float32 or bf16, of training.")],
    "on_bad": Annotated[
        str | None, typer.Option(help="error or skip: what to do with damaged images.")
    ],
    "checkpoint_every": Annotated[
        str | None, typer.Option(help="5m (minutes), 200 (steps) or 1 epoch.")
    ],
}


def with_settings(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a command ``f(data, given, …)`` take DATA, the options of a training's settings but
    those of `without`, and --set, beside its own options.

    It gets the settings as `given`, by dotted key. Raises InputError for a wrong --set.
    """
    names = [name for name in _OPTIONS if name not in without]

    def take(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [p for n, p in signature.parameters.items() if n not in ("data", "given")]
        kinds = {"data": Data} | {name: _OPTIONS[name] for name in names} | {"set_": Settings}
        taken = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in kinds.items()
        ]

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            from skipway.config import from_flags, parse_settings

            flags = {name: values.pop(name) for name in names}
            given = parse_settings(values.pop("set_") or ()) | from_flags(flags)
            command(given=given, **values)

        parameters = [*taken, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own)]
        wrapped.__dict__["__signature__"] = signature.replace(parameters=parameters)
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return take
