"""Known schedules, which a search tries before the sampler proposes anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ssmprune.faults import Fault
from ssmprune.models.configs import ModelConfig
from ssmprune.stage import MatchName, Stage
from ssmprune.yamlfile import FilePart
from ssmprune_search.space.ratios import KeepRatio, Layers, distinct

UNIFORM_RATIOS = (0.9, 0.8, 0.7, 0.6)
"""Keep ratios of the schedules that every search begins with: three equal stages, as published."""


class Schedule(FilePart):
    """A known schedule, tried before the sampler proposes anything.

    Either `stages`, or `layers` with a list of keep ratios: one schedule for each ratio, the same
    after each of the layers.
    """

    name: str = Field(min_length=1, description="what the results call it")
    stages: tuple[Stage, ...] | None = Field(
        default=None, strict=False, description="a list such as - {layer: 1, keep_ratio: 0.8}"
    )
    layers: Layers | None = Field(
        default=None, strict=False, description="a list of layers such as [1, 3, 5]"
    )
    keep_ratio: Annotated[tuple[KeepRatio, ...], AfterValidator(distinct)] | None = Field(
        default=None,
        strict=False,
        description="a list of keep ratios, one schedule each",
    )
    scorer: str | None = Field(default=None, description="a scorer of the space; else its first")
    reduce: Literal["drop", "merge"] | None = Field(
        default=None, description="with layers, what each stage does: drop, the default, or merge"
    )
    match: MatchName | None = Field(
        default=None, description="with layers and `reduce: merge`, who joins whom"
    )

    @model_validator(mode="after")
    def _one_form(self) -> Schedule:
        equal = (self.layers is not None, self.keep_ratio is not None)
        if equal != (self.stages is None,) * 2:
            raise ValueError(
                Fault(
                    "a schedule must have either stages, or layers and keep_ratio, "
                    f"got {', '.join(sorted(self.model_fields_set))}",
                    "keep one of the two forms",
                )
            )
        if self.stages is not None and (self.reduce or self.match):
            key = "reduce" if self.reduce else "match"
            raise ValueError(
                Fault(
                    f"{key} must be given with layers and keep_ratio, got one beside stages",
                    "give it to each of the stages",
                )
            )
        return self

    def expand(self) -> Iterator[tuple[str, tuple[Stage, ...]]]:
        """Each schedule's name and stages."""
        if self.stages is not None:
            yield self.name, self.stages
        for ratio in self.keep_ratio or ():
            stages = tuple(
                Stage(layer=n, keep_ratio=ratio, reduce=self.reduce or "drop", match=self.match)
                for n in self.layers or ()
            )
            yield f"{self.name}@{ratio:g}", stages


def uniform_schedule(config: ModelConfig) -> Schedule:
    """Three equal stages at the quarters of a model's depth."""
    ends = {config.depth * quarter // 4 - 1 for quarter in (1, 2, 3)}
    layers = tuple(sorted(layer for layer in ends if layer >= 0)) or (0,)
    return Schedule(name="uniform", layers=layers, keep_ratio=UNIFORM_RATIOS)
