"""A policy as numbers, known before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Policy
from ssmprune.pruning.alignment import decays
from ssmprune.pruning.scorers import scorers
from ssmprune_search.candidate.cost import Cost
from ssmprune_search.candidate.pareto import pruning_key

SQRT2 = 2**0.5  # so that two scorers, or two decays, are 1 apart


@dataclass(frozen=True)
class Encoding:
    """An encoded policy.

    Attributes:
        key: Equal for policies that prune alike.
        cost: What the policy costs.
        point: Where the policy lies for a surrogate, (features,).
    """

    key: str
    cost: Cost
    point: NDArray[np.float64]

    @classmethod
    def of(cls, policy: Policy, config: ModelConfig) -> Encoding:
        """Encode a policy for the model that `config` describes."""
        cost = Cost.of(policy, config)
        logs = np.log(np.divide(cost.tokens, config.block_tokens))
        stages = policy.effective_stages(config)
        names = sorted(scorers.names())
        chosen = [policy.stage_scorer(stage).name for stage, _ in stages]
        alignment = policy.alignment
        return cls(
            encoding_key(policy),
            cost,
            np.concatenate(
                [
                    3 * logs / np.sqrt(len(logs)),
                    [chosen.count(s) / max(1, len(stages)) / SQRT2 for s in names],
                    [(alignment.decay == decay) / SQRT2 for decay in decays.names()],
                    [alignment.strength * (alignment.decay != "none")],
                    [alignment.conv != "compact"],
                ]
            ),
        )


def encoding_key(policy: Policy) -> str:
    """The `key` of a policy's encoding, without the rest of it."""
    return repr(pruning_key(policy))
