"""Spaces whose stages may merge, beside those whose stages drop."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from optuna.trial import FixedTrial

from ssmprune.errors import SpaceError
from ssmprune.policy import Alignment, Merge, Scorer, Stage
from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.space.space import SearchSpace

MINIMAL = {
    "schema": "ssmprune.space/2",
    "model": "vim_nano",
    "ratios": {"per": "layer", "layers": [0, 2, 4], "low": 0.5, "step": 0.1},
    "reduce": ["drop", "merge"],
    "match": ["neighbors", "alternate"],
}
RATIOS = {"keep_ratio_0": 0.6, "keep_ratio_2": 0.7, "keep_ratio_4": 1.0}
MERGED = {"layer": 0, "keep_ratio": 0.6, "reduce": "merge", "match": "neighbors"}

BEFORE = """\
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 1, 2, 3, 4, 5, 6], low: 0.5, step: 0.05}
scorer: [l1, l2, clipped_sum]
alignment:
  decay: [none, zero_input, neighbor]
  strength: [1.0, 0.5]
  conv: [compact, position]
objectives: [top1, flops, latency_ms]
limits:
  flops_ratio: {min: 0.47, max: 0.95}
"""
"""What was searched on vim_nano before there was merging."""


def space(**changes: Any) -> SearchSpace:
    return SearchSpace.from_yaml(yaml.safe_dump({**MINIMAL, **changes}))


def test_a_space_of_before_merging_asks_and_proposes_what_it_did() -> None:
    chosen = SearchSpace.from_yaml(BEFORE)
    assert {name: str(found) for name, found in chosen.distributions().items()} == {
        **{
            f"keep_ratio_{n}": "FloatDistribution(high=1.0, log=False, low=0.5, step=0.05)"
            for n in range(7)
        },
        "decay": "CategoricalDistribution(choices=('none', 'zero_input', 'neighbor'))",
        "strength": "CategoricalDistribution(choices=(1.0, 0.5))",
        "conv": "CategoricalDistribution(choices=('compact', 'position'))",
        "scorer": "CategoricalDistribution(choices=('l1', 'l2', 'clipped_sum'))",
    }
    names = [f"keep_ratio_{n}" for n in range(7)]
    assert list(chosen.distributions()) == [*names, "decay", "strength", "conv", "scorer"]
    values = {"decay": "neighbor", "strength": 0.5, "conv": "position", "scorer": "l2"}
    params = {**dict.fromkeys(names, 1.0), "keep_ratio_1": 0.6, "keep_ratio_3": 0.75, **values}
    policy = chosen.suggest(FixedTrial(params))
    assert repr(pruning_key(policy)) == (
        "('vim_nano', (1, 39, 'l2', None), (3, 30, 'l2', None), 'neighbor', 0.5, 'position')"
    )
    assert policy.to_yaml().startswith("schema: ssmprune.policy/1\n")
    assert list(chosen.params(policy)) == [*names, "scorer", "decay", "strength", "conv"]
    assert chosen.params(policy) == params


@pytest.mark.parametrize(
    ("ratios", "names"),
    [
        ({"per": "layer"}, ["reduce_0", "reduce_2", "reduce_4"]),
        ({"per": "stage", "stages": 2}, ["stage_0_reduce", "stage_1_reduce"]),
        ({"per": "schedule"}, ["reduce_0", "reduce_2", "reduce_4"]),
    ],
)
def test_what_each_stage_does_is_a_parameter(ratios: dict[str, Any], names: list[str]) -> None:
    found = space(ratios={**MINIMAL["ratios"], **ratios}).distributions()  # type: ignore[dict-item]
    assert [name for name in found if "reduce" in name] == names
    assert {found[name].choices for name in names} == {("drop", "neighbors", "alternate")}  # type: ignore[attr-defined]
    one = space(ratios={**MINIMAL["ratios"], **ratios}, reduce_per="policy").distributions()  # type: ignore[dict-item]
    assert [name for name in one if "reduce" in name] == ["reduce"]


def test_stages_do_what_the_trial_says() -> None:
    chosen = space()
    params = {**RATIOS, "reduce_0": "neighbors", "reduce_2": "drop", "reduce_4": "alternate"}
    policy = chosen.suggest(FixedTrial(params))
    assert policy.stages == (
        Stage(layer=0, keep_ratio=0.6, reduce="merge", match="neighbors"),
        Stage(layer=2, keep_ratio=0.7),
    )
    assert policy.schema_ == "ssmprune.policy/2"
    found = chosen.params(policy)
    assert chosen.suggest(FixedTrial(found)) == policy
    assert found["reduce_4"] == "drop"  # of no stage: what stands first in the space


@pytest.mark.parametrize("per", ["stage", "policy"])
def test_a_stage_drops_what_its_match_cannot_merge(per: str) -> None:
    """Neighbours beside a class token can merge 31 of 64 patches."""
    chosen = space(reduce_per=per)
    words = {"reduce_0": "neighbors", "reduce_2": "neighbors", "reduce_4": "drop"}
    params = {**RATIOS, "keep_ratio_0": 0.5, **words, "reduce": "neighbors"}
    policy = chosen.suggest(FixedTrial(params))
    assert [stage.keep_ratio for stage in policy.stages] == [0.5, 0.7]
    assert [stage.reduce for stage in policy.stages] == [
        "drop",
        "merge" if per == "stage" else "drop",
    ]
    assert chosen.suggest(FixedTrial(chosen.params(policy))) == policy


def test_settings_of_merging_count_where_they_change_something() -> None:
    chosen = space(
        match=["neighbors", "score"],
        merge={
            "metric": ["output", "C"],
            "weight": ["size", "equal"],
            "protect": [0, 2],
            "untouched": [0.0, 0.5],
            "fate": ["merge", "half"],
        },
        alignment={"sizes": ["own", "exact"], "conv": ["compact", "runs"]},
    )
    settings = {"metric": "C", "weight": "equal", "protect": 2, "untouched": 0.5, "fate": "half"}
    tail = {**settings, "sizes": "exact", "conv": "runs"}
    words = {"reduce_0": "drop", "reduce_2": "drop", "reduce_4": "drop"}
    dropping = chosen.suggest(FixedTrial({**RATIOS, **tail, **words}))
    assert (dropping.merge, dropping.alignment) == (Merge(), Alignment())
    once = chosen.suggest(FixedTrial({**RATIOS, **tail, **words, "reduce_0": "neighbors"}))
    assert once.merge == Merge(metric="C", protect=2)
    assert once.alignment == Alignment(sizes="exact", conv="runs")
    scored = {"reduce_0": "neighbors", "reduce_2": "score"}
    twice = chosen.suggest(FixedTrial({**RATIOS, **tail, **words, **scored}))
    assert twice.merge == Merge(**settings)


def test_the_scorer_is_that_of_the_stages_that_ask_one() -> None:
    chosen = space(scorer=["l1", "l2"], scorer_per="stage")
    words = {"reduce_0": "neighbors", "reduce_2": "drop", "reduce_4": "neighbors"}
    scorers = {"scorer_0": "l1", "scorer_2": "l2", "scorer_4": "l1"}
    policy = chosen.suggest(FixedTrial({**RATIOS, **words, **scorers}))
    assert policy.scorer == Scorer(name="l2")
    assert [stage.scorer for stage in policy.stages] == [None, None]
    merged = {**words, "reduce_2": "neighbors"}
    assert chosen.suggest(FixedTrial({**RATIOS, **merged, **scorers})).scorer.name == "l1"
    assert chosen.suggest(
        FixedTrial({**RATIOS, **merged, **scorers, "scorer_0": "l2"})
    ) == chosen.suggest(FixedTrial({**RATIOS, **merged, **scorers}))


def test_known_schedules_may_merge() -> None:
    chosen = space(
        schedules=[
            {"name": "own", "stages": [MERGED, {"layer": 2, "keep_ratio": 0.7}]},
            {
                "name": "equal",
                "layers": [0, 2],
                "keep_ratio": [0.8, 0.6],
                "reduce": "merge",
                "match": "alternate",
            },
        ]
    )
    found = dict(chosen.known_schedules())
    assert list(found) == ["own", "equal@0.8", "equal@0.6"]
    assert [stage.match for stage in found["own"].stages] == ["neighbors", None]
    assert [stage.match for stage in found["equal@0.8"].stages] == ["alternate", "alternate"]
    for policy in found.values():
        assert chosen.suggest(FixedTrial(chosen.params(policy))) == policy


def test_a_space_may_merge_alone() -> None:
    chosen = space(reduce=["merge"], ratios={**MINIMAL["ratios"], "low": 0.6})  # type: ignore[dict-item]
    assert chosen.words == ("neighbors", "alternate")
    assert chosen.known_schedules() == []  # three equal stages drop


SCHEDULE = {"name": "a", "stages": [MERGED]}
ONE = "ssmprune.space/1"


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        (
            {"schema": ONE},
            [
                "reduce must stand in a space of ssmprune.space/2, got ['drop', 'merge'] in one of",
                "write `schema: ssmprune.space/2`",
            ],
        ),
        (
            {"schema": ONE, "reduce": None, "match": None, "schedules": [SCHEDULE]},
            ["reduce must stand in a space of ssmprune.space/2, got 'merge'", "schedules[0]"],
        ),
        (
            {"schema": ONE, "reduce": None, "match": None, "alignment": {"conv": ["runs"]}},
            ["conv must stand in a space of ssmprune.space/2, got 'runs' in one of"],
        ),
        ({"reduce": ["cut"]}, ["must be 'drop' or 'merge', got 'cut'"]),
        ({"match": ["nearest"]}, ["must be 'alternate', 'neighbors' or 'score', got 'nearest'"]),
        ({"merge": {"metric": ["z"]}}, ["must be 'output'", "got 'z' at merge.metric[0]"]),
        ({"merge": {"weights": ["size"]}}, ["unknown key 'weights'", "did you mean 'weight'?"]),
        ({"merge": {"protect": [-1]}}, ["greater than or equal to 0, got -1"]),
        (
            {"merge": {"protect": [0, 40]}},
            [
                "protect must leave patch tokens to merge, got 40 with `match: neighbors` on "
                "vim_nano, which has 64 at merge.protect[1]"
            ],
        ),
        (
            {
                "model": "plainmamba_l1",
                "alignment": {"conv": ["position"]},
                "merge": {"protect": [2]},
            },
            ["protect must be 0 on plainmamba_l1, which has no class token, got 2"],
        ),
        (
            {"merge": {"untouched": [0.25], "fate": ["half"]}},
            [
                f"{key} must be given where match has score, got ['neighbors', 'alternate']"
                for key in ("untouched", "fate")
            ],
        ),
        (
            {
                "reduce": ["drop"],
                "reduce_per": "policy",
                "merge": {"metric": ["C"]},
                "alignment": {"sizes": ["exact"], "conv": ["runs"]},
            },
            [
                f"{key} must be given where stages may merge, got reduce ['drop']"
                for key in ("match", "reduce_per", "merge", "sizes", "conv runs")
            ],
        ),
        (
            {"model": "vmamba_tiny_s1l8", "reduction": "grid"},
            [f"{key} must not be given with `reduction: grid`" for key in ("reduce", "match")],
        ),
        (
            {"reduce": ["merge"]},
            [
                "ratios.low must leave what each match can merge where no stage may drop, got 0.5, "
                "but `match: neighbors` can merge at most 31 of 64 patch tokens at ratios.low",
                "raise it, or add drop to reduce",
            ],
        ),
        (
            {"match": ["alternate"], "schedules": [SCHEDULE]},
            ["a stage must do one of ['drop', 'alternate'], got 'neighbors' at schedules[0]"],
        ),
        (
            {
                "reduce": ["merge"],
                "match": ["alternate"],
                "schedules": [{**SCHEDULE, "stages": [{"layer": 0, "keep_ratio": 0.6}]}],
            },
            ["a stage must do one of ['alternate'], got 'drop' at schedules[0]", "to reduce"],
        ),
        (
            {"schedules": [{**SCHEDULE, "stages": [{**MERGED, "keep_ratio": 0.5}]}]},
            ["can merge at most 31 of the 64 patch tokens that enter the stage, got 32"],
        ),
        (
            {"schedules": [{**SCHEDULE, "stages": [{**MERGED, "reduce": "drop"}]}]},
            [
                "match must stand beside `reduce: merge`, got neighbors with drop at "
                "schedules[0].stages[0]"
            ],
        ),
        (
            {
                "reduce_per": "policy",
                "schedules": [{**SCHEDULE, "stages": [MERGED, {"layer": 2, "keep_ratio": 0.6}]}],
            },
            ["stages must do the same with `reduce_per: policy`, got neighbors, drop"],
        ),
        (
            {"schedules": [{**SCHEDULE, "reduce": "merge"}]},
            ["reduce must be given with layers and keep_ratio, got one beside stages"],
        ),
    ],
)
def test_faults_of_what_a_space_says_about_merging_are_told(
    changes: dict[str, Any], messages: list[str]
) -> None:
    written = {key: value for key, value in {**MINIMAL, **changes}.items() if value is not None}
    with pytest.raises(SpaceError) as fault:
        SearchSpace.from_yaml(yaml.safe_dump(written))
    for message in messages:
        assert message in str(fault.value)
