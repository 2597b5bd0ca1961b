"""Pixels of image files of all kinds."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import pil_loader

from ssmprune.data import check_images, open_images, open_stream
from ssmprune.data.reading import read_image
from ssmprune.errors import DataError, UsageError
from ssmprune.models.configs import Preprocessing

GREY = Preprocessing(mean=(0.5,), std=(0.25,), crop_share=1.0)
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)


def pixels(path, channels=1):
    return np.asarray(read_image(path, channels))


@pytest.mark.parametrize(
    ("ending", "stored"),
    [
        ("png", BYTES.astype(np.uint16) * 257),
        ("tif", BYTES.astype(np.uint16) * 257),
        ("tif", BYTES.astype(np.int32) * 257),
        ("tif", BYTES.astype(np.float32) / 255),
    ],
)
def test_deeper_pixels_are_read_as_their_8_bit_twins(tmp_path, ending, stored):
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(stored).save(path)
    assert np.array_equal(pixels(path), BYTES)
    assert np.array_equal(pixels(path, 3), np.repeat(BYTES[..., None], 3, 2))


def test_middle_grey_is_middle_grey_at_any_depth(tmp_path):
    Image.fromarray(np.full((4, 4), 32896, np.uint16)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "b.tif")
    assert (pixels(tmp_path / "a.png") == 128).all() and (pixels(tmp_path / "b.tif") == 128).all()


@pytest.mark.parametrize(
    ("stored", "bounds"),
    [
        (np.array([[0, 255]], np.float32), "from 0 to 1, but are from 0 to 255"),
        (np.array([[-0.5, 1]], np.float32), "from 0 to 1, but are from -0.5 to 1"),
        (np.array([[np.nan, 1]], np.float32), "from 0 to 1"),
        (np.array([[0, 70000]], np.int32), "from 0 to 65535, but are from 0 to 70000"),
    ],
)
def test_pixels_without_a_known_white_are_refused(tmp_path, stored, bounds):
    Image.fromarray(stored).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif is not \(its pixels must be {bounds}"):
        read_image(tmp_path / "a.tif", 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_are_read_as_torchvision_reads_them(tmp_path, mode):
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(colours).convert(mode).save(path)
    assert np.array_equal(pixels(path, 3), np.asarray(pil_loader(str(path))))
    assert np.array_equal(pixels(path, 1), np.asarray(Image.open(path).convert("L")))


def test_palettes_with_transparency_keep_their_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 100, 50, 10, 20, 30])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert pixels(tmp_path / "a.png", 3).tolist() == [[[200, 100, 50], [10, 20, 30]]]


def test_orientation_is_not_applied_as_in_torchvision(tmp_path):
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert read_image(path, 3).size == pil_loader(str(path)).size == (20, 10)


@pytest.fixture
def grey_folder(tmp_path):
    for i, part in enumerate(("train/ant", "train/bee", "val/ant", "val/bee")):
        (tmp_path / part).mkdir(parents=True)
        for k in range(2):
            values = np.random.default_rng(10 * i + k).integers(0, 256, (48, 48), np.uint8)
            Image.fromarray(values).save(tmp_path / part / f"{k}.png")
    return tmp_path


def test_a_model_of_one_channel_reads_folders_in_grey_by_its_own_normalisation(grey_folder, gather):
    shape = {"image_size": (48, 48), "channels": 1, "preprocessing": GREY}
    found = open_images(str(grey_folder), "search", **shape)
    images, labels = gather(found)
    stored = [
        np.asarray(Image.open(path), np.float32) / 255
        for path in (grey_folder / "val").glob("*/*.png")
    ]
    assert images.shape == (2, 1, 48, 48) and sorted(labels.tolist()) == [0, 1]
    for image in images:
        assert any(np.allclose(image[0] * 0.25 + 0.5, values, atol=1e-6) for values in stored)


def test_the_fingerprint_tells_what_a_model_makes_of_the_files(grey_folder):
    shape = {"image_size": (48, 48), "channels": 1}
    looks = [
        {**shape, "preprocessing": GREY},
        {**shape, "preprocessing": Preprocessing(mean=(0.4,), std=(0.25,), crop_share=1.0)},
        {**shape, "preprocessing": Preprocessing(mean=(0.5,), std=(0.25,))},
        {**shape, "channels": 3, "preprocessing": GREY},
        {**shape, "channels": 3},
    ]
    found = {open_images(str(grey_folder), "search", **look).fingerprint for look in looks}
    assert len(found) == len(looks)


@pytest.mark.parametrize("augment", [None, "rand-m9-mstd0.5-inc1", "original"])
def test_grey_images_are_augmented_in_grey(grey_folder, augment):
    stream = open_stream(
        str(grey_folder),
        image_size=(40, 48),
        channels=1,
        preprocessing=GREY,
        batch_size=8,
        augment=augment,
        erase=0.5,
    )
    images, _ = next(stream.batches())
    assert images.shape == (8, 1, 40, 48) and images.isfinite().all()


@pytest.mark.parametrize(
    ("channels", "message"), [(2, "but the model takes 2"), (1, "have 1 mean and std")]
)
def test_models_that_no_image_file_serves_are_refused(grey_folder, channels, message):
    for open_it in (
        lambda shape: open_images(str(grey_folder), "search", **shape),
        lambda shape: open_stream(str(grey_folder), **shape, batch_size=1),
    ):
        with pytest.raises(UsageError, match=message):
            open_it({"image_size": (32, 32), "channels": channels})


def test_an_image_that_is_too_large_is_told_with_the_others(grey_folder, monkeypatch):
    large = grey_folder / "train" / "ant" / "large.png"
    Image.new("L", (300, 300)).save(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)  # refused above twice as many
    with pytest.raises(DataError, match=r"1 of 9 are not; .*large\.png"):
        check_images(str(grey_folder))
    with pytest.raises(DataError, match=r"large\.png is not"):
        read_image(large, 3)


def test_colour_is_normalised_as_in_timm(grey_folder, gather):
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    assert Preprocessing() == Preprocessing(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, 0.875)
    found = open_images(str(grey_folder), "holdout", image_size=(32, 32), channels=3)
    images, _ = gather(found)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    colours = images * std + mean
    assert torch.allclose(colours[:, :1], colours[:, 1:], atol=1e-6)
