"""FLOPs of Vim in closed form, and what its publications charge.

They charge the convolution, x_proj, dt_proj and the scan once per block although Vim runs them
twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ssmprune.measure.rows import NORM_FLOPS, SCAN_FLOPS, FlopRow
from ssmprune.models.vim_config import VimConfig
from ssmprune.pruning.alignment import aligned_rows, asks_members
from ssmprune.pruning.block import BlockShape, tracked

if TYPE_CHECKING:  # steps need the models by name
    from ssmprune.pruning.reduction import TokenStep

_DIRECTIONS = 2

NAMES = {
    ("proj", "conv"): "patch_embed",
    ("norm", "rms_norm"): "norm",
    ("norm_f", "rms_norm"): "norm",
    ("in_proj", "linear"): "in_proj",
    ("x_proj", "linear"): "x_proj",
    ("x_proj_b", "linear"): "x_proj_b",
    ("mixer", "linear"): "dt_proj",
    ("mixer", "causal_conv1d_silu"): "conv",
    ("mixer", "selective_scan"): "scan",
    ("out_proj", "linear"): "out_proj",
    ("head", "linear"): "head",
}


def rows(config: VimConfig, steps: Mapping[int, TokenStep]) -> Iterator[FlopRow]:
    """Every operator of the model, block by block."""
    D, E, N, R = config.embed_dim, config.inner_dim, config.d_state, config.dt_rank
    P = len(config.prefix_positions)
    L = config.num_tokens
    window = config.channels * config.window_size**2
    patch_embed = config.num_patches * window * D
    yield FlopRow("patch_embed", "patch_embed", patch_embed, patch_embed)
    tracks = tracked(
        steps,
        lambda layer, step: (
            layer + 1 < config.depth and (_asks_sizes(step) or asks_members(step.alignment))
        ),
    )
    merged = False
    for layer in range(config.depth):
        step = steps.get(layer)
        M = L if step is None else step.keep_count
        part = f"layers.{layer}"
        yield FlopRow(part, "norm", NORM_FLOPS * L * D, NORM_FLOPS * L * D)
        yield FlopRow(part, "in_proj", L * D * 2 * E, L * D * 2 * E)
        for operator, once in (
            ("conv", L * E * config.d_conv),
            ("x_proj", L * E * (R + 2 * N)),
            ("dt_proj", L * R * E),
            ("scan", SCAN_FLOPS * L * E * N),
        ):
            yield FlopRow(part, operator, _DIRECTIONS * once, once)
        if step is not None:
            tokens = config.num_tokens
            shape = BlockShape(L, D, E, N, _DIRECTIONS, tokens, P, True, merged, tracks[layer])
            yield from step.rows(part, shape)
            merged = merged or step.merges
            if merged and layer + 1 < config.depth:
                yield from aligned_rows(part, step.alignment, M, tokens, _asks_sizes(step))
        projected = L if step is None else step.projected(L)
        yield FlopRow(part, "out_proj", projected * E * D, L * E * D)
        L = M
    yield FlopRow("norm_f", "norm", NORM_FLOPS * L * D, NORM_FLOPS * L * D)
    if steps:
        yield FlopRow("head", "gather", P * L + P * D, 0)
    yield FlopRow("head", "head", D * config.num_classes, D * config.num_classes)


def _asks_sizes(step: TokenStep) -> bool:
    """Whether the blocks behind a step ask how many positions a merged token stands for."""
    return step.alignment.sizes != "own" or step.alignment.conv == "runs"


def paper_flops(config: VimConfig, operator: str, flops: int, in_proj: int) -> int:
    """The publications' charge for a traced operator."""
    if operator in ("dt_proj", "conv", "scan"):
        return flops // 2
    if operator == "x_proj_b":
        return 0
    if operator == "out_proj":  # on the tokens that enter the block, as in_proj
        return in_proj // 2
    return flops
