import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmprune.data import open_images, open_stream
from ssmprune.data.digits import DigitStream, sources
from ssmprune.errors import UsageError

SHAPE = {"image_size": (48, 48), "channels": 1}


def gather(image_set):
    batches = list(image_set.loader)
    return torch.cat([images for images, _ in batches]), torch.cat(
        [labels for _, labels in batches]
    )


@pytest.mark.parametrize(("split", "count"), [("search", 728), ("holdout", 1456)])
def test_open_images_composes_normalised_images_of_every_digit(split, count):
    image_set = open_images("digits", split, **SHAPE)
    images, labels = gather(image_set)
    assert (image_set.name, image_set.split, len(image_set)) == ("digits", split, count)
    assert image_set.classes == tuple("0123456789")
    assert images.shape == (count, 1, 48, 48) and images.dtype == torch.float32
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(10))
    assert abs(images.mean()) < 0.5 and 0.3 < images.std() < 1.5
    assert images.isfinite().all()


def test_sources_divide_the_original_digits_without_overlap_and_by_class():
    from sklearn.datasets import load_digits

    original = load_digits()
    parts = {split: sources(split) for split in ("train", "search", "holdout")}
    together = np.concatenate([pixels for pixels, _ in parts.values()]).reshape(-1, 64) * 16
    order = np.lexsort(together.T)
    assert np.array_equal(together[order], original.data[np.lexsort(original.data.T)])
    for _, labels in parts.values():
        expected = np.bincount(original.target) * len(labels) / len(original.target)
        assert np.abs(np.bincount(labels) - expected).max() <= 2


def test_open_images_uses_each_source_equally_often():
    _, labels = gather(open_images("digits", "holdout", **SHAPE))
    rounds = labels.reshape(4, -1)
    assert (rounds == rounds[0]).all()
    assert np.array_equal(rounds[0], sources("holdout")[1])


@settings(max_examples=10, deadline=None)
@given(batch_size=st.integers(1, 200), limit=st.integers(1, 200))
def test_open_images_depends_on_neither_batch_size_nor_limit(batch_size, limit):
    whole, whole_labels = gather(open_images("digits", "search", **SHAPE, limit=200))
    part, labels = gather(
        open_images("digits", "search", **SHAPE, batch_size=batch_size, limit=limit)
    )
    assert torch.equal(part, whole[:limit]) and torch.equal(labels, whole_labels[:limit])


def test_open_images_yields_full_batches_and_then_the_rest():
    image_set = open_images("digits", "search", **SHAPE, batch_size=100)
    assert [len(labels) for _, labels in image_set.loader] == [100] * 7 + [28]


def test_open_images_gives_the_same_again_and_other_images_for_another_seed():
    first = open_images("digits", "search", **SHAPE, limit=20)
    again = open_images("digits", "search", **SHAPE, limit=20)
    other = open_images("digits", "search", **SHAPE, limit=20, seed=1)
    assert torch.equal(gather(first)[0], gather(first)[0])
    assert torch.equal(gather(first)[0], gather(again)[0])
    assert not torch.equal(gather(first)[0], gather(other)[0])
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_fingerprint_tells_splits_and_lengths_apart():
    sets = [
        open_images("digits", split, **SHAPE, limit=limit)
        for split in ("search", "holdout")
        for limit in (10, 20)
    ]
    assert len({image_set.fingerprint for image_set in sets}) == 4


def test_every_prefix_holds_the_classes_in_proportion():
    _, labels = gather(open_images("digits", "search", **SHAPE))
    for length in (30, 91, 182, 300):
        assert np.abs(np.bincount(labels[:length], minlength=10) - length / 10).max() <= 3


def test_the_target_stands_out_from_its_surroundings():
    """The brightest fifth of each image's 6 x 6 patches holds most of its contrast."""
    images, _ = gather(open_images("digits", "search", **SHAPE))
    patches = torch.nn.functional.unfold(images, 6, stride=6)
    contrast = patches.std(1).sort(descending=True).values
    assert contrast[:, :13].mean() > 2 * contrast[:, 32:].mean()


def test_stream_gives_each_step_its_own_batch_from_any_start():
    stream = open_stream("digits", **SHAPE, batch_size=5, seed=3, curriculum_steps=10)
    steps = [batch for batch, _ in zip(stream.batches(), range(6), strict=False)]
    resumed = next(stream.batches(4))
    assert torch.equal(resumed[0], steps[4][0]) and torch.equal(resumed[1], steps[4][1])
    assert not torch.equal(steps[4][0], steps[5][0])
    assert not torch.equal(
        next(open_stream("digits", **SHAPE, batch_size=5).batches())[0], steps[0][0]
    )


def test_stream_draws_from_the_training_sources_only():
    stream = DigitStream(batch_size=64)
    train = open_images("digits", "train", **SHAPE, limit=1)
    assert stream.fingerprint != train.fingerprint
    assert len(sources("train")[0]) == 1251
    images, labels = stream.batch(0)
    assert images.shape == (64, 1, 48, 48) and labels.shape == (64,)


def test_curriculum_grows_from_clean_to_full_clutter():
    stream = DigitStream(batch_size=64, curriculum_steps=10)
    assert [stream.difficulty(step) for step in (0, 5, 10, 99)] == [0, 0.5, 1, 1]
    assert DigitStream(batch_size=1).difficulty(0) == 1

    def roughness(step):
        images, _ = stream.batch(step)
        return (images[..., 1:] - images[..., :-1]).abs().mean()

    assert roughness(0) < 0.7 * roughness(5) < 0.7 * roughness(10)


@pytest.mark.parametrize(
    "shape", [{"image_size": (224, 224), "channels": 1}, {"image_size": (48, 48), "channels": 3}]
)
def test_digits_refuse_a_model_of_another_shape(shape):
    for open_them in (
        lambda: open_images("digits", "search", **shape),
        lambda: open_stream("digits", **shape, batch_size=1),
    ):
        with pytest.raises(UsageError, match=r"48 x 48 pixels with 1 channel.*use a model"):
            open_them()
