"""Weights from files into models: released checkpoints and our own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from ssmprune.errors import CheckpointError
from ssmprune.faults import some_of
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoint_file import StoredWeights, read_weights
from ssmprune.models.configs import ModelConfig
from ssmprune.models.families import build_model
from ssmprune.models.zoo import find_config, model_names

_log = logging.getLogger(__name__)

_SHIPPED = Path(__file__).parent / "weights"


def shipped_checkpoint(model_name: str) -> Path | None:
    """The checkpoint that comes with the package for this model, if there is one."""
    path = _SHIPPED / f"{model_name}.safetensors"
    return path if path.is_file() else None


def load_checkpoint(model: Backbone, path: str | Path, key: str | None = None) -> None:
    """Load the weights in `path` into `model`, as `load_weights` does.

    Args:
        model: A model of the zoo.
        path: A checkpoint file.
        key: Which weights of the file, as for `read_weights`.

    Raises:
        CheckpointError: The file cannot be read, or does not fit.
        UsageError: `key` is none of the file's, or has to be given.
    """
    load_weights(model, read_weights(path, key))


def load_weights(model: Backbone, stored: StoredWeights, *, new_head: bool = False) -> None:
    """Load weights into `model`; every key and shape has to fit.

    Names lose the prefix that a wrapper has put before them, and the model's own `adapt_weights`
    gives them their present form and may resize a tensor for another image size. Weights that
    another model of the zoo takes without resizing are refused. A model without classes takes no
    classifier.

    Args:
        model: A model of the zoo.
        stored: The weights.
        new_head: Leave the model's own random classifier where theirs has other classes or none.

    Raises:
        CheckpointError: The weights belong to another model, have another classifier, or hold NaN
            or infinity.
    """
    expected, weights = model.state_dict(), _fitted(model, stored.tensors)
    resized = _is_resized(stored.tensors, weights)
    classes, found_classes = model.config.num_classes, _count_classes(model, weights)
    differs = bool(_mismatches(_head(model, expected), _head(model, weights)))
    begins_anew = differs and new_head and classes != 0
    if begins_anew or not classes:
        weights = _head(model, expected) | _backbone(model, weights)
    faults = _mismatches(expected, weights)
    if faults or resized:
        _refuse_others(model, stored, weights, faults)
    weights = {key: value.to(expected[key].dtype) for key, value in weights.items()}
    diverged = [
        key
        for key, value in weights.items()
        if value.is_floating_point() and not all(end.isfinite() for end in value.aminmax())
    ]
    if diverged:
        raise CheckpointError(
            f"weights must be finite, got NaN or infinity in {some_of(diverged)} of {stored.path}; "
            "take a checkpoint from before the training diverged."
        )
    model.load_state_dict(weights)
    model.checkpoint_key, model.has_new_head = stored.key, begins_anew
    if begins_anew:
        _log.info(
            "classifier: a new, random one for %d classes; %s has %s",
            classes,
            stored.path,
            f"one for {found_classes}" if found_classes else "none",
        )


def count_classes(config: ModelConfig, stored: StoredWeights) -> int | None:
    """Classes of the classifier in weights for the model; None where it is not in them."""
    skeleton = _skeleton(config)
    return _count_classes(skeleton, _fitted(skeleton, stored.tensors))


def _count_classes(model: Backbone, weights: Mapping[str, Tensor]) -> int | None:
    """Rows of a classifier that is whole and as wide as the model's own would be."""
    name, width = model.head_name, model.config.embed_dim
    shapes = {key: tuple(value.shape) for key, value in _head(model, weights).items()}
    rows = shapes.get(f"{name}.bias", (0,))[0]
    return rows if shapes == {f"{name}.weight": (rows, width), f"{name}.bias": (rows,)} else None


