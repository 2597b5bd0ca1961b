"""One image, as a model takes it and as people see it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssmprune.data import digits
from ssmprune.data.reading import read_image
from ssmprune.data.transforms import evaluation_transform
from ssmprune.errors import DataError, UsageError
from ssmprune.models.configs import ModelConfig, Preprocessing

_DIGITS = f"{digits.NAME}:"


def open_image(name: str, config: ModelConfig) -> Tensor:
    """Read one image for a model, of shape (1, channels, height, width).

    Args:
        name: An image file, or `digits:N` for image N of the holdout of the embedded digits.
        config: The model.

    Raises:
        DataError: The file is missing or is no image.
        UsageError: There is no such digit, or the model does not take such images.
    """
    if name.startswith(_DIGITS):
        return _open_digit(name.removeprefix(_DIGITS), config)
    if not Path(name).is_file():
        raise DataError(
            f"an image must be a file, but there is none at {name}; check the path, or give "
            "digits:N for an image of the embedded digits."
        )
    transform = evaluation_transform(config.image_size, config.channels, config.preprocessing)
    return transform(read_image(name, config.channels))[None]


def _open_digit(number: str, config: ModelConfig) -> Tensor:
    digits.check_shape(config.image_size, config.channels)
    count = digits.IMAGES_PER_SOURCE * digits.HOLDOUT_SOURCES
    if not number.isdecimal() or int(number) >= count:
        raise UsageError(
            f"digits:N must have N from 0 to {count - 1}, the images of the holdout, "
            f"got digits:{number}."
        )
    images = digits.open_digits("holdout", batch_size=1, limit=int(number) + 1, seed=0)
    *_, (image, _label) = images.loader
    return image


def to_pixels(images: Tensor, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """What people see of a model's input: (B, C, H, W) to (B, H, W, C)."""
    std, mean = (
        torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
        for values in (preprocessing.std, preprocessing.mean)
    )
    pixels = (images.float().cpu() * std + mean).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
