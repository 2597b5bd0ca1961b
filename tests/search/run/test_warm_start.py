"""What is good elsewhere, brought into a space."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from ssmprune import Policy
from ssmprune.errors import UsageError
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Merge, Stage
from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.candidate.stages import word
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.run.warm_start import adapt, warm_start
from ssmprune_search.space.space import SearchSpace

PER_LAYER = {"per": "layer", "layers": [1, 3, 5], "low": 0.5, "step": 0.1}
PER_SCHEDULE = {**PER_LAYER, "per": "schedule"}
PER_STAGE = {**PER_LAYER, "per": "stage", "stages": 2}


def space(model: str = "vim_nano", **changes) -> SearchSpace:
    content = {"schema": "ssmprune.space/1", "model": model, "ratios": PER_LAYER, **changes}
    return SearchSpace.from_yaml(yaml.safe_dump(content))


def shares_left(policy: Policy) -> list[float]:
    config = find_config(policy.model)
    return [kept / config.num_patches for _, kept in policy.effective_stages(config)]


@given(
    st.sampled_from(
        [
            PER_LAYER,
            PER_STAGE,
            PER_SCHEDULE,
            *({**r, "high": 0.9} for r in (PER_LAYER, PER_SCHEDULE)),
        ]
    ),
    st.sampled_from(["policy", "stage"]),
    st.data(),
)
def test_policy_of_the_space_itself_stays_what_it_is(
    ratios: dict, scorer_per: str, data: st.DataObject
) -> None:
    chosen = space(
        ratios=ratios,
        scorer=["l1", "sum"],
        scorer_per=scorer_per,
        alignment={"decay": ["none", "neighbor"]},
    )
    params = {}
    for name, distribution in chosen.distributions().items():
        choices = getattr(distribution, "choices", None) or [
            distribution.low + n * distribution.step  # type: ignore[attr-defined]
            for n in range(round((distribution.high - distribution.low) / distribution.step) + 1)  # type: ignore[attr-defined]
        ]
        params[name] = data.draw(st.sampled_from(choices))
    policy = chosen.suggest(FixedTrial(params))
    found = adapt(policy, chosen)
    assert found is not None
    assert pruning_key(found) == pruning_key(policy)
    if chosen.ratios.per == "schedule":
        assert found == policy


def test_stages_keep_their_relative_depth_and_what_they_leave() -> None:
    wide = space(
        "vim_small_patch16_224",
        ratios={"per": "layer", "layers": list(range(23)), "low": 0.5, "step": 0.05},
    )
    policy = Policy.model_validate(
        {
            "model": "vim_nano",
            "stages": [{"layer": 1, "keep_ratio": 0.8}, {"layer": 5, "keep_ratio": 0.5}],
        }
    )
    found = adapt(policy, wide)
    assert found is not None
    assert [stage.layer for stage in found.stages] == [5, 17]  # a quarter, three quarters
    assert shares_left(found) == pytest.approx(shares_left(policy), abs=0.02)


def test_stages_that_fall_on_one_layer_become_one() -> None:
    policy = Policy.load("top_vim_small")  # after 4, 9, 14 of 24
    chosen = space(ratios={"per": "layer", "layers": [2, 7], "low": 0.3, "step": 0.05})
    found = adapt(policy, chosen)
    assert found is not None
    assert [stage.layer for stage in found.stages] == [2]
    assert shares_left(found)[-1] == pytest.approx(0.8**3, abs=0.03)


def test_greatest_cuts_stay_where_there_are_fewer_stages() -> None:
    policy = Policy(
        model="vim_nano",
        stages=tuple(Stage(layer=n, keep_ratio=r) for n, r in ((1, 0.9), (3, 0.6), (5, 0.7))),
    )
    found = adapt(policy, space(ratios=PER_STAGE))
    assert found is not None
    assert [stage.layer for stage in found.stages] == [3, 5]
    assert shares_left(found) == pytest.approx(shares_left(policy)[1:], abs=0.06)


def test_other_stages_become_the_nearest_line() -> None:
    ratios = {"per": "schedule", "layers": list(range(23)), "low": 0.6, "step": 0.05}
    policy = Policy.load("top_vim_small")  # 0.8 after 4, 9, 14
    found = adapt(policy, space("vim_small_patch16_224", ratios=ratios))
    assert found is not None
    assert {stage.layer for stage in found.stages} <= {*range(4, 15)}
    left = shares_left(found)
    assert left == sorted(left, reverse=True)
    assert left[-1] == pytest.approx(shares_left(policy)[-1], abs=0.12)


def test_other_grids_become_the_nearest_line() -> None:
    ratios = {"per": "schedule", "layers": [0, 1, 2, 3], "low": 0.25, "step": 0.25}
    policy = Policy(
        model="vmamba_tiny_s1l8",
        reduction="grid",
        stages=tuple(Stage(layer=n, keep_ratio=r) for n, r in ((0, 0.5), (1, 0.5), (3, 0.5))),
    )
    found = adapt(policy, space("vmamba_tiny_s1l8", reduction="grid", ratios=ratios))
    assert found is not None
    assert [(s.layer, s.keep_ratio) for s in found.stages] == [(n, 0.5) for n in range(4)]


def test_grid_policies_keep_each_blocks_share() -> None:
    layers = {"per": "layer", "layers": list(range(14)), "low": 0.25, "step": 0.25}
    chosen = space("vmamba_tiny_s1l8", reduction="grid", ratios=layers)
    other = Policy(
        model="vmamba_small_s1l20",
        reduction="grid",
        stages=tuple(Stage(layer=n, keep_ratio=0.5) for n in range(13)),
    )
    found = adapt(other, chosen)
    assert found is not None
    assert [(stage.layer, stage.keep_ratio) for stage in found.stages] == [
        (layer, 0.5) for layer in range(7)
    ]


def test_unknown_scorer_becomes_the_first_of_the_space() -> None:
    policy = Policy.load("uniform_vim_nano")
    found = adapt(policy, space(scorer=["l2", "sum"]))
    assert found is not None
    assert found.scorer.name == "l2"


MERGED = {
    "model": "vim_nano",
    "stages": [
        {"layer": 0, "keep_ratio": 0.6, "reduce": "merge", "match": "neighbors"},
        {"layer": 2, "keep_ratio": 0.7, "reduce": "merge", "match": "score"},
        {"layer": 5, "keep_ratio": 0.8},
    ],
    "merge": {"metric": "stream", "weight": "equal", "untouched": 0.5},
    "alignment": {"sizes": "exact", "conv": "runs"},
}
WORDS = ["neighbors", "score", "drop"]
EVERY = {"per": "layer", "layers": list(range(23)), "low": 0.5, "step": 0.05}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"match": ["alternate", "score", "neighbors"]}, WORDS),
        ({"match": ["alternate", "neighbors"]}, ["neighbors", "alternate", "drop"]),
        ({"match": ["neighbors"], "reduce_per": "policy"}, ["neighbors"] * 3),
        ({"match": ["neighbors"], "reduce": ["merge"], "low": 0.55}, ["neighbors"] * 3),
        ({"reduce": ["drop"]}, ["drop"] * 3),
    ],
)
def test_stages_go_on_to_merge_where_the_space_does(changes: dict, words: list[str]) -> None:
    """From a model of 8 blocks to one of 24."""
    policy = Policy.model_validate(MERGED)
    given = {"schema": "ssmprune.space/2", "reduce": ["drop", "merge"], **changes}
    ratios = {**EVERY, "low": given.pop("low", 0.5)}
    found = adapt(policy, space("vim_small_patch16_224", ratios=ratios, **given))
    assert found is not None
    assert [word(stage) for stage in found.stages] == words
    assert [stage.layer for stage in found.stages] == [2, 8, 17]
    assert shares_left(found) == pytest.approx(shares_left(policy), abs=0.02)


def test_settings_of_merging_stay_where_the_space_has_them() -> None:
    merging = {
        "schema": "ssmprune.space/2",
        "reduce": ["drop", "merge"],
        "match": ["alternate", "score", "neighbors"],
        "ratios": EVERY,
    }
    wide = space(
        "vim_small_patch16_224",
        merge={"metric": ["output", "stream"], "weight": ["size"], "untouched": [0.0, 0.5]},
        alignment={"sizes": ["own", "exact"], "conv": ["compact"]},
        **merging,
    )
    found = adapt(Policy.model_validate(MERGED), wide)
    assert found is not None
    assert found.merge == Merge(metric="stream", untouched=0.5)
    assert found.alignment == Alignment(sizes="exact")


def test_policy_outside_the_limits_or_of_another_reduction_is_left_out() -> None:
    cheap = space(limits={"flops_ratio": {"max": 0.3}})
    assert adapt(Policy.load("uniform_vim_nano"), cheap) is None
    assert adapt(Policy.load("uniform_vmamba_tiny_s1l8"), space()) is None
    with pytest.raises(UsageError, match="--warm-start must offer a policy"):
        warm_start(["uniform_vmamba_tiny_s1l8"], space())


def test_warm_start_takes_the_front_of_a_run_and_policies_by_name(finished_run: Path) -> None:
    members = Outcome.read(finished_run).members
    found = warm_start(
        [finished_run, "uniform_vim_nano"], SearchSpace.load(finished_run / "space.yaml")
    )
    assert [name for name, _ in found] == [
        *(f"synthetic@{member.trial}" for member in members),
        "uniform_vim_nano",
    ]
    assert [pruning_key(p) for _, p in found[:-1]] == [pruning_key(m.policy) for m in members]
