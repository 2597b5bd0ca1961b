"""The regular subset of a grid's rows and columns that the grid reduction has a block scan.

A hierarchical model needs whole grids between its blocks, so no token leaves it for good. Instead
the scan of a block runs on fewer cells, one for each group of neighbours, and every cell takes the
result of its group. What is scanned is the cell in the middle of the group (after Chi et al.,
"QuarterMap", arXiv 2507.09514), or the mean of the group.
"""

from __future__ import annotations

from collections.abc import Callable
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


Pool = Callable[[Tensor, int, int], Tensor]
"""Takes some rows and columns of a grid, from (B, H, W, E) to (B, rows, columns, E)."""


def middles(x: Tensor, rows: int, columns: int) -> Tensor:
    """The cell in the middle of each group."""
    height, width = _sides(x)
    kept_rows, kept_columns = line_groups(height, rows)[0], line_groups(width, columns)[0]
    return _cells(x, _raster(kept_rows, kept_columns, width, x.device))


def means(x: Tensor, rows: int, columns: int) -> Tensor:
    """The mean of each group."""
    height, width = _sides(x)
    by_rows = _line_means(x.flatten(2), height, rows).view(len(x), rows, width, -1)
    by_columns = _line_means(by_rows.transpose(1, 2).flatten(2), width, columns)
    return by_columns.view(len(x), columns, rows, -1).transpose(1, 2)


POOLS: dict[str, Pool] = {"middle": middles, "mean": means}


@dataclass(frozen=True)
class Subset:
    """The cells of a grid that are scanned.

    Attributes:
        rows: How many of its rows.
        columns: How many of its columns.
        pool: What is scanned for a group of cells.
        nearest: The group of each cell of the grid, numbered by rows, (H, W).
    """

    rows: int
    columns: int
    pool: Pool
    nearest: Tensor

    @classmethod
    def of(cls, stage: Stage, x: Tensor, pool: Pool = middles) -> Subset:
        """The cells that `stage` has scanned of x, of shape (B, H, W, E)."""
        height, width = _sides(x)
        rows, columns = stage.keep_grid(height, width)
        row_group, column_group = line_groups(height, rows)[1], line_groups(width, columns)[1]
        return cls(rows, columns, pool, _raster(row_group, column_group, columns, x.device))

    def reduce(self, x: Tensor) -> Tensor:
        """What is scanned of x, from (B, H, W, E) to (B, rows, columns, E)."""
        return self.pool(x, self.rows, self.columns)

    def restore(self, y: Tensor) -> Tensor:
        """The whole grid, from (B, rows, columns, E) to (B, H, W, E)."""
        return _cells(y, self.nearest)


def _sides(x: Tensor) -> tuple[int, int]:
    height, width = (int(side) for side in x.shape[1:3])  # tensors while the model is traced
    return height, width


def _line_means(lines: Tensor, count: int, kept: int) -> Tensor:
    """The mean of each group of lines, from (B, count, ...) to (B, kept, ...).

    Groups of fewer lines than the largest are filled with a line of weight 0.
    """
    groups = line_groups(count, kept)[1]
    largest = -(-count // kept)
    members = [[line for line in range(count) if groups[line] == g] for g in range(kept)]
    padded = [group + group[:1] * (largest - len(group)) for group in members]
    weights = [
        [1 / len(group) if place < len(group) else 0.0 for place in range(largest)]
        for group in members
    ]
    taken = lines.index_select(1, torch.tensor(padded, device=lines.device).flatten())
    weight = torch.tensor(weights, device=lines.device, dtype=lines.dtype)[..., None]
    return (taken.view(len(lines), kept, largest, -1) * weight).sum(2)


def _raster(rows: list[int], columns: list[int], width: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, device=device)[:, None] * width + torch.tensor(columns, device=device)


def _cells(x: Tensor, indices: Tensor) -> Tensor:
    taken = x.flatten(1, 2).index_select(1, indices.flatten())
    return taken.view(x.shape[0], *indices.shape, x.shape[3])
