import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from ssmprune.data import open_images, open_stream
from ssmprune.errors import DataError, UsageError

SHAPE = {"image_size": (32, 32), "channels": 3}


def write_images(folder, count, first=0, size=(50, 40)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.fixture
def folder(tmp_path):
    for c, name in enumerate(("ant", "bee", "cat")):
        write_images(tmp_path / "photos" / name, 6, first=10 * c)
    return tmp_path / "photos"


def gather(image_set):
    batches = list(image_set.loader)
    return torch.cat([images for images, _ in batches]), torch.cat(
        [labels for _, labels in batches]
    )


def test_open_images_applies_the_evaluation_transform(folder):
    image_set = open_images(str(folder), "search", **SHAPE, batch_size=4)
    images, labels = gather(image_set)
    transform = v2.Compose(
        [
            v2.Resize(36, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    known = {
        label: [transform(Image.open(path)) for path in (folder / name).iterdir()]
        for label, name in enumerate(image_set.classes)
    }
    assert image_set.classes == ("ant", "bee", "cat")
    for image, label in zip(images, labels, strict=True):
        assert any(torch.allclose(image, candidate, atol=1e-6) for candidate in known[int(label)])


def test_a_plain_folder_is_divided_half_and_half_by_class(folder):
    search, holdout = (open_images(str(folder), s, **SHAPE) for s in ("search", "holdout"))
    assert [np.bincount(gather(part)[1]).tolist() for part in (search, holdout)] == [[3, 3, 3]] * 2
    everything = torch.cat([gather(search)[0], gather(holdout)[0]]).flatten(1)
    assert len(everything.unique(dim=0)) == 18


def test_the_division_is_the_same_for_every_seed_though_the_order_is_not(folder):
    first, other = (open_images(str(folder), "search", **SHAPE, seed=seed) for seed in (0, 1))
    assert not torch.equal(gather(first)[0], gather(other)[0])
    both = torch.cat([gather(first)[0], gather(other)[0]]).flatten(1)
    assert len(both.unique(dim=0)) == len(first)
    assert first.fingerprint != other.fingerprint


def test_order_depends_on_neither_batch_size_nor_limit(folder):
    whole = gather(open_images(str(folder), "search", **SHAPE))
    part = gather(open_images(str(folder), "search", **SHAPE, batch_size=2, limit=5))
    assert torch.equal(part[0], whole[0][:5]) and torch.equal(part[1], whole[1][:5])


def test_folders_named_after_the_splits_are_used_as_they_are(tmp_path):
    write_images(tmp_path / "search" / "bee", 2)
    write_images(tmp_path / "holdout" / "ant", 3, first=10)
    write_images(tmp_path / "holdout" / "bee", 1, first=20)
    search, holdout = (open_images(str(tmp_path), s, **SHAPE) for s in ("search", "holdout"))
    assert search.classes == holdout.classes == ("ant", "bee")
    assert gather(search)[1].tolist() == [1, 1]
    assert sorted(gather(holdout)[1].tolist()) == [0, 0, 0, 1]


def test_validation_images_are_divided_when_there_is_no_search_folder(tmp_path):
    write_images(tmp_path / "train" / "ant", 1)
    write_images(tmp_path / "val" / "ant", 4)
    sizes = [len(open_images(str(tmp_path), s, **SHAPE)) for s in ("train", "search", "holdout")]
    assert sizes == [1, 2, 2]


def test_fingerprint_notices_a_changed_file_and_not_the_place(folder, tmp_path):
    before = open_images(str(folder), "search", **SHAPE).fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert open_images(str(moved), "search", **SHAPE).fingerprint == before
    for path in (moved / "ant").iterdir():
        Image.new("RGB", (5, 5)).save(path)
    assert open_images(str(moved), "search", **SHAPE).fingerprint != before


def test_resident_reads_once_and_keeps_the_order(folder):
    image_set = open_images(str(folder), "search", **SHAPE, batch_size=4)
    held = image_set.resident("cpu")
    expected = gather(image_set)
    shutil.rmtree(folder)
    assert torch.equal(gather(held)[0], expected[0]) and torch.equal(gather(held)[1], expected[1])
    assert (len(held), held.fingerprint) == (9, image_set.fingerprint)


def test_grey_images_and_other_modes_are_read_in_colour(tmp_path):
    for i, mode in enumerate(("L", "RGBA", "CMYK", "1")):
        (tmp_path / "thing").mkdir(exist_ok=True)
        Image.new(mode, (20, 20)).save(tmp_path / "thing" / f"{i}.tif")
    assert sum(len(open_images(str(tmp_path), s, **SHAPE)) for s in ("search", "holdout")) == 4
    assert gather(open_images(str(tmp_path), "search", **SHAPE))[0].shape == (2, 3, 32, 32)


def test_an_unreadable_image_is_named(folder):
    for path in (folder / "bee").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    image_set = open_images(str(folder), "search", **SHAPE)
    with pytest.raises(DataError, match=r"readable, but .*bee.*\.png is not .*remove it"):
        gather(image_set)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "holds no folders; lay it out as"),
        (lambda root: (root / "ant").mkdir(), "holds 1 folders without images"),
        (lambda root: write_images(root / "ant", 1), "at least 2 images"),
        (lambda root: write_images(root / "train" / "ant", 1), "must lie in a folder named search"),
    ],
)
def test_a_folder_without_images_for_the_split_is_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        open_images(str(tmp_path), "search", **SHAPE)


def test_a_plain_folder_has_no_training_images(folder):
    with pytest.raises(DataError, match=r"train images .* must lie in a folder named train"):
        open_stream(str(folder), **SHAPE, batch_size=2)


def test_stream_gives_each_step_its_own_augmented_batch_from_any_start(tmp_path):
    write_images(tmp_path / "train" / "ant", 3)
    write_images(tmp_path / "train" / "bee", 4, first=10)
    stream = open_stream(str(tmp_path), **SHAPE, batch_size=2)
    steps = [batch for batch, _ in zip(stream.batches(), range(7), strict=False)]
    resumed = next(stream.batches(5))
    assert torch.equal(resumed[0], steps[5][0]) and torch.equal(resumed[1], steps[5][1])
    assert steps[0][0].shape == (2, 3, 32, 32)
    labels = torch.cat([labels for _, labels in steps])
    assert [labels[:7].sum(), labels[7:].sum()] == [4, 4]


def test_stream_names_an_unreadable_image_without_a_traceback(tmp_path):
    (tmp_path / "train" / "ant").mkdir(parents=True)
    (tmp_path / "train" / "ant" / "bad.jpg").write_bytes(b"no image")
    stream = open_stream(str(tmp_path), **SHAPE, batch_size=2)
    with pytest.raises(DataError, match=r"^every image must be readable, but .*bad\.jpg"):
        next(stream.batches())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "digit"}, UsageError, "did you mean digits"),
        ({"name": "no/such/folder"}, DataError, "no/such/folder does not"),
        ({"name": __file__}, DataError, "is a file"),
        ({"split": "hold-out"}, UsageError, "did you mean holdout"),
        ({"batch_size": 0}, UsageError, "batch_size must be at least 1, got 0"),
        ({"limit": -1}, UsageError, "limit must be at least 1, got -1"),
    ],
)
def test_open_images_refuses_what_it_cannot_open(arguments, error, message):
    call = {"name": "digits", "split": "search", "image_size": (48, 48), "channels": 1} | arguments
    with pytest.raises(error, match=message):
        open_images(**call)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"image_size": (32, 32), "channels": 2}, "3 channels, but the model takes 2"),
        ({"image_size": (32, 0), "channels": 3}, "must be at least 1 x 1, got 32 x 0"),
    ],
)
def test_folders_refuse_a_model_of_another_shape(folder, shape, message):
    with pytest.raises(UsageError, match=message):
        open_images(str(folder), "search", **shape)
