"""The CPU kernels against plain torch and its peers, on as many threads as torch takes.

The scan is timed against a loop over tokens, against the formula of mamba-ssm's
`selective_scan_ref` and against mambapy's parallel scan, which both hold a tensor of shape
(B, L, E, N); the convolution against torch's, whose result is laid out as ours. Merged tokens, 30 %
of them of size 2, are timed against as many without sizes and against those they stand for.

Each row is timed in a process of its own: what ran before decides how often the C library asks the
operating system for memory, on which torch's convolution spends most of its time in a new process.
In the rows with memory kept neither program asks: as in a process that has run larger ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mambapy.pscan import pscan
from torch import Tensor

from benchmarks.record import Paired, apart, keep_memory, paired
from ssmprune.scan import causal_conv1d_silu, reference, selective_scan

TITLE = "CPU kernels against torch, float32"
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


def loop(u: Tensor, **inputs: Any) -> Tensor:
    """A step of torch operators per token."""
    return reference.selective_scan(u, **inputs)[0]


def all_at_once(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    D: Tensor,
    delta_bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decays and inputs of all states, (B, L, E, N) each, and D u."""
    delta = F.softplus(delta + delta_bias)
    decays = torch.exp(torch.einsum("ble,en->blen", delta, A))
    return decays, torch.einsum("ble,bln,ble->blen", delta, B, u), D * u


def reference_formula(*, C: Tensor, delta_softplus: bool, **inputs: Tensor) -> Tensor:
    """What mamba-ssm's `selective_scan_ref` computes, channel-last."""
    decays, step_inputs, skipped = all_at_once(**inputs)
    state = torch.zeros_like(decays[:, 0])
    y = []
    for t in range(decays.shape[1]):
        state = decays[:, t] * state + step_inputs[:, t]
        y.append(torch.einsum("ben,bn->be", state, C[:, t]))
    return torch.stack(y, dim=1) + skipped


def parallel_scan(*, C: Tensor, delta_softplus: bool, **inputs: Tensor) -> Tensor:
    """mambapy's parallel scan and what goes around it."""
    decays, step_inputs, skipped = all_at_once(**inputs)
    states: Tensor = pscan(decays, step_inputs)
    return torch.einsum("blen,bln->ble", states, C) + skipped


def forward_row(
    shape: tuple[int, int, int, int], name: str, peer: Any, threads: int | None = None
) -> dict[str, Any]:
    """A row for the forward scan; on `threads` threads, else on as many as torch takes."""
    inputs = scan_inputs(*shape)
    exact = loop(**{k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()})
    default = torch.get_num_threads()
    torch.set_num_threads(threads or default)
    with torch.inference_mode():
        error = check(selective_scan(**inputs), exact)
        check(peer(**inputs), exact)
        times = paired(lambda: selective_scan(**inputs), lambda: peer(**inputs), repeats=21)
    torch.set_num_threads(default)
    return row("scan forward", shape, name, times, error)


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

    def autograd() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loop(**inputs), leaves, upstream)

    error = max(check(found, true) for found, true in zip(ours(), exact, strict=True))
    times = paired(ours, autograd, repeats=7)
    return row("scan forward + backward", shape, "autograd through the loop", times, error)


def merged_row(shape: tuple[int, int, int, int], is_unmerged: bool) -> dict[str, Any]:
    """A row for the scan of merged tokens, against the unmerged ones or as many without sizes."""
    inputs = scan_inputs(*shape)
    size = 1 + (torch.arange(shape[1]) % 10 < 3).long()
    sizes = size.float().expand(shape[0], -1)
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in inputs.items()}
    exact = loop(**double, sizes=sizes.double())
    repeats = size if is_unmerged else torch.ones_like(size)
    others = inputs | {k: inputs[k].repeat_interleave(repeats, 1) for k in ("u", "delta", "B", "C")}
    with torch.inference_mode():
        error = check(selective_scan(**inputs, sizes=sizes), exact)
        if is_unmerged:
            check(selective_scan(**others)[:, size.cumsum(0) - 1], exact)
        times = paired(
            lambda: selective_scan(**inputs, sizes=sizes),
            lambda: selective_scan(**others),
            repeats=21,
        )
    name = "the tokens unmerged" if is_unmerged else "as many tokens without sizes"
    return row("scan forward, merged tokens", shape, f"ours, {name}", times, error)


Conv = tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], Tensor]]


def conv_programs(B: int, L: int, E: int, K: int, aligned: bool) -> Conv:
    """Ours, torch's, and the exact one."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(B, L, E), torch.randn(E, K), torch.randn(E)
    positions = (torch.arange(L) * 3 // 2).expand(B, -1) if aligned else None

    def torch_conv() -> Tensor:
        padded = F.pad(x.transpose(1, 2), (K - 1, 0))
        y = F.silu(F.conv1d(padded, weight[:, None], bias, groups=E))
        return y.transpose(1, 2).contiguous()

    double = x.double(), weight.double(), bias.double(), positions
    return (
        functools.partial(causal_conv1d_silu, x, weight, bias, positions),
        torch_conv,
        functools.partial(reference.causal_conv1d_silu, *double),
    )


@torch.inference_mode()
def conv_error(*shape: Any) -> float:
    ours, _, exact = conv_programs(*shape)
    return check(ours(), exact())


@torch.inference_mode()
def conv_times(memory_kept: bool, *shape: Any) -> Paired:
    if memory_kept:
        keep_memory()
    ours, peer, _ = conv_programs(*shape)
    return paired(ours, peer, repeats=51)


def conv_row(B: int, L: int, E: int, K: int, aligned: bool, memory_kept: bool) -> dict[str, Any]:
    error = apart(conv_error, B, L, E, K, aligned)
    times = apart(conv_times, memory_kept, B, L, E, K, aligned)
    name = "position-aware" if aligned else "compact"
    peer = "conv1d, silu" + (", memory kept" if memory_kept else "")
    return row(f"convolution + SiLU, {name}", (B, L, E, K), peer, times, error)


def row(name: str, shape: tuple[int, ...], peer: str, times: Any, error: float) -> dict[str, Any]:
    return {
        "kernel": name,
        "B, L, E, N or K": str(shape),
        "peer": peer,
        "ours, ms": times.ours_ms,
        "peer, ms": times.peer_ms,
        "times as fast": times.ratio,
        "95 % interval": f"{times.ratio_low:.3g} to {times.ratio_high:.3g}",
        "relative error": f"{error:.0e}",
    }


def run() -> list[dict[str, Any]]:
    return [
        *(apart(forward_row, shape, "loop over tokens", loop) for shape in SHAPES),
        apart(forward_row, SHAPES[0], "loop over tokens, both on one thread", loop, 1),
        apart(forward_row, SHAPES[0], "`selective_scan_ref`'s formula", reference_formula),
        apart(forward_row, SHAPES[0], "mambapy's `pscan`", parallel_scan),
        *(apart(training_row, shape) for shape in SHAPES),
        *(apart(merged_row, SHAPES[0], is_unmerged) for is_unmerged in (False, True)),
        *(
            conv_row(64, 145, 128, 4, aligned, memory_kept)
            for memory_kept in (False, True)
            for aligned in (False, True)
        ),
    ]
