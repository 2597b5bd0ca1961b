"""Grid reduction: a block scans a regular subset of its rows and columns; no token leaves.

For hierarchical models, which need whole grids between their blocks. See `ssmprune.pruning.subset`
for the cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ssmprune.faults import Fault
from ssmprune.measure.rows import FlopRow
from ssmprune.models.configs import ModelConfig
from ssmprune.pruning.reduction import Reduction, Step
from ssmprune.stage import Alignment, Merge, PoolName, Scorer, Stage
from ssmprune.yamlfile import FilePart

if TYPE_CHECKING:
    from torch import Tensor

    from ssmprune.policy import Policy
    from ssmprune.pruning.subset import Subset
    from ssmprune.tokens import TokenStream


@dataclass(frozen=True)
class GridStep(Step):
    """A block scans some of its cells.

    Attributes:
        stage: The share of the cells.
        pool: What is scanned for the cells of a group.
    """

    stage: Stage
    pool: PoolName = "middle"

    def subset(self, x: Tensor) -> Subset:
        """The cells that are scanned of x, of shape (B, H, W, E)."""
        from ssmprune.pruning.subset import POOLS, Subset

        return Subset.of(self.stage, x, POOLS[self.pool])

    def rows(self, part: str, grid: tuple[int, int], E: int) -> Iterator[FlopRow]:
        """FLOPs of one image to take the scanned cells, of width E, from the grid."""
        if self.pool == "middle":
            yield FlopRow(part, "gather", self.scanned(grid) * E, 0)
            return
        height, width = grid
        rows, columns = self.stage.keep_grid(height, width)
        by_rows = rows * -(-height // rows) * width
        by_columns = rows * columns * -(-width // columns)
        for cells in (by_rows, by_columns):
            yield FlopRow(part, "gather", cells * E, 0)
            yield FlopRow(part, "score", cells * E, 0)

    def scanned(self, grid: tuple[int, int]) -> int:
        """Cells that are scanned of a grid of H and W."""
        return math.prod(self.stage.keep_grid(*grid))

    def groups(self, layer: int, stream: TokenStream, config: ModelConfig) -> Tensor:
        import torch

        from ssmprune.pruning.subset import line_groups

        height, width = config.block_grids[layer]
        rows, columns = self.stage.keep_grid(height, width)
        kept_rows, row_group = (torch.tensor(lines) for lines in line_groups(height, rows))
        kept_columns, column_group = (torch.tensor(lines) for lines in line_groups(width, columns))
        groups = row_group[:, None] * columns + column_group
        if self.pool == "middle":
            scanned = torch.zeros_like(groups, dtype=torch.bool)
            scanned[kept_rows[:, None], kept_columns] = True
            groups = groups.masked_fill(~scanned, -1)
        return groups.expand(len(stream.hidden), -1, -1)


class Grid(Reduction):
    """Blocks scan some of their cells."""

    name = "grid"
    summary = (
        "for hierarchical models, a block scans a regular subset of its rows and columns and "
        "spreads the result over the whole grid"
    )
    does = "blocks scan a subset of the grid"
    verb = "scanned"
    where = "scanned in"
    scores = False
    compounds = False

    def fits(self, config: ModelConfig) -> bool:
        return not config.prunable

    def faults(
        self, data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
    ) -> Iterator[Fault]:
        if not self.fits(config):
            yield Fault(
                f"reduction must be tokens for {config.name}, which has no resolution levels, got "
                "grid",
                "remove `reduction`",
                ("reduction",),
            )
        for key, part in (("scorer", Scorer), ("merge", Merge), ("alignment", Alignment)):
            if data.get(key) is not None and _differs(data[key], part()):
                yield Fault(
                    f"{key} must not be given with `reduction: grid`, where no token is scored, "
                    f"merged or leaves a gap, got {data[key]}",
                    "remove it",
                    (key,),
                )
        for index, stage in enumerate(stages):
            for key in ("keep_count", "scorer", "reduce", "match"):
                value = stage.get(key) if isinstance(stage, dict) else None
                if value not in (None, "drop"):
                    yield Fault(
                        f"{key} must not be given with `reduction: grid`, got {value}",
                        "give keep_ratio alone",
                        ("stages", index),
                    )

    def counts(self, stages: Sequence[Stage], config: ModelConfig) -> Iterator[tuple[int, int]]:
        for stage in stages:
            grid = config.block_grids[stage.layer]
            yield math.prod(grid), math.prod(stage.keep_grid(*grid))

    def scanned(self, stages: Sequence[tuple[Stage, int]], config: ModelConfig) -> tuple[int, ...]:
        scanned = list(config.block_tokens)
        for stage, kept in stages:
            scanned[stage.layer] = kept
        return tuple(scanned)

    def steps(self, policy: Policy, config: ModelConfig) -> Mapping[int, Step]:
        return {
            stage.layer: GridStep(stage, policy.pool)
            for stage, _ in policy.effective_stages(config)
        }


def _differs(value: Any, default: FilePart) -> bool:
    try:
        return type(default).model_validate(value) != default
    except ValidationError:
        return False
