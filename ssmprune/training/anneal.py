"""A policy whose keep ratios fall from 1 to their own while a model learns."""

from __future__ import annotations

from itertools import pairwise

from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Policy


def annealed(policy: Policy, progress: float, config: ModelConfig) -> Policy:
    """The policy on its way: every keep ratio r stands at 1 - progress * (1 - r).

    Args:
        policy: The policy to arrive at; an exact count goes by the ratio it comes to.
        progress: 0 keeps every token; from 1 on it is the policy itself.
        config: Of the model that the policy is for.
    """
    if progress >= 1:
        return policy
    ratios = [1 - progress * (1 - ratio) for ratio in _ratios(policy, config)]
    stages = tuple(
        stage.model_copy(update={"keep_ratio": ratio, "keep_count": None})
        for stage, ratio in zip(policy.stages, ratios, strict=True)
    )
    return policy.model_copy(update={"stages": stages})


def _ratios(policy: Policy, config: ModelConfig) -> list[float]:
    """Share of the tokens entering each stage that stay."""
    entering = pairwise([config.num_patches, *policy.keep_counts(config)])
    return [
        kept / before if stage.keep_ratio is None else stage.keep_ratio
        for stage, (before, kept) in zip(policy.stages, entering, strict=True)
    ]
