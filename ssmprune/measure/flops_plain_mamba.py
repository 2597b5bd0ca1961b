"""FLOPs of PlainMamba in closed form, and what its publication charges.

It charges everything that a dense model runs, the scan once per direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ssmprune.measure.rows import NORM_FLOPS, SCAN_FLOPS, FlopRow
from ssmprune.models.plain_mamba_config import PlainMambaConfig
from ssmprune.pruning.alignment import aligned_rows, asks_members
from ssmprune.pruning.block import BlockShape, tracked
from ssmprune.pruning.scorers import sort_flops

if TYPE_CHECKING:  # steps need the models by name
    from ssmprune.pruning.reduction import TokenStep
    from ssmprune.stage import Alignment

_DIRECTIONS, _WALKS = 4, 2
_STEM_WIDTH = 64
_BATCH_NORM_FLOPS = 2  # per element, fvcore's figure for fixed statistics

NAMES = {
    ("stem", "conv"): "patch_embed",
    ("convs", "conv"): "patch_embed",
    ("projection", "conv"): "patch_embed",
    ("stem", "batch_norm"): "norm",
    ("convs", "batch_norm"): "norm",
    ("norm", "layer_norm"): "norm",
    ("ln1", "layer_norm"): "norm",
    ("dw", "conv"): "conv",
    ("dw", "batch_norm"): "norm",
    ("in_proj", "linear"): "in_proj",
    ("conv2d", "conv"): "conv",
    ("x_proj", "linear"): "x_proj",
    ("dt_proj", "linear"): "dt_proj",
    ("mamba", "selective_scan"): "scan",
    ("out_proj", "linear"): "out_proj",
    ("head", "mean"): "pool",
    ("fc", "linear"): "head",
}


def rows(config: PlainMambaConfig, steps: Mapping[int, TokenStep]) -> Iterator[FlopRow]:
    """Every operator of the model, block by block."""
    D, E, N, R = config.embed_dim, config.inner_dim, config.d_state, config.dt_rank
    L = HW = config.num_patches
    tracks = tracked(steps, lambda layer, step: True)  # the head weighs merged tokens
    pruned = merged = reads_runs = False
    for operator, flops in _patch_embed(config):
        yield FlopRow("patch_embed", operator, flops, flops)
    for layer in range(config.depth):
        step, step_before = steps.get(layer), steps.get(layer - 1)
        M = L if step is None else step.keep_count
        part = f"layers.{layer}"
        for operator, flops in (
            ("norm", NORM_FLOPS * L * D),
            ("in_proj", L * D * 2 * E),
            ("conv", HW * E * config.conv_size**2),
            ("x_proj", L * E * (R + 2 * N)),
            ("dt_proj", L * R * E),
            ("scan", _DIRECTIONS * SCAN_FLOPS * L * E * N),
        ):
            yield FlopRow(part, operator, flops, flops)
        if step_before is not None:  # its tokens are put into the order of each walk
            yield FlopRow(part, "sort", _WALKS * sort_flops(L), 0)
            yield FlopRow(part, "gather", _WALKS * 3 * L, 0)
            yield FlopRow(part, "scatter", _WALKS * L, 0)
            if merged:
                yield from _merged_walks(part, step_before.alignment, L, HW)
        walked = 2 * _WALKS * L * E + _DIRECTIONS * L * N + L * (E + 2 * N)
        yield FlopRow(part, "gather", walked, 0)
        if pruned:
            yield from _grid(part, L, HW, E, reads_runs)
        if step is not None:
            placed = layer + 1 < config.depth or layer in config.dw_layers  # somebody asks where
            shape = BlockShape(L, D, E, N, _DIRECTIONS, HW, 0, placed, merged, tracks[layer])
            yield from step.rows(part, shape)
            pruned, merged = True, merged or step.merges
            reads_runs = merged and step.alignment.conv == "runs"
        projected = L if step is None else step.projected(L)
        yield FlopRow(part, "out_proj", projected * E * D, L * E * D)
        L = M
        if layer in config.dw_layers:
            for operator, flops in (("conv", HW * D * 9), ("norm", _BATCH_NORM_FLOPS * HW * D)):
                yield FlopRow(part, operator, flops, flops)
            if pruned:
                yield from _grid(part, L, HW, D, reads_runs)
    yield FlopRow("ln1", "norm", NORM_FLOPS * L * D, NORM_FLOPS * L * D)
    if merged:
        yield FlopRow("head", "score", L * HW + L, 0)
    yield FlopRow("head", "pool", L * D, L * D)
    yield FlopRow("head", "head", D * config.num_classes, D * config.num_classes)


def _patch_embed(config: PlainMambaConfig) -> Iterator[tuple[str, int]]:
    """The convolutions and batch norms, most of them at half the image's resolution."""
    pixels = (config.image_size[0] // 2) * (config.image_size[1] // 2)
    window = _STEM_WIDTH * (config.patch_size // 2) ** 2
    convs = pixels * _STEM_WIDTH * (config.channels * 49 + config.num_convs * _STEM_WIDTH * 9)
    yield "patch_embed", convs + config.num_patches * window * config.embed_dim
    yield "norm", (1 + config.num_convs) * _BATCH_NORM_FLOPS * pixels * _STEM_WIDTH


def _merged_walks(part: str, settings: Alignment, L: int, places: int) -> Iterator[FlopRow]:
    """What each walk asks about tokens of which some were merged."""
    if not asks_members(settings):
        return
    yield FlopRow(part, "gather", _WALKS * 2 * places, 0)
    for row in aligned_rows(part, settings, L, places, settings.sizes != "own"):
        yield row._replace(flops=_WALKS * row.flops)


def _grid(part: str, L: int, places: int, width: int, reads_runs: bool) -> Iterator[FlopRow]:
    """Tokens that are laid out on the grid and collected from it."""
    if reads_runs:
        yield FlopRow(part, "gather", places * width, 0)
    else:
        yield FlopRow(part, "scatter", L * width, 0)
    yield FlopRow(part, "gather", L * width, 0)


def paper_flops(config: PlainMambaConfig, operator: str, flops: int, in_proj: int) -> int:
    """The publication's charge for a traced operator."""
    if operator == "out_proj":  # on the tokens that enter the block, as in_proj
        return in_proj // 2
    return flops
