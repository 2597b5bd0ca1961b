"""From image files to a model's input, through timm's transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor

from ssmprune.data.reading import MODES
from ssmprune.errors import UsageError
from ssmprune.models.configs import Preprocessing

Transform = Callable[[Image.Image], Tensor]


def check_shape(image_size: tuple[int, int], channels: int, preprocessing: Preprocessing) -> None:
    """Refuse a model that image files cannot serve.

    Raises:
        UsageError: The size is not positive, the model takes neither one channel nor three, or its
            preprocessing is for another number of channels.
    """
    if min(image_size) < 1:
        raise UsageError(
            f"image_size must be at least 1 x 1, got {image_size[0]} x {image_size[1]}."
        )
    if channels not in MODES:
        raise UsageError(
            f"image files are read in grey with 1 channel or in colour with 3 channels, but the "
            f"model takes {channels}; use a model with 1 or 3 channels, or the data set made for "
            "this one."
        )
    lengths = {len(preprocessing.mean), len(preprocessing.std)}
    if not lengths <= {1, channels}:
        raise UsageError(
            f"preprocessing must have 1 mean and std, or {channels} for {channels} channels, got "
            f"{len(preprocessing.mean)} and {len(preprocessing.std)}; give them to the model's "
            "configuration."
        )


def evaluation_transform(
    image_size: tuple[int, int], channels: int, preprocessing: Preprocessing
) -> Transform:
    """Shorter side resized, bicubic, and the centre cropped; then normalised.

    Raises:
        UsageError: Image files do not serve such a model.
    """
    check_shape(image_size, channels, preprocessing)
    transform: Transform = create_transform(
        (channels, *image_size),
        interpolation="bicubic",
        crop_pct=preprocessing.crop_share,
        **_normalisation(channels, preprocessing),
    )
    return transform


def training_transform(
    image_size: tuple[int, int],
    channels: int,
    preprocessing: Preprocessing,
    augment: str | None,
    erase: float,
) -> Transform:
    """Random crops, flips, and colour jitter or `augment`; then normalised.

    Args:
        augment: timm's `auto_augment`, such as `rand-m9-mstd0.5-inc1`.
        erase: Chance of random erasing.

    Raises:
        UsageError: timm does not know the augmentation, or image files do not serve such a model.
    """
    check_shape(image_size, channels, preprocessing)
    try:
        transform: Transform = create_transform(
            (channels, *image_size),
            is_training=True,
            interpolation="bicubic",
            auto_augment=augment,
            re_prob=erase,
            re_mode="pixel",
            **_normalisation(channels, preprocessing),
        )
    except (AssertionError, ValueError, KeyError, IndexError) as fault:
        raise UsageError(
            f"augment must be one of timm's auto_augment strings, got {augment!r} ({fault}); "
            "such are rand-m9-mstd0.5-inc1 and original."
        ) from None
    return transform


def _normalisation(channels: int, preprocessing: Preprocessing) -> dict[str, Any]:
    """Mean and standard deviation of each channel."""
    mean, std = preprocessing.mean, preprocessing.std
    return {
        "mean": mean * channels if len(mean) == 1 else mean,
        "std": std * channels if len(std) == 1 else std,
    }


def describe(channels: int, preprocessing: Preprocessing) -> dict[str, Any]:
    """What a fingerprint says of the pixels; nothing of colour that timm's defaults normalise.

    They were all that earlier versions read, so sets of theirs keep their fingerprints.
    """
    if (channels, preprocessing) == (3, Preprocessing()):
        return {}
    return {"channels": channels, **_normalisation(channels, preprocessing)}
