"""What several families are built of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# From so many images on, torch leaves a convolution to oneDNN on any number of threads.
_ONEDNN_IMAGES = 16
_HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of tokens, (B, L, D) or (B, H, W, D).

    Of many images on a CPU with AVX-512, and without gradients, it is computed as a convolution
    with a kernel of 1: oneDNN, which computes those, uses the instructions of any maker's CPU. MKL,
    behind `F.linear`, does without AVX-512 on CPUs that are not Intel's, at half the speed.
    """
    if (
        not _HAS_ONEDNN
        or not x.is_cpu
        or x.dtype != torch.float32
        or len(x) < _ONEDNN_IMAGES
        or torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._is_tracing()
    ):
        return F.linear(x, weight, bias)
    grid = x if x.dim() == 4 else x[:, None]
    y = F.conv2d(grid.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return y if x.dim() == 4 else y[:, 0]


class Linear(nn.Linear):
    """`nn.Linear` of tokens; see `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def classifier(width: int, num_classes: int) -> nn.Module:
    """The last layer, from features (B, D) to logits; it leaves features alone for no classes."""
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


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
