"""The searched model at work: its weights, sample images, and what a policy keeps of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ssmprune.data.single import to_pixels
from ssmprune.errors import RunError, SsmpruneError
from ssmprune.models.checkpoint_file import checkpoint_sha256
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.policy import Policy
from ssmprune.pruning.apply import apply_policy
from ssmprune.pruning.kept import KeptPatches, kept_patches
from ssmprune.pruning.picture import group_colors, patch_means
from ssmprune.tasks import task_of
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.stages import word
from ssmprune_search.evaluation.evaluator import Evaluator, ModelEvaluators
from ssmprune_search.results.outcome import Outcome

SAMPLES = 4
"""Images on the page: the first of the holdout."""


@dataclass(frozen=True)
class Passage:
    """The sample images on their way through one policy.

    Attributes:
        stages: What each stage keeps.
        predicted: Class of each image.
    """

    stages: tuple[KeptPatches, ...]
    predicted: tuple[int, ...]


class Bench:
    """The model and the data that a run searched with.

    Attributes:
        labels: The sample images' true classes.
    """

    def __init__(self, evaluators: ModelEvaluators, threads: int):
        self._setting, self._threads = evaluators, threads
        self._open: dict[str, Evaluator] = {}
        self._model = evaluators.load().to(evaluators.device)
        config = self._model.config
        images = task_of(config).open_images(config, evaluators.data, "holdout", limit=SAMPLES)
        self._images, labels = next(iter(images.loader))
        self._classes = images.classes
        self.labels = tuple(self.class_name(label) for label in labels.tolist())

    @property
    def patch_colors(self) -> list[str]:
        """The mean colour of each patch of each sample image, six digits a patch."""
        grid = self._model.config.grid
        return [
            "".join(
                mean.round().astype(np.uint8).tobytes().hex() * (3 // len(mean)) for mean in means
            )
            for means in (patch_means(pixels, grid) for pixels in self.pixels)
        ]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The sample images, (B, H, W, C)."""
        return to_pixels(self._images, self._model.config.preprocessing)

    def class_name(self, label: int) -> str:
        """A class by its number; the number itself where the data have no such class."""
        return self._classes[label] if label < len(self._classes) else str(label)

    def run(self, policy: Policy) -> Passage:
        """Send the sample images through a policy."""
        apply_policy(self._model, policy)
        device = torch.device(self._setting.device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._setting.amp):
            logits, stages = kept_patches(self._model, self._images.to(device))
        return Passage(stages, tuple(logits.argmax(1).tolist()))

    def measure(self, policy: Policy, split: str, dense: Measurement) -> Measurement:
        """Evaluate a policy as the search did."""
        if split not in self._open:
            self._open[split] = self._setting.open(split, self._threads, dense)
        return self._open[split](policy)


def open_bench(
    outcome: Outcome,
    checkpoint: str | Path | None,
    checkpoint_key: str | None,
    data: str | None,
    device: str,
) -> tuple[Bench | None, str | None]:
    """The model and the data of a run, or why they are not at hand, as a part of a sentence.

    Raises:
        RunError: Weights or data that are given are not those of the search.
    """
    info = outcome.run.info
    call, identity, model = info["call"], info["identity"], outcome.run.space.model
    _refuse_others(outcome, checkpoint, checkpoint_key)
    sha256 = str(identity["checkpoint"])
    known = [Path(p) for p in (checkpoint, call.get("checkpoint"), shipped_checkpoint(model)) if p]
    found = next((p for p in known if _is_file_of(p, sha256)), None)
    if found is None:
        return None, (
            f"no file with the weights of the search was found (sha256 {sha256[:12]}...); "
            "give it with --checkpoint"
        )
    evaluators = ModelEvaluators(
        model=model,
        checkpoint=found,
        data=data or str(call["data"]),
        device=device,
        objectives=outcome.objectives,
        batch_size=int(call["batch_size"]),
        amp=bool(call["amp"]),
        checkpoint_key=identity.get("checkpoint_key", checkpoint_key),
    )
    try:
        same = evaluators.identity()["data"] == identity["data"]
    except SsmpruneError as fault:
        if data is not None:
            raise
        return None, str(fault).rstrip(".")
    if not same and data is not None:
        raise RunError(
            f"--data must be the images that {outcome.run.path} was searched with, but those of "
            f"{data} are others; give that folder, or leave the option out."
        )
    if not same:
        return None, (
            f"the images of {evaluators.data} are not those of the search any more; "
            "give them with --data"
        )
    threads = int(outcome.dense.latency_protocol.get("threads", torch.get_num_threads()))
    return Bench(evaluators, threads), None


def _refuse_others(
    outcome: Outcome, checkpoint: str | Path | None, checkpoint_key: str | None
) -> None:
    """Refuse weights that are not those of the search."""
    identity = outcome.run.info["identity"]
    sha256 = str(identity["checkpoint"])
    if checkpoint is not None and not _is_file_of(Path(checkpoint), sha256):
        raise RunError(
            f"--checkpoint must be the weights that {outcome.run.path} was searched with, sha256 "
            f"{sha256}, got {checkpoint}; give that file, or leave the option out."
        )
    searched = identity.get("checkpoint_key", checkpoint_key)
    if checkpoint_key is not None and checkpoint_key != searched:
        raise RunError(
            f"--checkpoint-key must be the one that {outcome.run.path} was searched with, "
            f"{searched or 'none'}, got {checkpoint_key}; give that one, or leave the option out."
        )


def _is_file_of(path: Path, sha256: str) -> bool:
    return path.is_file() and checkpoint_sha256(path) == sha256


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """An image of shape (H, W, C) as a `data:` address: PNG, or JPEG for photographs."""
    file, is_grey = io.BytesIO(), pixels.shape[2] == 1
    image = Image.fromarray(pixels[..., 0] if is_grey else pixels)
    kind, settings = ("png", {}) if is_grey else ("jpeg", {"quality": 88})
    image.save(file, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def mask_text(mask: Tensor) -> str:
    """A mask of shape (H, W), row by row, as a string of 0 and 1."""
    return "".join("1" if kept else "0" for kept in mask.flatten().tolist())


def group_text(groups: Sequence[Sequence[int]], columns: int) -> str:
    """Groups of patches of a grid: the number of each one's colour, and its patches in base 36."""
    colors = group_colors(groups, columns)
    return ",".join(
        " ".join([str(color), *(np.base_repr(patch, 36).lower() for patch in group)])
        for color, group in zip(colors, groups, strict=True)
    )


def passage_data(passage: Passage, policy: Policy, bench: Bench) -> dict[str, Any]:
    """A passage for the page."""
    matches = {stage.layer: word(stage) for stage in policy.stages}
    return {
        "predicted": [bench.class_name(label) for label in passage.predicted],
        "stages": [
            {
                "layer": stage.layer,
                "count": stage.count,
                "grid": list(stage.grid),
                "masks": [mask_text(mask) for mask in stage.mask],
                **_merged_data(stage, matches[stage.layer]),
            }
            for stage in passage.stages
        ],
    }


def _merged_data(stage: KeptPatches, match: str) -> dict[str, Any]:
    """The groups of patches after a stage, and what it merged itself; nothing of neither."""
    told: dict[str, Any] = {}
    if stage.shares:
        images = range(len(stage.groups))
        told["groups"] = [group_text(stage.shared(image), stage.grid[1]) for image in images]
    if stage.mean_similarity is not None:
        similarity = round(stage.mean_similarity, 3)
        told |= {"merged": stage.merged, "match": match, "similarity": similarity}
    return told
