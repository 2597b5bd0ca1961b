"""What every data set offers: a fixed list of images for evaluation, a stream for training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = tuple[Tensor, Tensor]
"""Normalised float32 images `(B, C, H, W)` and int64 labels `(B,)`."""

SPLITS = ("train", "search", "holdout")


class Loader(Protocol):
    """Yields the same batches in the same order each time it is iterated."""

    images: int
    """Images in all batches together."""

    def __iter__(self) -> Iterator[Batch]: ...


class TrainingStream(Protocol):
    """Endless training batches; the batch of a step depends on the seed and the step alone."""

    classes: tuple[str, ...]
    fingerprint: str
    images: int
    """Images in an epoch."""
    curriculum_steps: int
    """Steps over which composed images grow to their full difficulty; nothing to other images."""

    def batches(self, start: int = 0, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield the batch of step `start`, then of the steps after it.

        Args:
            start: The first step.
            part: Which of `parts` equal shares of each batch to yield.
            parts: A divisor of the batch size.
        """
        ...


class HeldBatches:
    """Batches that are already in memory.

    Args:
        batches: Images and labels, in the order in which they are yielded.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = tuple(batches)
        self.images = sum(len(labels) for _, labels in self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


@dataclass(frozen=True)
class ImageSet:
    """A labelled set of images in one fixed order, of which every prefix is a fair sample."""

    name: str
    """`digits`, or the path of the folder."""
    split: str
    """`train`, `search` or `holdout`."""
    classes: tuple[str, ...]
    """Class names; a label is an index into them."""
    fingerprint: str
    """sha256 over everything that determines the images, their labels and their order."""
    loader: Loader
    class_list: str | None = None
    """ImageNet's list that numbers the labels, such as `imagenet-1k`; None for the data's own."""

    def __len__(self) -> int:
        return self.loader.images

    def resident(self, device: torch.device | str) -> ImageSet:
        """Read every image once and hold all of them on `device`."""
        held = [(images.to(device), labels.to(device)) for images, labels in self.loader]
        return replace(self, loader=HeldBatches(held))


def fingerprint(definition: dict[str, Any], *content: bytes) -> str:
    """The sha256 of a JSON-able definition and of the bytes it refers to."""
    digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode())
    for part in content:
        digest.update(part)
    return digest.hexdigest()


def stratified_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Shuffle so that every contiguous run holds the classes in their overall proportions.

    The members of a class are shuffled and then spread evenly, with jitter, over the whole
    length, so a run of m images has within two of `m * share` images of each class.

    Args:
        labels: Class of each item, `(N,)`.
        rng: Source of the shuffle and the jitter.

    Returns:
        A permutation of `range(N)`.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        slots = (np.arange(len(members)) + rng.random(len(members))) / len(members)
        place[rng.permutation(members)] = slots
    return np.argsort(place, kind="stable")
