"""The search space: which policies a search may propose. Format `ssmprune.space/1`.

This is the only place that knows the names of an Optuna trial's parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial
from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from ssmprune.errors import SpaceError
from ssmprune.extensions import recorded
from ssmprune.faults import Fault
from ssmprune.measure.flops import count_flops
from ssmprune.models.configs import ModelConfig, with_classes
from ssmprune.models.zoo import find_config
from ssmprune.policy import (
    Alignment,
    DecayName,
    ModelName,
    Policy,
    Scorer,
    ScorerName,
    Stage,
)
from ssmprune.pruning.alignment import find_decay
from ssmprune.pruning.scorers import find_scorer
from ssmprune.yamlfile import FilePart, YamlFile, parse
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.objective import OBJECTIVES, ObjectiveName
from ssmprune_search.space.faults import unfit
from ssmprune_search.space.limits import Limits

SCHEMA: Literal["ssmprune.space/1"] = "ssmprune.space/1"

# Keep ratios of the schedules that every search begins with: three equal stages, as published.
UNIFORM_RATIOS = (0.9, 0.8, 0.7, 0.6)

MOST_OBJECTIVES = 3
"""With more, nearly every candidate is on the front."""

Value = TypeVar("Value")


def _distinct(values: tuple[Value, ...]) -> tuple[Value, ...]:
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


def _few(objectives: tuple[str, ...]) -> tuple[str, ...]:
    if len(objectives) > MOST_OBJECTIVES:
        got = f"objectives must be at most {MOST_OBJECTIVES}, got {len(objectives)}"
        raise ValueError(Fault(got, "remove those that matter least"))
    return objectives


Layer = Annotated[int, Field(ge=0)]
Layers = Annotated[tuple[Layer, ...], AfterValidator(_ascending)]
KeepRatio = Annotated[float, Field(gt=0, le=1)]


def _choices(description: str, default: tuple[Any, ...]) -> Any:
    return Field(default=default, strict=False, description=description)


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
            self.layers[place]: grid[_on_line(place, start, end, first, last)]
            for place in range(start, end + 1)
        }


class AlignmentChoices(FilePart):
    """Alignment settings that are searched; a list of one value fixes it."""

    decay: Annotated[tuple[DecayName, ...], AfterValidator(_distinct)] = _choices(
        "a list of none, zero_input, neighbor", ("none",)
    )
    strength: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(_distinct)
    ] = _choices("a list of numbers in (0, 1]", (1.0,))
    conv: Annotated[tuple[Literal["compact", "position"], ...], AfterValidator(_distinct)] = (
        _choices("a list of compact, position", ("compact",))
    )


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
    keep_ratio: Annotated[tuple[KeepRatio, ...], AfterValidator(_distinct)] | None = Field(
        default=None,
        strict=False,
        description="a list of keep ratios, one schedule each",
    )
    scorer: str | None = Field(default=None, description="a scorer of the space; else its first")

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
        return self

    def expand(self) -> Iterator[tuple[str, tuple[Stage, ...]]]:
        """Each schedule's name and stages."""
        if self.stages is not None:
            yield self.name, self.stages
        for ratio in self.keep_ratio or ():
            stages = tuple(Stage(layer=n, keep_ratio=ratio) for n in self.layers or ())
            yield f"{self.name}@{ratio:g}", stages


