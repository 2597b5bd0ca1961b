"""What a search optimises: each objective, how its figures compare, and how people are told of it.

A new objective is an entry of `OBJECTIVES`, figures in `Measurement`, and whoever measures them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ssmprune.models.configs import ModelConfig
from ssmprune_search.candidate.measurement import Measurement


@dataclass(frozen=True)
class Objective:
    """One objective of a search.

    Attributes:
        name: As spaces name it; also the attribute of a `Measurement` with its value.
        title: For people.
        share: The attribute that people are shown and limits bound: the value over that of the
            dense model, or for accuracy the value itself, in per cent.
        limit: What a space's limits call it.
        limit_meaning: What a limit on it means, for people.
        maximise: Whether more is better.
        task: Of a score, the task that it is of, by its name in `ssmprune.tasks`.
        ends: The attributes with the ends of the 95 % interval of `share`, where it has one.
        noisy: Whether two values only differ where their intervals do not overlap.
        by_tokens: Whether it grows with the tokens that blocks scan, which stand for it where
            measuring it would cost as much as it saves.
        protocol: The attribute that tells how it was measured, where something has to be told.
        unit: Of the value, for people, and how many of the value's own units it is.
        columns: Columns of the table of results, and what they mean.
    """

    name: str
    title: str
    share: str
    limit: str
    limit_meaning: str
    columns: Mapping[str, str] = field(compare=False)
    maximise: bool = False
    task: str = ""
    ends: tuple[str, str] | None = None
    noisy: bool = False
    by_tokens: bool = False
    protocol: str = ""
    unit: tuple[str, float] = ("", 1.0)

    @property
    def key(self) -> str:
        """Short name: `top1`, `flops`, `latency`, `memory`."""
        return self.limit.removesuffix("_ratio")

    @property
    def option(self) -> str:
        """The limit as a keyword: `min_top1`, `max_flops_ratio`."""
        return f"{'min' if self.maximise else 'max'}_{self.limit}"

    def is_measured(self, figures: Measurement) -> bool:
        """Whether there is a figure."""
        return not math.isnan(getattr(figures, self.share))

    def interval(self, figures: Measurement) -> tuple[float, float, float]:
        """`share` with the ends of its 95 % interval; thrice the same where it is exact."""
        low, high = self.ends or (self.share, self.share)
        return getattr(figures, self.share), getattr(figures, low), getattr(figures, high)

    def rank(self, figures: Measurement) -> float:
        """What is less for the better of two."""
        if self.noisy:
            return float(getattr(figures, self.share))
        value = figures.value(self.name)
        return -value if self.maximise else value

    def is_worse(self, one: Measurement, other: Measurement) -> bool:
        """Whether `one` is worse than `other` beyond noise."""
        if self.noisy:
            return self.interval(one)[1] > self.interval(other)[2]
        return self.rank(one) > self.rank(other)

    def reference(self, dense: Measurement) -> float:
        """The worst acceptable value: no accuracy, or the dense model's cost."""
        return 0.0 if self.maximise else dense.value(self.name)

    def loss(self, figures: Measurement, reference: float) -> float:
        """0 at the ideal, 1 at `reference`."""
        value = figures.value(self.name)
        return (100 - value) / (100 - reference) if self.maximise else value / reference

    def excess(self, figures: Measurement, limit: float) -> float:
        """By how much, as a share, `share` misses a limit; at most 0 where it keeps to it."""
        share = float(getattr(figures, self.share))
        return (limit - share) / 100 if self.maximise else share - limit

    def as_limit(self, figures: Measurement) -> float:
        """`share` rounded so that, given as a limit, it lets itself pass."""
        rounded = math.floor if self.maximise else math.ceil
        return rounded(float(getattr(figures, self.share)) * 1e3) / 1e3


TOP1 = Objective(
    name="top1",
    title="Top-1",
    share="top1",
    limit="top1",
    limit_meaning="Lowest top-1 on the search split, in per cent.",
    maximise=True,
    task="classification",
    ends=("top1_low", "top1_high"),
    columns={
        "search_top1": "per cent on the search split, which the search decided by",
        "search_top1_low": "lower end of its 95 % interval",
        "search_top1_high": "upper end",
        "search_images": "images of the search split",
        "holdout_top1": "per cent on the holdout, which no decision saw; empty if not measured",
        "holdout_top1_low": "lower end of its 95 % interval",
        "holdout_top1_high": "upper end",
        "holdout_images": "images of the holdout",
    },
)
FLOPS = Objective(
    name="flops",
    title="FLOPs",
    share="flops_ratio",
    limit="flops_ratio",
    limit_meaning="Highest FLOPs over the dense model's, such as 0.6.",
    unit=("M", 1e6),
    columns={
        "flops": "multiply-adds for one image, everything that runs",
        "flops_ratio": "flops over those of the dense model",
        "paper_flops": "multiply-adds on the rule of the family's publications",
    },
)
LATENCY = Objective(
    name="latency_ms",
    title="Latency",
    share="latency_ratio",
    limit="latency_ratio",
    limit_meaning="Highest latency over the dense model's, such as 0.7.",
    ends=("latency_ratio_low", "latency_ratio_high"),
    noisy=True,
    by_tokens=True,
    protocol="latency_protocol",
    unit=("ms", 1.0),
    columns={
        "latency_ratio": "latency over the dense model's; empty if not measured",
        "latency_ratio_low": "lower end of its 95 % interval",
        "latency_ratio_high": "upper end",
        "latency_ms": "milliseconds for one batch",
    },
)
PEAK_MEMORY = Objective(
    name="peak_memory_bytes",
    title="Peak memory",
    share="peak_memory_ratio",
    limit="memory_ratio",
    protocol="memory_protocol",
    limit_meaning="Highest peak memory over the dense model's, such as 0.8.",
    unit=("MiB", 2**20),
    columns={
        "peak_memory_ratio": "peak memory over the dense model's; empty if not measured",
        "peak_memory_bytes": "most bytes that the tensors of a pass take, for one batch",
    },
)

OBJECTIVES = {objective.name: objective for objective in (TOP1, FLOPS, LATENCY, PEAK_MEMORY)}
"""By name; candidates that are equal in one rank by the next."""

SCORES = [objective for objective in OBJECTIVES.values() if objective.maximise]
COSTS = [objective for objective in OBJECTIVES.values() if not objective.maximise]
MEASURED_COSTS = [cost for cost in COSTS if cost is not FLOPS]
"""Costs that are only known once they were measured."""


def has_score(objectives: Sequence[str]) -> bool:
    """Whether how well a model does its task is among the objectives."""
    return any(OBJECTIVES[name].maximise for name in objectives)


def score_of(config: ModelConfig) -> Objective:
    """The objective that says how well a model does its task."""
    return next(score for score in SCORES if score.task == config.task)


if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[tuple(OBJECTIVES)]
