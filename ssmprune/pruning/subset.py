"""The regular subset of a grid's rows and columns that the grid reduction has a block scan.

A hierarchical model needs whole grids between its blocks, so no token leaves it for good. Instead
the scan of a block runs on fewer cells, and every cell takes the result of the nearest one that was
scanned (after Chi et al., "QuarterMap", arXiv 2507.09514).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ssmprune.stage import Stage


def line_groups(count: int, kept: int) -> tuple[list[int], list[int]]:
    """Split lines into groups of neighbours, as equal as can be; the middle one stands for each.

    Args:
        count: Rows or columns of the grid.
        kept: Number of groups, at most `count`.

    Returns:
        The line that stands for each group, ascending, and the group of each line. No kept line
        is nearer to a line than that of its group.
    """
    starts = [-(-group * count // kept) for group in range(kept + 1)]
    middles = [(first + end - 1) // 2 for first, end in pairwise(starts)]
    return middles, [line * kept // count for line in range(count)]


@dataclass(frozen=True)
class Subset:
    """The cells of a grid that are scanned.

    Attributes:
        kept: Raster indices of the scanned cells, (rows, columns).
        nearest: For each cell of the grid the nearest scanned one, as an index into `kept`, (H, W).
    """

    kept: Tensor
    nearest: Tensor

    @classmethod
    def of(cls, stage: Stage, x: Tensor) -> Subset:
        """The cells that `stage` has scanned of x, of shape (B, H, W, E)."""
        height, width = (int(side) for side in x.shape[1:3])  # tensors while the model is traced
        rows, columns = stage.keep_grid(height, width)
        kept_rows, row_group = line_groups(height, rows)
        kept_columns, column_group = line_groups(width, columns)
        return cls(
            _raster(kept_rows, kept_columns, width, x.device),
            _raster(row_group, column_group, columns, x.device),
        )

    def reduce(self, x: Tensor) -> Tensor:
        """The scanned cells of x, from (B, H, W, E) to (B, rows, columns, E)."""
        return _cells(x, self.kept)

    def restore(self, y: Tensor) -> Tensor:
        """The whole grid, from (B, rows, columns, E) to (B, H, W, E)."""
        return _cells(y, self.nearest)


def _raster(rows: list[int], columns: list[int], width: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, device=device)[:, None] * width + torch.tensor(columns, device=device)


def _cells(x: Tensor, indices: Tensor) -> Tensor:
    taken = x.flatten(1, 2).index_select(1, indices.flatten())
    return taken.view(x.shape[0], *indices.shape, x.shape[3])
