"""The Triton kernels compiled for GPUs that are not there: registers, spills and shared memory.

Every launch that `ssmprune.scan.gpu` makes is compiled as on a GPU, with the constants and the
alignments that Triton finds in its arguments, and not run. ptxas, which comes with Triton, reports
what a thread takes. A variant that does not compile ends the benchmark.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import apart

TITLE = "Triton kernels as compiled for compute capabilities 8.0 and 9.0"
CAPABILITIES = (80, 90)
TYPES = (torch.float32, torch.bfloat16, torch.float16)
STATES = (1, 8, 16)
DECAYS = ("none", "zero_input", "neighbor")
DISTANCES = ("compact", "position", "runs")
TAPS = 4
IMAGES, TOKENS, CHANNELS = 2, 197, 384

_USAGE = re.compile(
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers",
    re.S,
)


@dataclass(frozen=True)
class Usage:
    """What ptxas and Triton report of one compiled kernel.

    Attributes:
        kernel: Name of the kernel.
        block: What a program takes: T tokens, E channels, N states, rounded up to powers of 2.
        registers: Of a thread.
        spilled: Bytes that a thread stores because its registers do not suffice.
        shared: Bytes of shared memory of a program.
        warps: Warps of a program.
    """

    kernel: str
    block: str
    registers: int
    spilled: int
    shared: int
    warps: int


class _NoDriver:
    """A driver without a device, that lets Triton compile for `capability`."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return int(self._target.arch)  # kernels are cached by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiled_only(capability: int) -> Iterator[list[Usage]]:
    """For the duration kernels are compiled instead of launched; yields what is compiled."""
    from triton import knobs
    from triton.runtime import JITFunction, driver

    found: list[Usage] = []
    launch = JITFunction.run

    def compile_it(kernel: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as log:
            compiled = launch(kernel, *arguments, warmup=True, **options)
        told = log.getvalue()
        if not told:  # compiled before
            return
        usage = _USAGE.search(told)
        if usage is None:
            raise RuntimeError(f"ptxas must tell of registers and spills, got {told!r}")
        values = zip(kernel.arg_names, arguments, strict=True)
        blocks = ((name, value) for name, value in values if name.startswith("BLOCK_"))
        found.append(
            Usage(
                kernel.__name__.removeprefix("_").replace("_", " "),
                ", ".join(f"{name.removeprefix('BLOCK_')} {value}" for name, value in blocks),
                int(usage["registers"]),
                int(usage["stores"]),
                int(compiled.metadata.shared),
                int(compiled.metadata.num_warps),
            )
        )

    knobs.compilation.always_compile = True
    knobs.nvidia.dump_ptxas_log = True
    driver.set_active(_NoDriver(capability))
    JITFunction.run = compile_it
    try:
        yield found
    finally:
        JITFunction.run = launch


def scan(states: int, dtype: torch.dtype, decay: str, sized: bool, reverse: bool) -> None:
    """Launch the scan and its backward pass."""
    from ssmprune.scan import gpu
    from ssmprune.scan.call import ScanCall

    sequence = torch.zeros(IMAGES, TOKENS, CHANNELS, dtype=dtype)
    rank = CHANNELS // 32
    projected = torch.zeros(IMAGES, TOKENS, rank + 2 * states, dtype=dtype)
    _, B, C = projected.split((rank, states, states), dim=-1)
    A, E = torch.zeros(CHANNELS, states), torch.zeros(CHANNELS)
    gap: Tensor | None = None if decay == "none" else torch.zeros(IMAGES, TOKENS)
    step = E if decay == "zero_input" else None
    scale = 1.0 if decay == "neighbor" else 0.0
    sizes = torch.ones(IMAGES, TOKENS) if sized else None
    call = ScanCall(sequence, sequence, A, B, C, E, E, gap, step, sizes, scale, True, reverse)
    gpu.scan_forward(call)
    gpu.scan_backward(sequence, call)


def convolution(dtype: torch.dtype, distances: str, reverse: bool) -> None:
    """Launch the convolution and its backward pass, on a half of the input projection."""
    from ssmprune.scan import gpu

    x, _ = torch.zeros(IMAGES, TOKENS, 2 * CHANNELS, dtype=dtype).chunk(2, dim=-1)
    weight, bias = torch.zeros(CHANNELS, TAPS), torch.zeros(CHANNELS)
    is_position, is_runs = distances == "position", distances == "runs"
    positions = torch.zeros(IMAGES, TOKENS, dtype=torch.int64) if is_position else None
    sizes = torch.ones(IMAGES, TOKENS) if is_runs else None
    gpu.conv_forward(x, weight, bias, positions, sizes, reverse)
    gpu.conv_backward(torch.zeros_like(x), x, weight, bias, positions, sizes, reverse)


def variants() -> Iterator[tuple[str, Callable[[], None]]]:
    """Whatever a model may launch, under the name of a row."""
    for states, *setting in itertools.product(STATES, TYPES, DECAYS, *[(False, True)] * 2):
        yield f"N = {states}", partial(scan, states, *setting)
    for setting in itertools.product(TYPES, DISTANCES, (False, True)):
        yield f"{TAPS} taps", partial(convolution, *setting)


def compiled(capability: int) -> list[tuple[str, Usage]]:
    """All variants for one capability."""
    found = []
    for name, launch in variants():
        with compiled_only(capability) as usages:
            try:
                launch()
            except Exception as fault:
                raise RuntimeError(f"{launch} must compile for capability {capability}") from fault
        found += [(name, usage) for usage in usages]
    return found


def run() -> list[dict[str, Any]]:
    if "TRITON_INTERPRET" in os.environ:
        raise SystemExit("kernels must be compiled, but TRITON_INTERPRET is set; unset it.")
    usages = {capability: apart(compiled, capability) for capability in CAPABILITIES}
    rows = dict.fromkeys((usage.kernel, name) for name, usage in usages[CAPABILITIES[0]])
    return [row(*key, usages) for key in sorted(rows, key=lambda key: key[0])]


def row(kernel: str, name: str, usages: dict[int, list[tuple[str, Usage]]]) -> dict[str, Any]:
    found = {
        f"{capability / 10:.1f}": [
            usage for other, usage in each if (usage.kernel, other) == (kernel, name)
        ]
        for capability, each in usages.items()
    }
    [first, *_] = next(iter(found.values()))
    cells: dict[str, Any] = {
        "kernel": f"{kernel}, {name}",
        "a program takes": first.block,
        "warps": first.warps,
        "variants": " and ".join(dict.fromkeys(str(len(each)) for each in found.values())),
    }
    for label, each in found.items():
        registers = [usage.registers for usage in each]
        cells[f"registers, {label}"] = f"{min(registers)} to {max(registers)}"
        cells[f"bytes spilled, {label}"] = max(usage.spilled for usage in each)
    shared = (usage.shared for each in found.values() for usage in each)
    return {**cells, "bytes shared": max(shared)}
