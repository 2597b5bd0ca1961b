"""The tokens of a batch on their way through a backbone, and where each of them came from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenStream:
    """Tokens in sequence order; every image of the batch holds the same number.

    Attributes:
        hidden: Values of shape (B, L, D).
        positions: Ascending positions in the unpruned sequence, (B, L) int64.
        num_tokens: Length of the unpruned sequence.
        prefix_positions: Positions of the tokens that always stay, such as the class token's.
    """

    hidden: Tensor
    positions: Tensor
    num_tokens: int
    prefix_positions: tuple[int, ...]

    @property
    def is_pruned(self) -> bool:
        return self.positions.shape[1] < self.num_tokens

    def prefix_mask(self) -> Tensor:
        """True at the prefix tokens, of shape (B, L)."""
        return prefix_mask(self.positions, self.prefix_positions)

    def prefix_tokens(self) -> Tensor:
        """The prefix tokens in sequence order, of shape (B, P, D)."""
        if not self.is_pruned:
            return torch.stack([self.hidden[:, p] for p in self.prefix_positions], dim=1)
        columns = [(self.positions == p).to(torch.uint8).argmax(1) for p in self.prefix_positions]
        return take(self.hidden, torch.stack(columns, dim=1))


def prefix_mask(positions_BL: Tensor, prefix_positions: tuple[int, ...]) -> Tensor:
    """True where a token is a prefix token, of shape (B, L)."""
    mask = torch.zeros_like(positions_BL, dtype=torch.bool)
    for position in prefix_positions:
        mask = mask | (positions_BL == position)
    return mask


def take(values: Tensor, indices_BM: Tensor) -> Tensor:
    """The rows of `values`, (B, L) or (B, L, D), at each image's own indices."""
    if values.dim() == 2:
        return values.gather(1, indices_BM)
    return values.gather(1, indices_BM[..., None].expand(-1, -1, values.shape[2]))
