"""Dropping: tokens of low importance leave for good after a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ssmprune.measure.rows import FlopRow
from ssmprune.pruning.reduction import TokenStep
from ssmprune.pruning.scorers import Features, find_scorer, sort_flops
from ssmprune.stage import Alignment, Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from ssmprune.pruning.block import BlockOutput, BlockShape
    from ssmprune.tokens import TokenStream


@dataclass(frozen=True)
class DropStep(TokenStep):
    """Tokens leave for good after a block.

    Attributes:
        keep_count: Tokens kept per image, prefix tokens included.
        scorer: The rule that chooses them.
        alignment: The policy's.
    """

    keep_count: int
    scorer: Scorer
    alignment: Alignment = field(default_factory=Alignment)

    def select(self, features: Features) -> Tensor:
        """Ascending indices of the tokens that stay, (B, keep_count)."""
        from ssmprune.pruning.select import select_tokens

        seeded = replace(features, seed=self.scorer.seed)
        scores = find_scorer(self.scorer.name).score(seeded)
        return select_tokens(scores, self.keep_count, features.prefix)

    def reduce(self, stream: TokenStream, block: BlockOutput) -> TokenStream:
        from ssmprune.tokens import take

        kept = self.select(block.features)
        left = stream.keep(kept, block.features.layer)
        projected = block.out_proj(take(block.gated, kept))
        return left.with_hidden(block.added(left.hidden, projected))

    def projected(self, L: int) -> int:
        return self.keep_count

    def rows(self, part: str, shape: BlockShape) -> Iterator[FlopRow]:
        """No publication charges them."""
        L, kept = shape.L, self.keep_count
        score = find_scorer(self.scorer.name).flops(L, shape.E, shape.K)
        yield FlopRow(part, "score", score, 0)
        yield FlopRow(part, "sort", sort_flops(L) + sort_flops(kept), 0)
        yield FlopRow(part, "gather", kept * (shape.E + shape.D + shape.placed), 0)
        if shape.tracked:
            yield FlopRow(part, "scatter", kept, 0)
            yield FlopRow(part, "gather", shape.positions, 0)
