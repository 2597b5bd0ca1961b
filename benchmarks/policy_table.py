"""Every policy of one space, measured for real once: a search on it costs a look into a table.

`python -m benchmarks.policy_table` measures the shipped model on its search split with two
processes of one thread and writes the table, some ten minutes; `PolicyTable.load` reads it.
"""

from __future__ import annotations

import io
import itertools
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssmprune.data import ImageSet, open_images
from ssmprune.measure.accuracy import correct
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.models.factory import create_model
from ssmprune.policy import Alignment, Policy, Stage
from ssmprune.pruning.apply import apply_policy
from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.space.space import SearchSpace

FOLDER = Path(__file__).parent / "recorded"
SPACE = FOLDER / "space.yaml"
TABLE = FOLDER / "vim_nano.npz"
PROCESSES = 2


@dataclass(frozen=True)
class PolicyTable:
    """What each policy of a space gets right.

    Attributes:
        space: The space.
        policies: Its policies, of those that prune alike one.
        correct: Whether a policy classifies an image rightly, (policies, images), images in the
            order of the search split.
        dense: The same for the dense model, (images,).
    """

    space: SearchSpace
    policies: list[Policy]
    correct: NDArray[np.bool_]
    dense: NDArray[np.bool_]

    @classmethod
    def load(cls) -> PolicyTable:
        """The table that is in the repository."""
        with np.load(TABLE) as file:
            images, packed = int(file["images"]), file["correct"]
        bits = np.unpackbits(packed, axis=1, count=images).astype(bool)
        space = SearchSpace.load(SPACE)
        return cls(space, policies(space), bits[1:], bits[0])


def policies(space: SearchSpace) -> list[Policy]:
    """All policies of a space per layer with one alignment, of those that prune alike the first."""
    found: dict[Any, Policy] = {}
    layers, grid = space.ratios.layers, space.ratios.grid()
    for scorer, *ratios in itertools.product(space.scorer, *[grid] * len(layers)):
        stages = [Stage(layer=n, keep_ratio=r) for n, r in zip(layers, ratios, strict=True)]
        policy = space.normalise(stages, scorer, Alignment())
        found.setdefault(pruning_key(policy), policy)
    return list(found.values())


def record() -> None:
    """Measure the space and write the table; the first row is the dense model."""
    space = SearchSpace.load(SPACE)
    wanted = [Policy(model=space.model, stages=()), *policies(space)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES) as pool:
        rows = np.stack(list(pool.imap(_measure, wanted, chunksize=16)))
    file = io.BytesIO()
    np.savez_compressed(file, correct=np.packbits(rows, axis=1), images=rows.shape[1])
    TABLE.write_bytes(file.getvalue())
    print(f"{len(rows)} policies, {rows.shape[1]} images, {TABLE.stat().st_size:,} bytes: {TABLE}")


_resident: list[Any] = []


def _measure(policy: Policy) -> NDArray[np.bool_]:
    """What a policy gets right, (images,); model and images stay in the process."""
    if not _resident:
        torch.set_num_threads(1)
        _resident.extend(_open(policy.model))
    model, images = _resident
    apply_policy(model, policy)
    return correct(model, images.loader).numpy()


def _open(name: str) -> tuple[torch.nn.Module, ImageSet]:
    model = create_model(name, checkpoint=shipped_checkpoint(name))
    config = model.config
    images = open_images(
        "digits", "search", image_size=config.image_size, channels=config.channels, batch_size=91
    )
    return model, images


if __name__ == "__main__":
    record()
