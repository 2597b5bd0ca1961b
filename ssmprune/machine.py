"""What this machine has: CPUs for a process, devices by name. Needs torch for devices only."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ssmprune.errors import UsageError

if TYPE_CHECKING:
    import torch


def cpu_count(root: Path = Path("/")) -> int:
    """CPUs of this machine, or those that a batch system or a container leaves to this process.

    A container's quota (`docker --cpus=1.5`) counts as the next whole number of CPUs.

    Args:
        root: Where `proc` and `sys` are.
    """
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    else:
        there = os.cpu_count() or 1
    return max(1, math.ceil(min([there, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """What this process's control groups and those above them allow, in CPUs."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # no Linux
    for line in groups:
        _, controllers, group = line.split(":", 2)  # version 2 names no controllers
        place = root / "sys/fs/cgroup" / controllers
        for above in (PurePosixPath(group), *PurePosixPath(group).parents):
            yield from _quota(place / str(above).lstrip("/"))


def _quota(group: Path) -> Iterator[float]:
    """The quota of a group of version 2, or of version 1, if it has one."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in ("max", "-1"):
            yield int(quota) / int(period)


def find_device(name: str) -> torch.device:
    """The device called `name`: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: This machine has no such device; the message names those it has.
    """
    import torch

    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    known = [*there, "cuda"] if len(there) > 1 else there
    if name not in known:
        raise UsageError(f"a device must be there, got {name!r}; there is {', '.join(there)}.")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """The GPU or the CPU by the name that its maker gave it."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
