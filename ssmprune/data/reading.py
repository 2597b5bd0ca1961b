"""Image files as pixels of 8 bits, in grey or in colour.

What is read is what timm and torchvision read: transparency is dropped, and an orientation in the
EXIF data is not applied. Pixels of more than 8 bits, which Pillow would clip, are scaled.
"""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from ssmprune.data.listing import list_all, refuse_unreadable
from ssmprune.errors import DataError
from ssmprune.machine import cpu_count

WORKERS = min(8, cpu_count())

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode by the number of channels."""

_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


def read_image(path: str | Path, channels: int) -> Image.Image:
    """Read an image file.

    Args:
        path: The file.
        channels: 1 for grey, 3 for colour.

    Raises:
        DataError: The file is no image, is damaged, or has pixels without a known white.
    """
    try:
        with Image.open(path) as file:
            return _eight_bits(file).convert(MODES[channels])
    except _FAULTS as error:
        raise DataError(
            f"every image must be readable, but {path} is not ({error}); replace or remove it."
        ) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image with 8 bits per pixel and channel.

    Raises:
        ValueError: Integers are beyond 16 bits, or floating-point numbers beyond 0 to 1.
    """
    if image.mode == "P" and "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode.startswith("I"):
        white = 65535.0
    elif image.mode == "F":
        white = 1.0
    else:
        return image
    pixels = np.asarray(image, np.float64)
    if not ((pixels >= 0) & (pixels <= white)).all():
        raise ValueError(
            f"its pixels must be from 0 to {white:g}, but are from {pixels.min():g} to "
            f"{pixels.max():g}; save it with 8 bits"
        )
    return Image.fromarray(np.rint(pixels * (255 / white)).astype(np.uint8))


def check_folder(root: Path) -> None:
    """Open every image file beneath `root`, so that all that are unreadable are told at once.

    Headers are read, and PNG files whole; a damage beyond that shows when the image is used.

    Raises:
        DataError: Some are not readable, or a folder is not.
    """
    paths = list_all(root)
    with ThreadPoolExecutor(WORKERS) as pool:
        good = list(pool.map(_opens, paths))
    refuse_unreadable([p for p, opens in zip(paths, good, strict=True) if not opens], len(paths))


def _opens(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    try:
        with Image.open(path) as file:
            file.verify()
    except _FAULTS:
        return False
    return True
