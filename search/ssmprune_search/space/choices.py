"""Settings of a policy that a search chooses: the parts `alignment` and `merge` of a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from optuna.trial import BaseTrial
from pydantic import AfterValidator, Field

from ssmprune.pruning.metrics import METRICS
from ssmprune.stage import ConvName, DecayName, Merge, MetricName, SizesName
from ssmprune.yamlfile import FilePart
from ssmprune_search.space.ratios import distinct

Choice = TypeVar("Choice")


def listed_choices(description: str, default: tuple[Any, ...]) -> Any:
    """A field that is a list of choices, of which the first is the default."""
    return Field(default=default, strict=False, description=description)


def pick(trial: BaseTrial, name: str, choices: Sequence[Any]) -> Any:
    """A choice of the trial; a single one is no parameter."""
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)


def or_first(value: Choice, choices: Sequence[Choice]) -> Choice:
    """A value where it is a choice, else the first choice."""
    return value if value in choices else choices[0]


class Choices(FilePart):
    """Settings that are searched; a list of one value fixes it.

    Keys are those of the part of a policy that has these settings, and names of a trial's
    parameters.
    """

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """The settings of a trial."""
        return {name: pick(trial, name, choices) for name, choices in self}

    def first(self) -> dict[str, Any]:
        """The first choice of each setting."""
        return {name: choices[0] for name, choices in self}

    def nearest(self, settings: FilePart) -> dict[str, Any]:
        """A policy's settings, and the first choice in place of those that are none."""
        return {name: or_first(getattr(settings, name), choices) for name, choices in self}

    def params(self, settings: FilePart) -> dict[str, Any]:
        """The parameters of a trial with the settings that are nearest to a policy's."""
        nearest = self.nearest(settings)
        return {name: nearest[name] for name, choices in self if len(choices) > 1}


class AlignmentChoices(Choices):
    """Alignment settings that are searched; a list of one value fixes it."""

    decay: Annotated[tuple[DecayName, ...], AfterValidator(distinct)] = listed_choices(
        "a list of none, zero_input, neighbor", ("none",)
    )
    strength: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(distinct)
    ] = listed_choices("a list of numbers in (0, 1]", (1.0,))
    conv: Annotated[tuple[ConvName, ...], AfterValidator(distinct)] = listed_choices(
        "a list of compact, position, runs", ("compact",)
    )
    sizes: Annotated[tuple[SizesName, ...], AfterValidator(distinct)] = listed_choices(
        "a list of own, scaled, exact: the scan's step of a merged token", ("own",)
    )

    def nearest(self, settings: FilePart) -> dict[str, Any]:
        """A policy's settings, and the first choice in place of those that are none.

        Without a stage that merges, `runs` is what a policy calls compact or position.
        """
        nearest = super().nearest(settings)
        if getattr(settings, "conv", None) not in self.conv and "runs" in self.conv:
            nearest["conv"] = "runs"
        return nearest


class MergeChoices(Choices):
    """Settings of merging that are searched; a list of one value fixes it."""

    metric: Annotated[tuple[MetricName, ...], AfterValidator(distinct)] = listed_choices(
        f"a list of {', '.join(METRICS)}: what tokens are compared by", (Merge().metric,)
    )
    weight: Annotated[tuple[Literal["size", "equal"], ...], AfterValidator(distinct)] = (
        listed_choices("a list of size, equal: a token's weight in the mean", ("size",))
    )
    protect: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(distinct)] = (
        listed_choices("a list of numbers of places beside the class token, 0 or more", (0,))
    )
    untouched: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], ...], AfterValidator(distinct)
    ] = listed_choices("with `match: score`, a list of shares in [0, 1)", (0.0,))
    fate: Annotated[tuple[Literal["merge", "half"], ...], AfterValidator(distinct)] = (
        listed_choices("with `match: score`, a list of merge, half", ("merge",))
    )
