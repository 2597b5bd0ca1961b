"""The portfolio credits samplers with hypervolume, and prefers those that have earned it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmprune_search.study.portfolio import ARMS, EXPLORED, WINDOW, choose, earned


def area(points: list[tuple[int, int]], reference: tuple[int, int]) -> int:
    """Unit squares below the reference that a point dominates."""
    return sum(
        any(x <= i and y <= j for x, y in points)
        for i in range(reference[0])
        for j in range(reference[1])
    )


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8), st.integers(1, 8))
def test_earned_is_the_growth_of_the_dominated_area(
    points: list[tuple[int, int]], last: int
) -> None:
    losses = np.array(points, float).reshape(len(points), 2)
    reference = tuple(int(worst) for worst in losses.max(axis=0)) if points else (0, 0)
    growth = [
        area(points[: n + 1], reference) - area(points[:n], reference)  # type: ignore[arg-type]
        for n in range(len(points))
    ]
    assert earned(losses, last) == pytest.approx(growth[-last:])


def test_proposal_that_does_not_count_earns_nothing() -> None:
    losses = np.array([[1, 3], [np.inf, np.inf], [3, 1], [2, 2], [3, 3]], float)
    assert earned(losses, 3) == [0.0, 1.0, 0.0]
    assert earned(losses[1:2], 3) == [0.0]


def shares(arms: list[str | None], losses: np.ndarray) -> dict[str, float]:
    chosen = Counter(choose(arms, losses, 0, proposal) for proposal in range(400))
    return {arm: chosen[arm] / 400 for arm in ARMS}


def test_arm_that_earned_everything_gets_all_but_the_explored_share() -> None:
    steps = np.arange(WINDOW, dtype=float)
    losses = np.column_stack([100 - steps, steps])  # each point adds to the area
    losses[1::2] = np.inf
    arms: list[str | None] = [
        ARMS[0] if n % 2 == 0 else ARMS[1 + n // 2 % (len(ARMS) - 1)] for n in range(WINDOW)
    ]
    found = shares(arms, losses)
    assert found[ARMS[0]] == pytest.approx(1 - EXPLORED * (1 - 1 / len(ARMS)), abs=0.04)
    for arm in ARMS[1:]:
        assert found[arm] == pytest.approx(EXPLORED / len(ARMS), abs=0.03)


def test_shares_follow_the_squared_credit() -> None:
    losses = np.array([[9, 9], [0, 8], [8, 5]], float)  # the second adds 9, the third 3
    found = shares([None, ARMS[0], ARMS[1]], losses)
    expected = EXPLORED / 2 + (1 - EXPLORED) * 81 / (81 + 9)
    assert found[ARMS[0]] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("arms", [[], [None], ["tpe"]])
def test_arms_are_equal_before_any_has_earned_more(arms: list[str | None]) -> None:
    found = shares(arms, np.ones((len(arms), 2)))
    assert all(share == pytest.approx(1 / len(ARMS), abs=0.06) for share in found.values())


def test_choice_follows_from_history_seed_and_proposal() -> None:
    losses = np.ones((1, 2))
    picks = [[choose(["tpe"], losses, seed, n) for n in range(50)] for seed in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]
