"""Callbacks: who else is told how a training goes. TensorBoard is one of them.

They watch and do not steer. A training with callbacks gives the same bits as one without, and no
callback's failure ends it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from skipway.errors import InputError, harmless, missing_part


@runtime_checkable
class Callback(Protocol):
    """What `train(callbacks=[…])` takes. All methods are called in the first process only, between
    steps, and the training waits for them.

    What a method raises (an `Exception`) is said once: the callback gets no more rows, its `end` is
    still called, and the training goes on.
    """

    def begin(self, run: Path, record: Mapping[str, Any], step: int) -> None:
        """Training begins (step 0), or goes on, after `step` steps of the run.

        run: its folder. record: what ``run.json`` holds: configuration, data, environment. Rows of
        steps after `step` that an earlier sitting showed will come again, with the same values but
        for the timings; those up to it will not.
        """
        ...

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A row, as it stands in ``metrics.jsonl``: epoch (from 1), step, lr, train_loss, val_loss,
        …; `step` rises from row to row."""
        ...

    def end(self, record: Mapping[str, Any]) -> None:
        """This sitting is over, the report not yet written. record: as for `begin`, with `status`:
        finished (and then `result`), interrupted, or failed (and `error`).

        A process that is killed calls nothing.
        """
        ...


def checked(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    """The callbacks. Raises InputError for what is none."""
    if not isinstance(callbacks, Sequence):
        raise InputError(f"callbacks: give a list, [{harmless(type(callbacks).__name__)}(…)]")
    for callback in callbacks:
        name = harmless(getattr(callback, "__name__", type(callback).__name__))
        if isinstance(callback, type):
            raise InputError(f"callbacks: {name} is a class; give an object, {name}()")
        if not isinstance(callback, Callback):
            missing = [m for m in ("begin", "epoch", "end") if not hasattr(callback, m)]
            raise InputError(f"callbacks: {name} has no method {missing[0]}; see docs/callbacks.md")
    return tuple(callbacks)


class Audience:
    """The callbacks of one sitting, kept from doing the training harm."""

    def __init__(self, callbacks: Sequence[Callback], say: Callable[[str], None]) -> None:
        self._callbacks, self._say = checked(callbacks), say
        self._begun: list[Callback] = []
        self._silent: list[Callback] = []
        """Those that failed."""

    def begin(self, run: Path, record: Mapping[str, Any], step: int) -> None:
        """Training starts, or goes on, after `step` steps."""
        for callback in self._callbacks:
            self._begun.append(callback)
            self._call(callback, callback.begin, run, copy.deepcopy(record), step)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A row of the metrics table."""
        for callback in self._begun:
            if callback not in self._silent:
                self._call(callback, callback.epoch, copy.deepcopy(row))

    @contextlib.contextmanager
    def told_of_the_end(self, record: Mapping[str, Any]) -> Iterator[None]:
        """Tell those that heard of the beginning how what is inside ended, by the record then."""
        try:
            yield
        except BaseException as error:
            left: dict[str, Any] = {}
            if record["status"] == "running":  # no error that the record tells of
                left = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            self._end({**record, **left})
            raise
        self._end(record)

    def _end(self, record: Mapping[str, Any]) -> None:
        for callback in self._begun:
            self._call(callback, callback.end, copy.deepcopy(record))
        for callback in self._silent:
            self._say(f"callback {_name(callback)} failed; metrics.jsonl has what it missed")

    def _call(self, callback: Callback, method: Callable[..., None], *arguments: Any) -> None:
        try:
            gpu = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
            with torch.random.fork_rng(devices=gpu):  # a draw in there changes none of the training
                method(*arguments)
        except Exception as error:
            if callback not in self._silent:
                self._silent.append(callback)
            self._say(
                f"callback {_name(callback)}, {method.__name__}: {type(error).__name__}: "
                f"{harmless(error)[:200]}"
                + ("" if method.__name__ == "end" else "; the training goes on without it")
            )


def _name(callback: Callback) -> str:
    return harmless(type(callback).__name__)


FOLDER = "tensorboard"


class TensorBoard:
    """Event files in RUN/tensorboard, for ``tensorboard --logdir``: a `Callback`.

    A row's numbers are scalars at its step: ``train_loss`` and ``val_loss`` are ``loss/train`` and
    ``loss/val``, in one chart; the final score is ``final/…``. Raises InputError where the package
    ``tensorboard`` is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_part("--tensorboard", "tensorboard", error) from None
        self._open = SummaryWriter
        self._writer: SummaryWriter | None = None
        self._step = 0

    def begin(self, run: Path, record: Mapping[str, Any], step: int) -> None:
        # what a killed sitting wrote after the checkpoint is hidden: it comes again
        self._writer = self._open(str(run / FOLDER), purge_step=step + 1)
        self._step = step

    def epoch(self, row: Mapping[str, Any]) -> None:
        assert self._writer is not None  # of a beginning that failed no epoch is told
        self._step = row["step"]
        for key, value in row.items():
            if isinstance(value, (int, float)) and key not in ("epoch", "step"):
                split, _, name = key.partition("_")
                tag = f"{name}/{split}" if split in ("train", "val") else f"training/{key}"
                self._writer.add_scalar(tag, value, self._step)
        self._writer.flush()

    def end(self, record: Mapping[str, Any]) -> None:
        if self._writer is None:  # it could not be opened, and has said so
            return
        result = record.get("result") or {"metrics": {}}
        for name, value in result["metrics"].items():
            self._writer.add_scalar(f"final/{result['split']}_{name}", value, self._step)
        self._writer.close()
