"""The tokens of a batch on their way through a backbone, and where each of them came from."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenStream:
    """Tokens in sequence order; every image of the batch holds the same number.

    Attributes:
        hidden: Values of shape (B, L, D).
        positions: Ascending positions in the unpruned sequence, (B, L) int64.
        grid: H and W of the unpruned patch tokens.
        prefix_positions: Positions of the tokens that always stay, such as the class token's.
        whole: The value that each token of the unpruned sequence had when it was last in the
            stream, (B, num_tokens, D); None where nobody asks for tokens that have left.
        trail: Blocks after which tokens left, and the positions of those that stayed, (B, M).
    """

    hidden: Tensor
    positions: Tensor
    grid: tuple[int, int]
    prefix_positions: tuple[int, ...]
    whole: Tensor | None = None
    trail: tuple[tuple[int, Tensor], ...] = ()

    @classmethod
    def begin(
        cls,
        hidden: Tensor,
        grid: tuple[int, int],
        prefix_positions: tuple[int, ...],
        restore: bool = False,
    ) -> TokenStream:
        """An unpruned stream, (B, L, D); with `restore` it remembers the tokens that leave."""
        positions = torch.arange(hidden.shape[1], device=hidden.device).expand(len(hidden), -1)
        whole = hidden if restore else None
        return cls(hidden, positions, grid, prefix_positions, whole)

    def with_hidden(self, hidden: Tensor) -> TokenStream:
        """The same tokens with other values, (B, L, D)."""
        return TokenStream(
            hidden, self.positions, self.grid, self.prefix_positions, self.whole, self.trail
        )

    def keep(self, kept_BM: Tensor, layer: int) -> TokenStream:
        """The tokens at ascending indices; the others leave after block `layer`."""
        whole = None if self.whole is None else put(self.hidden, self.positions, self.whole)
        positions = take(self.positions, kept_BM)
        return TokenStream(
            take(self.hidden, kept_BM),
            positions,
            self.grid,
            self.prefix_positions,
            whole,
            (*self.trail, (layer, positions)),
        )

    def restored(self) -> TokenStream:
        """With the tokens that have left at their places, where the stream remembers them."""
        if self.whole is None or not self.trail:
            return self
        hidden = put(self.hidden, self.positions, self.whole)
        return TokenStream.begin(hidden, self.grid, self.prefix_positions)

    @property
    def num_tokens(self) -> int:
        """Length of the unpruned sequence."""
        return self.grid[0] * self.grid[1] + len(self.prefix_positions)

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

    def patch_grid(self) -> Tensor:
        """The patch tokens of an unpruned stream on their grid, of shape (B, H, W, D)."""
        ends = [-1, *self.prefix_positions, self.num_tokens]
        spans = [self.hidden[:, a + 1 : b] for a, b in pairwise(ends)]
        return torch.cat(spans, dim=1).reshape(len(self.hidden), *self.grid, -1)


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
    first_B1 = torch.arange(0, values.shape[0] * values.shape[1], values.shape[1])[:, None]
    rows = (indices_BM + first_B1.to(indices_BM.device)).flatten()
    return values.flatten(0, 1).index_select(0, rows).view(*indices_BM.shape, -1)


def put(values: Tensor, positions_BM: Tensor, whole: Tensor) -> Tensor:
    """A copy of `whole`, (B, L, D), with the rows of `values`, (B, M, D), at their positions.

    It has the wider type of the two: under autocast a block may hand on another one than it got.
    """
    dtype = torch.promote_types(values.dtype, whole.dtype)
    indices = positions_BM[..., None].expand(-1, -1, whole.shape[2])
    return whole.to(dtype).scatter(1, indices, values.to(dtype))
