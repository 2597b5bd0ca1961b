"""The selective scan and its causal convolution, channel-last, on a backend chosen by name.

`ssmprune.scan.backends` says which there are. A kernel of ours is one torch operator
(`ssmprune::selective_scan`, `ssmprune::causal_conv1d_silu`), so that tracing, FLOP counting and
`torch.compile` see it whole.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmprune.errors import UsageError
from ssmprune.scan import mamba_ssm, operators, reference
from ssmprune.scan.backends import (
    BACKENDS,
    HALF,
    Availability,
    Backend,
    available_backends,
    resolve_backend,
)
from ssmprune.scan.call import ScanCall
from ssmprune.scan.reference import Gaps

__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "Gaps",
    "available_backends",
    "causal_conv1d_silu",
    "resolve_backend",
    "selective_scan",
]


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
    carry: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    """The scan of `reference.selective_scan`; returns its output only, of shape (B, L, E).

    `carry`, of shape (B, L, E), is added to it before the gate: the output of another direction.
    Without gradients the CPU kernel adds and gates as it goes.

    Half-precision inputs, each of its own type, are scanned in float32, and the output has the type
    of `u`. Our kernels take `B` and `C` of shape (B, L, N); with other shapes `auto` means
    `reference`. mamba-ssm's kernel takes no `sizes`.

    Raises:
        UsageError: The backend is unknown, or was asked for and cannot run these inputs; L is 0; an
            input has the wrong shape, is on another device than `u`, or is float64 beside others.
    """
    gap, gap_step, gap_scale = gaps or (None, None, 0.0)
    inputs = u, delta, A, B, C, D, delta_bias, gap, gap_step, sizes
    call = ScanCall(*inputs, gap_scale, delta_softplus, reverse, carry, z)
    _check_scan(call)
    is_grouped = B.dim() != 3 or C.dim() != 3
    if backend == "auto" and is_grouped:
        backend = "reference"
    backend = resolve_backend(backend, u.device, u.dtype)
    if is_grouped and backend in ("cpu", "triton"):
        raise UsageError(
            f"scan backend {backend!r} must get B and C of shape (B, L, N), got "
            f"{tuple(B.shape)} and {tuple(C.shape)}; use 'auto' or 'reference'."
        )
    if backend == "mamba_ssm" and sizes is not None:
        raise UsageError(
            f"scan backend {backend!r} must get sizes of None, got {tuple(sizes.shape)}; use "
            "'auto' or 'reference'."
        )
    if backend in ("reference", "cpu"):
        call = ScanCall(*map(_widened, call))
    if backend == "cpu" and not torch.is_grad_enabled():
        y: Tensor = operators.selective_scan(*call[:13], backend, call.carry, call.z)
        carry = z = None
    elif backend == "reference":
        y = _reference_scan(call)
    elif backend == "mamba_ssm":
        y = mamba_ssm.selective_scan(call)
    else:
        y = operators.selective_scan(*call[:13], backend)
    y = y if carry is None else carry + y
    y = y if z is None else y * F.silu(z)
    return y.to(u.dtype)


def causal_conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
    sizes: Tensor | None = None,
) -> Tensor:
    """The convolution of `reference.causal_conv1d_silu`, of shape (B, L, E).

    Half-precision inputs, each of its own type, are convolved in float32, and the output has the
    type of `x`.

    Raises:
        UsageError: The backend is unknown, or was asked for and cannot run these inputs; L is 0; an
            input has the wrong shape, is on another device than `x`, or is float64 beside others;
            there are both `positions` and `sizes`.
    """
    _check_conv(x, weight, bias, positions, sizes)
    dtype = x.dtype
    backend = resolve_backend(backend, x.device, dtype)
    if backend in ("reference", "cpu"):
        x, weight, bias, sizes = (_widened(tensor) for tensor in (x, weight, bias, sizes))
    if backend == "reference":
        y = reference.causal_conv1d_silu(x, weight, bias, positions, reverse, sizes)
    elif backend == "mamba_ssm":
        y = mamba_ssm.causal_conv1d_silu(x, weight, bias, positions, reverse, sizes)
    else:
        y = operators.causal_conv1d_silu(x, weight, bias, positions, sizes, reverse, backend)
    return y.to(dtype)


def _reference_scan(call: ScanCall) -> Tensor:
    u, delta, A, B, C, D, delta_bias, gap, gap_step, sizes, gap_scale, softplus, reverse, *_ = call
    gaps = None if gap is None else Gaps(gap, gap_step, gap_scale)
    return reference.selective_scan(
        u, delta, A, B, C, D, None, delta_bias, softplus, gaps, reverse, sizes
    )[0]


def _widened(x: Any) -> Any:
    """A tensor in at least float32; what is no tensor stays as it is."""
    return x.float() if isinstance(x, Tensor) and x.dtype in HALF else x


def _check_scan(call: ScanCall) -> None:
    u, delta, A, B, C, D, delta_bias, gap, gap_step, sizes, *_ = call
    _check_sequence("u", u)
    images, length, width = u.shape
    states = A.shape[-1] if A.dim() else 1

    def weights_shape(weights: Tensor) -> tuple[int, ...]:
        if weights.dim() == 4:  # groups of channels; those that divide E stay as given
            return images, length, math.gcd(weights.shape[2], width), states
        return (width, states) if weights.dim() == 2 else (images, length, states)

    _check_like(u, "delta", delta, (images, length, width))
    _check_like(u, "A", A, (width, states))
    _check_like(u, "B", B, weights_shape(B))
    _check_like(u, "C", C, weights_shape(C))
    _check_like(u, "D", D, (width,))
    _check_like(u, "delta_bias", delta_bias, (width,))
    _check_like(u, "gaps.count_BL", gap, (images, length))
    _check_like(u, "gaps.step_E", gap_step, (width,))
    _check_like(u, "sizes", sizes, (images, length))
    _check_like(u, "z", call.z, (images, length, width))
    _check_like(u, "carry", call.carry, (images, length, width))


def _check_conv(
    x: Tensor, weight: Tensor, bias: Tensor, positions: Tensor | None, sizes: Tensor | None
) -> None:
    _check_sequence("x", x)
    images, length, width = x.shape
    _check_like(x, "weight", weight, (width, weight.shape[-1] if weight.dim() else 1))
    _check_like(x, "bias", bias, (width,))
    _check_like(x, "sizes", sizes, (images, length))
    if positions is None:
        return
    if sizes is not None:
        raise UsageError("the convolution must get positions or sizes, got both; leave one out.")
    if positions.dtype not in (torch.int32, torch.int64):
        raise UsageError(f"positions must be int32 or int64, got {positions.dtype}; convert them.")
    _check_place(x, "positions", positions, (images, length))


def _check_sequence(name: str, x: Tensor) -> None:
    if x.dim() != 3 or x.shape[1] == 0:
        raise UsageError(
            f"{name} must be of shape (B, L, E) with at least one token, got {tuple(x.shape)}."
        )


def _check_like(sequence: Tensor, name: str, x: Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse an input that does not go with the sequence, its first input."""
    if x is None:
        return
    _check_place(sequence, name, x, shape)
    is_double = sequence.dtype == torch.float64
    if not x.is_floating_point() or (x.dtype == torch.float64) != is_double:
        types = "float64" if is_double else "float32 or half precision"
        raise UsageError(
            f"{name} must be {types} beside a sequence of {sequence.dtype}, got {x.dtype}; "
            "convert one of them."
        )


def _check_place(sequence: Tensor, name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise UsageError(
            f"{name} must be of shape {shape} beside a sequence of {tuple(sequence.shape)}, "
            f"got {tuple(x.shape)}."
        )
    if x.device != sequence.device:
        raise UsageError(
            f"{name} must be on {sequence.device} as the sequence is, got {x.device}; move it."
        )
