"""Skipway: residual networks, from the paper to production.

The public names are imported when they are first used, so that ``import skipway`` is light.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from skipway.version import __version__

if TYPE_CHECKING:
    from skipway.estimators import SkipwayClassifier, SkipwayFeatures
    from skipway.loading import load
    from skipway.training import Callback, Result
    from skipway.weights import create_model

_PLACES = {
    "SkipwayClassifier": "skipway.estimators",
    "SkipwayFeatures": "skipway.estimators",
    "create_model": "skipway.weights",
    "load": "skipway.loading",
}

__all__ = ["SkipwayClassifier", "SkipwayFeatures", "__version__", "create_model", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'skipway' has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def train(
    data: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    quiet: bool = False,
    callbacks: Sequence[Callback] = (),
    **flags: Any,
) -> Result:
    """Train a model of any task and write its run, with the report.

    data: a folder, a zip or an uncompressed tar of class folders, a CSV or parquet of paths, a
    parquet of images, an npz, or a name (digits, mnist, fashion-mnist, cifar10, cifar100), see
    `data.open_data`; images with boxes or masks, see `data.objects.open_objects` and
    `data.pixels.open_pixels`. out: where the run goes, new or empty; None makes a dated name under
    ``runs``. resume: a run to go on with; then data is where that has moved, and of the settings
    only those of the machine may be given: threads, workers, device and checkpoints. flags: those
    of ``skipway train`` (task, model, recipe, epochs, minutes, patience, batch_size, lr, seed, val,
    weights, freeze, device, workers, threads, precision, on_bad, checkpoint_every). settings: any
    key of `config.RunConfig`, dotted, as ``--set`` takes them. callbacks: who else is told how it
    goes (`training.Callback`, ``docs/callbacks.md``). Returns the run, its metrics and speed.
    Raises InputError for what cannot be used and `training.Interrupted` where a signal ended it.

    The process stays as training sets it: its number of threads, torch's seed, small numbers
    flushed to 0, and memory that is freed kept for what comes next.
    """
    from skipway import training
    from skipway.config import from_flags
    from skipway.errors import InputError
    from skipway.report import write_report

    given = dict(settings or {}) | from_flags(flags)
    progress = training.TrainingProgress(quiet)
    if resume is not None:
        if out is not None:
            raise InputError("--resume: a run goes on where it is; leave out --out")
        moved = None if data is None else os.fspath(data)
        result = training.resume(resume, progress, callbacks, moved, given)
    elif data is None or not os.fspath(data):
        raise InputError(
            "DATA is missing: a folder, zip or tar of class folders, a CSV, a parquet or an .npz,\n"
            "or digits, mnist, fashion-mnist, cifar10 or cifar100"
        )
    else:
        result = training.start(os.fspath(data), given, out, progress, callbacks)
    if result.rank == 0:
        write_report(result.run)
    return result
