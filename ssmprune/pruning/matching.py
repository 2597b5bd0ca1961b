"""Which tokens a merge joins: its sources, and the target that each of them goes into.

Of equal similarities the earlier token is a source, and goes into the earlier target.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from ssmprune.measure.rows import FlopRow
from ssmprune.pruning.scorers import Features, find_scorer, sort_flops

if TYPE_CHECKING:  # a policy's FLOPs need the counts alone
    from torch import Tensor

    from ssmprune.pruning.block import BlockShape
    from ssmprune.stage import Merge, Scorer
    from ssmprune.tokens import TokenStream

_NO_PAIR = -2.0
"""Below every cosine."""


class Pairs(NamedTuple):
    """The pairs of a merge.

    Attributes:
        sources: Indices of the tokens that leave, (B, R).
        targets: Index of the token that each source goes into, (B, R); -1 where it leaves for good.
        similarity: Cosine of each source that joins another and its target.
    """

    sources: Tensor
    targets: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class Choice:
    """What a match chooses from, and by which rules.

    Attributes:
        stream: The tokens.
        features: What the block computed for them.
        unit: Their descriptions, of length 1, (B, L, C).
        settings: The policy's.
        scorer: The stage's.
    """

    stream: TokenStream
    features: Features
    unit: Tensor
    settings: Merge
    scorer: Scorer

    def near_prefix(self) -> Tensor:
        """True at the tokens within `protect` places of a prefix token, and there, (B, L)."""
        import torch

        places = torch.arange(self.unit.shape[1], device=self.unit.device)
        near = torch.zeros(self.unit.shape[:2], dtype=torch.bool, device=self.unit.device)
        for column in self.stream.prefix_columns():
            near = near | ((places - column[:, None]).abs() <= self.settings.protect)
        return near


class Match(ABC):
    """A rule that finds the pairs of a merge.

    Attributes:
        name: As policies and spaces call it.
        summary: For people, in a clause.
        scores: Whether the stage's scorer decides which tokens are sources.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    scores: ClassVar[bool] = False

    @abstractmethod
    def most(self, entering: int, protect: int, has_prefix: bool) -> int:
        """The most patch tokens of `entering` that it can merge in every image."""

    @abstractmethod
    def pairs(self, choice: Choice, count: int) -> Pairs:
        """`count` pairs in each image."""

    @abstractmethod
    def rows(
        self, part: str, shape: BlockShape, width: int, count: int, settings: Merge, scorer: Scorer
    ) -> Iterator[FlopRow]:
        """FLOPs of one image, for descriptions of a width."""


