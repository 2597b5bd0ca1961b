"""Devices by name."""

from __future__ import annotations

import torch

from ssmprune.errors import UsageError


def find_device(name: str) -> torch.device:
    """The device called `name`: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: This machine has no such device; the message names those it has.
    """
    there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    known = [*there, "cuda"] if len(there) > 1 else there
    if name not in known:
        raise UsageError(f"a device must be there, got {name!r}; there is {', '.join(there)}.")
    return torch.device(name)
