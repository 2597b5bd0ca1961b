"""Which of the candidates that have paused goes on: the one that promises most hypervolume.

Few images cost little and tell much, so many candidates are tried on them before one goes on: for
every `SCREENED` that have paused, one sees the rest of the images, and all of them do before the
search ends. Best first, the front soon has the members that matter, which also makes strong rivals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import moocore
import numpy as np

from search.racing import Bits, Cost, Rival, estimate_top1

SCREENED = 5
"""Candidates that pause for each that goes on."""


@dataclass(frozen=True)
class Paused:
    """A candidate that waits for the rest of the images.

    Attributes:
        cost: What its policy costs.
        seen: Whether it classifies an image rightly, (images seen,).
    """

    cost: Cost
    seen: Bits


def most_promising(paused: Mapping[int, Paused], rivals: Collection[Rival], flops: int) -> int:
    """The trial whose estimated top1 and FLOPs would add most hypervolume; of equals the first.

    Args:
        paused: At least one, by the numbers of their trials.
        rivals: The candidates that are fully evaluated.
        flops: Those of the dense model, which with 0 % top-1 is the reference.
    """
    known = np.array([_losses(r.search.top1, r.cost, flops) for r in rivals]).reshape(-1, 2)
    known = known[moocore.is_nondominated(known)] if len(known) else known

    def volume(trial: int) -> float:
        candidate = paused[trial]
        losses = _losses(estimate_top1(candidate.seen, rivals), candidate.cost, flops)
        return float(moocore.hypervolume(np.vstack([known, losses]), ref=np.ones(2)))

    return max(sorted(paused), key=volume)


def _losses(top1: float, cost: Cost, flops: int) -> tuple[float, float]:
    return 1 - top1 / 100, cost.flops / flops
