"""What the machine is asked for."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from commands import SMALL, call, draw
from skipway.errors import InputError
from skipway.training.plan import make_plan
from test_detect import scene_folder

FAULTS = """
import resource, sys
from skipway.machine import keep_freed_memory
import torch
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):
    torch.ones(2**25)
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is told")
def test_freed_memory_is_taken_again_as_it_is() -> None:
    """Blocks of 128 MiB: without it each is cleared by the system, page by page."""
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 1000
    assert faults["given back"] > 20 * max(faults["kept"], 1)


def test_workers_need_room_for_what_they_hand_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first step, where it would be a bus error in the middle of one."""
    data = draw(tmp_path / "data", ["a", "b"], 6)
    monkeypatch.setattr("skipway.training.plan.free_shared_memory", lambda: 64 << 20)
    flags = [*SMALL, "--set=data.size=512", "--set=data.resident=false", "--set=batch_size=64"]
    found = call("train", data, *flags, "--workers=2", "--out", tmp_path / "run")
    assert found.code == 2
    assert "data.workers = 2: their batches take 192 MiB of shared memory, 64 MiB" in found.err
    assert len(found.error) <= 3
    assert not (tmp_path / "run").exists()
    given = {"data.size": 512, "data.resident": False, "batch_size": 64, "data.workers": 0}
    assert make_plan(str(data), given).config.data.workers == 0


def test_workers_hand_over_masks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each object as many bytes as the image has pixels."""
    data = scene_folder(tmp_path / "data")
    objects = len(json.loads((data / "train.json").read_text())["annotations"])
    images = len(json.loads((data / "train.json").read_text())["images"])
    needed = int(4 * 64**2 * (3 + objects / images)) * 2 * 2
    given = {"data.size": 64, "batch_size": 4, "data.workers": 2, "threads": 1}
    for task, room, refused in (
        ("instance", needed - 1, True), ("instance", needed, False), ("detect", needed - 1, False),
    ):  # fmt: skip
        monkeypatch.setattr("skipway.training.plan.free_shared_memory", lambda room=room: room)
        with pytest.raises(InputError, match="shared memory") if refused else nullcontext():
            make_plan(str(data), given | {"task": task})
