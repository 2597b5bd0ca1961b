"""Which folders of a data set hold its classes, split by split.

Each layout has the class folders at its innermost level:

    ROOT/train  ROOT/search  ROOT/holdout     every split as it is given
    ROOT/train  ROOT/val  ROOT/test           `val` is searched on, `test` is the holdout
    ROOT/train  ROOT/val                      `val` is divided into search and holdout,
    ROOT/train  ROOT/test                     or `test`, where that is all there is
    ROOT/<class>                              ROOT itself is divided into search and holdout

`training`, `validation`, `valid` and `testing` are other names of the same, in small or capital
letters. `train` is needed for training alone. A `test` folder without class folders has no labels
and is left out. The division is half and half within each class, and always the same.

What operating systems and tools leave behind is no class: hidden folders and those of `LITTER`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssmprune.errors import DataError

LITTER = frozenset(
    {
        "__MACOSX",
        "__pycache__",
        "@eaDir",
        "@Recycle",
        "#recycle",
        "$RECYCLE.BIN",
        "lost+found",
        "System Volume Information",
    }
)

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_KINDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "search": "search",
    "holdout": "holdout",
}
_SERVING = {"train": ("train",), "search": ("search", "val"), "holdout": ("holdout", "test")}
_DIVIDED = ("val", "test")

_log = logging.getLogger(__name__)


def is_image(name: str) -> bool:
    """Whether a file of that name is taken as an image."""
    return name.lower().endswith(EXTENSIONS)


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What a folder holds, by name, without litter.

    Raises:
        DataError: The folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            seen = [e for e in found if not e.name.startswith(".") and e.name not in LITTER]
    except OSError as fault:
        raise DataError(
            f"every folder of a data set must be readable, but {folder} is not "
            f"({fault.strerror or fault}); give the right to read it, or remove it."
        ) from None
    return sorted(seen, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a broken link is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def folder_names(folder: str | Path) -> list[str]:
    """Names of the folders in a folder, sorted, without litter.

    Raises:
        DataError: The folder cannot be read.
    """
    return [entry.name for entry in entries(folder) if is_folder(entry)]


def find_splits(root: Path) -> dict[str, Path]:
    """The folders of a data set that hold its splits; none where `root` holds the classes.

    Returns:
        Folders by kind: `train`, `val`, `test`, `search` and `holdout`.

    Raises:
        DataError: A folder cannot be read, or two are of one kind.
    """
    names = folder_names(root)
    known = [name for name in names if name.lower() in _KINDS]
    if len(known) < len(names) and all(_holds_images(root / name) for name in known):
        return {}  # a class may be called train
    splits: dict[str, Path] = {}
    for name in known:
        first = splits.setdefault(_KINDS[name.lower()], root / name)
        if first.name != name:
            raise DataError(
                f"a split must have one folder, but {root} holds {first.name} and {name}; "
                "rename or remove one of them."
            )
    if "test" in splits and len(splits) > 1 and not folder_names(splits["test"]):
        _log.info("%s is left out: it has no class folders.", splits["test"])
        del splits["test"]
    return splits


def _holds_images(folder: Path) -> bool:
    return any(is_image(entry.name) for entry in entries(folder))


@dataclass(frozen=True)
class Place:
    """Where the images of a split lie.

    Attributes:
        folder: Holds the class folders.
        divided: Whether search and holdout share it, half and half.
        sibling: The folder of the holdout beside that of search, and the other way round.
    """

    folder: Path
    divided: bool = False
    sibling: Path | None = None


def find_place(root: Path, splits: Mapping[str, Path], split: str) -> Place:
    """The folder with the images of a split.

    Args:
        root: The data set.
        splits: What `find_splits` finds there.
        split: `train`, `search` or `holdout`.

    Raises:
        DataError: There is none.
    """
    given = {
        name: next((splits[kind] for kind in kinds if kind in splits), None)
        for name, kinds in _SERVING.items()
    }
    own = given[split]
    if split == "train":
        if own:
            return Place(own)
    elif not splits:
        return Place(root, divided=True)
    else:
        sibling = given["holdout" if split == "search" else "search"]
        shared = {splits.get(kind) for kind in _DIVIDED}
        if own and (sibling or own not in shared):
            return Place(own, sibling=sibling)
        only = own or sibling
        if only and only in shared:
            return Place(only, divided=True)
    there = ", ".join(folder.name for folder in splits.values())
    found = f"only {there}" if there else "no such folder"
    raise DataError(
        f"the {split} images of {root} must lie in a folder named {' or '.join(_SERVING[split])}, "
        f"but there is {found}; add {root / split}/<class>/<image>."
    )


def find_classes(root: Path, places: list[Path]) -> tuple[str, ...]:
    """Names of the class folders in all `places` together, sorted.

    Raises:
        DataError: A folder cannot be read, two class folders are one and the same, or the classes
            lie deeper.
    """
    owner: dict[str, str] = {}
    names: set[str] = set()
    for place in places:
        for name in folder_names(place):
            names.add(name)
            path = os.path.join(place, name)
            first = owner.setdefault(os.path.realpath(path), path)
            if first != path:
                raise DataError(
                    f"every class folder must have images of its own, but {first} and {path} are "
                    "the same folder; remove one of the links."
                )
    if len(names) == 1:
        for place in places:
            _refuse_outer(root, place, place / next(iter(names)))
    return tuple(sorted(names))


def _refuse_outer(root: Path, place: Path, only: Path) -> None:
    """Refuse a folder whose single folder is no class but holds them."""
    inner = only
    while inner.is_dir() and not _holds_images(inner):
        within = folder_names(inner)
        if not within:
            return
        if len(within) > 1:
            remedy = f"give {inner}" if place == root else f"move its folders to {place}"
            raise DataError(
                f"a data set must hold one folder of images per class, but {place} holds "
                f"{only.name} alone, and the folders {', '.join(within[:3])}"
                f"{', ...' if len(within) > 3 else ''} are in {inner}; {remedy}."
            )
        inner = inner / within[0]