class _Halves(Match):
    """Every other patch token is a source; those with the most similar targets are merged."""

    def pairs(self, choice: Choice, count: int) -> Pairs:
        from ssmprune.pruning.select import descending
        from ssmprune.tokens import take

        order = choice.stream.patch_order()
        even, odd = order[:, 0::2], order[:, 1::2]
        targets, similarity = self._targets(choice, even, odd)
        strongest = descending(similarity)[:, :count]
        return Pairs(*(take(found, strongest) for found in (even, targets, similarity)))

    @abstractmethod
    def _targets(self, choice: Choice, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        """The best target of each even token and their similarity, (B, A) each."""

    def rows(
        self, part: str, shape: BlockShape, width: int, count: int, settings: Merge, scorer: Scorer
    ) -> Iterator[FlopRow]:
        patches = shape.L - shape.prefix
        even, odd = patches - patches // 2, patches // 2
        yield FlopRow(part, "gather", shape.prefix * shape.L + patches * width + 2 * count, 0)
        if shape.prefix and settings.protect:
            yield FlopRow(part, "gather", shape.prefix * shape.L, 0)
        yield FlopRow(part, "sort", sort_flops(even), 0)
        yield from self._target_rows(
            part, even, odd, width, bool(shape.prefix and settings.protect)
        )

    @abstractmethod
    def _target_rows(
        self, part: str, even: int, odd: int, width: int, protects: bool
    ) -> Iterator[FlopRow]: ...


class Alternate(_Halves):
    """Each even patch token may go into any odd one (ToMe, Bolya et al., arXiv 2210.09461)."""

    name = "alternate"
    summary = "every other patch into the most similar of the rest"

    def most(self, entering: int, protect: int, has_prefix: bool) -> int:
        lost = 2 * math.ceil(protect / 2) if has_prefix else 0
        return max(0, entering // 2 - lost)

    def _targets(self, choice: Choice, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        from ssmprune.tokens import take

        similarity = take(choice.unit, even) @ take(choice.unit, odd).transpose(1, 2)  # (B, A, A')
        if choice.settings.protect:
            near = choice.near_prefix()
            barred = take(near, even)[:, :, None] | take(near, odd)[:, None, :]
            similarity = similarity.masked_fill(barred, _NO_PAIR)
        best = similarity.argmax(2)
        return take(odd, best), similarity.gather(2, best[..., None])[..., 0]

    def _target_rows(
        self, part: str, even: int, odd: int, width: int, protects: bool
    ) -> Iterator[FlopRow]:
        yield FlopRow(part, "match", even * odd * width, even * odd * width)
        yield FlopRow(part, "gather", even * odd + 2 * even + protects * (even + odd), 0)


class Neighbors(_Halves):
    """Each even patch token may go into the odd one just before or behind it.

    After STM (arXiv 2509.22691). No pair reaches across a prefix token, so a merged token stands
    for patches in a row.
    """

    name = "neighbors"
    summary = "every other patch into the one before or behind it"

    def most(self, entering: int, protect: int, has_prefix: bool) -> int:
        return max(0, (entering - 2 * protect - 1) // 2 if has_prefix else entering // 2)

    def _targets(self, choice: Choice, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        import torch
        import torch.nn.functional as F

        from ssmprune.tokens import take

        # the odd token before each even one and the one behind it; -1 where there is none
        before = F.pad(odd, (1, 0), value=-1)[:, : even.shape[1]]
        behind = F.pad(odd, (0, even.shape[1] - odd.shape[1]), value=-1)
        both = torch.stack([before, behind], dim=2)  # (B, A, 2)
        sources, targets = take(choice.unit, even), take(choice.unit, odd)
        pairs = odd.shape[1]
        to_before = (sources[:, 1:] * targets[:, : even.shape[1] - 1]).sum(-1)
        to_behind = (sources[:, :pairs] * targets).sum(-1)
        similarity = torch.stack(
            [F.pad(to_before, (1, 0)), F.pad(to_behind, (0, even.shape[1] - pairs))], dim=2
        )
        across = (both - even[..., None]).abs() != 1  # a prefix token lies between them
        apart = across | (both < 0)
        if choice.settings.protect:
            near = choice.near_prefix()
            here, there = (take(near, found) for found in (even, both.flatten(1).clamp(min=0)))
            apart = apart | here[..., None] | there.view(both.shape)
        similarity = similarity.masked_fill(apart, _NO_PAIR)
        best = similarity.argmax(2)[..., None]
        return both.gather(2, best)[..., 0], similarity.gather(2, best)[..., 0]

    def _target_rows(
        self, part: str, even: int, odd: int, width: int, protects: bool
    ) -> Iterator[FlopRow]:
        yield FlopRow(part, "score", (odd + even - 1) * width, 0)
        yield FlopRow(part, "gather", 4 * even + protects * 3 * even, 0)


class ByScore(Match):
    """The patch tokens of the lowest scores go into the most similar of those that stay.

    After MTR (arXiv 2507.14042), which keeps those of the highest scores as they are (`untouched`),
    and UTR (Zhan et al., arXiv 2410.14725), which drops half of the sources (`fate: half`).
    """

    name = "score"
    summary = "the patches of the lowest scores into the most similar that stay"
    scores = True

    def most(self, entering: int, protect: int, has_prefix: bool) -> int:
        return max(0, entering - 1 - (2 * protect if has_prefix else 0))

    def pairs(self, choice: Choice, count: int) -> Pairs:
        import torch

        from ssmprune.pruning.select import descending
        from ssmprune.tokens import take

        features = replace(choice.features, seed=choice.scorer.seed)
        scores = find_scorer(choice.scorer.name).score(features)
        fixed = choice.near_prefix() if choice.settings.protect else features.prefix
        order = descending(scores.masked_fill(fixed, torch.inf))
        staying = order.shape[1] - count
        first = staying - self._targets(
            staying, len(choice.stream.prefix_positions), choice.settings
        )
        sources, targets = order[:, staying:], order[:, first:staying]
        similarity = take(choice.unit, sources) @ take(choice.unit, targets).transpose(1, 2)
        best = similarity.argmax(2)
        strength = similarity.gather(2, best[..., None])[..., 0]
        into = take(targets, best)
        if choice.settings.fate == "half":
            rank = descending(strength)
            half = math.ceil(count / 2)
            sources, into = take(sources, rank), take(into, rank)
            into = torch.where(torch.arange(count, device=rank.device) < half, into, -1)
            strength = take(strength, rank[:, :half])
        return Pairs(sources, into, strength)

    def _targets(self, staying: int, prefix: int, settings: Merge) -> int:
        """Of the tokens that stay, those that may be merged into."""
        free = staying - prefix - 2 * settings.protect * bool(prefix)
        return free - math.floor(settings.untouched * free)

    def rows(
        self, part: str, shape: BlockShape, width: int, count: int, settings: Merge, scorer: Scorer
    ) -> Iterator[FlopRow]:
        targets = self._targets(shape.L - count, shape.prefix, settings)
        yield FlopRow(part, "score", find_scorer(scorer.name).flops(shape.L, shape.E, shape.K), 0)
        yield FlopRow(part, "sort", sort_flops(shape.L), 0)
        yield FlopRow(part, "match", count * targets * width, count * targets * width)
        yield FlopRow(part, "gather", (count + targets) * width + count * targets + count, 0)
        if shape.prefix and settings.protect:
            yield FlopRow(part, "gather", shape.prefix * shape.L, 0)
        if settings.fate == "half":
            yield FlopRow(part, "sort", sort_flops(count), 0)
            yield FlopRow(part, "gather", 3 * count, 0)


MATCHES: dict[str, Match] = {match.name: match for match in (Alternate(), Neighbors(), ByScore())}
"""The first is the default."""


def find_match(name: str | None) -> Match:
    """The match of a stage; the default where it names none."""
    return MATCHES[name or next(iter(MATCHES))]
