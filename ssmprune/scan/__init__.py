"""The selective scan and its causal convolution, channel-last, on a backend chosen by name.

`reference` is plain torch and runs anywhere; `cpu` is numba, for float32 on the CPU. `auto` takes
`cpu` where it applies. A kernel is one torch operator (`ssmprune::selective_scan`,
`ssmprune::causal_conv1d_silu`), so that tracing, FLOP counting and `torch.compile` see it whole.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmprune.errors import UsageError, unknown_name
from ssmprune.scan import operators, reference
from ssmprune.scan.reference import Gaps

__all__ = ["BACKENDS", "Backend", "Gaps", "causal_conv1d_silu", "resolve_backend", "selective_scan"]

Backend = Literal["auto", "reference", "cpu"]
BACKENDS: tuple[Backend, ...] = ("auto", "reference", "cpu")


def resolve_backend(backend: Backend, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend that runs inputs of `dtype` on `device`: never `auto`.

    Raises:
        UsageError: The backend is unknown, or was asked for and cannot run these inputs.
    """
    if backend not in BACKENDS:
        raise UsageError(unknown_name("scan backend", backend, BACKENDS))
    kernel_runs = device.type == "cpu" and dtype == torch.float32
    if backend == "auto":
        return "cpu" if kernel_runs else "reference"
    if backend == "cpu" and not kernel_runs:
        raise UsageError(
            f"scan backend 'cpu' must get float32 on the CPU, got {dtype} on {device}; "
            "use 'auto' or 'reference'."
        )
    return backend


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    gaps: Gaps | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """The scan of `reference.selective_scan`; returns its output only, of shape (B, L, E).

    Half-precision inputs are scanned in float32, and the output has the dtype of `u`. The kernels
    take `B` and `C` of shape (B, L, N); with other shapes `auto` means `reference`.

    Raises:
        UsageError: The backend is unknown, or was asked for and cannot run these inputs.
    """
    dtype = u.dtype
    halves = (torch.float16, torch.bfloat16)  # autocast lowers some inputs and not others
    u, delta, B, C = (x.float() if x.dtype in halves else x for x in (u, delta, B, C))
    if backend == "auto" and (B.dim() != 3 or C.dim() != 3):
        backend = "reference"
    if resolve_backend(backend, u.device, u.dtype) == "reference":
        y, _ = reference.selective_scan(
            u, delta, A, B, C, D, None, delta_bias, delta_softplus, gaps, reverse
        )
    else:
        if B.dim() != 3 or C.dim() != 3:
            raise UsageError(
                f"scan backend {backend!r} must get B and C of shape (B, L, N), got "
                f"{tuple(B.shape)} and {tuple(C.shape)}; use 'auto' or 'reference'."
            )
        y = operators.selective_scan(
            u, delta, A, B, C, D, delta_bias, *(gaps or (None, None, 0.0)), delta_softplus, reverse
        )
    y = y if z is None else y * F.silu(z)
    return y.to(dtype)


def causal_conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
) -> Tensor:
    """The convolution of `reference.causal_conv1d_silu`, of shape (B, L, E).

    Raises:
        UsageError: The backend is unknown, or was asked for and cannot run these inputs.
    """
    if resolve_backend(backend, x.device, x.dtype) == "reference":
        return reference.causal_conv1d_silu(x, weight, bias, positions, reverse)
    y: Tensor = operators.causal_conv1d_silu(x, weight, bias, positions, reverse)
    return y
