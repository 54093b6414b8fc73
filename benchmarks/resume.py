"""How soon a run that was stopped takes its next step: small images in memory, and photographs.

A training with all defaults is stopped by SIGTERM after its first steps; then `skipway train
--resume` is started and, once it is ready, stopped again, so often. What counts are the seconds
from the start of the process until it says that it goes on; start-up is what another process
takes that only imports what a training needs. Once more the images are read again, as if nothing of
them had been kept with the run.

    python benchmarks/resume.py --data CIFAR10 --photos IMAGENETTE
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from recorded import record, spread
from skipway.training.reading import KEPT

BAR = 5.0
START_UP = [sys.executable, "-c", "import skipway.training.run, skipway.cli"]


def stopped(arguments: list[str], word: str) -> float:
    """Seconds from the start of a `skipway train` until a line of its log has that word, at which
    it is stopped."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "skipway", "train", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seconds = 0.0
    for line in process.stderr:
        if word in line and not seconds:
            seconds = time.perf_counter() - begun
            process.send_signal(signal.SIGTERM)
    if process.wait() != 128 + signal.SIGTERM:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return seconds


def start_up() -> float:
    begun = time.perf_counter()
    subprocess.run(START_UP, check=True)
    return time.perf_counter() - begun


def measure(data: Path, rounds: int, folder: Path) -> dict[str, Any]:
    """One data set."""
    run, begun = folder / "run", time.perf_counter()
    stopped([str(data), "--out", str(run), "--checkpoint-every", "1"], " step ")
    first = time.perf_counter() - begun
    starts, ready = [], []
    for _ in range(rounds):
        starts.append(start_up())
        ready.append(stopped(["--resume", str(run)], "going on at step"))
    size = (run / KEPT).stat().st_size
    (run / KEPT).unlink()
    anew = stopped(["--resume", str(run)], "going on at step")
    after = [a - b for a, b in zip(ready, starts, strict=True)]
    return {
        "seconds": spread(ready),
        "start_up_seconds": spread(starts),
        "after_start_up_seconds": spread(after),
        "bar": BAR,
        "reading_again_seconds": round(anew, 2),
        "from_the_first_command_to_its_stop_seconds": round(first, 2),
        "kept_mib": round(size / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cases = {}
    for name, data in (("CIFAR-10", options.data), ("Imagenette", options.photos)):
        with tempfile.TemporaryDirectory() as folder:
            cases[name] = measure(data, options.rounds, Path(folder))
    record("resume", {"cases": cases})


if __name__ == "__main__":
    main()
