"""From a policy to its figures. Knows neither Ray nor Optuna."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from ssmprune.data import Batch, ImageSet
from ssmprune.machine import device_name
from ssmprune.measure.flops import count_flops
from ssmprune.measure.latency import compare_latency, precision_name
from ssmprune.measure.memory import peak_memory
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoint_file import checkpoint_sha256
from ssmprune.models.configs import ModelConfig
from ssmprune.models.factory import create_model
from ssmprune.policy import Policy
from ssmprune.pruning.apply import apply_policy, remove_policy
from ssmprune.scan import resolve_backend
from ssmprune.tasks import task_of
from ssmprune_search.candidate.measurement import (
    LATENCY_BATCH,
    LATENCY_FIGURES,
    LATENCY_PROTOCOL,
    MEMORY_FIGURES,
    Measurement,
)
from ssmprune_search.evaluation.prefix import FromBlock, Piece, PrefixCache
from ssmprune_search.study.race import Race

# Sets of images up to this size are read once and stay on the device.
RESIDENT_BYTES = 4 * 2**30

# What enters the first pruned block is kept for this many bytes of images.
PREFIX_BYTES = 2**29

# The fewest pairs that have a 95 % interval: every candidate of a search is timed.
LATENCY_REPEATS = 6


class Evaluator(Protocol):
    """Measures policies of one model on one split; a policy without stages is the dense model."""

    def __call__(self, policy: Policy, race: Race | None = None) -> Measurement:
        """Measure a policy on all images, or on fewer where `race` ends before.

        Args:
            race: Is shown what the policy gets right, in the order of the images; those that it
                knows of are not classified again. The latency of a policy whose race ends early is
                not measured: it is given that of its incumbent. Where peak memory is an objective,
                an incumbent that takes more of it is dropped.
        """
        ...


class Evaluators(Protocol):
    """What a search needs to know of model and data; goes to every worker."""

    def identity(self) -> dict[str, Any]:
        """What a study's figures hang on, ready for JSON: a run is only resumed with the same.

        Raises:
            SsmpruneError: Model, checkpoint or data are not what they have to be.
        """
        ...

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> Evaluator:
        """An evaluator on `split`, with everything it needs resident.

        Args:
            split: `search` or `holdout`.
            threads: CPU threads that it may use.
            dense: The dense model's figures, whose latency and peak memory are the units of all
                others.
        """
        ...

    def with_half_batch(self) -> Evaluators | None:
        """The same with half as many images at a time; None where it is as few as can be."""
        ...


@dataclass(frozen=True)
class ModelEvaluators:
    """Evaluators of a model with trained weights on real images.

    Attributes:
        checkpoint: File with the weights.
        checkpoint_key: Which of its weights, as for `create_model`.
        data: Name or folder of the data set, as for `ssmprune.data.open_images`.
        amp: Run under bfloat16 autocast.
    """

    model: str
    checkpoint: Path
    data: str
    device: str
    objectives: tuple[str, ...]
    batch_size: int
    amp: bool = False
    checkpoint_key: str | None = None

    def load(self) -> Backbone:
        """The model with its weights, on the CPU."""
        return create_model(self.model, self.checkpoint, checkpoint_key=self.checkpoint_key)

    def identity(self) -> dict[str, Any]:
        model = self.load()
        return {
            "model": self.model,
            "checkpoint": checkpoint_sha256(self.checkpoint),
            "checkpoint_key": model.checkpoint_key,
            "num_classes": model.config.num_classes,
            "data": {
                split: self._images(split, model.config).fingerprint
                for split in ("search", "holdout")
            },
        }

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> ModelEvaluator:
        torch.set_num_threads(threads)
        model = self.load()
        config = model.config
        images = self._images(split, config)
        size = 4 * len(images) * config.channels * math.prod(config.image_size)
        if size <= RESIDENT_BYTES:
            images = images.resident(self.device)
        return ModelEvaluator(self, model, images, dense)

    def with_half_batch(self) -> ModelEvaluators | None:
        half = self.batch_size // 2
        return replace(self, batch_size=half) if half >= LATENCY_BATCH else None

    def _images(self, split: str, config: ModelConfig) -> ImageSet:
        return task_of(config).open_images(config, self.data, split, batch_size=self.batch_size)


class ModelEvaluator:
    """Measures policies with the model, its dense twin and the images resident."""

    def __init__(
        self,
        setting: ModelEvaluators,
        model: Backbone,
        images: ImageSet,
        dense: Measurement | None,
    ):
        """Bring the model to its device.

        Args:
            setting: Device, objectives and batches.
            model: With its weights.
            images: The split.
            dense: As for `Evaluators.open`.
        """
        self._setting, self._images, self._dense = setting, images, dense
        self._pruned = model.to(setting.device).eval()
        self._unpruned = copy.copy(self._pruned)  # the same weights, never with a policy
        remove_policy(self._unpruned)
        self._batch = next(iter(images.loader))[0][:LATENCY_BATCH].to(setting.device)
        self._metric = task_of(model.config).metric
        self._dense_flops = count_flops(model.config).flops
        self._prefixes = PrefixCache(model, PREFIX_BYTES) if model.resumes else None

    def __call__(self, policy: Policy, race: Race | None = None) -> Measurement:
        """Measure one policy.

        Raises:
            SsmpruneError: A logit is NaN.
        """
        race = race or Race()
        apply_policy(self._pruned, policy)
        memory = self._memory(policy)
        race.start(memory)
        self._run(race)
        names = (self._metric.name, f"{self._metric.name}_low", f"{self._metric.name}_high")
        scores: dict[str, Any] = dict(zip(names, self._metric.summary(race.scores), strict=True))
        count = count_flops(self._pruned.config, policy)
        return Measurement(
            split=self._images.split,
            **scores,
            images=len(race.scores),
            flops=count.flops,
            flops_ratio=count.flops / self._dense_flops,
            paper_flops=count.paper_flops,
            **self._latency(policy, race),
            **memory,
        )

    def _run(self, race: Race) -> None:
        """Classify the images from rung to rung until the race is over."""
        seen = [race.known] if len(race.known) else []
        model: nn.Module = self._pruned
        known = len(race.known)
        pieces = _pieces(self._images.loader, Race().rungs(len(self._images)))
        first = 0
        if self._prefixes is not None:
            assert self._pruned.plan is not None
            first = min(self._pruned.plan.steps, default=self._pruned.config.depth)
            model = FromBlock(self._pruned, first)
        unseen = (piece for piece in pieces if piece.rung > known)
        for _, segment in itertools.groupby(unseen, key=lambda piece: piece.rung):
            batches = self._entering(segment, first)
            seen.append(self._metric.observe(model, batches, amp=self._setting.amp).numpy())
            if race.show(np.concatenate(seen)):
                return

    def _entering(self, pieces: Iterable[Piece], block: int) -> Iterator[Batch]:
        """What enters a block, or the images where the family cannot begin with one."""
        if self._prefixes is not None:
            return self._prefixes.enter(pieces, block)
        return ((piece.images, piece.labels) for piece in pieces)

    def _latency(self, policy: Policy, race: Race) -> dict[str, Any]:
        """The latency figures of a measurement.

        NaN where it is no objective, and on the holdout: no images change it.
        """
        if "latency_ms" not in self._setting.objectives or self._images.split == "holdout":
            return dict.fromkeys(LATENCY_FIGURES, math.nan)
        if race.ended_early:
            assert race.incumbent is not None
            unknown = dict.fromkeys(LATENCY_FIGURES, math.nan)
            return {**unknown, "latency_ms": race.incumbent.search.latency_ms}
        found = compare_latency(
            self._unpruned,
            self._pruned,
            self._batch,
            repeats=LATENCY_REPEATS,
            warmup=1,
            amp=self._setting.amp,
            backend=resolve_backend("auto", self._batch.device, self._batch.dtype),
        )
        protocol = {key: getattr(found, key) for key in LATENCY_PROTOCOL}
        ratios, unit = (found.ratio, found.ratio_low, found.ratio_high), found.dense_ms
        if not policy.stages:
            ratios = (1.0, 1.0, 1.0)
        elif self._dense:
            unit = self._dense.latency_ms
        figures = dict(zip(LATENCY_FIGURES, (unit * ratios[0], *ratios), strict=True))
        return {**figures, "latency_protocol": protocol}

    def _memory(self, policy: Policy) -> dict[str, Any]:
        """The peak memory figures of a measurement; NaN where latency would be."""
        setting, device = self._setting, self._batch.device
        if "peak_memory_bytes" not in setting.objectives or self._images.split == "holdout":
            return dict.fromkeys(MEMORY_FIGURES, math.nan)
        found = peak_memory(self._pruned, self._batch, amp=setting.amp)
        if not policy.stages:
            unit: float = found
        elif self._dense:
            unit = self._dense.peak_memory_bytes
        else:
            unit = peak_memory(self._unpruned, self._batch, amp=setting.amp)
        protocol = {
            "device": str(device),
            "device_name": device_name(device),
            "batch_size": len(self._batch),
            "precision": precision_name(self._batch, setting.amp),
            "backend": resolve_backend("auto", device, self._batch.dtype),
        }
        figures = dict(zip(MEMORY_FIGURES, (found, found / unit), strict=True))
        return {**figures, "memory_protocol": protocol}


def _pieces(loader: Iterable[Batch], rungs: Sequence[int]) -> Iterator[Piece]:
    """The batches, cut where a rung divides one."""
    start, number = 0, itertools.count()
    for images, labels in loader:
        cuts = [rung - start for rung in rungs if start < rung < start + len(labels)]
        bounds = [0, *cuts, len(labels)]
        for low, high in itertools.pairwise(bounds):
            rung = next(rung for rung in rungs if start + high <= rung)
            yield Piece(next(number), rung, images[low:high], labels[low:high])
        start += len(labels)
