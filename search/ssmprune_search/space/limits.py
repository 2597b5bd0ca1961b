"""What a candidate must keep to: bounds of each objective."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model, model_validator

from ssmprune.faults import Fault
from ssmprune.yamlfile import FilePart
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.objective import MEASURED_COSTS, SCORES, Objective


class FlopsLimits(FilePart):
    """Bounds of `flops` over the dense model's; exact before anything runs."""

    min: float = Field(default=0.0, ge=0, lt=1, description="the lowest share, in [0, 1)")
    max: float = Field(default=1.0, gt=0, description="the highest share, above 0")

    @model_validator(mode="after")
    def _ordered(self) -> FlopsLimits:
        if self.min >= self.max:
            raise ValueError(
                Fault(f"min must be below max, got {self.min} and {self.max}", "lower min")
            )
        return self


class ScoreLimits(FilePart):
    """A bound of a score in per cent."""

    min: float = Field(ge=0, lt=100, description="the lowest score in per cent, in [0, 100)")


class CostLimits(FilePart):
    """A bound of a measured cost over the dense model's."""

    max: float = Field(gt=0, description="the highest share, above 0")


class BaseLimits(FilePart):
    """What a candidate must keep to."""

    flops_ratio: FlopsLimits = Field(
        default=FlopsLimits(), description="bounds of the FLOPs over the dense model's: min, max"
    )

    def infeasible(self, flops_ratio: float) -> str | None:
        """Why so many FLOPs break the limits, as a sentence; None when they keep to them."""
        low, high = self.flops_ratio.min, self.flops_ratio.max
        if low <= flops_ratio <= high:
            return None
        return f"flops_ratio must be in [{low}, {high}], got {flops_ratio:.3f}"

    def admits(self, measurement: Measurement) -> bool:
        """Whether a measured candidate keeps to the limits on what is measured."""
        measured = [s for s in SCORES if s.is_measured(measurement)]
        bounds = [(score, self._score_bound(score).min) for score in measured]
        costs = ((cost, self._bound(cost)) for cost in MEASURED_COSTS)
        bounds += [(cost, bound.max) for cost, bound in costs if bound is not None]
        return not any(o.excess(measurement, bound) > 0 for o, bound in bounds)

    def faults(self, objectives: Sequence[str]) -> Iterator[Fault]:
        """Limits on what the search does not measure."""
        for cost in MEASURED_COSTS:
            if self._bound(cost) is not None and cost.name not in objectives:
                yield Fault(
                    f"{cost.limit} must have no limit where {cost.name} is no objective, got one",
                    f"add {cost.name} to objectives",
                    ("limits", cost.limit),
                )

    def _score_bound(self, score: Objective) -> ScoreLimits:
        bound: ScoreLimits = getattr(self, score.limit)
        return bound

    def _bound(self, cost: Objective) -> CostLimits | None:
        bound: CostLimits | None = getattr(self, cost.limit)
        return bound


def _cost_field(cost: Objective) -> Any:
    return Field(
        default=None,
        description=f"a bound of the {cost.title.lower()} over the dense model's: max; for the "
        f"objective {cost.name}; candidates above it never enter the front",
    )


def _score_field(score: Objective) -> Any:
    return Field(
        default=ScoreLimits(min=0.0),
        description=f"a bound of the {score.title.lower()}: min; candidates below it never enter "
        "the front",
    )


if TYPE_CHECKING:
    Limits = BaseLimits
else:
    Limits = create_model(
        "Limits",
        __base__=BaseLimits,
        __doc__=BaseLimits.__doc__,
        **{score.limit: (ScoreLimits, _score_field(score)) for score in SCORES},
        **{cost.limit: (CostLimits | None, _cost_field(cost)) for cost in MEASURED_COSTS},
    )
