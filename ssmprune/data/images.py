"""Folders of images, one sub-folder per class, through timm's transforms.

Three layouts are read, each with the class folders at its innermost level:

    ROOT/train  ROOT/search  ROOT/holdout     every split as it is given
    ROOT/train  ROOT/val                      `val` is divided into search and holdout
    ROOT/<class>                              ROOT itself is divided into search and holdout

The division is half and half within each class, and always the same.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssmprune.cpus import cpu_count
from ssmprune.data.base import Batch, ImageSet, fingerprint, stratified_order
from ssmprune.errors import DataError, UsageError

CHANNELS = 3
CROP_SHARE = 0.875
"""Side of the central crop as a share of the resized image's shorter side."""

_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_GIVEN_SPLITS = ("train", "val", "search", "holdout")
_MOST_NAMED = 10
_WORKERS = min(8, cpu_count())
_PINNED = torch.cuda.is_available()  # so that a GPU copies images while it computes

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Listing:
    """The image files of a split, in a fixed order."""

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]

    def __getitem__(self, chosen: NDArray[np.int64]) -> Listing:
        """The files at the given positions, in that order."""
        paths = tuple(self.paths[i] for i in chosen)
        return Listing(self.root, self.classes, paths, self.labels[chosen])

    def fingerprint(self, **transform: object) -> str:
        """Identify the transform and the files: relative path, size, label and order."""
        lines = (
            f"{os.path.relpath(path, self.root)}\t{os.path.getsize(path)}\t{label}\n"
            for path, label in zip(self.paths, self.labels, strict=True)
        )
        return fingerprint({"classes": self.classes, **transform}, "".join(lines).encode())


def check_shape(image_size: tuple[int, int], channels: int) -> tuple[int, int]:
    """Refuse a model that folders of images cannot serve; returns the image size.

    Raises:
        UsageError: The size is not positive, or the model does not take three channels.
    """
    if min(image_size) < 1:
        raise UsageError(
            f"image_size must be at least 1 x 1, got {image_size[0]} x {image_size[1]}."
        )
    if channels != CHANNELS:
        raise UsageError(
            f"folders of images are read in colour with {CHANNELS} channels, but the model takes "
            f"{channels}; use a model with {CHANNELS} channels, or the data set made for this one."
        )
    return image_size


def open_folder(
    root: Path,
    split: str,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    limit: int | None,
    seed: int,
) -> ImageSet:
    """Open a split of a folder: shorter side resized, bicubic, and the centre cropped.

    Args:
        root: A folder in one of the module's layouts.
        split: `train`, `search` or `holdout`.
        image_size: Height and width of the crop in pixels.
        batch_size: Images per batch; the last batch may be smaller.
        limit: Only that many images, the first ones of the order.
        seed: Another seed gives another order of the same images.

    Raises:
        DataError: The folder holds no classes or no images for the split.
    """
    listing = list_split(root, split)
    listing = listing[stratified_order(listing.labels, np.random.default_rng(seed))[:limit]]
    transform = create_transform(
        (CHANNELS, *image_size), interpolation="bicubic", crop_pct=CROP_SHARE
    )
    return ImageSet(
        name=str(root),
        split=split,
        classes=listing.classes,
        fingerprint=listing.fingerprint(image_size=image_size, crop=CROP_SHARE),
        loader=FolderLoader(listing, transform, batch_size),
    )


class FolderLoader:
    """Reads the images of a listing in threads, one batch ahead.

    Raises:
        DataError: On iteration, for a file that is no readable image.
    """

    def __init__(self, listing: Listing, transform: Transform, batch_size: int) -> None:
        self.images = len(listing.paths)
        self._listing = listing
        self._transform = transform
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        def submit(start: int) -> Iterator[Tensor]:
            return pool.map(self._read, self._listing.paths[start : start + self._batch_size])

        labels = torch.split(torch.from_numpy(self._listing.labels), self._batch_size)
        with ThreadPoolExecutor(_WORKERS) as pool:
            ahead = submit(0)
            for i, labels_B in enumerate(labels, start=1):
                images, ahead = ahead, submit(i * self._batch_size)
                batch = torch.stack(list(images))
                yield batch.pin_memory() if _PINNED else batch, labels_B

    def _read(self, path: str) -> Tensor:
        return self._transform(read_image(path))


