"""How many CPUs this process may use."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """CPUs of this machine, or those that a batch system or a container leaves to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
