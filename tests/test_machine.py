"""What the machine is asked for."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from commands import SMALL, call, draw
from skipway import machine
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


SMALL_NUMBERS = """
import torch
from skipway.predictor import ready_torch
ready_torch(2)
assert torch.get_num_threads() == 2
assert float(torch.tensor([1e-39]).mul(1)) == 0
assert bool((torch.full((2_000_000,), 1e-39) * 1 == 0).all())  # in the pool's threads too
"""


def test_torch_computes_with_the_threads_that_are_asked_for_and_small_numbers_as_0() -> None:
    subprocess.run([sys.executable, "-c", SMALL_NUMBERS], check=True, timeout=120)


def group(place: Path, **files: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(f"{text}\n")


STAT = "anon 1\ninactive_file 4096\nactive_file 8192"


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where control groups are told of; this process is in none yet."""
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16))
    machine.cores.cache_clear()
    yield tmp_path
    machine.cores.cache_clear()


def test_limits_of_a_group_and_of_those_above_it(groups: Path) -> None:
    """Version 2, as of a service of systemd: the least decides."""
    root = groups / "cgroup"
    (groups / "own").write_text("0::/system.slice/train.service\n")
    group(root / "system.slice", cpu__max="400000 100000", memory__max="max")
    own = root / "system.slice" / "train.service"
    group(own, cpu__max="max 100000", memory__max="1000000", memory__current="900000",
          memory__stat=STAT)  # fmt: skip
    assert machine.cores() == 4
    assert machine.free_memory() == 1_000_000 - 900_000 + 4096 + 8192


def test_limits_of_a_container_that_is_its_own_root(groups: Path) -> None:
    (groups / "own").write_text("0::/\n")
    group(groups / "cgroup", cpu__max="150000 100000", memory__max="5000", memory__current="5000",
          memory__stat=STAT)  # fmt: skip
    assert machine.cores() == 2
    assert machine.free_memory() == 4096 + 8192


def test_limits_of_version_1(groups: Path) -> None:
    """Its controllers have trees of their own, and a container sees its group as their root."""
    (groups / "own").write_text("4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/\n")
    root = groups / "cgroup"
    group(root / "cpu", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000")
    group(root / "memory" / "docker" / "1f", memory__limit_in_bytes="70000",
          memory__usage_in_bytes="60000", memory__stat=STAT.replace("\n", "\ntotal_"))  # fmt: skip
    assert machine.cores() == 3
    assert machine.free_memory() == 10_000 + 4096 + 8192
    (root / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    machine.cores.cache_clear()
    assert machine.cores() == 16


def test_elsewhere_nothing_is_limited(groups: Path) -> None:
    assert machine.cores() == 16
    assert machine.free_memory() > 0


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
