"""What this computer is, as far as training and running networks depends on it. No torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Where Linux tells of control groups, and which are this process's."""


@functools.cache
def cores() -> int:
    """Processors that this process may use: its affinity, and its control groups' quotas."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu"):
        try:
            if (both := group / "cpu.max").exists():  # version 2
                quota, period = both.read_text().split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            if quota != "max" and int(quota) > 0:
                n = min(n, max(round(int(quota) / int(period)), 1))
        except (OSError, ValueError):
            continue  # the root of all has no quota
    return n


def free_memory() -> int:
    """Bytes that this process can still take: the system's, within its control groups' limits."""
    free = sys.maxsize
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass  # another system: nothing is known
    for group in _groups("memory"):
        with contextlib.suppress(OSError, ValueError):  # the root of all has no limit
            free = min(free, _left(group))
    return free


def _left(group: Path) -> int:
    """Bytes below the limit of a control group. Raises OSError and ValueError where it has none."""
    second = (group / "memory.max").exists()
    limit = int((group / ("memory.max" if second else "memory.limit_in_bytes")).read_text())
    used = int((group / ("memory.current" if second else "memory.usage_in_bytes")).read_text())
    pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    held = {key: int(value) for key, value in pairs}
    before = "" if second else "total_"
    cache = sum(held.get(f"{before}{kind}_file", 0) for kind in ("inactive", "active"))
    return limit - used + cache  # of files, which is given up at need


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups that limit such a thing, of either version: its
    own, and all above it. A container may see its own as the root."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        names, _, path = line.partition(":")[2].partition(":")
        if names and controller not in names.split(","):
            continue
        root = _GROUPS / controller if names else _GROUPS
        own = root / path.lstrip("/")
        yield from (place for place in (own, *own.parents) if place.is_relative_to(root))


def free_shared_memory() -> int:
    """Bytes that processes can still hand to one another through /dev/shm, which a container often
    has little of; all there is where the system has no such place."""
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return sys.maxsize
    return found.f_bavail * found.f_frsize


def peak_memory() -> float:
    """The most memory that this process has held, in MiB; its workers and the GPU not counted."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of glibc's mallopt."""


def keep_freed_memory() -> None:
    """Freed memory stays with this process for what it takes next, where glibc gives it out.

    A training step frees and takes the same blocks as the one before. Large ones would go back to
    the system each time, which clears their pages when they are taken again: a tenth to a third of
    a step.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, -1)


@functools.cache
def _cpu_info() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in lines if ":" in line]
    return {k.strip(): v.strip() for k, v in pairs}


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    return _cpu_info().get("model name", platform.processor() or platform.machine())


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 by itself (AVX-512 BF16 or AMX)."""
    flags = _cpu_info().get("flags", "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags
