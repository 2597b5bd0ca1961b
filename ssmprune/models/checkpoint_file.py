"""What checkpoint files hold: named tensors, read as data, never as code."""

from __future__ import annotations

import argparse
import hashlib
import logging
import pickle
import re
import struct
import types
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ssmprune.errors import CheckpointError, UsageError

_log = logging.getLogger(__name__)

_USUAL_KEYS = (None, "model", "state_dict")
"""Where weights lie that were not averaged, the first one first; None is the file's top."""

_CHUNK_BYTES = 2**20


def _plain_dict(*_: object) -> OrderedDict[Any, Any]:
    """What stands for a dictionary with default values."""
    return OrderedDict()


_numpy_scalar = np.float64().__reduce__()[0]
# Plain data that files hold beside their tensors: Vim's options, VMamba's (a dict), Lightning's
# settings, and figures as numpy scalars, by the names that their classes had at the time.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    (_plain_dict, "collections.defaultdict"),
    *(bool, int, float, str, list, dict),
    *(date, datetime, timedelta),
    *((PurePosixPath, f"{module}.PosixPath") for module in ("pathlib", "pathlib._local")),
    *((PureWindowsPath, f"{module}.WindowsPath") for module in ("pathlib", "pathlib._local")),
    (OrderedDict, "yacs.config.CfgNode"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
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


@dataclass(frozen=True)
class StoredWeights:
    """One set of weights of a checkpoint file.

    Attributes:
        path: The file.
        key: Where in the file they lie, such as `model_ema`; None at the top.
        tensors: By the names that they have there.
    """

    path: Path
    key: str | None
    tensors: dict[str, Tensor]


def read_weights(path: str | Path, key: str | None = None) -> StoredWeights:
    """Read a set of weights from a checkpoint file.

    Takes `.safetensors`, and what `torch.save` wrote: the weights bare, or under keys such as
    `model` (Vim, VMamba) or `state_dict` (PlainMamba, Lightning), beside plain data. What was read
    is logged: at level INFO, and where `key` had to choose and was not given, as a warning.

    Args:
        path: The file.
        key: Which weights of a file with several: `model_ema`, or `model.state_dict` for those
            under two keys. With None those at the top, under `model` or under `state_dict`, or
            else the only ones. A key that ends with `ema_` stands for mmcv's second copies.

    Raises:
        CheckpointError: The file is missing, is no checkpoint or is damaged.
        UsageError: `key` is none of the file's, or has to be given.
    """
    path = Path(path)
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
    sets = dict(_weight_sets(content))
    if not sets:
        raise CheckpointError(
            f"a checkpoint must hold named tensors, got {path} without any; they are looked for at "
            "the top and under keys such as 'model' and 'state_dict'."
        )
    chosen = _choose(sets, path, key)
    return StoredWeights(path, chosen, sets[chosen])


def checkpoint_sha256(path: str | Path) -> str:
    """SHA-256 of a checkpoint file, in hexadecimal digits.

    Raises:
        CheckpointError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as fault:
        raise CheckpointError(
            f"a checkpoint must be readable, got {path}: {fault.strerror}; check the path."
        ) from None
    return digest.hexdigest()


def _load(path: Path) -> Any:
    """What `torch.save` wrote, on the CPU; anything but tensors and plain data is an error."""
    with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an odd pickle is an error later
        return torch.load(path, map_location="cpu", weights_only=True)


def _weight_sets(
    content: object, key: str | None = None, depth: int = 2
) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """The mappings that consist of tensors for the most part, with the keys that lead to them."""
    if not isinstance(content, Mapping):
        return
    named = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    has_weights = any(value.is_floating_point() and value.dim() for value in named.values())
    if has_weights and 2 * len(named) > len(content):
        yield from _without_copies(named, key)
        return
    for name, value in content.items():
        if depth and isinstance(name, str):
            yield from _weight_sets(value, name if key is None else f"{key}.{name}", depth - 1)


def _without_copies(
    named: dict[str, Tensor], key: str | None
) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """A set, and one with mmcv's running means in its place, which lie beside it as `ema_*`."""
    copies = {name: copy for name in named if (copy := f"ema_{name.replace('.', '_')}") in named}
    plain = {name: value for name, value in named.items() if name not in copies.values()}
    yield key, plain
    if copies:
        means = {name: named[copy] for name, copy in copies.items()}
        yield "ema_" if key is None else f"{key}.ema_", plain | means


def _choose(sets: Mapping[str | None, Any], path: Path, key: str | None) -> str | None:
    """The key of the set to take."""
    told = " and ".join(f"'{other}'" if other else "the top" for other in sets)
    if key is not None:
        if key not in sets:
            remedy = "leave it out" if [*sets] == [None] else "give one of them"
            raise UsageError(
                f"the checkpoint key must be where {path} has weights, {told}, got '{key}'; "
                f"{remedy} (--checkpoint-key)."
            )
        return key
    if len(sets) == 1:
        [only] = sets
        if only is not None:
            _log.info("weights: those under '%s' in %s", only, path)
        return only
    usual = [other for other in _USUAL_KEYS if other in sets]
    if not usual:
        raise UsageError(
            f"a checkpoint with several sets of weights must have one of them named, got {told} in "
            f"{path}; give its key (--checkpoint-key)."
        )
    taken = f"those under '{usual[0]}'" if usual[0] else "those at the top"
    _log.warning(
        "weights: %s in %s, which has several, %s; --checkpoint-key (checkpoint_key=) takes others",
        taken,
        path,
        told,
    )
    return usual[0]
