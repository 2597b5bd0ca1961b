"""What every scorer has to hold. A new scorer is found by its name and inherits all of it."""

import pytest
import torch

from ssmprune.errors import UsageError
from ssmprune.policy import Scorer, scorer_names
from ssmprune.pruning.apply import PruningStep
from ssmprune.pruning.scorers import Features, find_scorer, register_scorer

LENGTH, CHANNELS = 12, 8


@pytest.fixture(params=sorted(scorer_names))
def name(request):
    return request.param


def make_features(batch: int = 3, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    positions = torch.arange(0, 2 * LENGTH, 2).expand(batch, -1)
    return Features(
        y=draw(batch, LENGTH, CHANNELS),
        steps=tuple((draw(batch, LENGTH, CHANNELS), draw(CHANNELS)) for _ in range(2)),
        positions=positions,
        prefix=positions == 10,
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


def test_scores_are_one_finite_number_for_each_token(name):
    scores = find_scorer(name).score(make_features())
    assert scores.shape == (3, LENGTH)
    assert scores.isfinite().all()


def test_scores_do_not_depend_on_the_rest_of_the_batch(name):
    features = make_features()
    together = find_scorer(name).score(features)
    for index in ([0], [2, 1], [2]):
        alone = find_scorer(name).score(rows(features, index))
        assert torch.allclose(alone, together[index], atol=1e-6)


def test_class_token_survives_in_every_image(name):
    features = make_features()
    kept = PruningStep(4, Scorer(name=name)).select(features)
    assert (features.positions.gather(1, kept) == 10).any(1).all()


@pytest.mark.parametrize("name_", sorted(scorer_names - {"random"}))
def test_nan_is_refused(name_):
    features = make_features()
    features.y[1, 3] = torch.nan
    for raw, _ in features.steps:
        raw[1, 3] = torch.nan
    with pytest.raises(RuntimeError, match="NaN"):
        PruningStep(4, Scorer(name=name_)).select(features)


def test_gradients_reach_the_features_from_the_tokens_that_stay(name):
    features = make_features()
    features.y.requires_grad_()
    kept = PruningStep(4, Scorer(name=name)).select(features)
    features.y.gather(1, kept[..., None].expand(-1, -1, CHANNELS)).sum().backward()
    assert features.y.grad.sum() == 3 * 4 * CHANNELS


def test_price_is_a_whole_number_of_flops(name):
    assert find_scorer(name).flops(LENGTH, CHANNELS, 2) >= LENGTH


@pytest.mark.parametrize("name_", ["clipped_sum", "l1", "l2", "sum"])
def test_rules_on_the_output_find_a_marked_token(name_):
    features = make_features()
    features.y[:, 7] = 100.0
    kept = PruningStep(2, Scorer(name=name_)).select(features)
    assert kept.tolist() == [[5, 7]] * 3


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
