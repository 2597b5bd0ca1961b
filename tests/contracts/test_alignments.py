"""What every decay, strength and convolution has to hold, in every family that prunes tokens."""

from itertools import product

import pytest
import torch

import ssmprune
from ssmprune.pruning.alignment import decays
from tests.contracts.conftest import FAMILIES

CASES = {
    f"{name}-{decay}-{strength}-{conv}": (
        FAMILIES[name],
        {"decay": decay, "strength": strength, "conv": conv},
    )
    for name in FAMILIES
    for decay, strength, conv in product(decays.names(), (0.0, 0.3, 1.0), FAMILIES[name].conv)
}
every_alignment = pytest.mark.parametrize(("family", "alignment"), CASES.values(), ids=CASES.keys())


@every_alignment
@torch.no_grad()
def test_policy_that_keeps_everything_is_bit_equal_to_dense(family, alignment):
    model, images = family.build(), family.images()
    dense = model(images)
    ssmprune.apply_policy(model, family.policy(1.0, 0.99, **alignment))
    assert torch.equal(model(images), dense)


@every_alignment
@torch.no_grad()
def test_logits_do_not_depend_on_the_rest_of_the_batch(family, alignment):
    model, images = family.build(), family.images()
    ssmprune.apply_policy(model, family.policy(0.6, 0.5, **alignment))
    together = model(images)
    for index in ([0], [2, 1], [3, 3, 0]):
        assert torch.allclose(model(images[index]), together[index], rtol=0, atol=1e-10)


@every_alignment
def test_training_reaches_every_parameter_with_finite_gradients(family, alignment):
    model = family.build().train()
    ssmprune.apply_policy(model, family.policy(0.6, 0.5, **alignment))
    model(family.images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@every_alignment
@torch.no_grad()
def test_only_a_decay_with_strength_changes_the_logits(family, alignment):
    model, images = family.build(), family.images()
    ssmprune.apply_policy(model, family.policy(0.6, 0.5, **alignment))
    aligned = model(images)
    ssmprune.apply_policy(model, family.policy(0.6, 0.5, **{**alignment, "decay": "none"}))
    is_compact = alignment["decay"] == "none" or alignment["strength"] == 0
    assert torch.equal(model(images), aligned) == is_compact
