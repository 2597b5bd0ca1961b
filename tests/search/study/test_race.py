"""Early stopping against brute force: the test, its rate, and the choice of the incumbent."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.policy_table import PolicyTable
from ssmprune import Policy
from ssmprune_search.candidate.cost import Cost
from ssmprune_search.candidate.measurement import Candidate
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator
from ssmprune_search.study.race import (
    FALSE_STOPS,
    LOOKS,
    PAUSES,
    PEERS,
    Incumbent,
    Race,
    Scores,
    estimate,
    find_incumbent,
    pack,
    paired_test,
    sign_test,
    unpack,
)
from ssmprune_search.study.records import as_raced

PLAIN: tuple[str, ...] = ("top1", "flops")
TIMED: tuple[str, ...] = ("top1", "flops", "latency_ms")
FIGURES = SyntheticEvaluator("vim_nano", "search")(Policy(model="vim_nano", stages=()))


def incumbent(
    correct: Scores, trial: int = 0, flops: int = 100, tokens: tuple[int, ...] = (9, 9), top1=50.0
) -> Incumbent:
    return Incumbent(trial, Cost(flops, tokens), replace(FIGURES, top1=top1), correct)


def opponents(losses: int, wins: int, seen: int, images: int) -> tuple[Race, Scores]:
    """A race, and a candidate that so far has so many losses and wins against its incumbent."""
    theirs, mine = np.zeros(images, bool), np.zeros(seen, bool)
    theirs[:losses] = True
    mine[losses : losses + wins] = True
    return Race(incumbent(theirs)), mine


@pytest.mark.parametrize("coins", range(9))
def test_sign_test_counts_the_outcomes_of_fair_coins(coins: int) -> None:
    outcomes = [sum(coin) for coin in itertools.product((0, 1), repeat=coins)]
    for losses in range(coins + 1):
        share = sum(heads >= losses for heads in outcomes) / len(outcomes)
        assert sign_test(losses, coins - losses) == share


@pytest.mark.parametrize("equal", [7, 10, 20])
def test_candidate_as_good_as_its_incumbent_stops_no_more_often_than_stated(equal: int) -> None:
    """Exact, over all orders of 128 images with as many losses as wins in all."""
    images = 128
    chance = {(0, 0): 1.0}
    seen, stopped = 0, 0.0
    for rung in Race(incumbent(np.ones(images, bool))).rungs(images)[:-1]:
        after: dict[tuple[int, int], float] = {}
        for (losses, wins), probability in chance.items():
            for lost, won in itertools.product(range(equal - losses + 1), range(equal - wins + 1)):
                ways = (
                    math.comb(equal - losses, lost)
                    * math.comb(equal - wins, won)
                    * math.comb(images - seen - 2 * equal + losses + wins, rung - seen - lost - won)
                    if rung - seen >= lost + won
                    else 0
                )
                state = losses + lost, wins + won
                share = probability * ways / math.comb(images - seen, rung - seen)
                after[state] = after.get(state, 0.0) + share
        seen = rung
        chance = {}
        for (losses, wins), probability in after.items():
            if not probability:
                continue
            race, mine = opponents(losses, wins, seen, images)
            race.show(mine)
            if race.is_lost:
                stopped += probability
            else:
                chance[losses, wins] = probability
    assert stopped + sum(chance.values()) == pytest.approx(1)
    assert 0 < stopped <= FALSE_STOPS


def test_race_stops_at_the_smallest_number_of_losses_that_the_rate_allows() -> None:
    least = next(n for n in itertools.count() if 2.0**-n <= FALSE_STOPS / len(LOOKS))
    for losses in (least - 1, least):
        race, mine = opponents(losses, wins=0, seen=10, images=100)
        assert race.show(mine) == race.is_lost == (losses == least)
        assert not race.is_paused


@pytest.mark.parametrize(
    ("theirs", "mine", "raced"), [(2, 2, True), (3, 2, False), (math.nan, math.nan, True)]
)
def test_race_drops_an_incumbent_that_takes_more_memory(
    theirs: float, mine: float, raced: bool
) -> None:
    strong = incumbent(np.ones(100, bool))
    race = Race(replace(strong, search=replace(strong.search, peak_memory_bytes=theirs)))
    race.start({"peak_memory_bytes": mine})
    assert race.show(np.zeros(50, bool)) == raced


def test_race_compares_the_images_that_both_have_seen() -> None:
    theirs = np.tile([True, False], 50)
    race = Race(incumbent(theirs))
    assert not race.show(theirs[:12])
    assert race.show(~theirs[:50] & False)
    assert race.scores.tolist() == [False] * 50


def test_candidate_that_has_seen_all_images_is_never_stopped() -> None:
    race = Race(incumbent(np.ones(100, bool)))
    assert not race.show(np.zeros(100, bool))


def test_candidate_without_an_incumbent_sees_all_images() -> None:
    assert not Race().show(np.zeros(10, bool))


def test_rungs_are_shares_of_the_images_rounded_up() -> None:
    assert Race().rungs(728) == (46, 91, 182, 364, 728)
    assert Race().rungs(3) == (1, 2, 3)


@pytest.mark.parametrize("images", [16, 100, 728])
def test_race_pauses_at_its_shares_of_the_images_and_goes_on_from_there(images: int) -> None:
    theirs, known, shown = incumbent(np.ones(images, bool)), np.zeros(0, bool), []
    for share in PAUSES:
        race = Race(theirs, known, pauses=True)
        shown += itertools.takewhile(
            lambda n, race=race: not race.show(np.ones(n, bool)), race.rungs(images)
        )
        known = race.scores
        shown.append(len(known))
        assert race.is_paused and race.ended_early and not race.is_lost
        assert len(known) == math.ceil(share * images)
    last = Race(theirs, known, pauses=True)
    assert (*shown, *last.rungs(images)) == Race().rungs(images)
    assert not any(last.show(np.ones(n, bool)) for n in last.rungs(images))


def test_race_goes_on_where_nothing_is_promised_yet() -> None:
    race = Race(incumbent(np.ones(100, bool)))
    assert not any(race.show(np.ones(n, bool)) for n in race.rungs(100))


def test_race_that_goes_on_can_be_lost() -> None:
    race = Race(incumbent(np.ones(100, bool)), known=np.ones(13, bool))
    assert race.show(np.arange(25) < 13)
    assert race.is_lost and not race.is_paused


@given(st.integers(0, 2**12 - 1), st.lists(st.integers(0, 2**24 - 1), max_size=8))
def test_estimate_is_corrected_by_those_that_agree_most(mine: int, others: list[int]) -> None:
    """By integer arithmetic on 24 images, the first 12 of them seen."""
    seen = np.array([mine >> n & 1 for n in range(12)], bool)
    incumbents = np.array([[bits >> n & 1 for n in range(24)] for bits in others], bool)
    order = sorted(range(len(others)), key=lambda n: (((others[n] ^ mine) & 4095).bit_count(), n))
    peers = [others[n] for n in order[:PEERS]]
    twice = sum(bits.bit_count() - 2 * (bits & 4095).bit_count() for bits in peers)
    expected = 100 * (mine.bit_count() / 12 + twice / (24 * max(1, len(peers))))
    top1, variance = estimate(seen, incumbents)
    assert top1 == pytest.approx(min(max(expected, 0), 100))
    assert variance > 0


def test_estimate_of_a_peer_is_its_top1() -> None:
    correct = np.random.default_rng(0).random(200) < 0.7
    top1, variance = estimate(correct[:20], correct[None])
    assert top1 == pytest.approx(100 * correct.mean())
    assert variance == pytest.approx(100**2 * 0.9 / 20**2)


def test_estimate_errs_as_its_variance_says() -> None:
    """Policies of the table over 200 orders of the images, after 91 of 728."""
    correct = PolicyTable.load().correct[::300]
    rng, ratios = np.random.default_rng(0), []
    for order in (rng.permutation(correct.shape[1]) for _ in range(200)):
        for row, mine in enumerate(correct[:, order]):
            top1, variance = estimate(mine[:91], np.delete(correct, row, axis=0)[:, order])
            ratios.append((top1 - 100 * mine.mean()) ** 2 / variance)
    assert 0.5 < np.mean(ratios) < 1.5


@pytest.mark.parametrize("right", [0, 5, 12])
def test_sampler_is_told_the_estimate_and_never_more_than_of_the_incumbent(right: int) -> None:
    best = incumbent(np.arange(100) % 2 == 0, top1=50.0)
    race = Race(best, pauses=True)
    figures = replace(FIGURES, top1=90.0)
    assert race.told(figures, [best]) == figures
    race.show(np.arange(13) < right)
    assert race.ended_early
    found = race.told(figures, [])
    assert found.top1 == pytest.approx(min(50.0, 100 * right / 13))
    assert replace(found, top1=90.0) == figures


@st.composite
def incumbents(draw: st.DrawFn) -> list[Incumbent]:
    figures = st.tuples(
        st.integers(0, 3), st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))
    )
    return [
        incumbent(np.ones(1, bool), trial, flops, tokens, top1=float(top1))
        for trial, (top1, flops, tokens) in enumerate(draw(st.lists(figures, max_size=6)))
    ]


@given(incumbents(), st.sampled_from([PLAIN, TIMED]))
def test_incumbent_is_the_best_of_those_that_cost_no_more(
    others: list[Incumbent], objectives: tuple[str, ...]
) -> None:
    cost = Cost(2, (2, 2))
    cheap = [
        other
        for other in others
        if other.cost.flops <= 2
        and (objectives == PLAIN or (other.cost.tokens[0] <= 2 and other.cost.tokens[1] <= 2))
    ]
    found = find_incumbent(others, cost, objectives)
    if not cheap:
        assert found is None
        return
    assert found in cheap
    best = [other for other in cheap if other.search.top1 == max(o.search.top1 for o in cheap)]
    assert found == min(best, key=lambda other: (other.cost.flops, other.trial))


def test_nobody_races_where_top1_is_no_objective() -> None:
    assert (
        find_incumbent([incumbent(np.ones(1, bool))], Cost(200, (9, 9)), ("flops", "latency_ms"))
        is None
    )


@given(st.lists(st.booleans(), max_size=70))
def test_bits_survive_their_text(values: list[bool]) -> None:
    correct = np.array(values, bool)
    assert unpack(pack(correct)).tolist() == values


def test_front_of_measured_policies_is_stopped_no_more_often_than_stated() -> None:
    """Each member of the true front against its incumbent, in 100 orders of the images."""
    table = PolicyTable.load()
    incumbents = [
        Incumbent(
            row,
            Cost.of(policy, table.space.config),
            replace(FIGURES, top1=float(correct.mean())),
            correct,
        )
        for row, (policy, correct) in enumerate(zip(table.policies, table.correct, strict=True))
    ]
    measured = [
        Candidate(r.trial, table.policies[r.trial], "table", replace(r.search, flops=r.cost.flops))
        for r in incumbents
    ]
    best = {member.trial for member in pareto_front(measured, PLAIN)}
    rng = np.random.default_rng(0)
    stops = races = 0
    for member in (r for r in incumbents if r.trial in best):
        others = [r for r in incumbents if r.trial != member.trial]
        found = find_incumbent(others, member.cost, PLAIN)
        for order in (rng.permutation(len(member.scores)) for _ in range(100)):
            if found is None:
                continue
            race = Race(replace(found, scores=found.scores[order]))
            mine = member.scores[order]
            races += 1
            for images in race.rungs(len(mine)):
                race.show(mine[:images])
                stops += race.is_lost
                if race.is_lost:
                    break
    assert races > 1000
    assert stops <= FALSE_STOPS * races


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_scores_that_are_numbers_are_kept_as_text(values: list[float]) -> None:
    kept = unpack(pack(np.array(values)))
    assert kept.dtype == np.float32 and kept.tolist() == values


def test_scores_that_are_numbers_are_paired_by_students_test() -> None:
    rng = np.random.default_rng(0)
    own = rng.random(60)
    better = own + 0.1 * rng.random(60)
    assert paired_test(better, own) < 1e-6
    assert paired_test(own, better) > 1 - 1e-6
    assert paired_test(own, own) == 1
    assert paired_test(own + 0.5, own) == pytest.approx(0.5**60)  # no spread: the sign test's
    differences = better - own
    t = differences.mean() / (differences.std(ddof=1) / 60**0.5)
    assert paired_test(better, own) == pytest.approx(float(stats.t.sf(t, 59)))


def test_candidate_with_numbers_as_scores_stops_and_what_is_told_is_its_estimate() -> None:
    theirs = np.full(64, 0.9) + 0.05 * np.random.default_rng(0).random(64)
    race = Race(replace(incumbent(np.ones(64, bool)), scores=theirs))
    assert race.show(theirs[:16] - 0.5 + 0.01 * np.random.default_rng(1).random(16))
    assert race.is_lost
    assert race.told(FIGURES, [race.incumbent]).top1 < 60


def test_metric_without_a_score_per_image_keeps_nothing_to_race_by() -> None:
    race = Race()
    assert not race.show(np.zeros((8, 3, 3)))
    assert as_raced(race) == {}
