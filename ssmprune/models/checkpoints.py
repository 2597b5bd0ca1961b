"""Weights in and out of files: released checkpoints and our own, always as data, never as code."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ssmprune.errors import CheckpointError

_SHIPPED = Path(__file__).parent / "weights"
_MOST_NAMED = 10


def shipped_checkpoint(model_name: str) -> Path | None:
    """The checkpoint that comes with the package for this model, if there is one."""
    path = _SHIPPED / f"{model_name}.safetensors"
    return path if path.is_file() else None


def checkpoint_sha256(path: str | Path) -> str:
    """SHA-256 of a checkpoint file, in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load the weights in `path` into `model`; every key and shape has to fit.

    Takes `.safetensors`, and `.pth` files that hold the weights bare or under `model` or
    `state_dict`, with or without a `module.` prefix.

    Raises:
        CheckpointError: The file is missing, is no checkpoint, is damaged or belongs to another
            model.
    """
    weights = read_weights(Path(path))
    faults = _mismatches(model.state_dict(), weights)
    if faults:
        raise CheckpointError(
            f"a checkpoint must fit its model, got {path} for {_name(model)}; "
            "give the checkpoint's own model.\n" + "\n".join(faults)
        )
    model.load_state_dict(weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors in a checkpoint file.

    Raises:
        CheckpointError: The file is missing, is no checkpoint or is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"a checkpoint must be a file, got {path}; check the path.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an odd pickle is an error below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        wanted = re.search(r"GLOBAL (\S+)", str(fault))
        reason = f"it wants to run {wanted[1]}" if wanted else "it is no file of torch.save"
        raise CheckpointError(
            f"a checkpoint must hold tensors only, got {path}: {reason}; save its weights again "
            "with torch.save(model.state_dict(), path) or as safetensors."
        ) from None
    except (safetensors.SafetensorError, RuntimeError, OSError, EOFError, ValueError) as fault:
        first_line = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise CheckpointError(
            f"a checkpoint must be a whole .safetensors or .pth file, got {path}: {first_line}; "
            "copy or download it again."
        ) from None
    for wrapping in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
    weights = {
        str(key).removeprefix("module."): value
        for key, value in (content.items() if isinstance(content, Mapping) else ())
        if isinstance(value, Tensor)
    }
    if not weights:
        raise CheckpointError(
            f"a checkpoint must hold named tensors, got {path} without any; "
            "they are looked for at the top, under 'model' and under 'state_dict'."
        )
    return weights


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
    lines = []
    for kind, keys in kinds.items():
        if keys:
            more = f" and {len(keys) - _MOST_NAMED} more" if len(keys) > _MOST_NAMED else ""
            lines.append(f"  {kind}: {', '.join(keys[:_MOST_NAMED])}{more}")
    return lines


def _name(model: nn.Module) -> str:
    return getattr(getattr(model, "config", None), "name", type(model).__name__)
