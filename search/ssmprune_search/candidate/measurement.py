"""What is known of a candidate: its policy and the figures measured for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ssmprune.policy import Policy

LATENCY_BATCH = 16
"""Most images in the batch whose latency and peak memory are measured."""

SCORES = ("top1",)
"""Figures that say how well a model does its task; of them a measurement has one."""

LATENCY_FIGURES = ("latency_ms", "latency_ratio", "latency_ratio_low", "latency_ratio_high")
MEMORY_FIGURES = ("peak_memory_bytes", "peak_memory_ratio")
LATENCY_PROTOCOL = (
    "device",
    "device_name",
    "batch_size",
    "precision",
    "threads",
    "backend",
    "repeats",
)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Figures of one policy on one split.

    Attributes:
        top1: Accuracy in per cent; `top1_low` and `top1_high` bound its 95 % interval.
        images: Images that were classified.
        flops: Multiply-adds for one image, everything that runs.
        flops_ratio: `flops` over those of the dense model.
        paper_flops: Multiply-adds on the rule of the family's publications.
        latency_ms: Milliseconds for one batch: dense latency times `latency_ratio`. NaN on the
            holdout, and when latency is no objective of the search. For a candidate that was
            stopped early or has paused its incumbent's, which is no higher.
        latency_ratio: Median of paired runs, pruned over dense, with its 95 % interval.
        latency_protocol: Device and settings that latency was measured with.
        peak_memory_bytes: Most bytes that the tensors of one forward pass take at one time, for one
            batch and without weights and images. NaN on the holdout, and when it is no objective.
        peak_memory_ratio: `peak_memory_bytes` over those of the dense model.
        memory_protocol: Device and settings that peak memory was measured with.
    """

    split: str
    top1: float = math.nan
    top1_low: float = math.nan
    top1_high: float = math.nan
    images: int
    flops: int
    flops_ratio: float
    paper_flops: int
    latency_ms: float
    latency_ratio: float
    latency_ratio_low: float
    latency_ratio_high: float
    latency_protocol: Mapping[str, Any] = field(default_factory=dict)
    peak_memory_bytes: float = math.nan
    peak_memory_ratio: float = math.nan
    memory_protocol: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON, which has no NaN: None stands for it."""
        return {k: None if _is_nan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> Measurement:
        """What `to_dict` gave, as a measurement again."""
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in figures.items()}
        return cls(**values)

    @property
    def score(self) -> float:
        """How well the policy does the model's task, in per cent."""
        return float(getattr(self, self._score_name))

    @property
    def score_low(self) -> float:
        """Lower end of the score's 95 % interval."""
        return float(getattr(self, f"{self._score_name}_low"))

    @property
    def score_high(self) -> float:
        """Upper end of the score's 95 % interval."""
        return float(getattr(self, f"{self._score_name}_high"))

    def with_score(self, score: float) -> Measurement:
        """The same with another score."""
        changed: dict[str, Any] = {self._score_name: score}
        return replace(self, **changed)

    @property
    def _score_name(self) -> str:
        return next((name for name in SCORES if not math.isnan(getattr(self, name))), SCORES[0])

    def value(self, objective: str) -> float:
        """The figure of one objective."""
        return float(getattr(self, objective))


@dataclass(frozen=True)
class Candidate:
    """A policy that was fully evaluated in a search.

    Attributes:
        trial: Number of the Optuna trial.
        source: Who proposed it: `schedule:NAME` for a known schedule, `warm:NAME` for a policy from
            elsewhere, else the sampler's name.
        search: Figures on the search split.
        holdout: Figures on the holdout, for members of the front after the search has ended.
    """

    trial: int
    policy: Policy
    source: str
    search: Measurement
    holdout: Measurement | None = None


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
