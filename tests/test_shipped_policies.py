"""The policies that ship with the package: published schedules and a uniform one for each model."""

import pytest
import timm

import ssmprune
from ssmprune.errors import PolicyError
from ssmprune.measure.flops import count_flops
from ssmprune.models.zoo import find_config, model_names
from ssmprune.policy import Policy, load_for, shipped_policies


def paper_gflops(policy: Policy) -> float:
    return round(count_flops(find_config(policy.model), policy).paper_flops / 1e9, 2)


def test_top_vim_small_has_the_published_tokens_and_flops():
    policy = Policy.load("top_vim_small")
    tokens = policy.entering_tokens(find_config(policy.model))
    assert tokens == (197,) * 5 + (157,) * 5 + (125,) * 5 + (101,) * 10
    assert paper_gflops(policy) == 3.57


def test_top_vim_tiny_prunes_after_the_10th_and_the_20th_block():
    policy = Policy.load("top_vim_tiny")
    tokens = policy.entering_tokens(find_config(policy.model))
    assert tokens == (197,) * 10 + (157,) * 10 + (125,) * 5
    assert paper_gflops(policy) == 1.24


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_evit_and_top_differ_in_scorer_and_alignment_only(size):
    evit, top = Policy.load(f"evit_vim_{size}"), Policy.load(f"top_vim_{size}")
    assert evit.stages == top.stages and evit.model == top.model
    assert (evit.scorer.name, evit.alignment.decay) == ("cls_similarity", "none")
    assert (top.scorer.name, top.alignment.decay) == ("clipped_sum", "zero_input")


def test_every_model_has_a_uniform_policy():
    uniform = {name for name in shipped_policies() if name.startswith("uniform_")}
    assert uniform == {f"uniform_{name}" for name in model_names()}


@pytest.mark.parametrize("name", model_names())
def test_uniform_policy_keeps_the_same_share_throughout(name):
    policy, config = load_for(f"uniform_{name}", name), find_config(name)
    quarters = [config.depth * k // 4 - 1 for k in (1, 2, 3)]
    layers = quarters if config.prunable else [*range(config.depth)]
    assert policy.reduction == ("tokens" if config.prunable else "grid")
    assert [(s.layer, s.keep_ratio) for s in policy.stages] == [(layer, 0.7) for layer in layers]


def test_name_stands_for_its_policy_wherever_a_path_does():
    policy = Policy.load("uniform_vim_nano")
    assert ssmprune.create_model("vim_nano", policy="uniform_vim_nano").plan.policy == policy
    assert timm.create_model("vim_nano", policy="uniform_vim_nano").plan.policy == policy


def test_unknown_name_is_refused_with_near_names():
    with pytest.raises(PolicyError, match=r"file or .* shipped .*did you mean top_vim_small"):
        Policy.load("top_vim_smal")


def test_a_file_comes_before_a_shipped_policy_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "top_vim_small").write_text("model: vim_nano\nstages: []")
    assert Policy.load("top_vim_small").model == "vim_nano"
