"""Latency of a pruned model relative to the dense one, measured in pairs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmprune.errors import UsageError
from ssmprune.machine import device_name

MIN_REPEATS = 6
"""Fewest pairs for which a 95 % interval of the median exists."""

Forward = Callable[[Tensor], object]


@dataclass(frozen=True)
class Latency:
    """How long a batch takes, pruned and dense, and the protocol of the measurement."""

    ratio: float
    """Median over the pairs of pruned / dense."""
    ratio_low: float
    """Lower end of the distribution-free 95 % interval of that median."""
    ratio_high: float
    dense_ms: float
    """Median for one batch, in milliseconds."""
    latency_ms: float
    """Median for one batch with the policy, in milliseconds."""
    device: str
    device_name: str
    batch_size: int
    precision: str
    threads: int
    """Threads within an operator, on the CPU."""
    backend: str
    repeats: int


def compare_latency(
    dense: Forward,
    pruned: Forward,
    images: Tensor,
    *,
    repeats: int = 20,
    warmup: int = 3,
    amp: bool = False,
    backend: str = "",
) -> Latency:
    """Time two models in turn on one batch.

    The order alternates from pair to pair, so neither a drift of the clock nor the state that one
    model leaves behind favours either. Every call starts on an idle device.

    Args:
        dense: Takes the images; its time is the unit of the ratio.
        pruned: Takes the images.
        images: One batch `(B, C, H, W)` on the device to be measured.
        repeats: Pairs that count, at least 6.
        warmup: Pairs that run before and do not count.
        amp: Run under bfloat16 autocast.
        backend: Name of the scan backend, for the record.

    Raises:
        UsageError: `repeats` is below 6 or `warmup` is negative.
    """
    _check_pairs(repeats, warmup)
    device = images.device
    clock = _time_on_cuda if device.type == "cuda" else _time_on_cpu
    dense_ms: list[float] = []
    pruned_ms: list[float] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        for pair in range(-warmup, repeats):
            turns = [(dense, dense_ms), (pruned, pruned_ms)]
            for forward, times in turns if pair % 2 == 0 else reversed(turns):
                times.append(clock(forward, images))
    del dense_ms[:warmup], pruned_ms[:warmup]

    ratios = [after / before for before, after in zip(dense_ms, pruned_ms, strict=True)]
    low, high = median_interval(ratios)
    return Latency(
        ratio=statistics.median(ratios),
        ratio_low=low,
        ratio_high=high,
        dense_ms=statistics.median(dense_ms),
        latency_ms=statistics.median(pruned_ms),
        device=str(device),
        device_name=device_name(device),
        batch_size=len(images),
        precision=precision_name(images, amp),
        threads=torch.get_num_threads(),
        backend=backend,
        repeats=repeats,
    )


def _check_pairs(repeats: int, warmup: int) -> None:
    if repeats < MIN_REPEATS:
        raise UsageError(
            f"repeats must be at least {MIN_REPEATS}, got {repeats}; with fewer pairs there is no "
            "95 % interval of the median."
        )
    if warmup < 0:
        raise UsageError(f"warmup must not be negative, got {warmup}.")


def median_interval(values: list[float]) -> tuple[float, float]:
    """The distribution-free interval that covers the median with a chance of at least 95 %.

    Its ends are the k-th smallest and the k-th largest value, with the greatest k for which fewer
    than k of n fair coins show heads with a chance of at most 2.5 %.

    Args:
        values: At least 6 independent values.
    """
    n = len(values)
    k, chance = 0, 0.0
    while (chance := chance + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    if k == 0:
        raise ValueError(f"an interval of the median needs at least {MIN_REPEATS} values, got {n}")
    ordered = sorted(values)
    return ordered[k - 1], ordered[n - k]


def _time_on_cpu(forward: Forward, images: Tensor) -> float:
    start = time.perf_counter()
    forward(images)
    return 1000 * (time.perf_counter() - start)


def _time_on_cuda(forward: Forward, images: Tensor) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(images.device)
    start.record(torch.cuda.current_stream(images.device))
    forward(images)
    end.record(torch.cuda.current_stream(images.device))
    end.synchronize()
    return float(start.elapsed_time(end))


def precision_name(images: Tensor, amp: bool) -> str:
    """What a model computes in, for the record: bfloat16 under autocast, else the images' type."""
    return "bfloat16" if amp else str(images.dtype).removeprefix("torch.")
