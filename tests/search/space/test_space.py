"""Any trial of any space gives a valid policy, and a faulty file is told in full."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FixedTrial

from ssmprune import Policy
from ssmprune.errors import SpaceError
from ssmprune.measure.flops import count_flops
from ssmprune.models import zoo
from ssmprune.models.zoo import find_config, model_names
from ssmprune.policy import Alignment, Merge, Scorer, Stage
from ssmprune.pruning.scorers import scorers as registered
from ssmprune.stage import conv_fault, scorer_fault
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator
from ssmprune_search.space.file import SpaceFile
from ssmprune_search.space.space import SearchSpace

SHIPPED = sorted((Path(__file__).parents[3] / "spaces").glob("*.yaml"))
MINIMAL = {
    "schema": "ssmprune.space/1",
    "model": "vim_nano",
    "ratios": {"per": "layer", "layers": [0, 2, 4], "low": 0.5, "step": 0.1},
}

GRID = {"model": "vmamba_tiny_s1l8", "reduction": "grid"}
HALF = {"layer": 2, "keep_ratio": 0.5}
LAST_BY_L2 = {"layer": 4, "keep_ratio": 0.5, "scorer": {"name": "l2"}}


def space(**changes: Any) -> SearchSpace:
    return SearchSpace.from_yaml(yaml.safe_dump({**MINIMAL, **changes}))


def ratios(**changes: Any) -> dict[str, Any]:
    return {**MINIMAL["ratios"], **changes}


def subsets(values: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    model = draw(st.sampled_from(model_names()))
    config = find_config(model)
    scorers = [name for name in sorted(registered.names()) if scorer_fault(name, config) is None]
    convs = [conv for conv in ("compact", "position") if conv_fault(conv, config) is None]
    depth = config.depth
    step = draw(st.sampled_from([0.05, 0.1, 0.125]))
    steps = draw(st.integers(1, 6))
    high = draw(st.sampled_from([1.0, 0.9]))
    where = {
        "per": draw(st.sampled_from(["layer", "stage", "schedule"])),
        "layers": sorted(draw(st.sets(st.integers(0, depth - 1), min_size=1, max_size=6))),
        "low": round(high - steps * step, 9),
        "high": high,
        "step": step,
    }
    if where["per"] == "stage":
        where["stages"] = draw(st.integers(1, 4))
    if not find_config(model).prunable:
        return space(model=model, reduction="grid", ratios=where)
    alignment = {
        "decay": draw(subsets(["none", "zero_input", "neighbor"])),
        "strength": draw(subsets([0.25, 0.5, 1.0])),
        "conv": draw(subsets(convs)),
    }
    changes = {
        "ratios": where,
        "scorer": draw(subsets(scorers)),
        "scorer_per": draw(st.sampled_from(["policy", "stage"])),
    }
    if draw(st.booleans()):
        changes |= draw(merging(where["low"], bool(config.prefix_positions)))
        alignment["conv"] = draw(subsets([*convs, "runs"]))
        alignment["sizes"] = draw(subsets(["own", "scaled", "exact"]))
    return space(model=model, alignment=alignment, **changes)


@st.composite
def merging(draw: st.DrawFn, low: float, has_prefix: bool) -> dict[str, Any]:
    match = draw(subsets(["alternate", "neighbors", "score"]))
    merge: dict[str, Any] = {
        "metric": draw(subsets(["output", "y", "C"])),
        "weight": draw(subsets(["size", "equal"])),
        "protect": draw(subsets([0, 1, 3])) if has_prefix else [0],
    }
    if "score" in match:
        merge["untouched"] = draw(subsets([0.0, 0.5]))
        merge["fate"] = draw(subsets(["merge", "half"]))
    reduce = draw(st.permutations(["drop", "merge"]))
    if low > 0.5 and merge["protect"] == [0] and draw(st.booleans()):
        reduce = ["merge"]
    return {
        "schema": "ssmprune.space/2",
        "reduce": reduce,
        "match": match,
        "reduce_per": draw(st.sampled_from(["policy", "stage"])),
        "merge": merge,
    }


def any_value(draw: st.DrawFn, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return draw(st.sampled_from(distribution.choices))
    steps = round((distribution.high - distribution.low) / distribution.step)
    value = distribution.low + draw(st.integers(0, steps)) * distribution.step
    return min(value, distribution.high)


@st.composite
def proposals(draw: st.DrawFn) -> tuple[SearchSpace, FixedTrial]:
    chosen = draw(spaces())
    params = {name: any_value(draw, d) for name, d in chosen.distributions().items()}
    return chosen, FixedTrial(params)


@given(proposals())
def test_suggest_gives_a_valid_policy_for_any_trial(proposal: tuple[SearchSpace, FixedTrial]):
    chosen, trial = proposal
    policy = chosen.suggest(trial)
    assert Policy.from_yaml(policy.to_yaml()) == policy
    assert policy.model == chosen.model
    assert {stage.layer for stage in policy.stages} <= set(chosen.ratios.layers)


@given(proposals())
def test_params_lead_back_to_the_same_policy(proposal: tuple[SearchSpace, FixedTrial]):
    chosen, trial = proposal
    policy = chosen.suggest(trial)
    per_line = chosen.ratios.per == "schedule"
    if not per_line and chosen.ratios.high < 1 and len(policy.stages) < len(chosen.ratios.layers):
        return  # a stage removed nothing: the policy has fewer stages than every trial has
    params = chosen.params(policy)
    assert params.keys() == chosen.distributions().keys()
    assert chosen.suggest(FixedTrial(params)) == policy


@given(proposals())
def test_suggest_leaves_out_what_changes_nothing(proposal: tuple[SearchSpace, FixedTrial]):
    chosen, trial = proposal
    policy = chosen.suggest(trial)
    assert [stage for stage, _ in policy.effective_stages(chosen.config)] == [*policy.stages]
    if policy.alignment.decay == "none":
        assert policy.alignment.strength == 1.0
    if not policy.stages:
        assert policy.alignment == Alignment()
    if not policy.merges:
        assert policy.merge == Merge()
        assert policy.alignment.sizes == "own" and policy.alignment.conv != "runs"


def test_suggest_asks_for_nothing_where_a_list_has_one_value():
    names = space(scorer=["l1"]).distributions()
    assert sorted(names) == ["keep_ratio_0", "keep_ratio_2", "keep_ratio_4"]


def test_two_stages_on_one_layer_are_one_stage_with_the_lower_ratio():
    chosen = space(ratios=ratios(per="stage", stages=2))
    trial = FixedTrial(
        {
            "stage_0_layer_index": 1,
            "stage_0_keep_ratio": 0.9,
            "stage_1_layer_index": 1,
            "stage_1_keep_ratio": 0.6,
        }
    )
    assert chosen.suggest(trial).stages == (Stage(layer=2, keep_ratio=0.6),)


def test_scorer_per_stage_is_a_parameter_of_each_stage():
    chosen = space(scorer=["l1", "l2"], scorer_per="stage", ratios=ratios(layers=[0, 2, 4]))
    assert {name for name in chosen.distributions() if "scorer" in name} == {
        "scorer_0",
        "scorer_2",
        "scorer_4",
    }
    ratio = {"keep_ratio_0": 1.0, "keep_ratio_2": 0.8, "keep_ratio_4": 0.6}
    policy = chosen.suggest(
        FixedTrial({**ratio, "scorer_0": "l1", "scorer_2": "l2", "scorer_4": "l1"})
    )
    assert policy.scorer == Scorer(name="l2")
    assert policy.stages == (
        Stage(layer=2, keep_ratio=0.8),
        Stage(layer=4, keep_ratio=0.6, scorer=Scorer(name="l1")),
    )


@pytest.mark.parametrize(
    ("ends", "ratio_ends", "expected"),
    [
        ((1, 3), (0.7, 0.7), {1: 0.7, 2: 0.7, 3: 0.7}),
        ((0, 4), (0.9, 0.5), {0: 0.9, 1: 0.8, 2: 0.7, 3: 0.6, 4: 0.5}),
        ((4, 1), (0.9, 0.7), {1: 0.9, 2: 0.8, 3: 0.8, 4: 0.7}),  # 0.83 and 0.77, rounded
        ((2, 2), (0.6, 0.9), {2: 0.6}),
        ((0, 2), (1.0, 0.8), {1: 0.9, 2: 0.8}),
    ],
)
def test_schedule_is_a_line_from_the_first_layer_to_the_last(
    ends: tuple[int, int], ratio_ends: tuple[float, float], expected: dict[int, float]
):
    chosen = space(ratios=ratios(per="schedule", layers=[0, 1, 2, 3, 4, 5]))
    names = ["first_layer_index", "last_layer_index", "first_keep_ratio", "last_keep_ratio"]
    assert list(chosen.distributions()) == names
    policy = chosen.suggest(FixedTrial(dict(zip(names, (*ends, *ratio_ends), strict=True))))
    assert {stage.layer: stage.keep_ratio for stage in policy.stages} == expected
    assert chosen.suggest(FixedTrial(chosen.params(policy))) == policy


@given(st.data())
def test_every_equal_schedule_over_successive_layers_is_in_the_space(data: st.DataObject):
    chosen = space(
        model="vim_small_patch16_224",
        ratios=ratios(per="schedule", layers=[*range(2, 22)], low=0.6, step=0.05),
    )
    start, end = sorted(data.draw(st.tuples(st.integers(2, 21), st.integers(2, 21))))
    ratio = data.draw(st.sampled_from(chosen.ratios.grid()))
    stages = [Stage(layer=layer, keep_ratio=ratio) for layer in range(start, end + 1)]
    policy = chosen.normalise(stages, chosen.scorer[0], Alignment())
    assert chosen.suggest(FixedTrial(chosen.params(policy))) == policy


def test_known_schedules_of_a_line_leave_out_what_is_none():
    layers = [*range(1, 6)]
    schedule = {"name": "equal", "layers": [1, 2, 3], "keep_ratio": [0.9, 0.8]}
    chosen = space(ratios=ratios(per="schedule", layers=layers), schedules=[schedule])
    assert [name for name, _ in chosen.known_schedules()] == ["equal@0.9", "equal@0.8"]


def test_of_two_stages_on_one_layer_the_lower_ratios_scorer_decides():
    chosen = space(
        scorer=["l1", "l2"], scorer_per="stage", ratios=ratios(per="stage", stages=2, layers=[2])
    )
    trial = FixedTrial(
        {
            "stage_0_layer_index": 0,
            "stage_0_keep_ratio": 0.9,
            "stage_0_scorer": "l1",
            "stage_1_layer_index": 0,
            "stage_1_keep_ratio": 0.6,
            "stage_1_scorer": "l2",
        }
    )
    policy = chosen.suggest(trial)
    assert policy.stages == (Stage(layer=2, keep_ratio=0.6),)
    assert policy.scorer.name == "l2"


@pytest.mark.parametrize("where", [ratios(), ratios(per="stage", stages=2)])
def test_known_schedule_keeps_its_stages_scorers(where: dict[str, Any]):
    stages = [
        {"layer": 0, "keep_ratio": 0.9},
        {"layer": 4, "keep_ratio": 0.6, "scorer": {"name": "l1"}},
    ]
    schedules = [{"name": "own", "stages": stages, "scorer": "l2"}]
    chosen = space(scorer=["l1", "l2"], scorer_per="stage", ratios=where, schedules=schedules)
    (policy,) = (policy for name, policy in chosen.known_schedules() if name == "own")
    assert [policy.stage_scorer(stage).name for stage in policy.stages] == ["l2", "l1"]
    assert chosen.suggest(FixedTrial(chosen.params(policy))) == policy


@pytest.mark.parametrize(
    ("stages", "scorer", "rule"),
    [
        ([(1, 0.8)], "clipped_sum", "layer must be one of"),
        ([(2, 0.85)], "clipped_sum", "keep_ratio must be one of"),
        ([(2, 0.8)], "l2", "scorer must be one of"),
    ],
)
def test_params_refuse_a_policy_outside_the_space(
    stages: list[tuple[int, float]], scorer: str, rule: str
):
    policy = Policy(
        model="vim_nano",
        stages=tuple(Stage(layer=n, keep_ratio=r) for n, r in stages),
        scorer=Scorer(name=scorer),
    )
    with pytest.raises(SpaceError, match=rule):
        space().params(policy)


def test_infeasible_names_rule_and_value():
    chosen = space(limits={"flops_ratio": {"min": 0.6, "max": 0.9}})
    dense = Policy(model="vim_nano", stages=())
    flops = count_flops(chosen.config, dense).flops
    assert chosen.infeasible(flops) == "flops_ratio must be in [0.6, 0.9], got 1.000"
    pruned = Policy(model="vim_nano", stages=(Stage(layer=2, keep_ratio=0.7),))
    flops = count_flops(chosen.config, pruned).flops
    assert chosen.infeasible(flops) is None
    assert 0.6 < flops / chosen.dense_flops < 0.9


def test_admits_holds_a_measurement_against_the_accuracy_limit():
    measured: Measurement = SyntheticEvaluator("vim_nano", "search")(
        Policy(model="vim_nano", stages=(Stage(layer=0, keep_ratio=0.5),))
    )
    assert space().admits(measured)
    assert not space(limits={"top1": {"min": measured.top1 + 1}}).admits(measured)


@pytest.mark.parametrize(
    ("objective", "ratio"),
    [("peak_memory_bytes", "peak_memory_ratio"), ("latency_ms", "latency_ratio")],
)
@pytest.mark.parametrize(("share", "admitted"), [(1.0, True), (0.99, False)])
def test_admits_holds_a_measurement_against_the_limit_of_a_measured_cost(
    objective: str, ratio: str, share: float, admitted: bool
):
    policy = Policy(model="vim_nano", stages=(Stage(layer=0, keep_ratio=0.5),))
    measured = SyntheticEvaluator("vim_nano", "search")(policy)
    limit = share * getattr(measured, ratio)
    key = ratio.removeprefix("peak_")
    chosen = space(objectives=["top1", objective], limits={key: {"max": limit}})
    assert chosen.admits(measured) == admitted


def test_known_schedules_begin_with_three_equal_stages():
    chosen = space(ratios=ratios(layers=[1, 3, 5]))
    names = [name for name, _ in chosen.known_schedules()]
    assert names == ["uniform@0.9", "uniform@0.8", "uniform@0.7", "uniform@0.6"]
    _, policy = chosen.known_schedules()[1]
    assert [(s.layer, s.keep_ratio) for s in policy.stages] == [(1, 0.8), (3, 0.8), (5, 0.8)]


def test_known_schedules_hold_the_files_own_and_only_feasible_ones():
    chosen = space(
        scorer=["l1", "l2"],
        limits={"flops_ratio": {"min": 0.5, "max": 1.0}},
        schedules=[
            {"name": "equal", "layers": [0, 2], "keep_ratio": [0.9, 0.5], "scorer": "l2"},
            {"name": "own", "stages": [{"layer": 4, "keep_ratio": 0.6}]},
        ],
    )
    found = dict(chosen.known_schedules())
    assert list(found) == ["equal@0.9", "own"]
    assert found["equal@0.9"].scorer.name == "l2"
    assert found["own"].scorer.name == "l1"
    for policy in found.values():
        assert chosen.suggest(FixedTrial(chosen.params(policy))) == policy


@pytest.mark.parametrize(("depth", "layers"), [(1, [0]), (2, [0]), (3, [0, 1]), (4, [0, 1, 2])])
def test_shallow_models_have_known_schedules(
    depth: int, layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shallow = replace(find_config("vim_nano"), name="vim_shallow", depth=depth)
    monkeypatch.setitem(zoo.configs._entries, "vim_shallow", shallow)
    ratios = {"per": "layer", "layers": list(range(depth)), "low": 0.5, "step": 0.1}
    schedules = space(model="vim_shallow", ratios=ratios).known_schedules()
    assert {tuple(s.layer for s in policy.stages) for _, policy in schedules} == {tuple(layers)}


def test_every_model_of_the_zoo_has_a_space() -> None:
    assert {path.stem for path in SHIPPED} == set(model_names())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_space_is_for_its_model_and_queues_schedules(path: Path):
    chosen = SearchSpace.load(path)
    assert chosen.model == path.stem
    assert len(chosen.known_schedules()) >= 5


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"model": "vim_nono"}, ["unknown model 'vim_nono'", "did you mean vim_nano"]),
        ({"objectivs": ["top1"]}, ["unknown key 'objectivs'", "did you mean 'objectives'?"]),
        ({"scorer": ["l3"]}, ["unknown scorer 'l3' at scorer[0]", "did you mean l2"]),
        ({"scorer": "l1"}, ["scorer must be", "got 'l1'"]),
        ({"scorer": ["l1", "l1"]}, ["values must differ, got 'l1' twice"]),
        ({"scorer": []}, ["at least one value must stand in the list, got [] at scorer"]),
        ({"ratios": ratios(low=1.2)}, ["low must be less than or equal to 1", "got 1.2"]),
        ({"ratios": ratios(low=0.0)}, ["low must be greater than 0"]),
        ({"ratios": ratios(low="half")}, ["low must be a valid number, got 'half'"]),
        ({"ratios": ratios(low=1.0)}, ["low must be below high, got 1.0 and 1.0"]),
        ({"ratios": ratios(step=0.3)}, ["whole number of steps", "steps of 0.3"]),
        ({"ratios": ratios(layers=[0, 8])}, ["layer must be below 8", "got 8", "layers[1]"]),
        ({"ratios": ratios(layers=[2, 2])}, ["layers must be at least one and ascend, got [2, 2]"]),
        ({"ratios": ratios(layers=[4, 2])}, ["ascend, got [4, 2]", "list each once, sorted"]),
        ({"ratios": ratios(per="stage")}, ["stages must be given with `per: stage`"]),
        ({"ratios": ratios(stages=2)}, ["stages must be given with `per: stage`"]),
        ({"ratios": ratios(per="schedule", stages=2)}, ["stages must be given with `per: stage`"]),
        (
            {
                "ratios": ratios(per="schedule"),
                "schedules": [{"name": "a", "layers": [0, 4], "keep_ratio": [0.8]}],
            },
            ["keep ratios must lie on a line", "got 0: 0.8, 4: 0.8 at schedules[0]", "per: layer"],
        ),
        ({"alignment": {"decay": ["zero"]}}, ["unknown decay 'zero'", "did you mean zero_input"]),
        ({"reduction": "grid"}, ["reduction must be tokens for vim_nano, got grid at reduction"]),
        ({"model": "vmamba_tiny_s1l8"}, ["reduction must be grid for vmamba_tiny_s1l8"]),
        (
            {**GRID, "scorer": ["l1"], "scorer_per": "stage", "alignment": {"conv": ["position"]}},
            [f"{key} must not be given with" for key in ("scorer", "scorer_per", "alignment")],
        ),
        (
            {**GRID, "schedules": [{"name": "a", "stages": [{**HALF, "scorer": {"name": "l1"}}]}]},
            ["scorer must not be given with `reduction: grid`, got 'l1' at schedules[0]"],
        ),
        ({"limits": {"flops_ratio": {"min": 0.9, "max": 0.5}}}, ["min must be below max"]),
        ({"scorer_per": "layer"}, ["scorer_per must be 'policy' or 'stage', got 'layer'"]),
        (
            {
                "scorer": ["l1", "l2"],
                "schedules": [{"name": "a", "stages": [{**HALF, "layer": 0}, LAST_BY_L2]}],
            },
            ["stages must share one scorer", "got l1, l2 at schedules[0]", "`scorer_per: stage`"],
        ),
        (
            {
                "scorer": ["l1"],
                "scorer_per": "stage",
                "schedules": [{"name": "a", "stages": [HALF, LAST_BY_L2]}],
            },
            ["scorer must be one of ['l1'], got 'l2' at schedules[0]"],
        ),
        (
            {"limits": {"latency_ratio": {"max": 0.5}}},
            ["latency_ratio must have no limit where latency_ms is no objective", "add latency_ms"],
        ),
        (
            {"limits": {"memory_ratio": {"max": 0.5}}},
            ["memory_ratio must have no limit where peak_memory_bytes is no objective"],
        ),
        (
            {"objectives": ["top1", "flops", "latency_ms", "peak_memory_bytes"]},
            ["objectives must be at most 3, got 4", "remove"],
        ),
        (
            {"schedules": [{"name": "a", "layers": [1], "keep_ratio": [0.8]}]},
            ["layer must be one of ratios.layers, got 1", "schedules[0]"],
        ),
        (
            {"schedules": [{"name": "a", "stages": [HALF, {**HALF, "layer": 0}]}]},
            ["the stages' layers must ascend, got [2, 0] at schedules[0]", "sorted"],
        ),
        (
            {
                "model": "vmamba_tiny_s1l8",
                "ratios": ratios(per="schedule"),
                "schedules": [{"name": "a", "layers": [0, 4], "keep_ratio": [0.8]}],
            },
            ["reduction must be grid for vmamba_tiny_s1l8", "keep ratios must lie on a line"],
        ),
        (
            {"schedules": [{"name": "a", "layers": [2]}]},
            ["either stages, or layers and keep_ratio"],
        ),
        (
            {"model": "plainmamba_l1", "scorer": ["l1", "cls_similarity"]},
            ["conv must be position or runs", "got 'compact' at", "got 'cls_similarity'"],
        ),
        (
            {"model": "plainmamba_l1", "alignment": {"conv": ["position", "compact"]}},
            ["conv must be position or runs on plainmamba_l1", "alignment.conv[1]"],
        ),
        (
            {"model": "vim_nono", "ratios": ratios(low=2.0), "colour": 1},
            ["'vim_nono'", "got 2.0", "'colour'"],
        ),
    ],
)
def test_faults_of_a_space_file_are_all_told(changes: dict[str, Any], messages: list[str]):
    with pytest.raises(SpaceError) as fault:
        space(**changes)
    for message in messages:
        assert message in str(fault.value)


def test_fault_names_file_and_line(tmp_path: Path):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "scorer": ["l3"]}, sort_keys=False))
    with pytest.raises(SpaceError, match=r"space\.yaml, line \d+"):
        SearchSpace.load(path)


@pytest.mark.parametrize(
    "text", ["schema: [", "- a list", "", "model: !!python/object/apply:os.getcwd []"]
)
def test_what_is_no_yaml_mapping_is_refused(text: str):
    with pytest.raises(SpaceError):
        SearchSpace.from_yaml(text)


def test_numbers_are_read_as_people_write_them():
    text = yaml.safe_dump({**MINIMAL, "ratios": ratios(low=0.5)}).replace("0.5", "5e-1")
    assert SearchSpace.from_yaml(text) == space()


def test_reading_a_space_imports_nothing_but_says_what_it_imports():
    text = yaml.safe_dump({**MINIMAL, "scorer": ["qqqq"], "imports": ["mine.py", "no_such_module"]})
    with pytest.raises(SpaceError) as caught:
        SearchSpace.from_yaml(text)
    told = "it was made with `--import mine.py --import no_such_module`: give that, or install"
    assert told in str(caught.value)


@pytest.mark.parametrize("style", ["imports: [mine.py, json]", "imports:\n  - 'mine.py'\n  - json"])
def test_frozen_space_names_its_files_from_any_directory(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "sp aces é"
    folder.mkdir()
    (folder / "mine.py").write_text("")
    text = f"# ours\n{style}  # first\n{yaml.safe_dump(MINIMAL)}"
    (folder / "space.yaml").write_text(text)
    monkeypatch.chdir(folder)
    opened = SpaceFile.open("space.yaml")
    imports = (str(folder / "mine.py"), "json")
    assert opened.imports == imports
    assert opened.space.imports == ("mine.py", "json")
    assert "# first" in opened.text and opened.text.startswith("# ours\n")
    (tmp_path / "frozen.yaml").write_text(opened.text)
    monkeypatch.chdir(tmp_path)
    assert SpaceFile.open("frozen.yaml").imports == imports


def test_import_of_a_space_that_fails_is_told_with_its_line(tmp_path: Path):
    (tmp_path / "space.yaml").write_text(
        "imports:\n- json\n- mine.py\n- not it\n" + yaml.safe_dump(MINIMAL)
    )
    with pytest.raises(SpaceError) as caught:
        SpaceFile.open(tmp_path / "space.yaml")
    missing, odd = str(caught.value).splitlines()
    assert missing == (
        f"an import must be there, but there is no file {tmp_path}/mine.py at imports[1] "
        f"({tmp_path}/space.yaml, line 3); check the path."
    )
    assert "got 'not it' at imports[2]" in odd


@pytest.mark.parametrize("imports", ["mine.py", 3, [3], {"mine.py": 1}])
def test_imports_that_are_no_list_of_texts_are_refused(imports: Any, tmp_path: Path):
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({**MINIMAL, "imports": imports}))
    with pytest.raises(SpaceError, match="must be a valid"):
        SpaceFile.open(tmp_path / "space.yaml")
