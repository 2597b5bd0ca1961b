"""Labelled images under one interface: the embedded digits and folders of images."""

from __future__ import annotations

from pathlib import Path

from ssmprune.data.base import SPLITS, Batch, ImageSet, Loader, TrainingStream
from ssmprune.errors import DataError, UsageError, unknown_name
from ssmprune.models.configs import Preprocessing

IMAGENET = Preprocessing()

__all__ = [
    "SPLITS",
    "Batch",
    "ImageSet",
    "Loader",
    "TrainingStream",
    "absolute_name",
    "check_images",
    "open_images",
    "open_stream",
]


def open_images(
    name: str,
    split: str,
    *,
    image_size: tuple[int, int],
    channels: int,
    preprocessing: Preprocessing = IMAGENET,
    num_classes: int | None = None,
    exact_classes: bool = True,
    batch_size: int = 64,
    limit: int | None = None,
    seed: int = 0,
) -> ImageSet:
    """Open a split of a data set for evaluation.

    No image, and no source of a composed image, is in two splits, whatever the seed.

    Args:
        name: `digits`, or the path of a folder with one sub-folder of images per class, or of a
            folder that holds such folders for the splits (see `ssmprune.data.layout`).
        split: `train`, `search` (for decisions) or `holdout` (for the last word).
        image_size: Height and width in pixels that the model takes.
        channels: Colour channels that the model takes; folders are read in grey with 1, in colour
            with 3.
        preprocessing: How the model takes image files.
        num_classes: Classes of the model's classifier, which must be those of the data. Folders
            that are all named after synsets of an ImageNet of that many classes are numbered as it
            numbers them, which is logged. With None labels number the data's classes.
        exact_classes: Refuse data with another number of classes than `num_classes`.
        batch_size: Images per batch; the last batch may be smaller.
        limit: Only that many images, the first ones of the order.
        seed: Determines the order and, for `digits`, the composition.

    Raises:
        UsageError: The data set is unknown, or an argument does not fit it.
        DataError: The folder is missing, or holds no classes or no images.
    """
    _check_call(split, batch_size, limit)
    if name == "digits":
        from ssmprune.data import digits

        _check_digits(image_size, channels, num_classes if exact_classes else None)
        return digits.open_digits(split, batch_size=batch_size, limit=limit, seed=seed)

    from ssmprune.data.folder import open_folder

    return open_folder(
        _folder(name),
        split,
        image_size=image_size,
        channels=channels,
        preprocessing=preprocessing,
        num_classes=num_classes,
        exact_classes=exact_classes,
        batch_size=batch_size,
        limit=limit,
        seed=seed,
    )


def open_stream(
    name: str,
    *,
    image_size: tuple[int, int],
    channels: int,
    batch_size: int,
    preprocessing: Preprocessing = IMAGENET,
    num_classes: int | None = None,
    exact_classes: bool = True,
    seed: int = 0,
    curriculum_steps: int = 0,
    augment: str | None = None,
    erase: float = 0.0,
) -> TrainingStream:
    """Open the training images of a data set as an endless stream of batches.

    Args:
        name: As for `open_images`; a folder needs a sub-folder `train`.
        image_size: Height and width in pixels that the model takes.
        channels: Colour channels that the model takes.
        batch_size: Images per batch.
        preprocessing: How the model takes image files.
        num_classes, exact_classes: As for `open_images`.
        seed: The batch of a step depends on the seed and the step alone.
        curriculum_steps: Steps over which composed images grow to their full difficulty.
        augment: For folders, timm's `auto_augment`; composed images vary by themselves.
        erase: For folders, the chance of random erasing.

    Raises:
        UsageError: The data set is unknown, or an argument does not fit it.
        DataError: The folder is missing, or holds no training images.
    """
    _check_positive("batch_size", batch_size)
    if name == "digits":
        from ssmprune.data import digits

        _check_digits(image_size, channels, num_classes if exact_classes else None)
        return digits.DigitStream(
            batch_size=batch_size, seed=seed, curriculum_steps=curriculum_steps
        )

    from ssmprune.data.folder import FolderStream

    return FolderStream(
        _folder(name),
        image_size=image_size,
        channels=channels,
        preprocessing=preprocessing,
        num_classes=num_classes,
        exact_classes=exact_classes,
        batch_size=batch_size,
        seed=seed,
        augment=augment,
        erase=erase,
    )


def absolute_name(name: str) -> str:
    """The data set's name for a process that stands in another directory.

    Raises:
        UsageError, DataError: There is no such data set.
    """
    return name if name == "digits" else str(_folder(name).absolute())


def check_images(name: str) -> None:
    """Open every image of a data set once, so that all that are unreadable are told at once.

    Raises:
        DataError: Some are not readable.
    """
    if name != "digits":
        from ssmprune.data.reading import check_folder

        check_folder(_folder(name))


def _folder(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(f"a data set must be a folder of images, but {name} is a file.")
    if len(path.parts) == 1:
        raise UsageError(f"{unknown_name('data set', name, ['digits'])} A folder goes by its path.")
    raise DataError(
        f"a data set must be a folder that exists, but {name} does not; check the path."
    )


def _check_digits(image_size: tuple[int, int], channels: int, num_classes: int | None) -> None:
    from ssmprune.data import classes, digits

    digits.check_shape(image_size, channels)
    classes.check_count(len(digits.CLASSES), num_classes, digits.NAME)


def _check_call(split: str, batch_size: int, limit: int | None) -> None:
    if split not in SPLITS:
        raise UsageError(unknown_name("split", split, SPLITS))
    _check_positive("batch_size", batch_size)
    if limit is not None:
        _check_positive("limit", limit)


def _check_positive(option: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"{option} must be at least 1, got {value}.")
