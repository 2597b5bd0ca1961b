"""The front against brute force, closed forms and its own definition."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmprune import Policy, SsmpruneError
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.pareto import hypervolume, pareto_front, pruning_key, select

DENSE_FLOPS = 1000
ALL: tuple[str, ...] = ("top1", "flops", "latency_ms")
EXACT: tuple[str, ...] = ("top1", "flops")


def policy(*counts: int, scorer: str = "l1", decay: str = "none", strength: float = 1.0) -> Policy:
    stages = [{"layer": layer, "keep_count": count} for layer, count in enumerate(counts)]
    return Policy.model_validate(
        {
            "schema": "ssmprune.policy/1",
            "model": "vim_nano",
            "stages": stages,
            "scorer": {"name": scorer},
            "alignment": {"decay": decay, "strength": strength},
        }
    )


def candidate(
    trial: int, top1: float, flops: int, ratio: float = 1.0, spread: float = 0.0
) -> Candidate:
    """A candidate that prunes like no other trial below 900."""
    figures = Measurement(
        split="search",
        top1=top1,
        top1_low=top1 - 1,
        top1_high=top1 + 1,
        images=362,
        flops=flops,
        flops_ratio=flops / DENSE_FLOPS,
        paper_flops=flops,
        latency_ms=20 * ratio,
        latency_ratio=ratio,
        latency_ratio_low=ratio - spread,
        latency_ratio_high=ratio + spread,
    )
    return Candidate(trial, policy(63 - trial // 30, 31 - trial % 30), "nsga2", figures)


def trials(candidates: Sequence[Candidate]) -> list[int]:
    return [c.trial for c in candidates]


@st.composite
def candidates(draw: st.DrawFn, max_size: int = 9) -> list[Candidate]:
    """Few distinct values, so that ties and overlaps are common."""
    figures = st.tuples(
        st.integers(0, 3), st.integers(1, 3), st.integers(1, 8), st.sampled_from([0, 0.6, 1.2])
    )
    return [
        candidate(trial, 90.0 + top1, 100 * flops, ratio / 10, spread / 10)
        for trial, (top1, flops, ratio, spread) in enumerate(
            draw(st.lists(figures, max_size=max_size))
        )
    ]


@st.composite
def on_grid(draw: st.DrawFn) -> list[Candidate]:
    """Candidates without spread, ten steps from the ideal to `WORST` in each objective.

    Some are beyond it; duplicates are common, and so is an objective in which all are equal.
    """
    values = st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True)
    axes = [st.sampled_from(draw(values)) for _ in ALL]
    return [
        candidate(trial, 100.0 - top1, 100 * flops, ratio / 10)
        for trial, (top1, flops, ratio) in enumerate(draw(st.lists(st.tuples(*axes), max_size=8)))
    ]


WORST: dict[str, float] = {"top1": 90, "flops": 1000, "latency_ms": 20}
SETS: tuple[tuple[str, ...], ...] = (ALL, EXACT, ("flops", "latency_ms"), ("top1",))


def excludes(a: Candidate, b: Candidate) -> bool:
    """The rule of the module's docstring, word by word, for three objectives."""
    x, y = a.search, b.search
    worse = x.top1 < y.top1 or x.flops > y.flops or x.latency_ratio_low > y.latency_ratio_high
    rank_a = (-x.top1, x.flops, x.latency_ratio, a.trial)
    rank_b = (-y.top1, y.flops, y.latency_ratio, b.trial)
    return not worse and rank_a < rank_b


def better_and_not_worse(a: Candidate, b: Candidate) -> bool:
    """Dominance with an interval for latency, without any rank."""
    x, y = a.search, b.search
    no_worse = (
        x.top1 >= y.top1 and x.flops <= y.flops and x.latency_ratio_low <= y.latency_ratio_high
    )
    return no_worse and (
        x.top1 > y.top1 or x.flops < y.flops or x.latency_ratio_high < y.latency_ratio_low
    )


@given(candidates())
def test_front_has_no_member_that_excludes_another_and_excludes_all_others(
    found: list[Candidate],
) -> None:
    members = pareto_front(found, ALL)
    assert not any(excludes(a, b) for a, b in itertools.permutations(members, 2))
    for outsider in (c for c in found if c not in members):
        assert any(excludes(member, outsider) for member in members)


@given(candidates(max_size=7))
def test_front_is_the_only_set_with_that_property(found: list[Candidate]) -> None:
    kernels = []
    for size in range(len(found) + 1):
        for chosen in itertools.combinations(found, size):
            outside = [c for c in found if c not in chosen]
            stable = not any(excludes(a, b) for a, b in itertools.permutations(chosen, 2))
            if stable and all(any(excludes(a, b) for a in chosen) for b in outside):
                kernels.append(sorted(chosen, key=lambda c: (c.search.flops, c.trial)))
    assert kernels == [pareto_front(found, ALL)]


