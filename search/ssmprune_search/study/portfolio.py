"""Which sampler proposes next: the more hypervolume one has earned of late, the more often.

Each of `ARMS` is credited with the hypervolume that its candidates have added to what had been
found before them, of the last `WINDOW` proposals. The next proposal is an arm's with a chance of
`EXPLORED` shared out equally, plus the rest shared out by the squared mean credit of a proposal; an
arm without a proposal in the window counts as the best one. GP is left out because one of its
proposals takes about a second after 50 candidates, the others because they find less, which
`python -m benchmarks racing` tells.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

ARMS = ("tpe", "ehvi")
WINDOW = 60
EXPLORED = 0.15


def choose(
    arms: Sequence[str | None], losses: NDArray[np.float64], seed: int, proposal: int
) -> str:
    """The arm of a proposal; it follows from the history, the seed and the proposal's number.

    Args:
        arms: Who made each earlier proposal, in order; None for one that was not an arm's.
        losses: Its objectives, all to be minimised, (proposals, objectives); infinite where the
            proposal does not count.
        seed: Seed of the search.
        proposal: Number of the proposal.
    """
    gains = earned(losses, WINDOW)
    credit = {
        arm: [gain for other, gain in zip(arms[-WINDOW:], gains, strict=True) if other == arm]
        for arm in ARMS
    }
    means = {arm: sum(gains) / len(gains) for arm, gains in credit.items() if gains}
    best = max(means.values(), default=1.0)
    weights = [means.get(arm, best) ** 2 for arm in ARMS]
    total = sum(weights)
    shares = [
        EXPLORED / len(ARMS) + (1 - EXPLORED) * (weight / total if total else 1 / len(ARMS))
        for weight in weights
    ]
    return random.Random(f"{seed} {proposal}").choices(ARMS, shares)[0]


def earned(losses: NDArray[np.float64], last: int) -> list[float]:
    """By how much each of the last points raised the hypervolume of all points before it.

    The reference is the worst finite value of each objective.

    Args:
        losses: (points, objectives), to be minimised; a point with an infinite value adds nothing.
        last: For how many of the points.
    """
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(losses).all(axis=1))
    if not finite.any():
        return [0.0] * min(last, len(losses))
    reference = losses[finite].max(axis=0)
    gains: list[float] = []
    start = max(0, len(losses) - last)
    kept = losses[:start][finite[:start]]
    before = _volume(kept, reference)
    for point, counts in zip(losses[start:], finite[start:], strict=True):
        if counts:
            kept = np.vstack([kept, point])
            kept = kept[moocore.is_nondominated(kept)]
        after = _volume(kept, reference) if counts else before
        gains.append(after - before)
        before = after
    return gains


def _volume(losses: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    return float(moocore.hypervolume(losses, ref=reference)) if len(losses) else 0.0
