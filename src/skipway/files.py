"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from skipway import shipped
from skipway.errors import InputError, harmless, nearest

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO}


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an error.

    It is written aside in the same folder, flushed to the disk and renamed, so that a reader, a
    crash or a full disk never meets half a file. On any error the part that was written is removed
    and the file that was there before stays as it was. Raises InputError naming `path` where the
    system refuses the write.
    """
    path = Path(path)
    aside = path.with_name(f".skipway-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what refused the write refuses this too
            aside.unlink()
        cause = _refusal(error, aside)
        if cause is None:
            raise
        raise InputError(
            f"{harmless(path)}: cannot be written: {cause.strerror}. What was there before is "
            "unchanged."
        ) from error
    # The rename is on the disk once its folder is; not every system lets a folder be flushed.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty folder to fill, which becomes `path` when the block ends without an error.

    On any error nothing of it is left. Raises InputError where `path` exists, and naming it where
    the system refuses.
    """
    path = Path(path)
    check_new(path)
    aside = path.with_name(f".skipway-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        aside.mkdir()
        yield aside
        os.rename(aside, path)
    except OSError as error:
        raise InputError(f"{harmless(path)}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class Busy(InputError):
    """Another process is at it."""


def locked(folder: Path, busy: str) -> int:
    """A handle on a folder, which is locked for this process until it is closed. Raises Busy with
    those words where another process has it, InputError where there is no lock."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{harmless(folder)}: {error.strerror}") from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise Busy(f"{harmless(folder)}: {busy}") from None
        raise InputError(f"{harmless(folder)}: no lock: {error.strerror}") from None
    return handle


def check_new(path: Path, flag: str = "--out") -> None:
    """Raise InputError where something lies at `path`, as `flag` gives it, or no file can be made
    there: to be told before the work whose result it is for."""
    if os.path.lexists(path):
        raise InputError(f"{harmless(path)}: exists already; give another {flag} or remove it")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{flag} {harmless(path)}: there is no folder {harmless(path.parent)}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {harmless(path)}: no file can be made in this folder")


def _refusal(error: BaseException, aside: Path) -> OSError | None:
    """The system's refusal to write `aside` behind an error, None where that is not the cause."""
    if isinstance(error, OSError):
        ours = error.filename is None or os.fspath(error.filename) == str(aside)
        return error if ours else None
    # torch.save reports a failed write as a RuntimeError raised while handling the OSError.
    behind = error.__context__
    return behind if isinstance(behind, OSError) and behind.errno in _FULL else None


HUBS = ("torchvision:", "hf:")
"""How the names of weights that are fetched begin; `hub` reads them."""


def is_hub_name(model: str | os.PathLike[str]) -> bool:
    """Whether MODEL names weights of a hub rather than a file."""
    return isinstance(model, str) and model.startswith(HUBS)


PEER_FILES = ("model.safetensors", "pytorch_model.bin")
"""The weights in a folder as transformers and timm save it, beside ``config.json``."""


def weight_file(model: str | os.PathLike[str]) -> Path:
    """The file that MODEL stands for: of a run, its best weights; of a folder that transformers or
    timm saved, its weights; of a shipped name, its file.

    What lies on the disk goes before a shipped name. Raises InputError.
    """
    path = Path(model)
    try:
        return _weights_at(path, model)
    except OSError as error:
        raise InputError(f"{harmless(path)}: {error.strerror}") from None


def _weights_at(path: Path, model: str | os.PathLike[str]) -> Path:
    there = path.exists()
    if not there and os.fspath(model) in shipped.NAMES:
        return shipped.file(os.fspath(model), ".safetensors")
    if not there:
        ours = ", ".join(shipped.NAMES)
        raise InputError(
            f"{harmless(path)}: no such file or run.{nearest(str(path), shipped.NAMES)}\n"
            f"MODEL is a run's folder, a weight file, a model that ships with Skipway ({ours}),\n"
            "or a hub's name, as torchvision:resnet50 and hf:timm/resnet50.a1_in1k are"
        )
    if not path.is_dir():
        return path
    names = ("best.safetensors", *PEER_FILES)
    found = next((path / name for name in names if (path / name).exists()), None)
    if found is not None:
        return found
    if (path / "run.json").exists():
        what = "the run has no best.safetensors yet"
    elif any(path.glob("*.index.json")):
        what = "its weights are in several files; Skipway reads one, model.safetensors"
    else:
        what = "not a run, nor a folder with config.json and model.safetensors"
    raise InputError(f"{harmless(path)}: {what}")
