"""A policy on a whole model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ssmprune
from ssmprune.errors import PolicyError
from ssmprune.policy import Alignment, Policy, Scorer, Stage
from ssmprune.pruning.scorers import scorers

ALIGNMENTS = [
    Alignment(decay=decay, conv=conv)
    for decay in ("none", "zero_input", "neighbor")
    for conv in ("compact", "position")
]


def policy(*ratios: tuple[int, float], **parts) -> Policy:
    stages = tuple(Stage(layer=layer, keep_ratio=ratio) for layer, ratio in ratios)
    return Policy(model="vim_nano", stages=stages, **parts)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ssmprune.create_model("vim_nano").eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 1, 48, 48, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_removed_policy_leaves_the_dense_model(model, images):
    dense = model(images)
    ssmprune.apply_policy(model, policy((1, 0.5)))
    assert not torch.equal(model(images), dense)
    ssmprune.remove_policy(model)
    assert torch.equal(model(images), dense)


def test_policy_never_changes_the_state_dict(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ssmprune.apply_policy(model, policy((1, 0.5)))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@given(
    ratios=st.dictionaries(st.integers(0, 7), st.floats(0.05, 1), max_size=4),
    scorer=st.sampled_from(sorted(scorers.names())),
    alignment=st.sampled_from(ALIGNMENTS),
)
@settings(max_examples=25, deadline=None)
def test_every_block_gets_the_tokens_that_the_policy_counts(images, ratios, scorer, alignment):
    model = ssmprune.create_model("vim_nano").eval()
    chosen = policy(*sorted(ratios.items()), scorer=Scorer(name=scorer), alignment=alignment)
    ssmprune.apply_policy(model, chosen)
    entered: list[int] = []
    for block in model.layers:
        block.norm.register_forward_pre_hook(lambda _, args: entered.append(args[0].shape[1]))
    with torch.no_grad():
        stream = model.forward_features(images)
    assert (*entered, stream.hidden.shape[1]) == chosen.entering_tokens(model.config)
    assert (stream.positions.diff(dim=1) > 0).all()
    assert (stream.positions == 32).any(1).all()


def test_stages_may_name_their_own_scorer(model, images):
    stages = (
        Stage(layer=1, keep_ratio=0.5, scorer=Scorer(name="random", seed=3)),
        Stage(layer=3, keep_ratio=0.5),
    )
    ssmprune.apply_policy(model, Policy(model="vim_nano", stages=stages))
    kept = model.forward_features(images).positions
    assert kept.shape == (4, 17)


def test_policy_for_another_model_is_refused(model):
    other = Policy(model="vim_tiny_patch16_224", stages=())
    with pytest.raises(PolicyError, match="for the model it is applied to"):
        ssmprune.apply_policy(model, other)


def test_count_above_the_patches_of_a_smaller_image_is_refused():
    with pytest.raises(
        PolicyError, match=r"must not exceed the 49 patch tokens.*got 156; lower it"
    ):
        ssmprune.create_model("vim_small_patch16_224", policy="top_vim_small", image_size=112)


def test_apply_policy_refuses_a_module_that_is_no_backbone():
    with pytest.raises(TypeError, match="create_model"):
        ssmprune.apply_policy(torch.nn.Linear(1, 1), policy((1, 0.5)))
