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


@pytest.mark.parametrize(
    ("size", "pairs", "published"), [("tiny", 5, 1.28), ("small", 11, 3.58), ("base", 11, 13.21)]
)
def test_rmeeto_merges_before_every_second_block_at_the_published_flops(size, pairs, published):
    policy = Policy.load(f"rmeeto_vim_{size}")
    tokens = policy.entering_tokens(find_config(policy.model))
    assert tokens == (*(197 - pairs * (block // 2) for block in range(24)), 197 - pairs * 11)
    assert paper_gflops(policy) == pytest.approx(published, rel=0.01)
    assert {(stage.reduce, stage.match) for stage in policy.stages} == {("merge", "alternate")}
    assert (policy.merge.metric, policy.merge.weight) == ("output", "size")


@pytest.mark.parametrize(("size", "pairs"), [("tiny", 8), ("small", 13)])
def test_tome_merges_in_two_blocks_what_it_does_in_a_layer_of_a_transformer(size, pairs):
    policy = Policy.load(f"tome_vim_{size}")
    tokens = policy.entering_tokens(find_config(policy.model))
    assert tokens[:24:2] == tuple(197 - pairs * layer for layer in range(12))
    assert tokens[23] == tokens[24]  # nothing reads what the last block would merge
    assert {(stage.reduce, stage.match) for stage in policy.stages} == {("merge", "alternate")}


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