@given(candidates())
def test_front_of_any_candidates_is_not_empty_and_sorted_by_flops(found: list[Candidate]) -> None:
    for objectives in (ALL, EXACT, ("latency_ms",), ("top1",)):
        members = pareto_front(found, objectives)
        assert bool(members) == bool(found)
        assert [c.search.flops for c in members] == sorted(c.search.flops for c in members)


@given(candidates())
def test_exclusion_is_irreflexive_and_has_no_cycle(found: list[Candidate]) -> None:
    reach = np.array([[excludes(a, b) for b in found] for a in found], dtype=bool)
    reach = reach.reshape(len(found), len(found))
    for k in range(len(found)):
        reach |= np.outer(reach[:, k], reach[k])
    assert not reach.diagonal().any()


@given(candidates())
def test_whoever_is_better_and_in_nothing_worse_excludes(found: list[Candidate]) -> None:
    for a, b in itertools.permutations(found, 2):
        if better_and_not_worse(a, b):
            assert excludes(a, b)


@given(candidates())
def test_front_without_spread_is_the_plain_pareto_front(found: list[Candidate]) -> None:
    exact = [replace(c, search=without_spread(c.search)) for c in found]
    for objectives in (ALL, EXACT):
        values = [tuple(loss(c, o) for o in objectives) for c in exact]
        expected = [
            c
            for i, c in enumerate(exact)
            if values[i] not in values[:i] and not any(dominates(v, values[i]) for v in values)
        ]
        assert set(trials(pareto_front(exact, objectives))) == set(trials(expected))