class FolderStream:
    """Endless training batches: random crops, flips and colour jitter, epoch after epoch.

    Args:
        root: A folder with a sub-folder `train` that holds the class folders.
        image_size: Height and width in pixels.
        batch_size: Images per batch.
        seed: The batch of a step depends on the seed and the step alone.
        augment: timm's `auto_augment`, such as `rand-m9-mstd0.5-inc1`.
        erase: Chance of random erasing.

    Raises:
        DataError: There are no training images, or, on iteration, one that is not readable.
    """

    def __init__(
        self,
        root: Path,
        *,
        image_size: tuple[int, int],
        batch_size: int,
        seed: int = 0,
        augment: str | None = None,
        erase: float = 0.0,
    ) -> None:
        listing = list_split(root, "train")
        transform = _training_transform(image_size, augment, erase)
        self.classes = listing.classes
        self.images = len(listing.paths)
        self.curriculum_steps = 0
        self.fingerprint = listing.fingerprint(image_size=image_size, stream=True)
        self._batch_size = batch_size
        self._samples = _Samples(listing, transform, seed)

    def batches(self, start: int = 0, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield the batch of step `start`, then of the steps after it; or a share of each."""
        size = self._batch_size // parts
        loader = DataLoader(
            self._samples,
            batch_size=size,
            sampler=(
                step * self._batch_size + part * size + place
                for step in itertools.count(start)
                for place in range(size)
            ),
            num_workers=_WORKERS,
            collate_fn=_collate,
            pin_memory=_PINNED,
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


def _training_transform(
    image_size: tuple[int, int], augment: str | None, erase: float
) -> Transform:
    """timm's transform for training.

    Raises:
        UsageError: timm does not know the augmentation.
    """
    try:
        transform: Transform = create_transform(
            (CHANNELS, *image_size),
            is_training=True,
            interpolation="bicubic",
            auto_augment=augment,
            re_prob=erase,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError, IndexError) as fault:
        raise UsageError(
            f"augment must be one of timm's auto_augment strings, got {augment!r} ({fault}); "
            "such are rand-m9-mstd0.5-inc1 and original."
        ) from None
    return transform


class _Samples(Dataset[tuple[Tensor, int] | DataError]):
    """The endless sequence of augmented training images, for the processes of a loader.

    A fault is returned, because raising it would bury its message under the worker's traceback.
    """

    def __init__(self, listing: Listing, transform: Transform, seed: int) -> None:
        self._listing = listing
        self._transform = transform
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def __getitem__(self, position: int) -> tuple[Tensor, int] | DataError:
        epoch, place = divmod(position, len(self._listing.paths))
        index = self._order(epoch)[place]
        seed = int(np.random.SeedSequence([self._seed, position]).generate_state(1)[0])
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            image = self._transform(read_image(self._listing.paths[index]))
        except DataError as error:
            return error
        return image, int(self._listing.labels[index])

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._listing.paths))


def _collate(samples: list[tuple[Tensor, int] | DataError]) -> Batch | DataError:
    good: list[tuple[Tensor, int]] = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        good.append(sample)
    images, labels = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(labels)


def check_folder(root: Path) -> None:
    """Open every image file beneath `root`, so that all that are unreadable are told at once.

    Headers are read, and PNG files whole; a damage beyond that shows when the image is used.

    Raises:
        DataError: Some are not readable.
    """
    paths = [
        os.path.join(folder, file)
        for folder, _, files in sorted(os.walk(root, followlinks=True))
        for file in sorted(files)
        if file.lower().endswith(_EXTENSIONS)
    ]
    with ThreadPoolExecutor(_WORKERS) as pool:
        bad = [path for path, good in zip(paths, pool.map(_opens, paths), strict=True) if not good]
    if bad:
        more = f" and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise DataError(
            f"every image must be readable, but {len(bad)} of {len(paths)} are not; remove or "
            f"restore {', '.join(bad[:_MOST_NAMED])}{more}."
        )


def _opens(path: str) -> bool:
    try:
        with Image.open(path) as file:
            file.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def read_image(path: str | Path) -> Image.Image:
    """Read an image file in RGB.

    Raises:
        DataError: The file is no image, or is damaged.
    """
    try:
        with Image.open(path) as file:
            image: Image.Image = file.convert("RGB")
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"every image must be readable, but {path} is not ({error}); replace or remove it."
        ) from error


def list_split(root: Path, split: str) -> Listing:
    """Find the images of a split, ordered by class and path.

    Raises:
        DataError: There are no classes or no images, or the split's own folder is missing.
    """
    given = {name: root / name for name in _GIVEN_SPLITS if (root / name).is_dir()}
    if split in given:
        return _list_images(root, given[split], _classes(*given.values()))
    if split != "train" and "val" in given:
        return _half(_list_images(root, given["val"], _classes(*given.values())), split)
    if split == "train" or given:
        found = f"only {', '.join(given)}" if given else "no such folder"
        raise DataError(
            f"the {split} images of {root} must lie in a folder named {split}, but there is "
            f"{found}; add {root / split}/<class>/<image>."
        )
    return _half(_list_images(root, root, _classes(root)), split)


def _classes(*places: Path) -> tuple[str, ...]:
    folders = {entry.name for place in places for entry in place.iterdir() if entry.is_dir()}
    return tuple(sorted(folders))


def _list_images(root: Path, place: Path, classes: tuple[str, ...]) -> Listing:
    found = [
        (os.path.join(folder, file), label)
        for label, name in enumerate(classes)
        for folder, _, files in sorted(os.walk(place / name, followlinks=True))
        for file in sorted(files)
        if file.lower().endswith(_EXTENSIONS)
    ]
    if not found:
        what = f"{len(classes)} folders without images" if classes else "no folders"
        raise DataError(
            f"a data set must hold one folder of images per class, but {place} holds {what}; "
            f"lay it out as {place}/<class>/<image>, with {', '.join(_EXTENSIONS)} files."
        )
    paths, labels = zip(*found, strict=True)
    return Listing(root, classes, paths, np.array(labels, np.int64))


def _half(listing: Listing, split: str) -> Listing:
    order = stratified_order(listing.labels, np.random.default_rng(0))
    search, holdout = np.array_split(order, 2)
    if not len(holdout):
        raise DataError(
            f"a folder must hold at least 2 images to be divided into search and holdout, but "
            f"{listing.root} holds 1; add images, or folders named search and holdout."
        )
    return listing[search if split == "search" else holdout]
