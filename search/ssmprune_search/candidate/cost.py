"""What a policy costs, known before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssmprune.measure.flops import count_flops
from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Policy


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

        No more FLOPs; where latency is an objective, also no more tokens in any block. Tokens stand
        for latency here, because measuring it would cost as much as it saves.
        """
        if "latency_ms" in objectives and any(
            mine > theirs for mine, theirs in zip(self.tokens, other.tokens, strict=True)
        ):
            return False
        return self.flops <= other.flops
