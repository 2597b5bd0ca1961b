"""The backends of the scan: which there are, what each can run, and which one `auto` takes.

| backend | runs |
| --- | --- |
| `reference` | everything, in plain torch |
| `cpu` | float32 and half precision on the CPU, in numba |
| `triton` | float32 and half precision on a GPU |
| `mamba_ssm` | what mamba-ssm's own kernel runs, where it is installed and works |

`auto` is `cpu` or `triton` where one of them can run the inputs, and `reference` where none can: a
rule of device, type and whether triton is there, so a call gets the same backend every time.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from ssmprune.errors import UsageError, unknown_name
from ssmprune.scan import mamba_ssm

Backend = Literal["auto", "reference", "cpu", "triton", "mamba_ssm"]
BACKENDS: tuple[Backend, ...] = ("auto", "reference", "cpu", "triton", "mamba_ssm")
HALF = (torch.float16, torch.bfloat16)


class Availability(NamedTuple):
    """Whether a backend can run on this machine, and on what, or why not."""

    backend: str
    available: bool
    reason: str


def resolve_backend(backend: Backend, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend that runs inputs of `dtype` on `device`: never `auto`.

    Raises:
        UsageError: The backend is unknown, or was asked for and cannot run these inputs.
    """
    if backend not in BACKENDS:
        raise UsageError(unknown_name("scan backend", backend, BACKENDS))
    if backend == "auto":
        kernel: Backend = "cpu" if device.type == "cpu" else "triton"
        return "reference" if _failure(kernel, device, dtype) else kernel
    reason = _failure(backend, device, dtype)
    if reason is not None:
        raise UsageError(f"scan backend {backend!r} {reason}; use 'auto' or 'reference'.")
    return backend


def available_backends() -> list[Availability]:
    """Every backend but `auto`, as this machine runs float32."""
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    for backend in BACKENDS[1:]:
        failures = [_failure(backend, torch.device(name), torch.float32) for name in devices]
        places = [name for name, reason in zip(devices, failures, strict=True) if reason is None]
        rows.append(Availability(backend, bool(places), _reason(backend, places, failures[-1])))
    return rows


def _reason(backend: Backend, places: list[str], failure: str | None) -> str:
    if not places:
        return failure or ""
    conv = mamba_ssm.conv_failure() if backend == "mamba_ssm" else None
    return f"runs on {' and '.join(places)}" + (
        f"; its convolution in plain torch ({conv})" if conv else ""
    )


def _failure(backend: Backend, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a backend cannot run these inputs, as the predicate of a sentence; None if it can."""
    given = f"got {dtype} on {device}"
    is_float = dtype == torch.float32 or dtype in HALF
    if backend == "cpu" and not (is_float and device.type == "cpu"):
        return f"must get float32 on the CPU, {given}"
    if backend == "triton":
        return _triton_failure(is_float, device, given)
    if backend == "mamba_ssm":
        failure = mamba_ssm.scan_failure(device.type, dtype)
        return failure and f"must have a working mamba-ssm, {given} ({failure})"
    return None


def _triton_failure(is_float: bool, device: torch.device, given: str) -> str | None:
    try:
        from ssmprune.scan import gpu
    except ImportError as error:
        return f"must have triton, which cannot be imported ({error})"
    if is_float and (device.type == "cuda" or gpu.INTERPRETED):
        return None
    return f"must get float32 or half precision on a GPU, {given}"