def _head(model: Backbone, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the classifier."""
    return {k: value for k, value in weights.items() if k.startswith(f"{model.head_name}.")}


def _backbone(model: Backbone, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of all but the classifier."""
    return {k: value for k, value in weights.items() if not k.startswith(f"{model.head_name}.")}


def _refuse_others(
    model: Backbone, stored: StoredWeights, weights: dict[str, Tensor], faults: list[str]
) -> None:
    """Refuse weights that do not fit, and those that another model takes as they are.

    Args:
        weights: In the model's form.
        faults: Why they do not fit; none where they have been resized.

    Raises:
        CheckpointError: They are such.
    """
    name, path, classes = model.config.name, stored.path, model.config.num_classes
    own = _backbone(model, model.state_dict())
    if faults and not _mismatches(own, _backbone(model, weights)):
        found = _count_classes(model, weights)
        if found not in (None, classes):
            raise CheckpointError(
                f"a checkpoint must have its model's classes, got {path} with a {found}-class head "
                f"for {name} with {classes} classes; only the classifier differs: leave "
                f"num_classes out to take all of it, or train a new one with new_head=True "
                f"(`ssmprune train --init {path} --num-classes {classes}`)."
            )
        if not _head(model, weights):
            raise CheckpointError(
                f"a checkpoint must hold a classifier, got {path} for {name} without one; only "
                "that is missing: give num_classes=0 for features, or train a new one "
                f"(`ssmprune train --init {path}`)."
            )
    owner = _owner(model.config, stored.tensors)
    if faults or owner not in (None, name):
        remedy = (
            f"its weights are those of {owner}, use that model."
            if owner not in (None, name)
            else "no model of the zoo has these weights, look at where the file comes from."
        )
        told = f"a checkpoint must fit its model, got {path} for {name}; {remedy}"
        raise CheckpointError("\n".join([told, *faults]))


def _fitted(model: Backbone, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the model's form, without the prefix that a wrapper has put before names.

    torch.compile, DDP, Lightning and mmcv put one before all names, or before the backbone's and
    not the classifier's. Of the dotted prefixes that at least half the names begin with, it is the
    shortest one after which most names are the model's; each name loses as much of it as it has.
    """
    expected = model.state_dict().keys()
    begun = Counter(
        f"{prefix}."
        for name in found
        for prefix in accumulate(name.split(".")[:-1], "{}.{}".format)
    )
    frequent = [prefix for prefix, count in begun.items() if 2 * count >= len(found)]
    forms = [model.adapt_weights(found)]
    for prefix in sorted(frequent, key=len):
        shortened = {_shortened(name, prefix): value for name, value in found.items()}
        if len(shortened) == len(found):
            forms.append(model.adapt_weights(shortened))
    return max(forms, key=lambda form: len(form.keys() & expected))


def _shortened(name: str, prefix: str) -> str:
    """A name without the parts of a dotted prefix, as far as it begins with them."""
    for part in prefix.split(".")[:-1]:
        if not name.startswith(f"{part}."):
            break
        name = name.removeprefix(f"{part}.")
    return name


def _skeleton(config: ModelConfig) -> Backbone:
    """The model without values."""
    with torch.device("meta"):
        return build_model(config)


def _owner(config: ModelConfig, found: dict[str, Tensor]) -> str | None:
    """The model of the zoo that these weights fit as they are, whatever their classes.

    The family of `config` comes first.
    """
    candidates = sorted(
        map(find_config, model_names()), key=lambda candidate: candidate.family != config.family
    )
    for candidate in candidates:
        model = _skeleton(candidate)
        weights = _fitted(model, found)
        has_whole_head = _count_classes(model, weights) is not None or not _head(model, weights)
        faults = _mismatches(_backbone(model, model.state_dict()), _backbone(model, weights))
        if has_whole_head and not faults and not _is_resized(found, weights):
            return candidate.name
    return None


def _is_resized(found: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    return sum(x.numel() for x in found.values()) != sum(x.numel() for x in weights.values())


def _mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Keys that are missing, unexpected, of another shape, or no real numbers, a line for each."""
    both = [(key, found[key], expected[key]) for key in expected if key in found]
    kinds = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {tuple(value.shape)} instead of {tuple(own.shape)}"
            for key, value, own in both
            if value.shape != own.shape
        ],
        "of another type": [
            f"{key} {value.dtype} instead of {own.dtype}"
            for key, value, own in both
            if own.is_floating_point() and not value.is_floating_point()
        ],
    }
    return [f"  {kind}: {some_of(keys)}" for kind, keys in kinds.items() if keys]
