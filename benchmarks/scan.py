"""The CPU kernels against plain torch: the scan against a loop over tokens, the convolution.

On one thread: idle threads of torch wait in busy loops, for ours to slow down by, or, told not to,
are slow to wake, for torch to slow down by.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.record import paired
from ssmprune.scan import causal_conv1d_silu, reference, selective_scan

TITLE = "CPU kernels against torch, float32, one thread"
SHAPES = ((32, 197, 384, 16), (64, 65, 128, 8))


def scan_inputs(B: int, L: int, E: int, N: int) -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "u": torch.randn(B, L, E),
        "delta": torch.randn(B, L, E) - 3,
        "A": -torch.randn(E, N).exp(),
        "B": torch.randn(B, L, N),
        "C": torch.randn(B, L, N),
        "D": torch.randn(E),
        "delta_bias": torch.randn(E) * 0.1,
        "delta_softplus": True,
    }


def check(found: Tensor, exact: Tensor) -> float:
    """The relative error; no speed is shown for a kernel that is wrong."""
    error = ((found.double() - exact).abs().max() / exact.abs().max()).item()
    if error > 1e-5:
        raise SystemExit(f"the kernel's relative error must be at most 1e-5, got {error:.1e}")
    return error


def forward_row(shape: tuple[int, int, int, int]) -> dict[str, Any]:
    inputs = scan_inputs(*shape)
    exact, _ = reference.selective_scan(
        **{k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    )
    with torch.inference_mode():
        error = check(selective_scan(**inputs), exact)
        times = paired(lambda: selective_scan(**inputs), lambda: reference.selective_scan(**inputs))
    return row("scan forward", shape, times, error)


def training_row(shape: tuple[int, int, int, int]) -> dict[str, Any]:
    inputs = {
        k: v.requires_grad_() if isinstance(v, Tensor) else v
        for k, v in scan_inputs(*shape).items()
    }
    leaves = [v for v in inputs.values() if isinstance(v, Tensor)]
    upstream = torch.randn(shape[:3])
    double = {
        k: v.detach().double().requires_grad_() if isinstance(v, Tensor) else v
        for k, v in inputs.items()
    }
    exact = torch.autograd.grad(
        reference.selective_scan(**double)[0],
        [v for v in double.values() if isinstance(v, Tensor)],
        upstream.double(),
    )

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(selective_scan(**inputs), leaves, upstream)

    def loop() -> tuple[Tensor, ...]:
        return torch.autograd.grad(reference.selective_scan(**inputs)[0], leaves, upstream)

    error = max(check(found, true) for found, true in zip(ours(), exact, strict=True))
    return row("scan forward + backward", shape, paired(ours, loop, repeats=7), error)


def conv_row(B: int, L: int, E: int, K: int, aligned: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(B, L, E), torch.randn(E, K), torch.randn(E)
    positions = (torch.arange(L) * 3 // 2).expand(B, -1) if aligned else None
    exact = reference.causal_conv1d_silu(x.double(), weight.double(), bias.double(), positions)

    def torch_conv() -> Tensor:
        padded = F.pad(x.transpose(1, 2), (K - 1, 0))
        return F.silu(F.conv1d(padded, weight[:, None], bias, groups=E)).transpose(1, 2)

    with torch.inference_mode():
        error = check(causal_conv1d_silu(x, weight, bias, positions), exact)
        times = paired(lambda: causal_conv1d_silu(x, weight, bias, positions), torch_conv)
    name = "position-aware" if aligned else "compact"
    return row(f"convolution + SiLU, {name}", (B, L, E, K), times, error)


def row(name: str, shape: tuple[int, ...], times: Any, error: float) -> dict[str, Any]:
    return {
        "kernel": name,
        "B, L, E, N or K": str(shape),
        "ours, ms": times.ours_ms,
        "torch, ms": times.peer_ms,
        "times as fast": times.ratio,
        "95 % interval": f"{times.ratio_low:.3g} to {times.ratio_high:.3g}",
        "relative error": f"{error:.0e}",
    }


def run() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [
        *(forward_row(shape) for shape in SHAPES),
        *(training_row(shape) for shape in SHAPES),
        *(conv_row(64, 145, 128, 4, aligned) for aligned in (False, True)),
    ]
