"""How near the CPU scan comes to what the cores can do, and whether its cost is linear.

The floor counts for each state of a channel and token one exponential of a product and three
multiply-adds (`exp(d A) h + d u B`, `C h`), at the rates that these reach on all threads with
everything in registers, measured in the same run. Memory traffic, softplus and D are left out.
Freed memory is kept, so that what is timed is the scan and not the operating system.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.record import apart, keep_memory
from benchmarks.scan import SHAPES, scan_inputs
from ssmprune.scan import selective_scan
from ssmprune.scan.simd import LANES, Static, exp2, kernel, splat, store_vectors, zeros
from ssmprune.scan.threads import in_team, share

TITLE = "CPU scan against its floor, and its cost by length and batch"
_VECTORS = 12  # as many independent chains as the latency of an operation calls for
_MULTIPLY_ADDS = 3


@kernel
def _multiply_adds(first, last, thread, rounds, factor, sink, vectors):
    total = zeros(vectors)
    for _ in range((last - first) * rounds):
        total = total * splat(factor) + splat(factor)
    store_vectors(sink + thread * vectors.value * LANES * 4, total)


@kernel
def _multiply_adds_team(threads, tasks, rounds, factor, sink, vectors):
    in_team(_multiply_adds, threads, tasks, (rounds, factor, sink, vectors))


@kernel
def _exponentials(first, last, thread, rounds, factor, sink, vectors):
    total = zeros(vectors)
    for _ in range((last - first) * rounds):
        total = exp2(total * splat(factor))
    store_vectors(sink + thread * vectors.value * LANES * 4, total)


@kernel
def _exponentials_team(threads, tasks, rounds, factor, sink, vectors):
    in_team(_exponentials, threads, tasks, (rounds, factor, sink, vectors))


def median_ms(program: Callable[[], Any], repeats: int = 15) -> float:
    times = []
    program()
    for _ in range(repeats):
        start = time.perf_counter()
        program()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def rate(team: Any, part: Any) -> float:
    """Operations on one float per millisecond, all threads together."""
    threads, rounds = torch.get_num_threads(), 200_000
    sink = torch.empty(threads, _VECTORS, LANES)
    work = rounds, np.float32(-0.5), sink.data_ptr(), Static(_VECTORS)
    took = median_ms(lambda: share(team, part, threads, *work), repeats=7)
    return threads * rounds * _VECTORS * LANES / took


def floor_rows() -> list[dict[str, Any]]:
    rows = []
    for shape in SHAPES:
        B, L, E, N = shape
        inputs = scan_inputs(*shape)
        with torch.inference_mode():
            before = rate(_exponentials_team, _exponentials)
            took = median_ms(lambda inputs=inputs: selective_scan(**inputs))
        updates = B * L * E * N
        multiply_adds = rate(_multiply_adds_team, _multiply_adds)
        exponentials = statistics.mean((before, rate(_exponentials_team, _exponentials)))
        floor = updates * (1 / exponentials + _MULTIPLY_ADDS / multiply_adds)
        rows.append(
            {
                "what": f"scan forward {shape} against its floor",
                "range": f"{multiply_adds / 1e6:.0f} G multiply-adds/s, "
                f"{exponentials / 1e6:.1f} G exponentials/s",
                "ms": f"{took:.2f}; floor {floor:.2f}",
                "ratio": took / floor,
            }
        )
    return rows


def cost_row(name: str, sizes: Sequence[int], shape: Callable[[int], tuple[int, ...]]) -> Any:
    """Time by size against the line of least relative error through the points."""
    times = []
    for size in sizes:
        inputs = scan_inputs(*shape(size))
        with torch.inference_mode():
            times.append(median_ms(lambda inputs=inputs: selective_scan(**inputs)))
    x, y = np.array(sizes, float), np.array(times)
    design = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    call, each = np.linalg.lstsq(design, np.ones_like(x), rcond=None)[0]
    return {
        "what": f"scan forward, {name}: farthest from the line {1000 * call:.0f} us + "
        f"{1000 * each:.1f} us each",
        "range": f"{sizes[0]} to {sizes[-1]}",
        "ms": ", ".join(f"{took:.3g}" for took in times),
        "ratio": float(1 + np.abs(y / (call + each * x) - 1).max()),
    }


def run() -> list[dict[str, Any]]:
    return apart(rows)


def rows() -> list[dict[str, Any]]:
    keep_memory()
    return [
        *floor_rows(),
        cost_row("tokens", [64 << n for n in range(7)], lambda L: (4, L, 384, 16)),
        cost_row("images", [1 << n for n in range(8)], lambda B: (B, 197, 384, 16)),
    ]
