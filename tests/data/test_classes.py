"""The classes of a folder beside those of a classifier."""

import logging

import pytest
import torch
from timm.data.imagenet_info import ImageNetInfo

from ssmprune.data import open_images, open_stream
from ssmprune.errors import UsageError

SHAPE = {"image_size": (32, 32), "channels": 3}


def opened(root, num_classes, split="search"):
    return open_images(str(root), split, **SHAPE, num_classes=num_classes)


@pytest.fixture
def make_folder(tmp_path, write_images):
    def make(*names):
        for i, name in enumerate(names):
            write_images(tmp_path / "data" / name, 2, first=10 * i)
        return tmp_path / "data"

    return make


@pytest.mark.parametrize(
    ("subset", "size", "places"),
    [
        ("imagenet-1k", 1000, (3, 500, 999)),
        ("imagenet-12k", 11821, (0, 7000)),
        ("imagenet-22k-ms", 21842, (2, 1500, 9000)),
    ],
)
def test_folders_of_synsets_are_mapped_to_their_own_logits(
    make_folder, gather, caplog, subset, size, places
):
    synsets = ImageNetInfo(subset).label_names()
    root = make_folder(*(synsets[place] for place in places))
    with caplog.at_level(logging.INFO, "ssmprune"):
        found = opened(root, size)
    assert sorted(gather(found)[1].tolist()) == sorted(places)
    assert found.class_list == subset and found.classes == tuple(synsets)
    assert caplog.messages == [
        f"{root}: its folders are taken as the synsets that they name, "
        f"{len(places)} of the {size} of {subset}."
    ]


def test_a_mapped_folder_holds_the_same_images_in_the_same_order(make_folder, gather):
    root = make_folder("n01440764", "n02123045", "n07753592")
    own, mapped = opened(root, None), opened(root, 1000)
    assert torch.equal(gather(own)[0], gather(mapped)[0])
    assert own.class_list is None and own.classes == ("n01440764", "n02123045", "n07753592")
    assert own.fingerprint != mapped.fingerprint
    numbers = torch.tensor([mapped.classes.index(name) for name in own.classes])
    assert torch.equal(numbers[gather(own)[1]], gather(mapped)[1])


def test_all_of_imagenet_is_read_as_before_and_nothing_is_told(make_folder, caplog):
    synsets = ImageNetInfo("imagenet-1k").label_names()
    root = make_folder(*synsets[:2])
    for name in synsets[2:]:
        (root / name).mkdir()
    with caplog.at_level(logging.INFO, "ssmprune.data.classes"):
        own, mapped = opened(root, None), opened(root, 1000)
    assert own.fingerprint == mapped.fingerprint and mapped.class_list == "imagenet-1k"
    assert "synsets" not in caplog.text


def test_synsets_of_a_classifier_of_their_own_are_numbered_by_name(make_folder, gather):
    found = opened(make_folder("n01440764", "n02123045"), 2)
    assert sorted(gather(found)[1].tolist()) == [0, 1] and found.class_list is None


@pytest.mark.parametrize(
    ("names", "num_classes"),
    [
        (("ant", "bee"), 1000),
        (("ant", "bee", "cat"), 2),
        (("ant", "n01440764"), 1000),
        (("n01440764", "n99999999"), 1000),
        (("n01440764", "n02123045"), 37),
    ],
)
def test_another_number_of_classes_is_refused_with_both(make_folder, names, num_classes):
    root = make_folder(*(f"{part}/{name}" for part in ("train", "val") for name in names))
    message = rf"the model's {num_classes} classes, but .*data has {len(names)}; give data"
    for open_it in (
        lambda: opened(root, num_classes),
        lambda: open_stream(str(root), **SHAPE, num_classes=num_classes, batch_size=2),
    ):
        with pytest.raises(UsageError, match=message):
            open_it()


def test_streams_map_synsets_as_sets_do(make_folder):
    root = make_folder("train/n01440764", "train/n02123045")
    stream = open_stream(str(root), **SHAPE, num_classes=1000, batch_size=4)
    _, labels = next(stream.batches())
    assert len(stream.classes) == 1000
    assert set(labels.tolist()) == {0, stream.classes.index("n02123045")}


def test_digits_have_ten_classes():
    shape = {"image_size": (48, 48), "channels": 1}
    assert len(open_images("digits", "search", **shape, num_classes=10, limit=5)) == 5
    for open_it in (
        lambda: open_images("digits", "search", **shape, num_classes=7),
        lambda: open_stream("digits", **shape, num_classes=7, batch_size=1),
    ):
        with pytest.raises(UsageError, match="the model's 7 classes, but digits has 10"):
            open_it()
