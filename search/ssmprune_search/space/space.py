"""The search space: which policies a search may propose. Format `ssmprune.space/1`.

With `parameterisation` it is the only place that knows the names of an Optuna trial's parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from optuna.distributions import BaseDistribution
from optuna.trial import BaseTrial, FixedTrial
from pydantic import AfterValidator, Field, PrivateAttr

from ssmprune.errors import SpaceError
from ssmprune.extensions import recorded
from ssmprune.faults import Fault
from ssmprune.measure.flops import count_flops
from ssmprune.models.configs import ModelConfig, with_classes
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy
from ssmprune.pruning.alignment import find_decay
from ssmprune.pruning.reduction import Reduction
from ssmprune.pruning.reductions import (
    DEFAULT,
    REDUCTIONS,
    SUMMARIES,
    ReductionName,
)
from ssmprune.pruning.scorers import find_scorer
from ssmprune.stage import Alignment, DecayName, ModelName, Scorer, ScorerName, Stage
from ssmprune.yamlfile import FilePart, YamlFile, parse
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.objective import OBJECTIVES, ObjectiveName
from ssmprune_search.space.checks import (
    outside,
    reduction_faults,
    schedule_faults,
    stage_scorers,
)
from ssmprune_search.space.faults import unfit
from ssmprune_search.space.limits import Limits
from ssmprune_search.space.parameterisation import PARAMETERISATIONS, Parameterisation
from ssmprune_search.space.ratios import Ratios, distinct
from ssmprune_search.space.schedules import Schedule, uniform_schedule

SCHEMA: Literal["ssmprune.space/1"] = "ssmprune.space/1"

_BOUNDED = list(Limits.model_fields)

MOST_OBJECTIVES = 3
"""With more, nearly every candidate is on the front."""


def _few(objectives: tuple[str, ...]) -> tuple[str, ...]:
    if len(objectives) > MOST_OBJECTIVES:
        got = f"objectives must be at most {MOST_OBJECTIVES}, got {len(objectives)}"
        raise ValueError(Fault(got, "remove those that matter least"))
    return objectives


def _choices(description: str, default: tuple[Any, ...]) -> Any:
    return Field(default=default, strict=False, description=description)


class AlignmentChoices(FilePart):
    """Alignment settings that are searched; a list of one value fixes it."""

    decay: Annotated[tuple[DecayName, ...], AfterValidator(distinct)] = _choices(
        "a list of none, zero_input, neighbor", ("none",)
    )
    strength: Annotated[
        tuple[Annotated[float, Field(gt=0, le=1)], ...], AfterValidator(distinct)
    ] = _choices("a list of numbers in (0, 1]", (1.0,))
    conv: Annotated[tuple[Literal["compact", "position"], ...], AfterValidator(distinct)] = (
        _choices("a list of compact, position", ("compact",))
    )


class SearchSpace(FilePart):
    """Which policies a search may propose, for one model."""

    schema_: Literal["ssmprune.space/1"] = Field(alias="schema", description=f"write {SCHEMA}")
    model: ModelName = Field(description="the name of a model of `ssmprune models`")
    reduction: ReductionName = Field(default=DEFAULT, description=SUMMARIES)
    ratios: Ratios = Field(description="where tokens may leave: per, layers, low, high, step")
    scorer: Annotated[tuple[ScorerName, ...], AfterValidator(distinct)] = _choices(
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
        tuple[ObjectiveName, ...], AfterValidator(distinct), AfterValidator(_few)
    ] = _choices(f"a list of up to three of {', '.join(OBJECTIVES)}", ("top1", "flops"))
    limits: Limits = Field(
        default=Limits(),
        description=f"bounds of {', '.join(_BOUNDED[:-1])} and {_BOUNDED[-1]}",
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
            *reduction_faults(space),
            *schedule_faults(space),
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
    def reducer(self) -> Reduction:
        """What the stages of its policies do."""
        return REDUCTIONS[self.reduction]

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
        stages = self.parameterisation.suggest(trial, partial(self._suggest_scorer, trial))
        alignment = Alignment(
            decay=_pick(trial, "decay", self.alignment.decay),
            strength=_pick(trial, "strength", self.alignment.strength),
            conv=_pick(trial, "conv", self.alignment.conv),
        )
        scorer = self.scorer[0]
        if self.scorer_per == "policy":
            scorer = _pick(trial, "scorer", self.scorer)
        return self.normalise(stages, scorer, alignment)

    def _suggest_scorer(self, trial: BaseTrial, name: str) -> Scorer | None:
        """The scorer of a stage, which the trial calls `name`; None where the policy has one."""
        if self.scorer_per == "policy":
            return None
        return Scorer(name=_pick(trial, name, self.scorer))

    def params(self, policy: Policy) -> dict[str, Any]:
        """The parameters of a trial for which `suggest` gives this policy.

        Raises:
            SpaceError: The policy is not in the space.
        """
        fault = outside(self, policy.stages, policy.scorer.name)
        if fault:
            raise SpaceError(fault.told())
        alignment = policy.alignment
        scorers = stage_scorers(policy.stages, policy.scorer.name)
        params, chosen = self.parameterisation.params(policy.stages, scorers)
        if self.scorer_per == "stage" and len(self.scorer) > 1:
            params |= chosen
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
        layers = ratios.layers[: ratios.stages]
        stages = tuple(Stage(layer=layer, keep_ratio=ratios.low) for layer in layers)
        policy = self._policy(stages, self.scorer[0], self._first_alignment())
        trial = FixedTrial(self.params(policy))
        self.suggest(trial)
        return trial.distributions

    @property
    def parameterisation(self) -> Parameterisation:
        """How the parameters of a trial stand for stages."""
        return PARAMETERISATIONS[self.ratios.per](self.ratios, self._removing)

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
        scorers = stage_scorers(kept, scorer)
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
        for schedule in (uniform_schedule(self.config), *self.schedules):
            for name, stages in schedule.expand():
                policy = self._schedule_policy(stages, schedule.scorer or self.scorer[0])
                if policy is None:
                    continue
                if self.infeasible(count_flops(self.config, policy).flops) is None:
                    found.append((name, policy))
        return found

    def _schedule_policy(self, stages: tuple[Stage, ...], scorer: str) -> Policy | None:
        """The schedule with the first alignment of the space; None when it is not in the space."""
        if outside(self, stages, scorer):
            return None
        return self.normalise(stages, scorer, self._first_alignment())

    def _first_alignment(self) -> Alignment:
        choices = self.alignment
        return Alignment(decay=choices.decay[0], strength=choices.strength[0], conv=choices.conv[0])


@lru_cache
def _dense_flops(config: ModelConfig) -> int:
    return count_flops(config).flops


def _pick(trial: BaseTrial, name: str, choices: tuple[Any, ...]) -> Any:
    """A choice of the trial; a single one is no parameter."""
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)
