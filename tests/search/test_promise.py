"""The candidate that goes on is the one that brute force finds to promise most hypervolume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.promise import Paused, most_promising
from search.racing import Cost, Rival, estimate_top1
from search.synthetic import SyntheticEvaluator
from ssmprune import Policy

FIGURES = SyntheticEvaluator("vim_nano", "search")(Policy(model="vim_nano", stages=()))
IMAGES, DENSE = 8, 10

bits = st.lists(st.booleans(), min_size=IMAGES, max_size=IMAGES).map(np.array)
costs = st.integers(1, DENSE).map(lambda flops: Cost(flops, (1,)))
rivals = st.lists(st.tuples(costs, bits), max_size=5).map(
    lambda found: [
        Rival(n, cost, replace(FIGURES, top1=100 * float(correct.mean())), correct)
        for n, (cost, correct) in enumerate(found)
    ]
)
paused = st.lists(
    st.tuples(costs, bits).map(lambda pair: Paused(pair[0], pair[1][: IMAGES // 2])),
    min_size=1,
    max_size=5,
).map(lambda found: {10 + n: one for n, one in enumerate(found)})


def area(points: list[tuple[int, float]]) -> float:
    """Of what the points dominate: for each FLOPs up to the dense model's the best top1 within."""
    return sum(
        max((top1 for flops, top1 in points if flops <= column), default=0.0)
        for column in range(DENSE)
    )


@given(paused, rivals)
def test_most_promising_adds_most_hypervolume(
    waiting: dict[int, Paused], evaluated: list[Rival]
) -> None:
    points = [(rival.cost.flops, rival.search.top1) for rival in evaluated]
    areas = {
        trial: area([*points, (one.cost.flops, estimate_top1(one.seen, evaluated))])
        for trial, one in waiting.items()
    }
    found = most_promising(waiting, evaluated, DENSE)
    assert areas[found] >= max(areas.values()) - 1e-9
