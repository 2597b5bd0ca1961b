"""What every scorer has to hold. A new scorer is found by its name and inherits all of it."""

import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import ssmprune
from ssmprune.errors import UsageError
from ssmprune.policy import Scorer
from ssmprune.pruning.drop import DropStep
from ssmprune.pruning.scorers import Features, find_scorer, register_scorer, scorers
from tests.contracts.conftest import FAMILIES

LENGTH, CHANNELS = 12, 8
CLS = 5  # index of the class token in `make_features`

NAMES = sorted(scorers.names())
JUDGING = [name for name in NAMES if name != "random"]
every_scorer = pytest.mark.parametrize("name", NAMES)
every_judging_scorer = pytest.mark.parametrize("name", JUDGING)
in_every_family = pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, id=f"{key}-{name}")
        for key, family in FAMILIES.items()
        for name in NAMES
        if family.has(name)
    ],
)


def make_features(batch: int = 3, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    positions = torch.arange(0, 2 * LENGTH, 2).expand(batch, -1)
    return Features(
        y=draw(batch, LENGTH, CHANNELS),
        steps=tuple((draw(batch, LENGTH, CHANNELS), draw(CHANNELS)) for _ in range(4)),
        positions=positions,
        prefix=positions == 2 * CLS,
        layer=1,
        seed=0,
    )


def rows(features: Features, index: list[int]) -> Features:
    return Features(
        y=features.y[index],
        steps=tuple((raw[index], bias) for raw, bias in features.steps),
        positions=features.positions[index],
        prefix=features.prefix[index],
        layer=features.layer,
        seed=features.seed,
    )


@every_scorer
def test_scores_are_one_finite_number_for_each_token(name):
    scores = find_scorer(name).score(make_features())
    assert scores.shape == (3, LENGTH)
    assert scores.isfinite().all()


@every_scorer
def test_scores_do_not_depend_on_the_rest_of_the_batch(name):
    features = make_features()
    together = find_scorer(name).score(features)
    for index in ([0], [2, 1], [2]):
        alone = find_scorer(name).score(rows(features, index))
        assert torch.allclose(alone, together[index], atol=1e-6)


@every_scorer
def test_class_token_survives_in_every_image(name):
    features = make_features()
    kept = DropStep(4, Scorer(name=name)).select(features)
    assert (features.positions.gather(1, kept) == 2 * CLS).any(1).all()


@every_judging_scorer
@pytest.mark.parametrize("direction", range(4))
def test_token_marked_in_one_direction_comes_first(name, direction):
    features = make_features()
    features.y[:, [CLS, 8]] = 100.0
    features.steps[direction][0][:, 8] = 100.0
    kept = DropStep(2, Scorer(name=name)).select(features)
    assert kept.tolist() == [[CLS, 8]] * 3


@every_judging_scorer
def test_of_equal_tokens_the_earlier_stay(name):
    features = make_features()
    features.y[:] = features.y[:, :1]
    for raw, _ in features.steps:
        raw[:] = raw[:, :1]
    kept = DropStep(4, Scorer(name=name)).select(features)
    assert kept.tolist() == [[0, 1, 2, CLS]] * 3


@every_judging_scorer
def test_nan_is_refused(name):
    features = make_features()
    features.y[1, 3] = torch.nan
    for raw, _ in features.steps:
        raw[1, 3] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        DropStep(4, Scorer(name=name)).select(features)


@every_scorer
def test_price_is_a_whole_number_of_flops(name):
    price = find_scorer(name).flops(LENGTH, CHANNELS, 2)
    assert isinstance(price, int) and price >= LENGTH


@in_every_family
@torch.no_grad()
def test_kept_tokens_do_not_depend_on_the_rest_of_the_batch(family, name):
    model, images = family.build(), family.images()
    ssmprune.apply_policy(model, family.policy(0.6, 0.5, scorer=name))
    together = model.forward_features(images)
    for index in ([0], [2, 1], [3, 3, 0]):
        alone = model.forward_features(images[index])
        assert torch.equal(alone.positions, together.positions[index])
        assert torch.allclose(alone.hidden, together.hidden[index], rtol=0, atol=1e-10)


@in_every_family
@torch.no_grad()
def test_prefix_tokens_stay_in_every_image(family, name):
    model = family.build()
    ssmprune.apply_policy(model, family.policy(0.3, 0.01, scorer=name))
    kept = model.forward_features(family.images()).positions
    assert kept.shape == (4, 1 + len(family.config.prefix_positions))
    for position in family.config.prefix_positions:
        assert (kept == position).any(1).all()


@in_every_family
def test_gradients_reach_every_parameter(family, name):
    model = family.build().train()
    ssmprune.apply_policy(model, family.policy(0.6, 0.5, scorer=name))
    model(family.images()).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


def make_token_wise(model: nn.Module, column: int) -> None:
    """Let each block see the token in `column` alone, and convolve no token with another."""
    for block in model.layers:
        block.norm.register_forward_hook(
            lambda module, inputs, output: (
                output * (torch.arange(output.shape[1]) == column)[:, None]
            )
        )
    for key, parameter in model.layers.named_parameters():
        if key.endswith("bias"):
            parameter.zero_()
        elif "conv1d" in key:
            parameter[..., :-1] = 0
        elif "conv2d" in key:
            centre = parameter[..., 3, 3].clone()
            parameter.zero_()[..., 3, 3] = centre


@contextmanager
def only_direction(model: nn.Module, direction: int, directions: int):
    """The scan hands its input on in one direction of each block, and nothing in the others."""
    calls = 0

    def scan(u, *inputs, carry=None, **settings):
        nonlocal calls
        calls += 1
        y = u if (calls - 1) % directions == direction else torch.zeros_like(u)
        return y if carry is None else carry + y

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[type(model).__module__], "selective_scan", scan)
        yield


@contextmanager
def recorded_features():
    """The features that every pruning step is given."""
    found: list[Features] = []
    select = DropStep.select
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            DropStep, "select", lambda step, given: found.append(given) or select(step, given)
        )
        yield found


@pytest.mark.parametrize(
    ("family", "direction"),
    [
        pytest.param(family, direction, id=f"{key}-{direction}")
        for key, family in FAMILIES.items()
        for direction in range(family.directions)
    ],
)
@torch.no_grad()
def test_features_of_every_direction_stand_in_natural_token_order(family, direction):
    model, column = family.build(), 3
    make_token_wise(model, column)
    ssmprune.apply_policy(model, family.policy(0.6, 0.5, scorer="random"))
    with only_direction(model, direction, family.directions), recorded_features() as found:
        model(family.images())
    assert len(found) == 2
    for features in found:
        marked = (torch.arange(features.y.shape[1]) == column).expand(4, -1)
        assert torch.equal((features.y != 0).any(-1), marked)
        for raw, _ in features.steps:
            assert torch.equal((raw != 0).any(-1), marked)


def test_clipped_sum_ignores_what_is_negative():
    features = make_features()
    expected = [
        [sum(max(0.0, v) for v in token) for token in image] for image in features.y.tolist()
    ]
    assert torch.allclose(find_scorer("clipped_sum").score(features), torch.tensor(expected))


def test_random_scores_depend_on_seed_layer_and_position_only():
    one, other = make_features(seed=0), make_features(seed=1)
    score = find_scorer("random").score
    assert torch.equal(score(one), score(other))


def test_a_name_is_given_once():
    with pytest.raises(UsageError, match="must be new"):
        register_scorer("l1", flops=lambda L, E, K: 0)(lambda features: features.y.sum(-1))
