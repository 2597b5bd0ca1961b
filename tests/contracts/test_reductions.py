"""What every reduction has to hold, in every family that it fits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ssmprune
from ssmprune.errors import PolicyError
from ssmprune.measure.flops import count_flops
from ssmprune.measure.trace import trace_flops
from ssmprune.policy import Policy
from ssmprune.pruning.apply import PruningPlan
from ssmprune.pruning.kept import kept_patches
from ssmprune.pruning.reductions import REDUCTIONS, fitting_reduction
from tests.contracts.conftest import ALL_FAMILIES

PAIRS = {
    (family, reduction): REDUCTIONS[reduction].fits(ALL_FAMILIES[family].config)
    for family in ALL_FAMILIES
    for reduction in REDUCTIONS
}
FITTING = [pair for pair, fits in PAIRS.items() if fits]
every_pair = pytest.mark.parametrize(
    ("family", "reduction"),
    [(ALL_FAMILIES[family], REDUCTIONS[reduction]) for family, reduction in FITTING],
    ids=["-".join(pair) for pair in FITTING],
)


@pytest.mark.parametrize("family", ALL_FAMILIES.values(), ids=ALL_FAMILIES)
def test_every_family_is_served(family):
    assert fitting_reduction(family.config).fits(family.config)


@pytest.mark.parametrize("pair", [p for p, fits in PAIRS.items() if not fits], ids="-".join)
def test_policy_for_a_family_that_it_does_not_fit_is_refused(pair):
    family, reduction = (ALL_FAMILIES[pair[0]], REDUCTIONS[pair[1]])
    text = f"schema: ssmprune.policy/1\nmodel: {family.config.name}\nreduction: {reduction.name}\n"
    with pytest.raises(PolicyError, match="reduction must be"):
        Policy.from_yaml(text + "stages:\n- {layer: 0, keep_ratio: 0.5}\n")


@every_pair
@torch.no_grad()
def test_stages_that_keep_everything_are_bit_equal_to_dense(family, reduction):
    model, images = family.build(), family.images()
    dense = model(images)
    ssmprune.apply_policy(model, family.reducing(reduction, 1.0, 1.0))
    assert torch.equal(model(images), dense)


@every_pair
@torch.no_grad()
def test_removed_policy_leaves_the_dense_model(family, reduction):
    model, images = family.build(), family.images()
    dense = model(images)
    ssmprune.apply_policy(model, family.reducing(reduction, 0.6, 0.5))
    assert not torch.equal(model(images), dense)
    ssmprune.remove_policy(model)
    assert torch.equal(model(images), dense)


@every_pair
@torch.no_grad()
def test_logits_do_not_depend_on_the_rest_of_the_batch(family, reduction):
    model, images = family.build(), family.images()
    ssmprune.apply_policy(model, family.reducing(reduction, 0.6, 0.5))
    together = model(images)
    for index in ([0], [2, 1], [3, 3, 0]):
        assert torch.allclose(model(images[index]), together[index], rtol=0, atol=1e-10)


@every_pair
def test_training_reaches_every_parameter_with_finite_gradients(family, reduction):
    model = family.build().train()
    ssmprune.apply_policy(model, family.reducing(reduction, 0.6, 0.5))
    model(family.images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@every_pair
def test_masks_hold_as_many_patches_as_the_policy_counts(family, reduction):
    model, policy = family.build(), family.reducing(reduction, 0.6, 1.0, 0.5)
    ssmprune.apply_policy(model, policy)
    _, stages = kept_patches(model, family.images())
    told = policy.effective_stages(family.config)
    assert [stage.layer for stage in stages] == [stage.layer for stage, _ in told] == [0, 2]
    for stage, (_, kept) in zip(stages, told, strict=True):
        height, width = family.config.block_grids[stage.layer]
        assert stage.mask.shape == (len(family.images()), height, width)
        assert set(stage.mask.sum((1, 2)).tolist()) == {kept}


@every_pair
def test_blocks_never_scan_more_tokens_than_dense_ones(family, reduction):
    config = family.config
    dense = Policy(model=config.name, reduction=reduction.name, stages=()).entering_tokens(config)
    scanned = family.reducing(reduction, 0.6, 0.5).entering_tokens(config)
    assert len(scanned) == config.depth + 1
    assert all(mine <= theirs for mine, theirs in zip(scanned, dense, strict=True))
    assert sum(scanned) < sum(dense)


@every_pair
@torch.no_grad()
def test_whole_grid_is_restored(family, reduction):
    model, images = family.build(), family.images()
    dense = model.forward_features(images, restore=True)
    ssmprune.apply_policy(model, family.reducing(reduction, 0.6, 0.5))
    restored = model.forward_features(images, restore=True)
    assert restored.shape == dense.shape and restored.isfinite().all()


@every_pair
def test_plan_has_a_step_for_each_stage_that_removes_anything(family, reduction):
    policy = family.reducing(reduction, 0.6, 1.0, 0.5)
    assert sorted(PruningPlan.of(policy, family.config).steps) == [0, 2]


@every_pair
@given(ratios=st.lists(st.floats(0.02, 1), max_size=3))
@settings(max_examples=3, deadline=None)
def test_closed_form_of_the_flops_equals_the_trace_by_operator_on_both_rules(
    family, reduction, ratios
):
    policy = family.reducing(reduction, *ratios)
    model = family.build()
    ssmprune.apply_policy(model, policy)
    assert trace_flops(model).by_operator() == count_flops(model.config, policy).by_operator()


@every_pair
def test_policy_file_gives_the_policy_back(family, reduction):
    policy = family.reducing(reduction, 0.6, 0.5)
    assert Policy.from_yaml(policy.to_yaml()) == policy


@every_pair
def test_reduction_is_told_in_words(family, reduction):
    assert reduction.summary and reduction.does and reduction.verb and reduction.where
