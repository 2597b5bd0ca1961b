"""What a policy has a block do: the tokens that leave after it, or the cells that it scans.

Each step says what it does to the tokens, what that costs, and which patches it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmprune.measure.rows import FlopRow
from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Scorer, Stage
from ssmprune.pruning.scorers import Features, find_scorer, sort_flops

if TYPE_CHECKING:  # a policy's FLOPs need the counts alone
    from torch import Tensor

    from ssmprune.pruning.grid import Subset
    from ssmprune.tokens import TokenStream


@dataclass(frozen=True)
class DropStep:
    """Tokens of low importance leave for good after a block.

    Attributes:
        keep_count: Tokens kept per image, prefix tokens included.
        scorer: The rule that chooses them.
    """

    keep_count: int
    scorer: Scorer

    def select(self, features: Features) -> Tensor:
        """Ascending indices of the tokens that stay, (B, keep_count)."""
        from ssmprune.pruning.select import select_tokens

        scores = find_scorer(self.scorer.name).score(features)
        return select_tokens(scores, self.keep_count, features.prefix)

    def reduce(
        self, stream: TokenStream, update: Tensor, features: Features
    ) -> tuple[TokenStream, Tensor]:
        """The tokens that stay, and what the block adds to them.

        Args:
            stream: The tokens that entered the block, (B, L, D).
            update: What the block adds, before its output projection, (B, L, E).
            features: What the block computed.
        """
        from ssmprune.tokens import take

        kept = self.select(features)
        return stream.keep(kept, features.layer), take(update, kept)

    def rows(self, part: str, L: int, E: int, K: int, moved: int) -> Iterator[FlopRow]:
        """FLOPs of one image beside the block's own; no publication charges them.

        Args:
            part: The block.
            L: Tokens that enter it.
            E: Its inner width.
            K: Its scan directions.
            moved: Elements that are gathered for each token that stays.
        """
        kept = self.keep_count
        yield FlopRow(part, "score", find_scorer(self.scorer.name).flops(L, E, K), 0)
        yield FlopRow(part, "sort", sort_flops(L) + sort_flops(kept), 0)
        yield FlopRow(part, "gather", kept * moved, 0)

    def mask(self, layer: int, stream: TokenStream, config: ModelConfig) -> Tensor:
        """True at the patches that are left after block `layer`, (B, H, W).

        Args:
            stream: What the model has returned.
        """
        import torch

        from ssmprune.tokens import TokenStream

        positions = dict(stream.trail)[layer]
        everywhere = torch.zeros(len(positions), config.num_tokens, dtype=torch.bool)
        mask = everywhere.scatter(1, positions.cpu(), True)[..., None]
        whole = TokenStream.begin(mask, config.grid, config.prefix_positions)
        return whole.patch_grid()[..., 0]


@dataclass(frozen=True)
class GridStep:
    """A block scans a regular subset of its rows and columns; no token leaves.

    Attributes:
        stage: The share of the cells.
    """

    stage: Stage

    def subset(self, x: Tensor) -> Subset:
        """The cells that are scanned of x, of shape (B, H, W, E)."""
        from ssmprune.pruning.grid import Subset

        return Subset.of(self.stage, x)

    def scanned(self, grid: tuple[int, int]) -> int:
        """Cells that are scanned of a grid of H and W."""
        return math.prod(self.stage.keep_grid(*grid))

    def mask(self, layer: int, stream: TokenStream, config: ModelConfig) -> Tensor:
        """True at the cells that block `layer` scans, (B, H, W)."""
        import torch

        from ssmprune.pruning.grid import line_groups

        height, width = config.block_grids[layer]
        rows, columns = self.stage.keep_grid(height, width)
        kept_rows = torch.tensor(line_groups(height, rows)[0])
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[kept_rows[:, None], line_groups(width, columns)[0]] = True
        return mask.expand(len(stream.hidden), -1, -1)


Step = DropStep | GridStep
