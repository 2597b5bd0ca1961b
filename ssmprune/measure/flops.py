"""FLOPs of a model under a policy, in closed form: counts follow from the policy alone.

One multiply-add is one FLOP, as in fvcore. Two rules:

- `flops` counts what runs: both scan directions, scoring, sorting and gathering included. A scan
  costs 9 L E N per direction, a norm 5 per element, a reduction one per element that enters it, a
  sort of L numbers L ceil(log2 L), a gather one per element that is moved. Element-wise work is
  free.
- `paper_flops` follows the publications of the family. Vim's charge the convolution, x_proj,
  dt_proj and the scan once per block although Vim runs them twice, a pruned block by the tokens
  that enter it, and scoring and gathering not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ssmprune.models.zoo import ModelConfig
from ssmprune.policy import Policy
from ssmprune.pruning.apply import PruningPlan
from ssmprune.pruning.scorers import find_scorer, sort_flops

NORM_FLOPS = 5  # per element, fvcore's figure for a norm with weights
SCAN_FLOPS = 9  # per token, channel and state
_DIRECTIONS = 2


@dataclass(frozen=True)
class FlopRow:
    """FLOPs of one operator in one part of the model, for one image."""

    part: str
    operator: str
    flops: int
    paper_flops: int


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of a model for one image."""

    rows: tuple[FlopRow, ...]

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    @property
    def paper_flops(self) -> int:
        return sum(row.paper_flops for row in self.rows)

    def by_operator(self) -> dict[str, tuple[int, int]]:
        """`flops` and `paper_flops` of each operator that costs anything."""
        totals: dict[str, tuple[int, int]] = {}
        for row in self.rows:
            flops, paper = totals.get(row.operator, (0, 0))
            totals[row.operator] = (flops + row.flops, paper + row.paper_flops)
        return {operator: total for operator, total in totals.items() if any(total)}


def count_flops(config: ModelConfig, policy: Policy | None = None) -> FlopCount:
    """Count the FLOPs of one image.

    Args:
        config: The model.
        policy: Its policy; without one the model is dense.

    Raises:
        PolicyError: The policy is for another model.
    """
    return FlopCount(tuple(_vim_rows(config, policy)))


def _vim_rows(config: ModelConfig, policy: Policy | None) -> Iterator[FlopRow]:
    D, E, N, R = config.embed_dim, config.inner_dim, config.d_state, config.dt_rank
    P = len(config.prefix_positions)
    steps = {} if policy is None else PruningPlan.of(policy, config).steps
    L = config.num_tokens
    window = config.channels * config.window_size**2
    patch_embed = config.num_patches * window * D
    yield FlopRow("patch_embed", "patch_embed", patch_embed, patch_embed)
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
            score = find_scorer(step.scorer.name).flops(L, E, _DIRECTIONS)
            yield FlopRow(part, "score", score, 0)
            yield FlopRow(part, "sort", sort_flops(L) + sort_flops(M), 0)
            yield FlopRow(part, "gather", M * (E + D + 1), 0)
        yield FlopRow(part, "out_proj", M * E * D, L * E * D)
        L = M
    yield FlopRow("norm_f", "norm", NORM_FLOPS * L * D, NORM_FLOPS * L * D)
    if steps:
        yield FlopRow("head", "gather", P * L + P * D, 0)
    yield FlopRow("head", "head", D * config.num_classes, D * config.num_classes)
