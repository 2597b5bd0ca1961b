"""The kernels as torch operators with gradients and fake implementations.

`backend` is `cpu` or `triton`. numba and triton are imported at the first call, not with the
package.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ssmprune.scan.call import ScanCall


def _scan_kernels(backend: str) -> ModuleType:
    if backend == "triton":
        from ssmprune.scan import gpu

        return gpu
    from ssmprune.scan import cpu

    return cpu


def _conv_kernels(backend: str) -> ModuleType:
    if backend == "triton":
        from ssmprune.scan import gpu

        return gpu
    from ssmprune.scan import cpu_conv

    return cpu_conv


@torch.library.custom_op("ssmprune::selective_scan", mutates_args=())
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    gap: Tensor | None,
    gap_step: Tensor | None,
    sizes: Tensor | None,
    gap_scale: float,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
    carry: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """`carry` and `z` are for the CPU without gradients; elsewhere they are torch's business."""
    inputs = u, delta, A, B, C, D, delta_bias, gap, gap_step, sizes
    call = ScanCall(*inputs, gap_scale, delta_softplus, reverse, carry, z)
    y: Tensor = _scan_kernels(backend).scan_forward(call)
    return y


@selective_scan.register_fake
def _(u: Tensor, *_: Any) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.custom_op("ssmprune::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    gap: Tensor | None,
    gap_step: Tensor | None,
    sizes: Tensor | None,
    gap_scale: float,
    delta_softplus: bool,
    reverse: bool,
    backend: str,
) -> list[Tensor]:
    """Gradients of u, delta, A, B, C, and of those of D, delta_bias, gap_step that are there."""
    inputs = u, delta, A, B, C, D, delta_bias, gap, gap_step, sizes
    call = ScanCall(*inputs, gap_scale, delta_softplus, reverse)
    gradients = _scan_kernels(backend).scan_backward(dy, call)
    return [gradient for gradient in gradients if gradient is not None]


@_selective_scan_backward.register_fake
def _(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    gap: Tensor | None,
    gap_step: Tensor | None,
    *_: Any,
) -> list[Tensor]:
    inputs = (u, delta, A, B, C, D, delta_bias, gap_step)
    return [x.new_empty(x.shape) for x in inputs if x is not None]


def _scan_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *call, backend, carry, z = inputs
    if carry is not None or z is not None:
        raise RuntimeError("the scan's carry and z must be None where gradients are needed")
    scan = ScanCall(*call)
    ctx.save_for_backward(*scan.tensors)
    ctx.settings = scan.gap_scale, scan.delta_softplus, scan.reverse, backend


def _scan_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    scan = ScanCall(*saved, *ctx.settings[:3])
    gradients = iter(_selective_scan_backward(dy, *saved, *ctx.settings))
    differentiable = (*saved[:7], None, None if scan.gap is None else scan.gap_step)
    by_input = [None if x is None else next(gradients) for x in differentiable]
    inputs = len(ScanCall._fields) + 1  # the backend stands among them
    return (*by_input, *[None] * (inputs - len(by_input)))


selective_scan.register_autograd(_scan_gradients, setup_context=_scan_context)


@torch.library.custom_op("ssmprune::causal_conv1d_silu", mutates_args=())
def causal_conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor | None,
    sizes: Tensor | None,
    reverse: bool,
    backend: str,
) -> Tensor:
    y: Tensor = _conv_kernels(backend).conv_forward(x, weight, bias, positions, sizes, reverse)
    return y


@causal_conv1d_silu.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("ssmprune::causal_conv1d_silu_backward", mutates_args=())
def _causal_conv1d_silu_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor | None,
    sizes: Tensor | None,
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _conv_kernels(backend).conv_backward(
        dy, x, weight, bias, positions, sizes, reverse
    )
    return dx, dweight, dbias


@_causal_conv1d_silu_backward.register_fake
def _(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _conv_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _conv_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = _causal_conv1d_silu_backward(dy, *ctx.saved_tensors, *ctx.settings)
    return dx, dweight, dbias, None, None, None, None


causal_conv1d_silu.register_autograd(_conv_gradients, setup_context=_conv_context)