class SearchSpace(FilePart):
    """Which policies a search may propose, for one model."""

    schema_: Literal["ssmprune.space/1"] = Field(alias="schema", description=f"write {SCHEMA}")
    model: ModelName = Field(description="the name of a model of `ssmprune models`")
    reduction: Literal["tokens", "grid"] = Field(
        default="tokens",
        description="tokens: tokens leave for good; grid: for hierarchical models, a block scans "
        "a regular subset of its rows and columns",
    )
    ratios: Ratios = Field(description="where tokens may leave: per, layers, low, high, step")
    scorer: Annotated[tuple[ScorerName, ...], AfterValidator(_distinct)] = _choices(
        "a list of scorers, such as [l1, clipped_sum]", ("clipped_sum",)
    )
    scorer_per: Literal["policy", "stage"] = Field(
        default="policy",
        description="policy: one scorer for all stages; "
        "stage: one for each stage, or for each of `layers`",
    )
    alignment: AlignmentChoices = Field(
        default=AlignmentChoices(), description="lists of decay, strength and conv"
    )
    objectives: Annotated[
        tuple[ObjectiveName, ...], AfterValidator(_distinct), AfterValidator(_few)
    ] = _choices(f"a list of up to three of {', '.join(OBJECTIVES)}", ("top1", "flops"))
    limits: Limits = Field(
        default=Limits(),
        description="bounds of flops_ratio, top1, latency_ratio and memory_ratio",
    )
    schedules: Annotated[tuple[Schedule, ...], Field(strict=False)] = Field(
        default=(), description="a list of known schedules to try first"
    )
    imports: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="modules of your own that a search imports first, as `--import`; "
        "paths of .py files are relative to this file",
    )

    _num_classes: int | None = PrivateAttr(None)

    @classmethod
    def load(cls, path: str | Path, imports: Iterable[str] = ()) -> SearchSpace:
        """Read a search space file; its own `imports` are not imported.

        Args:
            path: The file.
            imports: Modules that it was searched with, which the message on an unknown name names.

        Raises:
            SpaceError: The file is missing, is no plain YAML, breaks a rule of the format or does
                not fit its model; the message names every fault.
        """
        file = YamlFile.read(Path(path), SpaceError)
        file.imports = tuple(imports)
        return cls.of(file)

    @classmethod
    def from_yaml(cls, text: str, place: str = "space") -> SearchSpace:
        """Read a search space from text; `place` is what messages call it.

        Raises:
            SpaceError: As `load`.
        """
        return cls.of(YamlFile(text, place, SpaceError))

    @classmethod
    def of(cls, file: YamlFile) -> SearchSpace:
        """The search space of a file that has been parsed.

        Raises:
            SpaceError: As `load`.
        """
        file.imports = file.imports or recorded(file.data.get("imports"))
        space = parse(file, cls, SpaceError, unfit(file.data))
        faults = [
            *space._reduction_faults(),
            *space._schedule_faults(),
            *space.limits.faults(space.objectives),
        ]
        if faults:
            raise SpaceError("\n".join(map(file.told, faults)))
        return space

    def with_classes(self, num_classes: int | None) -> SearchSpace:
        """The space of the model with a checkpoint's classifier; with None, with its own."""
        bound, own = self.model_copy(), find_config(self.model).num_classes
        bound._num_classes = None if num_classes == own else num_classes
        return bound

    def require_names(self) -> None:
        """Make sure that this process knows what the space names, when it was read by another.

        Raises:
            UsageError: A scorer, decay or model is unknown here.
        """
        find_config(self.model)
        for name in self.scorer:
            find_scorer(name)
        for name in self.alignment.decay:
            find_decay(name)

    @property
    def config(self) -> ModelConfig:
        """The configuration of the space's model."""
        config = find_config(self.model)
        return config if self._num_classes is None else with_classes(config, self._num_classes)

    @property
    def dense_flops(self) -> int:
        """Multiply-adds of the model without pruning, for one image."""
        return _dense_flops(self.config)

    def suggest(self, trial: BaseTrial) -> Policy:
        """The policy that a trial stands for; asks the trial for every parameter of the space."""
        if self.ratios.per == "layer":
            stages = self._suggest_layers(trial)
        elif self.ratios.per == "schedule":
            stages = self._suggest_schedule(trial)
        else:
            stages = self._suggest_stages(trial)
        alignment = Alignment(
            decay=_pick(trial, "decay", self.alignment.decay),
            strength=_pick(trial, "strength", self.alignment.strength),
            conv=_pick(trial, "conv", self.alignment.conv),
        )
        scorer = self.scorer[0]
        if self.scorer_per == "policy":
            scorer = _pick(trial, "scorer", self.scorer)
        return self.normalise(stages, scorer, alignment)

    def _suggest_layers(self, trial: BaseTrial) -> list[Stage]:
        ratios = self.ratios
        stages: list[Stage] = []
        for layer in ratios.layers:
            ratio = trial.suggest_float(
                f"keep_ratio_{layer}", ratios.low, ratios.high, step=ratios.step
            )
            stages.append(self._suggest_stage(trial, layer, ratio, f"scorer_{layer}"))
        return stages

    def _suggest_stages(self, trial: BaseTrial) -> list[Stage]:
        ratios = self.ratios
        stages: list[Stage] = []
        for number in range(ratios.stages or 0):
            index = trial.suggest_int(f"stage_{number}_layer_index", 0, len(ratios.layers) - 1)
            ratio = trial.suggest_float(
                f"stage_{number}_keep_ratio", ratios.low, ratios.high, step=ratios.step
            )
            name = f"stage_{number}_scorer"
            stages.append(self._suggest_stage(trial, ratios.layers[index], ratio, name))
        lowest: dict[int, Stage] = {}  # of those at one layer, the first that keeps fewest
        for stage in sorted(stages, key=lambda stage: (stage.layer, stage.keep_ratio)):
            lowest.setdefault(stage.layer, stage)
        return [*lowest.values()]

    def _suggest_schedule(self, trial: BaseTrial) -> list[Stage]:
        ratios = self.ratios
        start, end = sorted(
            trial.suggest_int(f"{which}_layer_index", 0, len(ratios.layers) - 1)
            for which in ("first", "last")
        )
        ends = [
            trial.suggest_float(f"{which}_keep_ratio", ratios.low, ratios.high, step=ratios.step)
            for which in ("first", "last")
        ]
        first, last = (round((ratio - ratios.low) / ratios.step) for ratio in ends)
        line = ratios.line(start, end, first, last)
        return [
            self._suggest_stage(trial, layer, line.get(layer, 1.0), f"scorer_{layer}")
            for layer in ratios.layers
        ]

    def _suggest_stage(self, trial: BaseTrial, layer: int, ratio: float, name: str) -> Stage:
        """The stage at `layer`; the trial calls its scorer `name`, where it has one of its own."""
        scorer = None
        if self.scorer_per == "stage":
            scorer = Scorer(name=_pick(trial, name, self.scorer))
        return Stage(layer=layer, keep_ratio=round(ratio, 9), scorer=scorer)

    def params(self, policy: Policy) -> dict[str, Any]:
        """The parameters of a trial for which `suggest` gives this policy.

        Raises:
            SpaceError: The policy is not in the space.
        """
        fault = self._outside(policy.stages, policy.scorer.name)
        if fault:
            raise SpaceError(fault.told())
        alignment = policy.alignment
        scorers = _scorers(policy.stages, policy.scorer.name)
        params = self._stage_params(policy.stages, scorers)
        for name, value, choices in (
            ("scorer", scorers[0], self.scorer if self.scorer_per == "policy" else ()),
            ("decay", alignment.decay, self.alignment.decay),
            ("strength", alignment.strength, self.alignment.strength),
            ("conv", alignment.conv, self.alignment.conv),
        ):
            if len(choices) > 1:
                params[name] = value if value in choices else choices[0]
        return params

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter of a trial, with the values that it can take."""
        ratios = self.ratios
        everywhere = ratios.layers if ratios.per == "layer" else ratios.layers[: ratios.stages]
        stages = tuple(Stage(layer=layer, keep_ratio=ratios.low) for layer in everywhere)
        policy = self._policy(stages, self.scorer[0], self._first_alignment())
        trial = FixedTrial(self.params(policy))
        self.suggest(trial)
        return trial.distributions

    def _stage_params(self, stages: Sequence[Stage], scorers: Sequence[str]) -> dict[str, Any]:
        ratios = self.ratios
        kept = {
            stage.layer: (stage.keep_ratio, scorer)
            for stage, scorer in zip(stages, scorers, strict=False)
        }
        dense = (ratios.high, scorers[0])
        params: dict[str, Any] = {}
        chosen: dict[str, str] = {}
        if ratios.per == "layer":
            for layer in ratios.layers:
                ratio, scorer = kept.get(layer, dense)
                params[f"keep_ratio_{layer}"], chosen[f"scorer_{layer}"] = ratio, scorer
        elif ratios.per == "schedule":
            ends = self._line_ends(stages)
            assert ends is not None  # `params` has refused what is on no line
            start, end, *steps = ends
            params |= {"first_layer_index": start, "last_layer_index": end}
            params["first_keep_ratio"], params["last_keep_ratio"] = (
                ratios.grid()[n] for n in steps
            )
            chosen = {f"scorer_{n}": kept.get(n, dense)[1] for n in ratios.layers}
        else:
            places = list(kept.items()) or [(ratios.layers[0], dense)]
            for number in range(ratios.stages or 0):
                layer, (ratio, scorer) = places[min(number, len(places) - 1)]
                params[f"stage_{number}_layer_index"] = ratios.layers.index(layer)
                params[f"stage_{number}_keep_ratio"] = ratio
                chosen[f"stage_{number}_scorer"] = scorer
        if self.scorer_per == "stage" and len(self.scorer) > 1:
            params |= chosen
        return params

    def _line_ends(self, stages: Sequence[Stage]) -> tuple[int, int, int, int] | None:
        """What `Ratios.line` takes to remove what the stages do; None where no line does.

        Of several lines it is the shortest, then the flattest. Stages that remove nothing do not
        count, so a line may go on beyond the others and be broken between them.
        """
        layers, grid = self.ratios.layers, self.ratios.grid()
        wanted = self._removing({stage.layer: stage.keep_ratio or 1 for stage in stages})
        points = [(layers.index(layer), grid.index(ratio)) for layer, ratio in wanted.items()]
        leftmost, rightmost = (points[0][0], points[-1][0]) if points else (len(layers) - 1, 0)
        steps = range(len(grid) - 1, -1, -1)
        pairs = sorted(product(steps, steps), key=lambda pair: abs(pair[0] - pair[1]))
        for start in range(leftmost, -1, -1):
            for end in range(max(start, rightmost), len(layers)):
                for first, last in pairs if points else pairs[:1]:
                    ends = (start, end, first, last)
                    if any(_on_line(place, *ends) != step for place, step in points):
                        continue
                    if self._removing(self.ratios.line(*ends)) == wanted:
                        return ends
        return None

    def _removing(self, kept: Mapping[int, float]) -> dict[int, float]:
        """Of keep ratios by layer, those that remove anything."""
        stages = [Stage(layer=layer, keep_ratio=ratio) for layer, ratio in kept.items()]
        return {stage.layer: kept[stage.layer] for stage in self._effective(stages)}

    def _effective(self, stages: Sequence[Stage]) -> list[Stage]:
        """Of stages, those that remove anything."""
        # Not validated: a file whose reduction is wrong gets that told, and its schedules as well.
        policy = Policy.model_construct(
            model=self.model, reduction=self.reduction, stages=tuple(stages)
        )
        return [stage for stage, _ in policy.effective_stages(self.config)]

    def normalise(self, stages: Sequence[Stage], scorer: str, alignment: Alignment) -> Policy:
        """One policy for all settings that do the same: what changes nothing gets its default.

        The policy's scorer is the first stage's; stages with another carry their own.
        """
        kept = self._effective(stages)
        if not kept:
            scorer, alignment = self.scorer[0], Alignment()
        elif alignment.decay == "none":
            alignment = Alignment(conv=alignment.conv)
        scorers = _scorers(kept, scorer)
        kept = [
            stage.model_copy(update={"scorer": None if name == scorers[0] else Scorer(name=name)})
            for stage, name in zip(kept, scorers, strict=False)
        ]
        return self._policy(kept, scorers[0], alignment)

    def _policy(self, stages: Sequence[Stage], scorer: str, alignment: Alignment) -> Policy:
        return Policy(
            model=self.model,
            reduction=self.reduction,
            stages=tuple(stages),
            scorer=Scorer(name=scorer),
            alignment=alignment,
        )

    def infeasible(self, flops: int) -> str | None:
        """Why so many FLOPs break the limits, as a sentence; None when they keep to them."""
        return self.limits.infeasible(flops / self.dense_flops)

    def admits(self, measurement: Measurement) -> bool:
        """Whether a measured candidate keeps to the limits on what is measured."""
        return self.limits.admits(measurement)

    def known_schedules(self) -> list[tuple[str, Policy]]:
        """Names and policies to try first: three equal stages, then the schedules of the file.

        Those that are not in the space or break its FLOPs limits are left out.
        """
        found: list[tuple[str, Policy]] = []
        for schedule in (self._uniform_schedule(), *self.schedules):
            for name, stages in schedule.expand():
                policy = self._schedule_policy(stages, schedule.scorer or self.scorer[0])
                if policy is None:
                    continue
                if self.infeasible(count_flops(self.config, policy).flops) is None:
                    found.append((name, policy))
        return found

    def _uniform_schedule(self) -> Schedule:
        ends = {self.config.depth * quarter // 4 - 1 for quarter in (1, 2, 3)}
        layers = tuple(sorted(layer for layer in ends if layer >= 0)) or (0,)
        return Schedule(name="uniform", layers=layers, keep_ratio=UNIFORM_RATIOS)

    def _schedule_policy(self, stages: tuple[Stage, ...], scorer: str) -> Policy | None:
        """The schedule with the first alignment of the space; None when it is not in the space."""
        if self._outside(stages, scorer):
            return None
        return self.normalise(stages, scorer, self._first_alignment())

    def _first_alignment(self) -> Alignment:
        choices = self.alignment
        return Alignment(decay=choices.decay[0], strength=choices.strength[0], conv=choices.conv[0])

    def _outside(self, stages: Sequence[Stage], scorer: str) -> Fault | None:
        """Why stages are not in the space; None when they are."""
        ratios = self.ratios
        places = [stage.layer for stage in stages]
        if places != sorted(set(places)):
            rule = f"the stages' layers must ascend, got {places}"
            return Fault(rule, "list each once, sorted")
        own = [stage.scorer.name for stage in stages if stage.scorer]
        if own and self.reduction == "grid":
            rule = f"scorer must not be given with `reduction: grid`, got {own[0]!r}"
            return Fault(rule, "remove it")
        scorers = _scorers(stages, scorer)
        unknown = [name for name in scorers if name not in self.scorer]
        if unknown:
            rule = f"scorer must be one of {list(self.scorer)}, got {unknown[0]!r}"
            return Fault(rule, "add it to scorer")
        if self.scorer_per == "policy" and len(set(scorers)) > 1:
            rule = "stages must share one scorer with `scorer_per: policy`"
            return Fault(f"{rule}, got {', '.join(scorers)}", "write `scorer_per: stage`")
        for stage in stages:
            if stage.layer not in ratios.layers:
                rule = f"layer must be one of ratios.layers, got {stage.layer}"
                return Fault(rule, f"the layers are {list(ratios.layers)}")
            if stage.keep_ratio not in ratios.grid():
                grid = f"{ratios.low}, {ratios.low + ratios.step:g}, ... {ratios.high}"
                rule = f"keep_ratio must be one of {grid}, got {stage.keep_ratio}"
                return Fault(rule, "change it, or ratios.step")
        if ratios.per == "layer" and ratios.high < 1 and len(stages) < len(ratios.layers):
            rule = "stages must stand at every layer where ratios.high is below 1.0"
            return Fault(rule, "raise high")
        if ratios.stages is not None and len(stages) > ratios.stages:
            rule = f"stages must be at most {ratios.stages}, got {len(stages)}"
            return Fault(rule, "raise ratios.stages")
        if ratios.stages is not None and not stages and ratios.high < 1:
            return Fault("stages must not be empty where ratios.high is below 1.0", "raise high")
        if ratios.per == "schedule" and self._line_ends(stages) is None:
            kept = ", ".join(f"{stage.layer}: {stage.keep_ratio}" for stage in stages) or "none"
            return Fault(
                "keep ratios must lie on a line over successive layers of ratios.layers with "
                f"`per: schedule`, got {kept}",
                "change them, or write `per: layer`",
            )
        return None

    def _reduction_faults(self) -> Iterator[Fault]:
        fitting = "tokens" if self.config.prunable else "grid"
        if self.reduction != fitting:
            yield Fault(
                f"reduction must be {fitting} for {self.model}, got {self.reduction}",
                f"write `reduction: {fitting}`",
                ("reduction",),
            )
        if self.reduction == "grid":
            for key in ("scorer", "scorer_per", "alignment"):
                if getattr(self, key) != SearchSpace.model_fields[key].default:
                    yield Fault(
                        f"{key} must not be given with `reduction: grid`, where no token is scored "
                        "or leaves a gap, got one",
                        "remove it",
                        (key,),
                    )

    def _schedule_faults(self) -> Iterator[Fault]:
        for index, schedule in enumerate(self.schedules):
            for _, stages in schedule.expand():
                fault = self._outside(stages, schedule.scorer or self.scorer[0])
                if fault:
                    yield replace(fault, location=("schedules", index))
                    break


@lru_cache
def _dense_flops(config: ModelConfig) -> int:
    return count_flops(config).flops


def _on_line(place: int, start: int, end: int, first: int, last: int) -> int:
    """What a straight line from `first` at `start` to `last` at `end` is at `place`, rounded."""
    return round(first + (last - first) * (place - start) / max(end - start, 1))


def _scorers(stages: Sequence[Stage], scorer: str) -> list[str]:
    """The scorer of each stage, where `scorer` is the policy's; that one if there is no stage."""
    return [stage.scorer.name if stage.scorer else scorer for stage in stages] or [scorer]


def _pick(trial: BaseTrial, name: str, choices: tuple[Any, ...]) -> Any:
    """A choice of the trial; a single one is no parameter."""
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)
