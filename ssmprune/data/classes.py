"""The classes of a folder beside those of a classifier.

Folders are numbered in the order of their names, which is what a classifier that was trained on
them expects. Folders named after ImageNet's synsets, such as `n01440764`, are numbered as in the
list that the classifier's size tells (timm holds them), so that some of them will do.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import numpy as np
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

from ssmprune.data.listing import Listing
from ssmprune.errors import UsageError

_SYNSET = re.compile(r"n\d{8}")

_log = logging.getLogger(__name__)


def check_count(classes: int, num_classes: int | None, name: str) -> None:
    """Refuse data whose classes are not those of the classifier.

    Args:
        classes: Classes of the data.
        num_classes: Classes of the classifier; None where there is none yet.
        name: The data set.

    Raises:
        UsageError: The numbers differ.
    """
    if num_classes is not None and classes != num_classes:
        raise UsageError(
            f"the data must have the model's {num_classes} classes, but {name} has {classes}; give "
            f"data with the same class folders, or weights whose classifier has {classes}."
        )


def number_classes(listing: Listing, num_classes: int | None, exact: bool) -> Listing:
    """The same files, with the labels that a classifier gives them.

    Args:
        listing: Files, numbered by the names of their folders.
        num_classes: Classes of the classifier; with None the labels stay.
        exact: Refuse files of another number of classes.

    Raises:
        UsageError: The classifier has another number of classes, and no list of ImageNet's with
            that many has all these folders.
    """
    subset = infer_imagenet_subset({"num_classes": num_classes})
    synsets = _synsets(subset) if all(map(_SYNSET.fullmatch, listing.classes)) else ()
    if not set(listing.classes) <= set(synsets):
        if exact:
            check_count(len(listing.classes), num_classes, str(listing.root))
        return listing
    if listing.classes != synsets:
        _log.info(
            "%s: its folders are taken as the synsets that they name, %d of the %d of %s.",
            listing.root,
            len(listing.classes),
            len(synsets),
            subset,
        )
    numbers = {synset: number for number, synset in enumerate(synsets)}
    number = np.array([numbers[name] for name in listing.classes], np.int64)
    return replace(listing, classes=synsets, labels=number[listing.labels], class_list=subset)


def _synsets(subset: str | None) -> tuple[str, ...]:
    names: list[str] = ImageNetInfo(subset).label_names() if subset else []  # type: ignore[no-untyped-call]
    return tuple(names)
