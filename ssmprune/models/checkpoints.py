"""Weights in and out of files: released checkpoints and our own, always as data, never as code."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ssmprune.errors import CheckpointError
from ssmprune.models.backbone import Backbone
from ssmprune.models.configs import ModelConfig
from ssmprune.models.families import build_model
from ssmprune.models.zoo import find_config, model_names

_SHIPPED = Path(__file__).parent / "weights"
_MOST_NAMED = 10

_numpy_scalar = np.float64().__reduce__()[0]
# Plain data that released files hold beside their tensors: Vim's options, VMamba's (a dict), and
# figures as numpy scalars, by the name that numpy had for them at the time.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (OrderedDict, "yacs.config.CfgNode"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]),
]

# What safetensors and torch's unpickler raise on a damaged file.
_DAMAGE = (
    safetensors.SafetensorError,
    struct.error,
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    AttributeError,
    SystemError,
)


def shipped_checkpoint(model_name: str) -> Path | None:
    """The checkpoint that comes with the package for this model, if there is one."""
    path = _SHIPPED / f"{model_name}.safetensors"
    return path if path.is_file() else None


def checkpoint_sha256(path: str | Path) -> str:
    """SHA-256 of a checkpoint file, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_checkpoint(model: Backbone, path: str | Path) -> None:
    """Load the weights in `path` into `model`; every key and shape has to fit.

    The model's own `adapt_weights` gives keys their present names and may resize a tensor for
    another image size. Weights that another model of the zoo takes without resizing are refused.

    Args:
        model: A model of the zoo.
        path: A file as `read_weights` takes it.

    Raises:
        CheckpointError: The file is missing, is no checkpoint, is damaged, belongs to another
            model, or holds NaN or infinity.
    """
    found = read_weights(Path(path))
    weights = model.adapt_weights(found)
    faults = _mismatches(model.state_dict(), weights)
    if faults or _resized(found, weights):
        owner = _owner(model.config, found)
        if faults or owner not in (None, model.config.name):
            remedy = (
                f"its weights are those of {owner}, use that model."
                if owner
                else "no model of the zoo has these weights, look at where the file comes from."
            )
            told = f"a checkpoint must fit its model, got {path} for {model.config.name}; {remedy}"
            raise CheckpointError("\n".join([told, *faults]))
    diverged = [
        key
        for key, value in weights.items()
        if value.is_floating_point() and not all(end.isfinite() for end in value.aminmax())
    ]
    if diverged:
        raise CheckpointError(
            f"weights must be finite, got NaN or infinity in {_listed(diverged)} of {path}; "
            "take a checkpoint from before the training diverged."
        )
    model.load_state_dict(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors in a checkpoint file.

    Takes `.safetensors`, and what `torch.save` wrote: the weights bare, under `model` (Vim,
    VMamba) or under `state_dict` (PlainMamba, of mmcv). Names lose the prefixes `module.` and
    `backbone.`; mmcv's second copies, `ema_*`, are left out. Beside them stands plain data only.

    Raises:
        CheckpointError: The file is missing, is no checkpoint or is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"a checkpoint must be a file, got {path}; check the path.")
    try:
        content = (
            safetensors.torch.load_file(path) if path.suffix == ".safetensors" else _load(path)
        )
    except pickle.UnpicklingError as fault:
        wanted = re.search(r"GLOBAL (\S+)", str(fault))
        reason = f"it wants to run {wanted[1]}" if wanted else "it is no file of torch.save"
        raise CheckpointError(
            f"a checkpoint must hold tensors only, got {path}: {reason}; save its weights again "
            "with torch.save(model.state_dict(), path) or as safetensors."
        ) from None
    except _DAMAGE as fault:
        first_line = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise CheckpointError(
            f"a checkpoint must be a whole .safetensors or .pth file, got {path}: {first_line}; "
            "copy or download it again."
        ) from None
    for wrapping in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
    named = {
        str(key).removeprefix("module.").removeprefix("backbone."): value
        for key, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Tensor)
    }
    weights = {key: value for key, value in named.items() if not key.startswith("ema_")}
    if not weights:
        raise CheckpointError(
            f"a checkpoint must hold named tensors, got {path} without any; "
            "they are looked for at the top, under 'model' and under 'state_dict'."
        )
    return weights


def _load(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; anything but tensors and plain data is an error."""
    with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an odd pickle is an error later
        return torch.load(path, map_location="cpu", weights_only=True)


def _owner(config: ModelConfig, found: dict[str, Tensor]) -> str | None:
    """The model of the zoo that these weights fit as they are; the same family comes first.

    The classifier may be of the candidate's own size or of the one asked for in `config`.
    """
    candidates = [
        replace(candidate, num_classes=num_classes)
        for candidate in map(find_config, model_names())
        for num_classes in sorted({candidate.num_classes, config.num_classes})
    ]
    for candidate in sorted(candidates, key=lambda candidate: candidate.family != config.family):
        with torch.device("meta"):
            model = build_model(candidate)
        weights = model.adapt_weights(found)
        if not _mismatches(model.state_dict(), weights) and not _resized(found, weights):
            return candidate.name
    return None


def _resized(found: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    return any(key in found and found[key].numel() != weights[key].numel() for key in weights)


def _mismatches(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Keys that are missing, unexpected or of another shape, a line for each kind."""
    kinds = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
            for key in expected
            if key in found and found[key].shape != expected[key].shape
        ],
    }
    return [f"  {kind}: {_listed(keys)}" for kind, keys in kinds.items() if keys]


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
    return ", ".join(keys[:_MOST_NAMED]) + more
