"""A training of two processes of which one is killed, under `torchrun --max-restarts`.

Trained once whole, and then again so many times with kill -9 for one of the processes, first one
and then the other, at a random moment. torchrun starts both again; weights and the columns of the
log that are no times must be equal to the bit. The data are random pictures.

    python benchmarks/restarts.py --kills 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kills import NET, SETTINGS, TIMES, draw, same
from recorded import record
from skipway.training import checkpoint
from skipway.weights import read_state


def started(data: Path, run: Path, restarts: int) -> subprocess.Popen[bytes]:
    """The training under torchrun."""
    settings = SETTINGS | {"model.architecture": NET, "batch_size": 8}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", "--monitor-interval=0.1", "-m", "skipway", "train"]
    command += [str(data), "--model=resnet20", "--epochs=12", "--workers=0", "--out", str(run)]
    command += [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def outcome(run: Path) -> dict[str, Any]:
    """What must not depend on kills."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    state, _ = checkpoint.newest(run)
    return {
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "optimizer": state["loop"]["optimizer"],
        "generators": state["loop"]["generators"],
    } | {name: read_state(run / f"{name}.safetensors")[0] for name in ("best", "last")}


def process_of(agent: int, rank: int) -> int | None:
    """The training process of that rank under a torchrun."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in children:
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in words:
            return int(child)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    chance = random.Random(0)
    equal = 0
    with tempfile.TemporaryDirectory(prefix="restarts-") as folder:
        place = Path(folder)
        draw(place / "data")
        whole = started(place / "data", place / "whole", 0)
        assert whole.wait() == 0, (whole.stderr and whole.stderr.read()[-2000:]) or ""
        expected = outcome(place / "whole")
        seconds = sum(row["seconds"] for row in map(json.loads, lines(place / "whole")))
        for number in range(options.kills):
            run = place / str(number)
            training = started(place / "data", run, 3)
            while not (run / "checkpoints").exists():
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.8 * seconds))
            process = process_of(training.pid, number % 2)
            assert process is not None, "the training ended before its kill"
            os.kill(process, signal.SIGKILL)
            _, said = training.communicate()
            assert training.returncode == 0, said.decode()[-2000:]
            assert b"going on at step" in said
            equal += same(outcome(run), expected)
            print(f"process {number % 2}: equal so far {equal} of {number + 1}", flush=True)
    record("restarts", {"kills": options.kills, "processes": 2, "equal_to_the_bit": equal})
    if equal < options.kills:
        sys.exit(1)


def lines(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


if __name__ == "__main__":
    main()
