"""A policy as numbers, known before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Policy
from ssmprune.pruning.alignment import decays
from ssmprune.pruning.matching import MATCHES
from ssmprune.pruning.metrics import METRICS
from ssmprune.pruning.scorers import scorers
from ssmprune.stage import Merge, Stage
from ssmprune_search.candidate.cost import Cost
from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.candidate.stages import (
    asks_scorer,
    counting_alignment,
    counting_merge,
    word,
)

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
        stages = [stage for stage, _ in policy.effective_stages(config)]
        alignment = counting_alignment(stages, policy.alignment, config)
        words = [word(stage) for stage in stages]
        chosen = [policy.stage_scorer(stage).name for stage in stages if asks_scorer(stage)]
        return cls(
            encoding_key(policy),
            cost,
            np.concatenate(
                [
                    3 * logs / np.sqrt(len(logs)),
                    _shares(chosen, sorted(scorers.names()), len(stages)),
                    [(alignment.decay == decay) / SQRT2 for decay in decays.names()],
                    [alignment.strength * (alignment.decay != "none")],
                    [alignment.conv == "position"],
                    [alignment.conv == "runs"],
                    [alignment.sizes == sizes for sizes in ("scaled", "exact")],
                    3 * _merged(logs, stages) / np.sqrt(len(logs)),
                    _shares(words, MATCHES, len(stages)),
                    _merge_features(counting_merge(stages, policy.merge, config), policy.merges),
                ]
            ),
        )


def _shares(chosen: Sequence[str], names: Iterable[str], stages: int) -> list[float]:
    """The share of the stages that has chosen each name."""
    return [chosen.count(name) / max(1, stages) / SQRT2 for name in names]


def _merged(logs: NDArray[np.float64], stages: Sequence[Stage]) -> NDArray[np.float64]:
    """Of the logarithms of the shares of tokens in each block, what is due to merging."""
    found = np.zeros_like(logs)
    for stage in stages:
        if stage.reduce == "merge":
            found[stage.layer + 1 :] += logs[stage.layer + 1] - logs[stage.layer]
    return found


def _merge_features(merge: Merge, merges: bool) -> list[float]:
    return [
        *(merges * (merge.metric == metric) / SQRT2 for metric in METRICS),
        float(merge.weight == "equal"),
        np.log1p(merge.protect) / 2,
        merge.untouched,
        float(merge.fate == "half"),
    ]


def encoding_key(policy: Policy) -> str:
    """The `key` of a policy's encoding, without the rest of it."""
    return repr(pruning_key(policy))
