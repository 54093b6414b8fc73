"""The command line as tests use it, and small data for it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skipway import cli

SMALL = [
    "--threads=1",
    "--model=resnet20",
    "--set=model.architecture.depths=[1,1,1]",
    "--set=model.architecture.width=0.25",
]
QUICK = [*SMALL, "--epochs=1", "--workers=0"]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The one JSON value on the one line of stdout."""
        lines = self.out.splitlines()
        assert len(lines) == 1, (self.out, self.err)
        assert self.out.endswith("\n")

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(lines[0], parse_constant=refuse)

    @property
    def error(self) -> list[str]:
        """The lines from the error on; what was logged before is none of it."""
        lines = self.err.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("skipway: ")]
        return lines[starts[0] :] if starts else []


def call(*arguments: str | Path) -> Answer:
    """The command in this process: what `skipway` does, but for starting Python."""
    out, err = io.StringIO(), io.StringIO()
    argv, handlers, level = sys.argv, logging.root.handlers[:], logging.root.level
    terminated = signal.getsignal(signal.SIGTERM)
    sys.argv = ["skipway", *map(str, arguments)]
    logging.root.handlers.clear()  # pytest's own would keep the command from adding its own
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as leaving,
        ):
            cli.main()
    finally:
        sys.argv, logging.root.handlers[:] = argv, handlers
        logging.root.setLevel(level)
        signal.signal(signal.SIGTERM, terminated)
    code = leaving.value.code
    return Answer(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def spawn(*arguments: str | Path, cwd: Path | None = None, **options: Any) -> Answer:
    """The command as a process of its own."""
    options.setdefault("env", environment())
    done = subprocess.run(
        [sys.executable, "-m", "skipway", *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=240, **options,
    )  # fmt: skip
    return Answer(done.returncode, done.stdout, done.stderr)


def draw(root: Path, classes: Sequence[str], n: int = 6, size: int = 16, seed: int = 0) -> Path:
    """Class folders of noise, each class of another colour."""
    rng = np.random.default_rng(seed)
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for j in range(n):
            pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
            pixels[..., i % 3] += 120
            Image.fromarray(pixels).save(root / name / f"{j:02}.png")
    return root
