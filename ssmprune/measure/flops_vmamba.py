"""FLOPs of VMamba in closed form, and what its publications charge.

Their counter finds what runs, all four directions included, and adds the skip term D u of each
scan, one per element, which `flops` leaves out as for every family. It yields the published figures
within their rounding: 4.91 and 4.86 G for vmamba_tiny (s1l8, s2l5), 8.72 and 8.61 for small
(s2l15, s1l20), 15.36 and 15.22 for base (s2l15, s1l20), 5.63, 11.23 and 18.02 for the vanilla
models. A reduced block is charged what runs in it, gathering excepted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ssmprune.measure.rows import NORM_FLOPS, SCAN_FLOPS, FlopRow
from ssmprune.models.vmamba_config import VMambaConfig

if TYPE_CHECKING:  # steps need the models by name
    from ssmprune.pruning.grid import GridStep

_DIRECTIONS = 4

NAMES = {
    ("patch_embed", "conv"): "patch_embed",
    ("patch_embed", "layer_norm"): "norm",
    ("norm", "layer_norm"): "norm",
    ("norm2", "layer_norm"): "norm",
    ("out_norm", "layer_norm"): "norm",
    ("in_proj", "linear"): "in_proj",
    ("conv2d", "conv"): "conv",
    ("op", "linear"): "x_proj",
    ("op", "matmul"): "dt_proj",
    ("op", "selective_scan"): "scan",
    ("out_proj", "linear"): "out_proj",
    ("fc1", "linear"): "mlp",
    ("fc2", "linear"): "mlp",
    ("downsample", "conv"): "downsample",
    ("downsample", "layer_norm"): "norm",
    ("reduction", "linear"): "downsample",
    ("", "mean"): "pool",
    ("head", "linear"): "head",
}


def rows(config: VMambaConfig, steps: Mapping[int, GridStep]) -> Iterator[FlopRow]:
    """Every operator of the model, block by block."""
    yield from _patch_embed(config)
    layer = 0
    for level, (depth, D) in enumerate(zip(config.depths, config.widths, strict=True)):
        for index in range(depth):
            part = f"layers.{level}.blocks.{index}"
            yield from _block(config, part, D, config.level_grids[level], steps.get(layer))
            layer += 1
        if level < len(config.depths) - 1:
            L = math.prod(config.level_grids[level + 1])
            yield from _downsample(config, f"layers.{level}", L, D, config.widths[level + 1])
    L, D = math.prod(config.level_grids[-1]), config.widths[-1]
    yield _row("classifier", "norm", NORM_FLOPS * L * D)
    yield _row("classifier", "pool", L * D)
    yield _row("classifier", "head", D * config.num_classes)


def _patch_embed(config: VMambaConfig) -> Iterator[FlopRow]:
    D, L, C = config.widths[0], config.num_patches, config.channels
    if config.vanilla:
        yield _row("patch_embed", "patch_embed", L * 4 * 4 * C * D)
    else:
        halved = math.prod(-(-side // 2) for side in config.image_size)
        yield _row("patch_embed", "patch_embed", halved * 3 * 3 * C * (D // 2))
        yield _row("patch_embed", "norm", NORM_FLOPS * halved * (D // 2))
        yield _row("patch_embed", "patch_embed", L * 3 * 3 * (D // 2) * D)
    yield _row("patch_embed", "norm", NORM_FLOPS * L * D)


def _block(
    config: VMambaConfig, part: str, D: int, grid: tuple[int, int], step: GridStep | None
) -> Iterator[FlopRow]:
    E, N, R = config.expand * D, config.d_state, -(-D // 16)
    L = math.prod(grid)
    M = L if step is None else step.scanned(grid)
    gate = E if config.vanilla else 0
    projected = L if config.vanilla else M  # a gate needs the whole grid before out_proj
    scan = _DIRECTIONS * SCAN_FLOPS * M * E * N
    yield _row(part, "norm", NORM_FLOPS * L * D)
    yield _row(part, "in_proj", L * D * (E + gate))
    yield _row(part, "conv", L * E * 3 * 3)
    yield _row(part, "x_proj", _DIRECTIONS * M * E * (R + 2 * N))
    yield _row(part, "dt_proj", _DIRECTIONS * M * R * E)
    yield FlopRow(part, "scan", scan, paper_flops(config, "scan", scan, 0))
    yield _row(part, "norm", NORM_FLOPS * M * E)
    yield _row(part, "out_proj", projected * E * D)
    if step is not None:
        yield from step.rows(part, grid, E)
        yield FlopRow(part, "gather", L * (gate or D), 0)
    if not config.vanilla:
        yield _row(part, "norm", NORM_FLOPS * L * D)
        yield _row(part, "mlp", 2 * L * D * config.mlp_ratio * D)


def _downsample(
    config: VMambaConfig, part: str, L: int, D: int, next_width: int
) -> Iterator[FlopRow]:
    """From width D to L tokens of the next width."""
    if config.vanilla:
        yield _row(part, "norm", NORM_FLOPS * L * 4 * D)
        yield _row(part, "downsample", L * 4 * D * next_width)
    else:
        yield _row(part, "downsample", L * 3 * 3 * D * next_width)
        yield _row(part, "norm", NORM_FLOPS * L * next_width)


def _row(part: str, operator: str, flops: int) -> FlopRow:
    return FlopRow(part, operator, flops, flops)


def paper_flops(config: VMambaConfig, operator: str, flops: int, in_proj: int) -> int:
    """The publications' charge for a traced operator."""
    if operator == "scan":
        return flops + flops // (SCAN_FLOPS * config.d_state)
    return flops