@given(on_grid(), st.data())
def test_front_has_the_same_figures_in_any_order_and_with_any_duplicates(
    found: list[Candidate], data: st.DataObject
) -> None:
    more = data.draw(st.permutations(found + found[: len(found) // 2]))
    for objectives in SETS:
        figures = {tuple(loss(c, o) for o in objectives) for c in pareto_front(found, objectives)}
        assert {
            tuple(loss(c, o) for o in objectives) for c in pareto_front(more, objectives)
        } == figures
        assert len(pareto_front(more, objectives)) == len(figures)


@given(on_grid(), st.data())
def test_figure_that_is_no_number_is_refused_wherever_it_stands(
    found: list[Candidate], data: st.DataObject
) -> None:
    objectives = data.draw(st.sampled_from(SETS))
    field = data.draw(st.sampled_from([o for o in objectives if o != "flops"]))
    unmeasured = candidate(800, 95, 500)
    unmeasured = replace(unmeasured, search=replace(unmeasured.search, **{field: math.nan}))
    found.insert(data.draw(st.integers(0, len(found))), unmeasured)
    with pytest.raises(ValueError, match=f"NaN as {field} of trial 800"):
        pareto_front(found, objectives)
    with pytest.raises(ValueError, match=f"NaN as {field} of trial 800"):
        hypervolume(found, objectives, WORST)


def without_spread(figures: Measurement) -> Measurement:
    ratio = figures.latency_ratio
    return replace(figures, latency_ratio_low=ratio, latency_ratio_high=ratio)


def loss(c: Candidate, objective: str) -> float:
    value = c.search.value(objective)
    return -value if objective == "top1" else value


def dominates(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))


def test_front_keeps_a_fast_candidate_whose_only_rival_is_itself_left_out() -> None:
    accurate = candidate(1, 93, 100, ratio=0.9, spread=0.05)
    between = candidate(2, 92, 100, ratio=0.82, spread=0.05)
    fast = candidate(3, 91, 100, ratio=0.74, spread=0.05)
    assert trials(pareto_front([accurate, between, fast], ALL)) == [1, 3]


def test_front_is_not_filled_by_the_noise_of_latency() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, 200)
    found = [
        candidate(i, 90 + i % 7, 500 + 10 * (i % 5), 0.7 + e, spread=0.04)
        for i, e in enumerate(noise)
    ]
    assert len(pareto_front(found, ALL)) == len(pareto_front(found, EXACT))


@pytest.mark.parametrize("objectives", [ALL, EXACT])
def test_front_keeps_the_first_of_equal_candidates(objectives: tuple[str, ...]) -> None:
    twins = [candidate(i, 95, 500, 0.7, 0.01) for i in (5, 3, 4)]
    assert trials(pareto_front(twins, objectives)) == [5]


def test_front_has_one_candidate_for_one_way_of_pruning() -> None:
    first, second = candidate(1, 95, 500), candidate(2, 96, 600)
    assert trials(pareto_front([first, second], EXACT)) == [1, 2]
    assert trials(pareto_front([first, replace(second, policy=first.policy)], EXACT)) == [1]


def test_pruning_key_looks_at_counts_scorer_and_alignment_only() -> None:
    by_ratio = Policy.model_validate(
        {
            "schema": "ssmprune.policy/1",
            "model": "vim_nano",
            "stages": [{"layer": 0, "keep_ratio": 0.5}, {"layer": 1, "keep_ratio": 1.0}],
            "scorer": {"name": "l1"},
        }
    )
    assert pruning_key(by_ratio) == pruning_key(policy(32))
    assert pruning_key(policy(64, scorer="l1")) == pruning_key(policy(scorer="l2"))
    assert pruning_key(policy(32)) != pruning_key(policy(32, scorer="l2"))
    assert pruning_key(policy(32)) != pruning_key(policy(32, decay="neighbor"))
    assert pruning_key(policy(32)) == pruning_key(policy(32, strength=0.5))
    assert pruning_key(policy(32)) == pruning_key(policy(32, decay="neighbor", strength=0.0))
    assert pruning_key(policy(32)) != pruning_key(policy(31))


def test_pruning_key_of_a_grid_policy_looks_at_the_rows_and_columns_of_each_block() -> None:
    def key(**ratios: float) -> object:
        stages = [{"layer": int(n[1:]), "keep_ratio": ratio} for n, ratio in ratios.items()]
        grid = {"model": "vmamba_tiny_s1l8", "reduction": "grid", "stages": stages}
        return pruning_key(Policy.model_validate(grid))

    assert key(_12=0.9) == key(_0=1.0)  # all of 7 x 7
    assert key(_12=0.5) == key(_12=0.4)  # 5 x 5
    assert key(_12=0.5) != key(_12=0.6) != key(_13=0.6)
    assert key(_4=0.5, _5=0.5) != key(_4=0.5)


@pytest.mark.parametrize("objectives", [ALL, EXACT])
def test_front_refuses_a_figure_that_is_no_number(objectives: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="NaN as top1 of trial 7"):
        pareto_front([candidate(7, math.nan, 500)], objectives)


def test_front_without_latency_takes_candidates_without_latency() -> None:
    assert trials(
        pareto_front([candidate(1, 95, 500, math.nan), candidate(2, 94, 500)], EXACT)
    ) == [1]


def test_hypervolume_of_one_candidate_is_its_box() -> None:
    reference: dict[str, float] = {"top1": 0, "flops": 1000, "latency_ms": 20}
    alone = candidate(1, 80, 400, ratio=0.75, spread=0.2)
    assert hypervolume([alone], ALL, reference) == pytest.approx(0.8 * 0.6 * 0.25)


def test_hypervolume_of_two_candidates_counts_their_overlap_once() -> None:
    reference: dict[str, float] = {"top1": 50, "flops": 1000}
    two = [candidate(1, 100, 500), candidate(2, 75, 0)]
    assert hypervolume(two, EXACT, reference) == pytest.approx(0.5 + 0.5 - 0.25)


def test_hypervolume_ignores_what_is_worse_than_the_reference_and_nothing_is_zero() -> None:
    reference: dict[str, float] = {"top1": 50, "flops": 1000}
    assert hypervolume([], EXACT, reference) == 0
    assert hypervolume([candidate(1, 40, 100), candidate(2, 99, 1100)], EXACT, reference) == 0


@given(on_grid(), st.randoms())
def test_hypervolume_is_the_share_of_cells_that_any_candidate_dominates(
    found: list[Candidate], order: random.Random
) -> None:
    cells = np.indices((10, 10, 10))  # of the box from the ideal to WORST, by their best corner
    dominated = np.zeros((10, 10, 10), bool)
    for c in found:
        steps = (100 - c.search.top1, c.search.flops / 100, 10 * c.search.latency_ratio)
        dominated |= np.all([axis >= round(n) for axis, n in zip(cells, steps, strict=True)], 0)
    order.shuffle(found)
    assert hypervolume(found, ALL, WORST) == pytest.approx(dominated.mean(), abs=1e-12)


@given(on_grid())
def test_hypervolume_of_two_objectives_is_the_area_under_the_staircase(
    found: list[Candidate],
) -> None:
    lowest = [
        min((100 - c.search.top1 for c in found if c.search.flops <= 100 * step), default=10)
        for step in range(10)
    ]
    area = sum(max(0.0, 10 - loss) for loss in lowest) / 100
    assert hypervolume(found, EXACT, WORST) == pytest.approx(area, abs=1e-12)


@given(candidates())
def test_hypervolume_of_the_front_is_that_of_all_candidates(found: list[Candidate]) -> None:
    reference: dict[str, float] = {"top1": 0, "flops": 1000}
    share = hypervolume(found, EXACT, reference)
    assert share == pytest.approx(hypervolume(pareto_front(found, EXACT), EXACT, reference))
    assert 0 <= share <= 1


MEMBERS = [
    candidate(1, 80, 400, 0.5),
    candidate(2, 90, 500, 0.6),
    candidate(3, 95, 600, 0.9),
    candidate(4, 95, 700, 0.8),
]


@pytest.mark.parametrize(
    ("limits", "trial"),
    [
        ({}, 3),
        ({"max_flops_ratio": 0.5}, 2),
        ({"max_latency_ratio": 0.8}, 4),
        ({"min_top1": 80, "max_flops_ratio": 0.45}, 1),
    ],
)
def test_select_takes_the_highest_top1_within_limits(limits: dict[str, float], trial: int) -> None:
    assert select(MEMBERS, **limits).trial == trial


def test_select_does_not_look_at_the_holdout() -> None:
    lucky = replace(MEMBERS[0], holdout=replace(MEMBERS[0].search, split="holdout", top1=99.9))
    assert select([lucky, *MEMBERS[1:]]).trial == 3


@given(
    st.fixed_dictionaries(
        {
            "max_flops_ratio": st.none() | st.floats(0.01, 0.8),
            "max_latency_ratio": st.none() | st.floats(0.01, 1),
            "min_top1": st.none() | st.floats(0, 100),
        }
    )
)
def test_select_follows_the_definition_for_any_limits(limits: dict[str, float | None]) -> None:
    def within(c: Candidate) -> bool:
        r, t, x = (limits[k] for k in ("max_flops_ratio", "max_latency_ratio", "min_top1"))
        return (
            (r is None or c.search.flops_ratio <= r)
            and (t is None or c.search.latency_ratio <= t)
            and (x is None or c.search.top1 >= x)
        )

    if fitting := [c for c in MEMBERS if within(c)]:
        chosen = select(MEMBERS, **limits)
        assert chosen in fitting
        assert all(
            (chosen.search.top1, -chosen.search.flops) >= (c.search.top1, -c.search.flops)
            for c in fitting
        )
    else:
        with pytest.raises(SsmpruneError, match="the nearest is trial"):
            select(MEMBERS, **limits)


def test_select_names_the_nearest_with_limits_that_would_do() -> None:
    close = replace(MEMBERS[1], search=replace(MEMBERS[1].search, flops_ratio=0.50001))
    with pytest.raises(SsmpruneError) as fault:
        select([close, *MEMBERS[2:]], max_flops_ratio=0.45, min_top1=85)
    assert str(fault.value) == (
        "the limits must leave one of the front's 3 policies, got flops_ratio <= 0.45 and "
        "top1 >= 85; the nearest is trial 2 with top1 90, flops_ratio 0.501: allow for that, "
        "or search further."
    )
    assert select([close], max_flops_ratio=0.501, min_top1=90) == close


def with_memory(found: Candidate, ratio: float) -> Candidate:
    memory = {"peak_memory_bytes": round(1000 * ratio), "peak_memory_ratio": ratio}
    return replace(found, search=replace(found.search, **memory))


@pytest.mark.parametrize("objectives", [("flops",), ("latency_ms",)])
def test_front_keeps_who_takes_less_memory(objectives: tuple[str, ...]) -> None:
    found = [with_memory(MEMBERS[2], 0.9), with_memory(replace(MEMBERS[2], trial=9), 0.8)]
    found[1] = replace(found[1], policy=policy(40, 20))
    assert trials(pareto_front(found, ("top1", *objectives, "peak_memory_bytes"))) == [9]
    better = replace(found[0], search=replace(found[0].search, top1=96.0))
    both = pareto_front([better, found[1]], ("top1", *objectives, "peak_memory_bytes"))
    assert trials(both) == [3, 9]


def test_hypervolume_counts_peak_memory() -> None:
    reference: dict[str, float] = {"top1": 0, "peak_memory_bytes": 1000}
    alone = with_memory(candidate(1, 80, 400), 0.75)
    share = hypervolume([alone], ("top1", "peak_memory_bytes"), reference)
    assert share == pytest.approx(0.8 * 0.25)


def test_select_holds_members_against_a_limit_on_memory() -> None:
    members = [with_memory(m, ratio) for m, ratio in zip(MEMBERS, (0.7, 0.8, 0.9, 1), strict=True)]
    assert select(members, max_memory_ratio=0.8).trial == 2
    with pytest.raises(SsmpruneError, match="needs a search with the objective peak_memory_bytes"):
        select(MEMBERS, max_memory_ratio=0.8)


def test_select_refuses_a_limit_on_latency_that_was_not_measured() -> None:
    with pytest.raises(SsmpruneError, match="needs a search with the objective latency_ms"):
        select([candidate(1, 95, 500, math.nan)], max_latency_ratio=0.8)
