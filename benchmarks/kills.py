"""Trainings that are killed at random moments and gone on with, against those that never stopped.

Every combination of optimizer, precision and decoding workers is trained once whole, and then
again with kill -9 after a random time, `--resume`, kill -9, … until it has had its share of kills,
and then to its end. Network, averaged weights, optimizer, generators, the chosen weights and the
columns of the log that are no times must be equal to the bit. Each training is a process of its
own with its workers; it begins as a fork of one that has imported torch, so that kills fall on
training rather than on imports. With a mid-epoch checkpoint at every third step, some fall on a
checkpoint that is being written, and each fourth kill waits until one is. The data are random
pictures.

    python benchmarks/kills.py --kills 104
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from recorded import record, spread
from skipway.cli import main as skipway_main
from skipway.training import checkpoint
from skipway.weights import read_state

CELLS = tuple(itertools.product(("sgd", "lamb"), ("float32", "bf16"), (0, 2)))
"""Optimizer, precision, workers."""
TIMES = {"seconds", "images_per_second", "waiting", "memory_mib"}
SETTINGS = {
    "data.size": 32,
    "data.resident": False,
    "augment.flip": True,
    "augment.pad_crop": 4,
    "augment.policy": "rand",
    "augment.erase": 0.2,
    "augment.mixup": 0.2,
    "augment.cutmix": 1.0,
    "optim.weight_decay": 0.02,
    "label_smoothing": 0.1,
    "ema.decay": 0.9,
    "checkpoint_every": "3 steps",
    "batch_size": 16,
    "threads": 1,
}
_TRAINED = 120
"""Training images, of three classes."""
NET = {"depths": [1, 1, 1], "width": 0.5, "drop_path": 0.2}


def draw(folder: Path) -> None:
    """Random pictures of three classes."""
    rng = np.random.default_rng(0)
    for split, n in (("train", _TRAINED // 3), ("val", 16)):
        for label in ("a", "b", "c"):
            (folder / split / label).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")


def started(arguments: list[str], log: Path) -> multiprocessing.Process:
    """`skipway` with these arguments, a fork of this process and the head of its own group."""

    def run() -> None:
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(to, 1)
        os.dup2(to, 2)
        sys.argv = ["skipway", *arguments]
        skipway_main()

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    assert process.pid is not None
    os.setpgid(process.pid, process.pid)
    return process


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on kills."""
    state, said = checkpoint.newest(run)
    assert not said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loop = state["loop"]
    loop["tally"] = {k: v for k, v in loop["tally"].items() if k not in TIMES}
    found = {
        "loop": loop,
        "best": state["best"],
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
    }
    return found | {n: read_state(run / f"{n}.safetensors")[0] for n in ("best", "last")}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def where(run: Path) -> str:
    """What the kill fell on, from what it left behind."""
    if not (run / "checkpoints").exists():
        return "before the first checkpoint"
    if any((run / "checkpoints").glob(".skipway-*.tmp")):
        return "writing a checkpoint"
    if any(run.glob(".skipway-*.tmp")):
        return "writing weights or the record"
    state = checkpoint.newest(run)[0]
    table = run / "metrics.jsonl"
    scored = table.read_text().count("\n") if table.exists() else 0
    epochs = state["loop"]["step"] // -(-_TRAINED // SETTINGS["batch_size"])
    return "scoring an epoch" if state["unscored"] and scored < epochs else "training"


def wait_for_a_checkpoint(run: Path, process: multiprocessing.Process) -> None:
    """Until one is being written, or ten seconds."""
    patience = time.monotonic() + 10
    while process.is_alive() and time.monotonic() < patience:
        if any((run / "checkpoints").glob(".skipway-*.tmp")):
            return


def measured(place: Path, wanted: int, epochs: int, chance: random.Random) -> dict[str, Any]:
    """So many kills, dealt to the cells: what they fell on, and how many trainings ended equal."""
    draw(place / "data")
    fell: dict[str, int] = {}
    reached: list[int] = []
    kills = ended = equal = 0
    for number, (optimizer, precision, workers) in enumerate(CELLS):
        share = wanted // len(CELLS) + (number < wanted % len(CELLS))
        settings = SETTINGS | {"model.architecture": NET, "optim.kind": optimizer}
        flags = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
        flags += [f"--precision={precision}", f"--workers={workers}", f"--epochs={epochs}"]
        command = ["train", str(place / "data"), "--model=resnet20", *flags, "--out"]
        whole = place / f"whole-{number}"
        begun = time.monotonic()
        process = started([*command, str(whole)], place / "log")
        while not any(whole.glob("checkpoints/step-*")) and process.is_alive():
            time.sleep(0.005)
        ready = time.monotonic() - begun
        process.join()
        assert process.exitcode == 0, (place / "log").read_text()[-2000:]
        expected = outcome(whole)
        whole_steps = expected["loop"]["step"]
        # so that the kills fall on all of a training, and a few on its start
        times = 0.7 * ready, ready + 1.5 * (time.monotonic() - begun - ready) / share
        done, fresh = 0, (place / f"cut-{number}-{i}" for i in itertools.count())
        while True:
            cut = next(fresh)
            arguments = [*command, str(cut)]
            while True:
                process = started(arguments, place / "log")
                process.join(chance.uniform(*times) if done < share else None)
                if done % 4 == 3:
                    wait_for_a_checkpoint(cut, process)
                if process.exitcode is not None:
                    break
                os.killpg(process.pid, signal.SIGKILL)
                process.join()
                if (cut / "report.html").exists():
                    break  # it was over: that was no kill of a training
                done += 1
                fell[where(cut)] = fell.get(where(cut), 0) + 1
                kept = checkpoint.saved(cut / "checkpoints")
                if not kept:
                    break  # there is nothing to go on with
                reached.append(checkpoint.step_of(kept[-1]))
                arguments = ["train", "--resume", str(cut)]
            if process.exitcode == 0 or (cut / "report.html").exists():
                ended += 1
                equal += same(outcome(cut), expected)
                if done >= share:
                    break
            assert process.exitcode in (0, -signal.SIGKILL), (place / "log").read_text()[-2000:]
        kills += done
        cell = f"{optimizer}, {precision}, {workers} workers"
        print(f"{cell}: {done} kills, equal so far {equal} of {ended}", flush=True)
    return {
        "kills": kills,
        "fell_on": fell,
        "last_checkpoint_at_step": spread(reached),
        "steps": whole_steps,
        "trainings": ended,
        "equal_to_the_bit": equal,
        "cells": [dict(zip(("optimizer", "precision", "workers"), c, strict=True)) for c in CELLS],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=104)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        figures = measured(Path(folder), options.kills, options.epochs, chance)
    record("kills", figures)
    if figures["equal_to_the_bit"] < figures["trainings"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
