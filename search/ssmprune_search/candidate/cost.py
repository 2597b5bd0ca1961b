"""What a policy costs, known before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssmprune.measure.flops import count_flops
from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Policy
from ssmprune_search.candidate.objective import OBJECTIVES


@dataclass(frozen=True)
class Cost:
    """The cost of a policy.

    Attributes:
        flops: Multiply-adds for one image.
        tokens: Tokens that each block scans.
    """

    flops: int
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, policy: Policy, config: ModelConfig) -> Cost:
        """The cost of a policy on the model that `config` describes."""
        return cls(count_flops(config, policy).flops, policy.entering_tokens(config))

    def is_within(self, other: Cost, objectives: Sequence[str]) -> bool:
        """Whether this costs no more than `other`.

        No more FLOPs; where an objective goes by tokens, as latency does, also no more of them in
        any block.
        """
        if self.flops > other.flops:
            return False
        pairs = zip(self.tokens, other.tokens, strict=True)
        by_tokens = any(OBJECTIVES[name].by_tokens for name in objectives)
        return not by_tokens or all(mine <= theirs for mine, theirs in pairs)
