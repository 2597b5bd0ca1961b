"""Where tokens may leave in a space, and how many: the part `ratios` of its file."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, model_validator

from ssmprune.faults import Fault
from ssmprune.yamlfile import FilePart

Value = TypeVar("Value")


def distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
    """Refuse an empty list, and a value that stands twice."""
    if not values:
        raise ValueError(Fault("at least one value must stand in the list, got []", "add one"))
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ValueError(
            Fault(f"values must differ, got {twice[0]!r} twice", "remove one of the two")
        )
    return values


def _ascending(layers: tuple[int, ...]) -> tuple[int, ...]:
    if not layers or list(layers) != sorted(set(layers)):
        got = f"layers must be at least one and ascend, got {list(layers)}"
        raise ValueError(Fault(got, "list each once, sorted"))
    return layers


Layer = Annotated[int, Field(ge=0)]
Layers = Annotated[tuple[Layer, ...], AfterValidator(_ascending)]
KeepRatio = Annotated[float, Field(gt=0, le=1)]


class Ratios(FilePart):
    """Where tokens may leave, and how many."""

    per: Literal["layer", "stage", "schedule"] = Field(
        description="layer: a keep ratio for each of `layers`; "
        "stage: `stages` stages whose layers are searched too; "
        "schedule: a first and a last layer, their keep ratios, and between them a straight line"
    )
    layers: Layers = Field(
        strict=False,
        description="a list of layers after which tokens may leave, such as [0, 1, 2]",
    )
    stages: int | None = Field(
        default=None, ge=1, description="the number of stages, for `per: stage` only"
    )
    low: float = Field(gt=0, le=1, description="the lowest keep ratio, in (0, 1]")
    high: float = Field(
        default=1.0, gt=0, le=1, description="the highest keep ratio; 1.0 means no stage there"
    )
    step: float = Field(gt=0, le=1, description="the distance of two keep ratios, such as 0.05")

    @model_validator(mode="after")
    def _fits_together(self) -> Ratios:
        steps = (self.high - self.low) / self.step
        if self.low >= self.high:
            raise ValueError(
                Fault(f"low must be below high, got {self.low} and {self.high}", "lower it")
            )
        if abs(steps - round(steps)) > 1e-6:
            raise ValueError(
                Fault(
                    f"high must be a whole number of steps above low, got {self.low} to "
                    f"{self.high} in steps of {self.step}",
                    "change the step",
                )
            )
        if (self.stages is None) != (self.per != "stage"):
            raise ValueError(
                Fault(
                    "stages must be given with `per: stage`, and only there, got "
                    f"per: {self.per} and stages: {self.stages}",
                    "add or remove stages",
                )
            )
        return self

    def grid(self) -> list[float]:
        """The keep ratios of the space, ascending."""
        count = round((self.high - self.low) / self.step)
        return [round(self.low + index * self.step, 9) for index in range(count + 1)]

    def line(self, start: int, end: int, first: int, last: int) -> dict[int, float]:
        """The keep ratios after `layers[start]` to `layers[end]`, on a straight line.

        Args:
            first, last: The ratios at both ends, as places in `grid()`, to which those between are
                rounded. Where `start` is `end`, `first` holds.
        """
        grid = self.grid()
        return {
            self.layers[place]: grid[on_line(place, start, end, first, last)]
            for place in range(start, end + 1)
        }


def on_line(place: int, start: int, end: int, first: int, last: int) -> int:
    """What a straight line from `first` at `start` to `last` at `end` is at `place`, rounded."""
    return round(first + (last - first) * (place - start) / max(end - start, 1))
