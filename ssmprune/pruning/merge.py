"""Merging: tokens join others that are like them, and leave after a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmprune.measure.rows import FlopRow
from ssmprune.pruning.matching import Choice, Match
from ssmprune.pruning.metrics import METRICS
from ssmprune.pruning.reduction import TokenStep
from ssmprune.pruning.scorers import sort_flops
from ssmprune.stage import Alignment, Merge, Scorer

if TYPE_CHECKING:
    from torch import Tensor

    from ssmprune.pruning.block import BlockOutput, BlockShape
    from ssmprune.tokens import TokenStream


@dataclass(frozen=True)
class MergeStep(TokenStep):
    """Tokens join others after a block.

    A token that others have joined is the mean of all of them, where it stood.

    Attributes:
        keep_count: Tokens left per image, prefix tokens included.
        match: Finds those that leave, and whom they join.
        settings: The policy's settings of merging.
        scorer: Of the stage, for a match that asks for scores.
        alignment: The policy's.
    """

    keep_count: int
    match: Match
    settings: Merge
    scorer: Scorer
    alignment: Alignment
    merges = True

    @property
    def asks_sizes(self) -> bool:  # type: ignore[override]
        return self.settings.weight == "size"

    def reduce(self, stream: TokenStream, block: BlockOutput) -> TokenStream:
        import torch

        after = stream.with_hidden(block.added(stream.hidden, block.projected))
        with torch.autocast(stream.hidden.device.type, enabled=False):  # similarities in float32
            described = METRICS[self.settings.metric].of(block, after.hidden)
            choice = Choice(after, block.features, _unit(described), self.settings, self.scorer)
            pairs = self.match.pairs(choice, stream.positions.shape[1] - self.keep_count)
            return after.merge(*pairs, self.asks_sizes, block.features.layer)

    def projected(self, L: int) -> int:
        return L

    def rows(self, part: str, shape: BlockShape) -> Iterator[FlopRow]:
        """The similarities are charged on both rules, as R-MeeTo's publication does."""
        L, M, T = shape.L, self.keep_count, shape.positions
        count, width = L - M, METRICS[self.settings.metric].width(shape)
        yield FlopRow(part, "score", L * width + M * count, 0)
        yield from self.match.rows(part, shape, width, count, self.settings, self.scorer)
        yield FlopRow(part, "sort", sort_flops(L), 0)
        yield FlopRow(part, "match", M * count * shape.D, M * count * shape.D)
        yield FlopRow(part, "gather", L * shape.D + shape.placed * M, 0)
        yield FlopRow(part, "scatter", count, 0)
        if self.asks_sizes and shape.merged:
            yield FlopRow(part, "score", L * T, 0)
            yield FlopRow(part, "gather", L, 0)
        if shape.tracked:
            yield FlopRow(part, "score", L, 0)
            yield FlopRow(part, "gather", count + T, 0)
            yield FlopRow(part, "scatter", count + (0 if shape.merged else L), 0)


def _unit(described: Tensor) -> Tensor:
    """Rows of length 1, in float32 at least, (B, L, C)."""
    import torch

    wide = described.to(torch.promote_types(described.dtype, torch.float32))
    return wide / wide.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-12)
