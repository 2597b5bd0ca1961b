"""What several families are built of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_grid(values: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize values on a grid, of shape (B, H W, D) in raster order, bicubically."""
    batch, _, width = values.shape
    grid = values.transpose(1, 2).reshape(batch, width, *old)
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def fit_pos_embed(
    weights: dict[str, Tensor], grid: tuple[int, int], prefix_rows: int
) -> dict[str, Tensor]:
    """Weights whose `pos_embed`, of a square grid, is resized to the model's.

    Args:
        weights: A checkpoint's; unchanged where the rows fit already or are no square.
        grid: H and W of the model's patch tokens.
        prefix_rows: Rows that come first and stay as they are.
    """
    rows = weights.get("pos_embed")  # (1, L, D)
    if rows is None or rows.dim() != 3:
        return weights
    patches = rows.shape[1] - prefix_rows
    side = math.isqrt(max(patches, 0))
    if side == 0 or side**2 != patches or patches == grid[0] * grid[1]:
        return weights
    resized = resize_grid(rows[:, prefix_rows:], (side, side), grid)
    return weights | {"pos_embed": torch.cat([rows[:, :prefix_rows], resized], dim=1)}
