"""Closed form, fvcore's trace and the published figures."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ssmprune
from ssmprune.errors import SsmpruneError
from ssmprune.measure.flops import count_flops
from ssmprune.measure.trace import trace_flops
from ssmprune.models.vmamba import VMamba
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Policy, Scorer, Stage
from ssmprune.pruning.scorers import scorers
from tests.contracts.conftest import FAMILIES


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_closed_form_equals_the_trace_by_operator_on_both_rules(family, data):
    layers = st.integers(0, family.config.depth - 1)
    ratios = data.draw(st.dictionaries(layers, st.floats(0.02, 1)))
    policy = Policy(
        model=family.config.name,
        stages=tuple(Stage(layer=k, keep_ratio=ratios[k]) for k in sorted(ratios)),
        scorer=Scorer(name=data.draw(st.sampled_from(sorted(filter(family.has, scorers.names()))))),
        alignment=Alignment(
            decay=data.draw(st.sampled_from(["none", "zero_input", "neighbor"])),
            conv=data.draw(st.sampled_from(family.conv)),
        ),
    )
    model = family.build()
    ssmprune.apply_policy(model, policy)
    assert trace_flops(model).by_operator() == count_flops(model.config, policy).by_operator()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_closed_form_of_a_dense_model_equals_the_trace(family):
    model = family.build()
    assert trace_flops(model).by_operator() == count_flops(model.config).by_operator()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vmamba_tiny_s2l5", "vanilla_vmamba_tiny"])
@given(
    ratios=st.dictionaries(st.integers(0, 5), st.floats(0.02, 1), max_size=4),
    size=st.tuples(st.integers(8, 16), st.integers(8, 16)).map(lambda s: (4 * s[0], 4 * s[1])),
)
@settings(max_examples=5, deadline=None)
def test_closed_form_of_a_grid_policy_equals_the_trace(name, ratios, size):
    small = replace(
        find_config(name), widths=(4, 8, 8, 12), depths=(2, 1, 2, 1), image_size=size, num_classes=3
    )
    model = VMamba(small)
    assert trace_flops(model).by_operator() == count_flops(small).by_operator()
    stages = tuple(Stage(layer=k, keep_ratio=ratios[k]) for k in sorted(ratios))
    policy = Policy(model=name, reduction="grid", stages=stages)
    ssmprune.apply_policy(model, policy)
    assert trace_flops(model).by_operator() == count_flops(small, policy).by_operator()


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("plainmamba_l1", 3.0),
        ("plainmamba_l2", 8.1),
        ("plainmamba_l3", 14.4),
        ("vmamba_tiny_s1l8", 4.9),
        ("vmamba_tiny_s2l5", 4.9),
        ("vmamba_small_s2l15", 8.7),
        ("vmamba_small_s1l20", 8.6),
        ("vmamba_base_s2l15", 15.4),
        ("vmamba_base_s1l20", 15.2),
        ("vanilla_vmamba_tiny", 5.6),
        ("vanilla_vmamba_small", 11.2),
        ("vanilla_vmamba_base", 18.0),
    ],
)
def test_dense_figures_of_vmamba_are_the_published_ones(name, published):
    assert round(count_flops(find_config(name)).paper_flops / 1e9, 1) == published


@pytest.mark.parametrize(
    ("name", "paper", "both_directions"),
    [
        ("vim_tiny_patch16_224", 1.45, 1.82),
        ("vim_small_patch16_224", 5.08, 5.91),
        ("vim_base_patch16_224", 18.87, 20.88),
    ],
)
def test_dense_figures_are_the_published_ones(name, paper, both_directions):
    count = count_flops(find_config(name))
    assert round(count.paper_flops / 1e9, 2) == paper
    assert round(count.flops / 1e9, 2) == both_directions


def test_published_schedule_has_its_published_figure():
    """ToP-ViM's Vim-S: 197, 157, 125, 101 tokens at 3.57 G (arXiv 2409.18962 rounds to 3.60)."""
    stages = tuple(
        Stage(layer=layer, keep_count=count) for layer, count in ((4, 156), (9, 124), (14, 100))
    )
    policy = Policy(model="vim_small_patch16_224", stages=stages)
    config = find_config("vim_small_patch16_224")
    assert sorted(set(policy.entering_tokens(config)), reverse=True) == [197, 157, 125, 101]
    assert round(count_flops(config, policy).paper_flops / 1e9, 2) == 3.57


def test_operator_without_a_price_is_an_error(monkeypatch):
    model = ssmprune.create_model("vim_nano")
    monkeypatch.setattr(model.head, "forward", lambda x: torch.special.erf(x[:, :10]))
    with pytest.raises(SsmpruneError, match="aten::erf"):
        trace_flops(model)
