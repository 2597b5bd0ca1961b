"""Paired timing, and results kept with the machine and the versions they were taken on."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ssmprune.files import write_atomically
from ssmprune.measure.latency import MIN_REPEATS, median_interval

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Paired:
    """Two programs timed in turn: medians in milliseconds, and the median of the pairs' ratios."""

    ours_ms: float
    peer_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


def paired(
    ours: Callable[[], Any], peer: Callable[[], Any], repeats: int = 11, warm: bool = True
) -> Paired:
    """Time `ours` and `peer` in turn, `repeats` times; ratio is peer / ours.

    Each timed call follows one of the same program that is not, so that neither finds caches and
    heap as the other left them; not `warm`, for programs that take long.
    """
    times: dict[Callable[[], Any], list[float]] = {ours: [], peer: []}
    for pair in range(repeats):
        for program in (ours, peer) if pair % 2 else (peer, ours):
            if warm:
                program()
            start = time.perf_counter()
            program()
            times[program].append(1000 * (time.perf_counter() - start))
    ours_ms, peer_ms = times[ours], times[peer]
    ratios = [there / here for here, there in zip(ours_ms, peer_ms, strict=True)]
    low, high = median_interval(ratios) if repeats >= MIN_REPEATS else (min(ratios), max(ratios))
    return Paired(
        statistics.median(ours_ms),
        statistics.median(peer_ms),
        statistics.median(ratios),
        low,
        high,
    )


def keep_memory() -> None:
    """Have glibc keep all memory that is freed.

    It gives blocks of more than 32 MiB back to the system, and in a new process smaller ones too;
    to get them again can take longer than to compute what they are for.
    """
    mmap_threshold, trim_threshold, never = -3, -1, 2**31 - 1
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(mmap_threshold, 2**30) and libc.mallopt(trim_threshold, never)):
        raise SystemExit("memory must be kept for these rows, but mallopt refuses to.")


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a new process, whose memory is nobody else's."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def save(name: str, rows: list[dict[str, Any]]) -> None:
    """Write `results/NAME.json`: the rows, the machine, the versions and the date."""
    record = {
        "benchmark": f"python -m benchmarks {name}",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
        "versions": {
            package: version(package) for package in ("ssmprune", "torch", "numba", "ray", "optuna")
        },
        "rows": rows,
    }
    write_atomically(RESULTS / f"{name}.json", json.dumps(record, indent=2) + "\n")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a Markdown table under a title."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(rows[0]) + " |")
    print("| " + " | ".join("---" for _ in rows[0]) + " |")
    for row in rows:
        print("| " + " | ".join(_text(value) for value in row.values()) + " |", flush=True)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
