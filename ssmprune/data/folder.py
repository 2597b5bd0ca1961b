"""Folders of images as sets for evaluation and as streams for training."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssmprune.data.base import Batch, ImageSet, stratified_order
from ssmprune.data.classes import number_classes
from ssmprune.data.listing import Listing, list_split
from ssmprune.data.reading import WORKERS, read_image
from ssmprune.data.transforms import (
    Transform,
    describe,
    evaluation_transform,
    training_transform,
)
from ssmprune.errors import DataError
from ssmprune.models.configs import Preprocessing

_PINNED = torch.cuda.is_available()  # so that a GPU copies images while it computes


def open_folder(
    root: Path,
    split: str,
    *,
    image_size: tuple[int, int],
    channels: int,
    preprocessing: Preprocessing,
    num_classes: int | None,
    exact_classes: bool,
    batch_size: int,
    limit: int | None,
    seed: int,
) -> ImageSet:
    """Open a split of a folder.

    Args:
        root: A folder in one of the layouts of `ssmprune.data.layout`.
        split: `train`, `search` or `holdout`.
        image_size: Height and width of the crop in pixels.
        channels: 1 to read in grey, 3 in colour.
        preprocessing: Crop and normalisation.
        num_classes: Classes of the classifier, which the labels are for; with None as many as the
            folder has.
        exact_classes: Refuse a folder with another number of classes.
        batch_size: Images per batch; the last batch may be smaller.
        limit: Only that many images, the first ones of the order.
        seed: Another seed gives another order of the same images.

    Raises:
        UsageError: The model takes other images, or has other classes.
        DataError: The folder holds no classes or no images for the split.
    """
    transform = evaluation_transform(image_size, channels, preprocessing)
    listing = list_split(root, split)
    listing = listing[stratified_order(listing.labels, np.random.default_rng(seed))[:limit]]
    listing = number_classes(listing, num_classes, exact_classes)
    return ImageSet(
        name=str(root),
        split=split,
        classes=listing.classes,
        fingerprint=listing.fingerprint(
            image_size=image_size,
            crop=preprocessing.crop_share,
            **describe(channels, preprocessing),
        ),
        loader=FolderLoader(listing, transform, channels, batch_size),
        class_list=listing.class_list,
    )


class FolderLoader:
    """Reads the images of a listing in threads, one batch ahead.

    Raises:
        DataError: On iteration, for a file that is no readable image.
    """

    def __init__(
        self, listing: Listing, transform: Transform, channels: int, batch_size: int
    ) -> None:
        self.images = len(listing.paths)
        self._listing = listing
        self._transform = transform
        self._channels = channels
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        def submit(start: int) -> Iterator[Tensor]:
            return pool.map(self._read, self._listing.paths[start : start + self._batch_size])

        labels = torch.split(torch.from_numpy(self._listing.labels), self._batch_size)
        with ThreadPoolExecutor(WORKERS) as pool:
            ahead = submit(0)
            for i, labels_B in enumerate(labels, start=1):
                images, ahead = ahead, submit(i * self._batch_size)
                batch = torch.stack(list(images))
                yield batch.pin_memory() if _PINNED else batch, labels_B

    def _read(self, path: str) -> Tensor:
        return self._transform(read_image(path, self._channels))


class FolderStream:
    """Endless training batches: random crops, flips and colour jitter, epoch after epoch.

    Args:
        root: A folder with a sub-folder `train` that holds the class folders.
        image_size: Height and width in pixels.
        channels: 1 to read in grey, 3 in colour.
        preprocessing: Normalisation.
        num_classes, exact_classes: As for `open_folder`.
        batch_size: Images per batch.
        seed: The batch of a step depends on the seed and the step alone.
        augment: timm's `auto_augment`, such as `rand-m9-mstd0.5-inc1`.
        erase: Chance of random erasing.

    Raises:
        UsageError: The model takes other images or has other classes, or timm does not know
            `augment`.
        DataError: There are no training images, or, on iteration, one that is not readable.
    """

    def __init__(
        self,
        root: Path,
        *,
        image_size: tuple[int, int],
        channels: int,
        preprocessing: Preprocessing,
        num_classes: int | None,
        exact_classes: bool,
        batch_size: int,
        seed: int,
        augment: str | None,
        erase: float,
    ) -> None:
        transform = training_transform(image_size, channels, preprocessing, augment, erase)
        listing = number_classes(list_split(root, "train"), num_classes, exact_classes)
        self.classes = listing.classes
        self.images = len(listing.paths)
        self.curriculum_steps = 0
        self.fingerprint = listing.fingerprint(
            image_size=image_size, stream=True, **describe(channels, preprocessing)
        )
        self._batch_size = batch_size
        self._samples = _Samples(listing, transform, channels, seed)

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
            num_workers=WORKERS,
            collate_fn=_collate,
            pin_memory=_PINNED,
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch


class _Samples(Dataset[tuple[Tensor, int] | DataError]):
    """The endless sequence of augmented training images, for the processes of a loader.

    A fault is returned, because raising it would bury its message under the worker's traceback.
    """

    def __init__(self, listing: Listing, transform: Transform, channels: int, seed: int) -> None:
        self._listing = listing
        self._transform = transform
        self._channels = channels
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def __getitem__(self, position: int) -> tuple[Tensor, int] | DataError:
        epoch, place = divmod(position, len(self._listing.paths))
        index = self._order(epoch)[place]
        seed = int(np.random.SeedSequence([self._seed, position]).generate_state(1)[0])
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            image = self._transform(read_image(self._listing.paths[index], self._channels))
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
