"""The tokens of a batch on their way through a backbone, and where each of them came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Reduced(NamedTuple):
    """What a stage left.

    Attributes:
        layer: The block after which it stands.
        positions: Of the tokens that were left, (B, M).
        members: Which of them each position of the unpruned sequence is in, (B, num_tokens), -1
            where it left for good; None where no token had been merged.
        similarity: Cosine of each token that joined another and that one, (B, R); None of a stage
            that merges nothing.
    """

    layer: int
    positions: Tensor
    members: Tensor | None = None
    similarity: Tensor | None = None


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
        trail: What each stage left.
        members: The token that each position of the unpruned sequence is in, as an index into
            `hidden`, (B, num_tokens), -1 where it left for good; None while none is merged.
    """

    hidden: Tensor
    positions: Tensor
    grid: tuple[int, int]
    prefix_positions: tuple[int, ...]
    whole: Tensor | None = None
    trail: tuple[Reduced, ...] = ()
    members: Tensor | None = None

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
        return replace(self, hidden=hidden)

    def keep(self, kept_BM: Tensor, layer: int) -> TokenStream:
        """The tokens at ascending indices; the others leave for good after block `layer`."""
        members = self.members
        if members is not None:
            count = torch.arange(kept_BM.shape[1], device=kept_BM.device).expand(kept_BM.shape)
            members = moved(members, torch.full_like(self.positions, -1).scatter(1, kept_BM, count))
        return self._left(take(self.hidden, kept_BM), kept_BM, members, layer)

    def merge(
        self,
        sources_BR: Tensor,
        targets_BR: Tensor,
        similarity_BR: Tensor,
        by_size: bool,
        layer: int,
    ) -> TokenStream:
        """Tokens that join others, which become the mean of all of them where they stand.

        Args:
            sources_BR: Indices of the tokens that join others.
            targets_BR: Index of the one that each joins; -1 where it leaves for good.
            similarity_BR: Of those that do join one, for the record.
            by_size: Whether a token counts in the mean by the positions that it stands for.
            layer: The block after which they do.
        """
        gone = torch.zeros_like(self.positions).scatter(1, sources_BR, 1)
        length, count = self.positions.shape[1], sources_BR.shape[1]
        places = torch.arange(length, device=gone.device)
        kept = (places + gone * length).sort(dim=1).values[:, : length - count]
        joins = (kept[:, :, None] == targets_BR[:, None, :]).to(self.hidden.dtype)  # (B, M, R)
        own: Tensor | float = 1.0
        if by_size and self.members is not None:
            sizes = self.sizes(self.hidden.dtype)
            own, joins = take(sizes, kept), joins * take(sizes, sources_BR)[:, None]
        total = own + joins.sum(-1)
        joins = joins / total[..., None]
        hidden = take(self.hidden, kept) * (own / total)[..., None]
        hidden = hidden + joins @ take(self.hidden, sources_BR)
        rank = (1 - gone).cumsum(1) - 1
        joined = rank.gather(1, targets_BR.clamp(min=0)).masked_fill(targets_BR < 0, -1)
        members = moved(self._members(), rank.scatter(1, sources_BR, joined))
        return self._left(hidden, kept, members, layer, similarity_BR)

    def _left(
        self,
        hidden: Tensor,
        kept_BM: Tensor,
        members: Tensor | None,
        layer: int,
        similarity: Tensor | None = None,
    ) -> TokenStream:
        positions = take(self.positions, kept_BM)
        return replace(
            self,
            hidden=hidden,
            positions=positions,
            whole=None if self.whole is None else self._filled(self.whole),
            trail=(*self.trail, Reduced(layer, positions, members, similarity)),
            members=members,
        )

    def _members(self) -> Tensor:
        """`members`, where no token has been merged too."""
        return members_of(self.positions, self.num_tokens) if self.members is None else self.members

    def _filled(self, whole: Tensor) -> Tensor:
        """`whole` with the value of each token at every position that it stands for."""
        if self.members is None:
            return put(self.hidden, self.positions, whole)
        dtype = torch.promote_types(self.hidden.dtype, whole.dtype)
        values = take(self.hidden, self.members.clamp(min=0)).to(dtype)
        return torch.where(self.members[..., None] < 0, whole.to(dtype), values)

    def sizes(self, dtype: torch.dtype) -> Tensor:
        """How many positions each token stands for, (B, L)."""
        return sizes(self._members(), self.hidden.shape[1]).to(dtype)

    def left_after(self, layer: int) -> Reduced:
        """What the stage of a block left.

        Raises:
            StopIteration: There is no stage.
        """
        return next(left for left in self.trail if left.layer == layer)

    def restored(self) -> TokenStream:
        """With a token at every position, where the stream remembers those that have left.

        A position has the value of the token that it is in.
        """
        if self.whole is None or not self.trail:
            return self
        return TokenStream.begin(self._filled(self.whole), self.grid, self.prefix_positions)

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
        return take(self.hidden, torch.stack(self.prefix_columns(), dim=1))

    def prefix_columns(self) -> list[Tensor]:
        """Index of each prefix token in sequence order, (B,) each."""
        return [(self.positions == p).to(torch.uint8).argmax(1) for p in self.prefix_positions]

    def patch_order(self) -> Tensor:
        """Ascending indices of the patch tokens, (B, P)."""
        patches = self.positions.shape[1] - len(self.prefix_positions)
        order = torch.arange(patches, device=self.positions.device).expand(len(self.positions), -1)
        for column in self.prefix_columns():
            order = order + (order >= column[:, None])
        return order

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


def members_of(positions_BL: Tensor, num_tokens: int) -> Tensor:
    """The token at each position of the unpruned sequence, -1 where there is none, (B, num_tokens).

    Each token stands for its own position alone.
    """
    index = torch.arange(positions_BL.shape[1], device=positions_BL.device)
    none = positions_BL.new_full((len(positions_BL), num_tokens), -1)
    return none.scatter(1, positions_BL, index.expand(positions_BL.shape))


def sizes(members_BT: Tensor, tokens: int) -> Tensor:
    """How many positions are in each of the tokens, (B, tokens) int64."""
    index = torch.arange(tokens, device=members_BT.device)
    return (members_BT[:, None, :] == index[:, None]).sum(-1)


def moved(members_BT: Tensor, now_BL: Tensor) -> Tensor:
    """Members by new indices, given that of each token; -1 where it has left, (B, num_tokens)."""
    now = now_BL.gather(1, members_BT.clamp(min=0))
    return now.masked_fill(members_BT < 0, -1)


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
