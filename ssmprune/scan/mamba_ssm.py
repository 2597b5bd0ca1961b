"""mamba-ssm's CUDA scan and causal-conv1d's convolution as a backend, where they work.

They are channel-first, (B, E, L), know one direction, no gaps and no sizes. Transposes and flips
around them are part of what this backend costs. Gaps go into its inputs: with d the step and Gamma
the extra decay step, the scan over

    d' = d + Gamma,        u' = u d / d'

is the aligned one, for d' u' = d u; the skip term takes the original u.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmprune.scan import reference
from ssmprune.scan.call import ScanCall

_FAILURES = (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError, NameError)
_CONV_TAPS = range(2, 5)


def selective_scan(call: ScanCall) -> Tensor:
    """The output of `reference.selective_scan` without a gate and sizes, of shape (B, L, E).

    With gaps, every step must be positive or zero.
    """
    u, delta, A, B, C, D, delta_bias, gap, gap_step, _, gap_scale, softplus, reverse, *_ = call
    A = _widened(A)
    D, delta_bias = (None if x is None else _widened(x) for x in (D, delta_bias))
    skip = None
    if gap is not None:
        skip = None if D is None else D * u
        step = delta if delta_bias is None else delta + delta_bias
        step = F.softplus(step) if softplus else step
        u, delta = _rescaled(u, step, gap[..., None], gap_step, gap_scale)
        D, delta_bias, softplus = None, None, False
    u, delta, B, C = (_channel_first(x.to(u.dtype), reverse) for x in (u, delta, B, C))
    y: Tensor = _scan_function()(
        u, delta, A, B, C, D, delta_bias=delta_bias, delta_softplus=softplus
    )
    y = _channel_last(y, reverse)
    return y if skip is None else (y + skip).to(u.dtype)


def _rescaled(
    u: Tensor, step: Tensor, gap: Tensor, gap_step: Tensor | None, gap_scale: float
) -> tuple[Tensor, Tensor]:
    """u' and d', of the type of u. Where d' is zero, the share d / d' is its limit."""
    stretch = 1 + gap_scale * gap
    decay_step = step * stretch
    if gap_step is not None:
        decay_step = decay_step + gap * gap_step
    is_zero = decay_step == 0
    share = torch.where(is_zero, 1 / stretch, step / decay_step.masked_fill(is_zero, 1.0))
    return (u * share).to(u.dtype), decay_step.to(u.dtype)


def _channel_first(x: Tensor, reverse: bool) -> Tensor:
    """(B, L, E) to (B, E, L) and (B, L, G, N) to (B, G, N, L), in scan order; (E, N) as it is."""
    if x.dim() == 2:
        return x
    return (x.flip(1) if reverse else x).movedim(1, -1)


def _channel_last(x: Tensor, reverse: bool) -> Tensor:
    x = x.transpose(1, 2)
    return x.flip(1) if reverse else x


def causal_conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor | None,
    reverse: bool,
    sizes: Tensor | None,
) -> Tensor:
    """The convolution of `reference.causal_conv1d_silu`, of the type of x.

    causal-conv1d takes 2 to 4 taps, no positions and no sizes: anything else runs in plain torch,
    and so does everything where it is not installed (`conv_failure`).
    """
    are_neighbours = positions is None and sizes is None
    if not are_neighbours or weight.shape[1] not in _CONV_TAPS or conv_failure() is not None:
        return reference.causal_conv1d_silu(x, weight, bias, positions, reverse, sizes).to(x.dtype)
    x_first = _channel_first(x, reverse).contiguous()
    y: Tensor = _conv_function()(x_first, weight, bias, activation="silu")
    return _channel_last(y, reverse)


@cache
def scan_failure(device_type: str, dtype: torch.dtype) -> str | None:
    """Why the scan does not run `dtype` on a device, found by running it once; None if it does."""
    try:
        x = torch.zeros(1, 1, 4, device=device_type, dtype=dtype)
        _scan_function()(x, x, _widened(x[0, :, :1]), x, x)
    except _FAILURES as error:
        return _first_line(error)
    return None


@cache
def conv_failure() -> str | None:
    """Why causal-conv1d cannot be imported; None if it can."""
    try:
        _conv_function()
    except _FAILURES as error:
        return _first_line(error)
    return None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _widened(x: Tensor) -> Tensor:
    """In float32 at least, as mamba-ssm wants A, D and delta_bias."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scan_function() -> Callable[..., Any]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    function: Callable[..., Any] = selective_scan_fn
    return function


def _conv_function() -> Callable[..., Any]:
    from causal_conv1d import causal_conv1d_fn

    function: Callable[..., Any] = causal_conv1d_fn
    return function
