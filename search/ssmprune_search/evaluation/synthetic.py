"""A search problem that costs nothing and whose best front is known.

`top1` is 100 * sqrt(flops_ratio), less 40 times the spread (standard deviation) of the keep ratios
over the layers but the last, and less 5 points unless the scorer is l1. So no candidate lies above
100 * sqrt(flops_ratio), and the policies with l1 that keep the same share of tokens after each
layer lie on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import pstdev
from typing import Any

from ssmprune.measure.flops import count_flops
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.study.race import Race

IMAGES = 1000


def best_top1(flops_ratio: float) -> float:
    """The highest accuracy at a share of the dense model's FLOPs, in per cent."""
    return 100 * math.sqrt(flops_ratio)


@dataclass(frozen=True)
class SyntheticEvaluators:
    """Evaluators of the synthetic problem for one model."""

    model: str

    def identity(self) -> dict[str, Any]:
        return {"model": self.model, "checkpoint": "none", "data": "synthetic"}

    def open(
        self, split: str, threads: int, dense: Measurement | None = None
    ) -> SyntheticEvaluator:
        return SyntheticEvaluator(self.model, split)

    def with_half_batch(self) -> None:
        return None


@dataclass(frozen=True)
class SyntheticEvaluator:
    """Measures a policy by formula."""

    model: str
    split: str

    def __call__(self, policy: Policy, race: Race | None = None) -> Measurement:
        config = find_config(self.model)
        count, dense = count_flops(config, policy), count_flops(config).flops
        ratio = count.flops / dense
        kept = {stage.layer: stage.keep_ratio or 1.0 for stage in policy.stages}
        spread = pstdev(kept.get(layer, 1.0) for layer in range(config.depth - 1))
        loss = 40 * spread + (5 if policy.stages and policy.scorer.name != "l1" else 0)
        top1 = max(0.0, best_top1(ratio) - loss)
        return Measurement(
            split=self.split,
            top1=top1,
            top1_low=max(0.0, top1 - 1),
            top1_high=min(100.0, top1 + 1),
            images=IMAGES,
            flops=count.flops,
            flops_ratio=ratio,
            paper_flops=count.paper_flops,
            latency_ms=10 * ratio,
            latency_ratio=ratio,
            latency_ratio_low=ratio,
            latency_ratio_high=ratio,
            peak_memory_bytes=round(1e6 * ratio),
            peak_memory_ratio=ratio,
        )
