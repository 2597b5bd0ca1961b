"""The image files of a split, each once, in a fixed order."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssmprune.data.base import fingerprint, stratified_order
from ssmprune.data.layout import (
    EXTENSIONS,
    entries,
    find_classes,
    find_place,
    find_splits,
    is_folder,
    is_image,
)
from ssmprune.errors import DataError
from ssmprune.faults import some_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """The image files of a split, in a fixed order.

    Attributes:
        root: The data set.
        classes: Class names; a label is an index into them.
        paths: The files.
        labels: Their classes, (N,).
        class_list: Where the classes are from; see `ssmprune.data.classes`.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: NDArray[np.int64]
    class_list: str | None = None

    def __getitem__(self, chosen: NDArray[np.int64]) -> Listing:
        """The files at the given positions, in that order."""
        paths = tuple(self.paths[i] for i in chosen)
        return replace(self, paths=paths, labels=self.labels[chosen])

    def fingerprint(self, **transform: object) -> str:
        """Identify the transform and the files: relative path, size, label and order.

        Raises:
            DataError: Some are no files, or are behind broken links.
        """
        sizes = [_size(path) for path in self.paths]
        refuse_unreadable(
            [path for path, size in zip(self.paths, sizes, strict=True) if size is None],
            len(self.paths),
        )
        lines = (
            f"{os.path.relpath(path, self.root)}\t{size}\t{label}\n"
            for path, size, label in zip(self.paths, sizes, self.labels, strict=True)
        )
        return fingerprint({"classes": self.classes, **transform}, os.fsencode("".join(lines)))


def _size(path: str) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def refuse_unreadable(paths: Sequence[str], count: int) -> None:
    """Tell of files that are no readable images.

    Args:
        paths: Those files.
        count: Files that were looked at.

    Raises:
        DataError: There are any.
    """
    if paths:
        raise DataError(
            f"every image must be readable, but {len(paths)} of {count} are not; remove or "
            f"restore {some_of(paths)}."
        )


def list_split(root: Path, split: str) -> Listing:
    """Find the images of a split, ordered by class and path.

    Raises:
        DataError: There are no classes or no images, the split's own folder is missing, a folder
            cannot be read, or an image is in two classes or splits.
    """
    splits = find_splits(root)
    place = find_place(root, splits, split)
    places = list(splits.values()) or [root]
    classes = find_classes(root, places)
    folders = frozenset(
        os.path.realpath(os.path.join(folder, name)) for folder in places for name in classes
    )
    owner: dict[str, str] = {}
    if place.sibling:
        for name in classes:
            _find_images(place.sibling / name, folders, owner)
    found = [
        (path, label)
        for label, name in enumerate(classes)
        for path in _find_images(place.folder / name, folders, owner)
    ]
    if not found:
        what = f"{len(classes)} folders without images" if classes else "no folders"
        raise DataError(
            f"a data set must hold one folder of images per class, but {place.folder} holds "
            f"{what}; lay it out as {place.folder}/<class>/<image>, with "
            f"{', '.join(EXTENSIONS)} files."
        )
    _tell_empty(root, places, classes, {label for _, label in found})
    paths, labels = zip(*found, strict=True)
    listing = Listing(root, tuple(map(_printable, classes)), paths, np.array(labels, np.int64))
    return _half(listing, split) if place.divided else listing


def list_all(root: Path) -> list[str]:
    """Every image file of a data set, whatever its split.

    Raises:
        DataError: A folder cannot be read.
    """
    return sorted(path for path, _ in _walk(str(root), frozenset()))


def _find_images(folder: Path, classes: frozenset[str], owner: dict[str, str]) -> list[str]:
    """The images of a class, ordered by folder and name; one that is linked twice counts once.

    Args:
        folder: The class's folder in a split, which need not be there.
        classes: Real paths of all class folders.
        owner: The class folder of each image, by its real path, which this one's are added to.

    Raises:
        DataError: A folder cannot be read, or an image is in another class folder, too.
    """
    if not folder.is_dir():
        return []
    paths = []
    for path, real in sorted(_walk(str(folder), classes), key=lambda f: os.path.split(f[0])):
        first = owner.get(real)
        if first is None:
            owner[real] = str(folder)
            paths.append(path)
        elif first != str(folder):
            raise DataError(
                f"every image must be in one class and one split, but {real} is in {first} and in "
                f"{folder}; remove one of the links."
            )
    return paths


def _walk(folder: str, classes: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Path and real path of the image files in a folder and those beneath it, each folder once.

    A link is not followed to its own folder or one of `classes`, nor to one in or around these:
    they are found by themselves.
    """
    left, seen = [folder], set()
    while left:
        here = left.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        for entry in entries(here):
            if is_folder(entry):
                if not entry.is_symlink() or _leads_out(entry.path, real, classes):
                    left.append(entry.path)
            elif is_image(entry.name):
                is_link = entry.is_symlink()
                yield (
                    entry.path,
                    os.path.realpath(entry.path) if is_link else f"{real}/{entry.name}",
                )


def _leads_out(link: str, place: str, classes: frozenset[str]) -> bool:
    """Whether a link in `place` leads to a folder that neither holds nor lies in one of these."""
    target = os.path.join(os.path.realpath(link), "")
    known = (os.path.join(folder, "") for folder in (place, *classes))
    return not any(target.startswith(folder) or folder.startswith(target) for folder in known)


def _tell_empty(root: Path, places: list[Path], classes: tuple[str, ...], found: set[int]) -> None:
    """Say which classes have no image in any split; they keep their labels."""
    empty = [
        name
        for label, name in enumerate(classes)
        if label not in found and not any(_has_images_beneath(place / name) for place in places)
    ]
    if empty:
        _log.info(
            "%d of the %d class folders of %s hold no images, yet count as classes: %s.",
            len(empty),
            len(classes),
            root,
            some_of([*map(_printable, empty)]),
        )


def _has_images_beneath(folder: Path) -> bool:
    return folder.is_dir() and next(_walk(str(folder), frozenset()), None) is not None


def _half(listing: Listing, split: str) -> Listing:
    order = stratified_order(listing.labels, np.random.default_rng(0))
    search, holdout = np.array_split(order, 2)
    if not len(holdout):
        raise DataError(
            f"a folder must hold at least 2 images to be divided into search and holdout, but "
            f"{listing.root} holds 1; add images, or folders named search and holdout."
        )
    return listing[search if split == "search" else holdout]


def _printable(name: str) -> str:
    """A file name in characters that any text can hold."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
