"""Which tokens survive a pruning step."""

from __future__ import annotations

import torch
from torch import Tensor


def select_tokens(scores_BL: Tensor, keep_count: int, prefix_BL: Tensor) -> Tensor:
    """Pick the tokens that survive, in sequence order; of equal scores the earlier token stays.

    Args:
        scores_BL: Importance of each token; higher survives. NaN is refused.
        keep_count: Tokens kept per image, prefix tokens included.
        prefix_BL: True at the tokens that always survive, equally many in every image.

    Returns:
        Ascending indices of shape (B, keep_count).

    Raises:
        ValueError: `keep_count` is above L or below 1.
        RuntimeError: A score is NaN.
    """
    if not 1 <= keep_count <= scores_BL.shape[1]:
        raise ValueError(
            f"keep_count must be in 1..{scores_BL.shape[1]}, the tokens there are, got {keep_count}"
        )
    torch._assert_async(~scores_BL.isnan().any(), "a token's score must not be NaN")
    order = descending(scores_BL.masked_fill(prefix_BL, torch.inf))
    return order[:, :keep_count].sort(dim=1).values


def descending(values_BL: Tensor) -> Tensor:
    """Indices of each image's values from the highest, (B, L); of equals the earlier one first."""
    if torch.onnx.is_in_onnx_export():  # knows the plain sort alone, which is stable there
        return values_BL.sort(dim=1, descending=True).indices
    return values_BL.sort(dim=1, descending=True, stable=True).indices
