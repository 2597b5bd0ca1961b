"""Expected improvement against brute force, and what a surrogate learns of real policies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.policy_table import PolicyTable
from ssmprune import Policy
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Scorer, Stage
from ssmprune_search.candidate.cost import Cost
from ssmprune_search.candidate.encoding import Encoding
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator
from ssmprune_search.study.acquisition import Acquisition, Seen, expected_improvement
from ssmprune_search.study.race import Incumbent
from ssmprune_search.study.surrogate import Surrogate, load

FIGURES = SyntheticEvaluator("vim_nano", "search")(Policy(model="vim_nano", stages=()))
COLUMNS = 10

shares = st.integers(0, COLUMNS).map(lambda n: n / COLUMNS)
percents = st.floats(0, 100)
fronts = st.lists(st.tuples(shares, percents), max_size=6)


def improvement(front: list[tuple[float, float]], flops: float, top1: np.ndarray) -> np.ndarray:
    """Column by column: what a policy adds to the best top1 within each of `COLUMNS` FLOPs."""
    total = np.zeros_like(top1)
    for column in range(round(flops * COLUMNS), COLUMNS):
        known = [y for f, y in front if round(f * COLUMNS) <= column]
        total += np.clip(top1 - max(known, default=0.0), 0, None) / (100 * COLUMNS)
    return total


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """No example has to wait for an import."""
    load()


@given(fronts, shares, percents)
def test_sure_improvement_is_the_dominated_area_that_is_added(
    front: list[tuple[float, float]], flops: float, top1: float
) -> None:
    sure = np.array([1e-9])
    found = expected_improvement(np.array([top1]), sure, np.array([flops]), front)
    assert found == pytest.approx(improvement(front, flops, np.array([top1])), abs=1e-9)


@given(fronts, shares, percents, st.floats(0.5, 30))
def test_expected_improvement_is_the_mean_of_improvements(
    front: list[tuple[float, float]], flops: float, mean: float, deviation: float
) -> None:
    z, step = np.linspace(-8, 8, 4001, retstep=True)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    expected = (improvement(front, flops, mean + deviation * z) * density).sum() * step
    found = expected_improvement(np.array([mean]), np.array([deviation]), np.array([flops]), front)
    assert found == pytest.approx([expected], abs=1e-5)


@pytest.fixture(scope="module")
def table() -> PolicyTable:
    return PolicyTable.load()


def test_surrogate_predicts_measured_policies(table: PolicyTable) -> None:
    """From 80 policies the others, whose top1 has a standard deviation of 15 points."""
    rows = np.random.default_rng(0).permutation(len(table.policies))
    top1 = 100 * table.correct.mean(axis=1)
    points = np.array([Encoding.of(policy, table.space.config).point for policy in table.policies])
    learnt, others = rows[:80], rows[80:]
    surrogate = Surrogate(points[learnt], top1[learnt], np.zeros(80))
    mean, deviation = surrogate.predict(points[others])
    errors = mean - top1[others]
    assert np.sqrt((errors**2).mean()) < 2.5
    assert 0.85 < (np.abs(errors) < 2 * deviation).mean() <= 1
    assert surrogate.predict(points[learnt])[0] == pytest.approx(top1[learnt], abs=2)


def test_points_tell_apart_what_a_policy_does() -> None:
    config, stage = find_config("vim_nano"), Stage(layer=1, keep_ratio=0.5)
    plain = Policy(model="vim_nano", stages=(stage,), scorer=Scorer(name="l1"))
    changes: list[dict[str, object]] = [
        {},
        {"scorer": Scorer(name="l2")},
        {"stages": (stage.model_copy(update={"keep_ratio": 0.6}),)},
        {"stages": (stage.model_copy(update={"layer": 2}),)},
        {"alignment": Alignment(conv="position")},
        {"alignment": Alignment(decay="zero_input", strength=0.5)},
    ]
    points = [
        tuple(Encoding.of(plain.model_copy(update=change), config).point) for change in changes
    ]
    assert len(set(points)) == len(points)
    own = stage.model_copy(update={"scorer": Scorer(name="l1")})
    assert (
        tuple(Encoding.of(plain.model_copy(update={"stages": (own,)}), config).point) == points[0]
    )


def acquisition(
    table: PolicyTable,
    rows: np.ndarray,
    seen: dict[int, Seen] | None = None,
) -> Acquisition:
    encodings = {int(row): Encoding.of(table.policies[row], table.space.config) for row in rows}
    top1 = {row: 100 * float(table.correct[row].mean()) for row in encodings}
    incumbents = [
        Incumbent(row, one.cost, replace(FIGURES, top1=top1[row]), table.correct[row])
        for row, one in encodings.items()
    ]
    return Acquisition(
        {row: (one, top1[row]) for row, one in encodings.items()},
        encodings,
        incumbents,
        seen or {},
        table.space.dense_flops,
    )


def test_best_adds_far_more_than_most(table: PolicyTable) -> None:
    """Over ten draws of 100 unseen policies, what the chosen ones really add."""
    chosen, mean = 0.0, 0.0
    for seed in range(10):
        rows = np.random.default_rng(seed).permutation(len(table.policies))[:140]
        top1 = 100 * table.correct[rows].mean(axis=1)
        flops = np.array([Cost.of(table.policies[row], table.space.config).flops for row in rows])
        flops = flops / table.space.dense_flops
        known = list(zip(flops[:40], top1[:40], strict=True))
        waiting = {
            int(row): Encoding.of(table.policies[row], table.space.config) for row in rows[40:]
        }
        found = list(waiting).index(acquisition(table, rows[:40]).best(waiting, running=[]))
        real = expected_improvement(top1[40:], np.full(100, 1e-9), flops[40:], known)
        chosen, mean = chosen + real[found], mean + real.mean()
    assert chosen > 5 * mean


def test_candidate_is_expected_to_add_less_once_it_is_running(table: PolicyTable) -> None:
    rows = np.random.default_rng(0).permutation(len(table.policies))[:140]
    waiting = {int(row): Encoding.of(table.policies[row], table.space.config) for row in rows[40:]}
    known = acquisition(table, rows[:40])
    best = waiting[known.best(waiting, running=[])]
    assert known.improvements([best], running=[best]) < known.improvements([best], running=[])


def test_images_that_were_seen_count(table: PolicyTable) -> None:
    """A policy that gets the first 91 images all wrong is expected to add next to nothing."""
    rows = np.random.default_rng(0).permutation(len(table.policies))[:140]
    waiting = {int(row): Encoding.of(table.policies[row], table.space.config) for row in rows[40:]}
    best = acquisition(table, rows[:40]).best(waiting, running=[])
    seen = {best: Seen(waiting[best], np.zeros(91, bool))}
    wrong = acquisition(table, rows[:40], seen=seen)
    assert wrong.best(waiting, running=[]) != best
    assert wrong.score([waiting[best]])[0] < 100 * table.correct[rows[:40]].mean(axis=1).max() - 20
