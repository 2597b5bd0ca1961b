"""Dropping: tokens of low importance leave for good after a block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ssmprune.faults import Fault, Location
from ssmprune.measure.rows import FlopRow
from ssmprune.models.configs import ModelConfig
from ssmprune.pruning.reduction import Reduction, Step, TokenStep
from ssmprune.pruning.scorers import Features, find_scorer, sort_flops
from ssmprune.stage import Scorer, Stage, conv_fault, scorer_fault

if TYPE_CHECKING:
    from torch import Tensor

    from ssmprune.policy import Policy
    from ssmprune.tokens import TokenStream


@dataclass(frozen=True)
class DropStep(TokenStep):
    """Tokens leave after a block.

    Attributes:
        keep_count: Tokens kept per image, prefix tokens included.
        scorer: The rule that chooses them.
    """

    keep_count: int
    scorer: Scorer

    def select(self, features: Features) -> Tensor:
        """Ascending indices of the tokens that stay, (B, keep_count)."""
        from ssmprune.pruning.select import select_tokens

        seeded = replace(features, seed=self.scorer.seed)
        scores = find_scorer(self.scorer.name).score(seeded)
        return select_tokens(scores, self.keep_count, features.prefix)

    def reduce(
        self, stream: TokenStream, update: Tensor, features: Features
    ) -> tuple[TokenStream, Tensor]:
        from ssmprune.tokens import take

        kept = self.select(features)
        return stream.keep(kept, features.layer), take(update, kept)

    def rows(self, part: str, L: int, E: int, K: int, moved: int) -> Iterator[FlopRow]:
        """No publication charges them."""
        kept = self.keep_count
        yield FlopRow(part, "score", find_scorer(self.scorer.name).flops(L, E, K), 0)
        yield FlopRow(part, "sort", sort_flops(L) + sort_flops(kept), 0)
        yield FlopRow(part, "gather", kept * moved, 0)

    def mask(self, layer: int, stream: TokenStream, config: ModelConfig) -> Tensor:
        import torch

        from ssmprune.tokens import TokenStream

        positions = dict(stream.trail)[layer]
        everywhere = torch.zeros(len(positions), config.num_tokens, dtype=torch.bool)
        mask = everywhere.scatter(1, positions.cpu(), True)[..., None]
        whole = TokenStream.begin(mask, config.grid, config.prefix_positions)
        return whole.patch_grid()[..., 0]


class Drop(Reduction):
    """Tokens leave for good."""

    name = "tokens"
    summary = "tokens leave for good"
    does = "tokens leave for good"
    verb = "kept"
    where = "left after"
    scores = True
    compounds = True

    def fits(self, config: ModelConfig) -> bool:
        return config.prunable

    def faults(
        self, data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
    ) -> Iterator[Fault]:
        if not stages:
            return
        if not self.fits(config):
            yield Fault(
                f"reduction must be grid for {config.name}, which needs whole grids between its "
                "blocks, got tokens",
                "write `reduction: grid`",
                ("reduction",),
            )
            return
        yield from _count_faults(stages, config.num_patches)
        yield from _choice_faults(data, stages, config)

    def counts(self, stages: Sequence[Stage], config: ModelConfig) -> Iterator[tuple[int, int]]:
        tokens = config.num_patches
        for stage in stages:
            entering, tokens = tokens, stage.keep(tokens)
            yield entering, tokens

    def scanned(self, stages: Sequence[tuple[Stage, int]], config: ModelConfig) -> tuple[int, ...]:
        scanned = list(config.block_tokens)
        for stage, kept in stages:
            left = kept + len(config.prefix_positions)
            scanned[stage.layer + 1 :] = [left] * (config.depth - stage.layer)
        return tuple(scanned)

    def steps(self, policy: Policy, config: ModelConfig) -> Mapping[int, Step]:
        prefix = len(config.prefix_positions)
        return {
            stage.layer: DropStep(kept + prefix, policy.stage_scorer(stage))
            for stage, kept in policy.effective_stages(config)
        }


def _count_faults(stages: Sequence[Any], tokens: int) -> Iterator[Fault]:
    for index, stage in enumerate(stages):
        try:
            kept = Stage.model_validate(stage).keep(tokens)
        except ValidationError:
            continue
        if kept > tokens:
            yield Fault(
                f"keep_count must not exceed the {tokens} patch tokens that enter the stage, "
                f"got {kept}",
                "lower it",
                ("stages", index),
            )
        tokens = min(tokens, kept)


def _choice_faults(
    data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
) -> Iterator[Fault]:
    parts: list[tuple[Location, Any]] = [((), data)]
    parts += [(("stages", index), stage) for index, stage in enumerate(stages)]
    for place, part in parts:
        scorer = part.get("scorer") if isinstance(part, Mapping) else None
        name = scorer.get("name") if isinstance(scorer, Mapping) else None
        fault = scorer_fault(name, config) if isinstance(name, str) else None
        if fault:
            yield replace(fault, location=(*place, "scorer", "name"))
    alignment = data.get("alignment", {})
    if isinstance(alignment, Mapping):
        fault = conv_fault(alignment.get("conv", "compact"), config)
        if fault:
            yield replace(fault, location=("alignment", "conv"))
