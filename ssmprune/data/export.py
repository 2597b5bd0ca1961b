"""The embedded digits as a folder of images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ssmprune.data.single import to_pixels
from ssmprune.errors import FileError, UsageError, unknown_name
from ssmprune.models.zoo import find_config
from ssmprune.tasks import task_of

EXPORTS = {"digits": "vim_nano"}
"""Data sets that can be written, and the model that takes their images."""


def export_images(
    name: str,
    folder: Path,
    *,
    train_images: int = 0,
    on_image: Callable[[int, int], None] = lambda done, count: None,
) -> dict[str, int]:
    """Write `FOLDER/search/<class>/*.png` and `FOLDER/holdout/<class>/*.png`, with 8 bits.

    The folder appears whole or not at all. Files are named by their place in the split's order.

    Args:
        name: `digits`.
        folder: New, or empty.
        train_images: Write `FOLDER/train/<class>/*.png`, too, with that many images.
        on_image: Is told how many images are written, and of how many.

    Returns:
        Images by split.

    Raises:
        UsageError: The data set is unknown, or does not have as many training images.
        FileError: The folder holds something, or cannot be written.
    """
    if name not in EXPORTS:
        raise UsageError(unknown_name("data set", name, EXPORTS))
    config = find_config(EXPORTS[name])
    limits = {"search": None, "holdout": None} | ({"train": train_images} if train_images else {})
    sets = [
        task_of(config).open_images(config, name, split, limit=n) for split, n in limits.items()
    ]
    counts = {images.split: len(images) for images in sets}
    if counts.get("train", 0) < train_images:
        raise UsageError(
            f"--train-images must be at most {counts['train']}, the images that {name} has for "
            f"training, got {train_images}."
        )
    _refuse_used(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    done = 0
    try:
        for images in sets:
            place = 0
            for batch, labels in images.loader:
                for pixels, label in zip(
                    to_pixels(batch, config.preprocessing), labels.tolist(), strict=True
                ):
                    file = temporary / images.split / images.classes[label] / f"{place:05}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels.squeeze()).save(file)
                    place, done = place + 1, done + 1
                    on_image(done, sum(counts.values()))
        temporary.rename(folder)
    except OSError as fault:
        raise FileError(
            f"the folder must be writable, but {folder} is not ({fault.strerror or fault}); make "
            "room, or name another one."
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _refuse_used(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        FileError: It does, or it is a file.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise FileError(
            f"the folder must be new or empty, but {folder} exists and is not; name another one."
        )
