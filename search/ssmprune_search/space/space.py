"""The search space: which policies a search may propose.

Its format is `ssmprune.space/1`, and `ssmprune.space/2` of those whose policies may merge tokens.
With `parameterisation` and `choices` this is the only place that knows the names of an Optuna
trial's parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
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
from ssmprune.pruning.matching import MATCHES, find_match
from ssmprune.pruning.reduction import Reduction
from ssmprune.pruning.reductions import (
    DEFAULT,
    REDUCTIONS,
    SUMMARIES,
    ReductionName,
)
from ssmprune.pruning.scorers import find_scorer
from ssmprune.stage import Alignment, MatchName, Merge, ModelName, Scorer, ScorerName, Stage
from ssmprune.yamlfile import FilePart, YamlFile, parse
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.objective import OBJECTIVES, ObjectiveName
from ssmprune_search.candidate.stages import (
    DROP,
    asks_scorer,
    can_merge,
    counting_alignment,
    counting_merge,
    doing,
    stage_scorers,
    word,
)
from ssmprune_search.space.checks import (
    merging_faults,
    outside,
    reduction_faults,
    schedule_faults,
)
from ssmprune_search.space.choices import AlignmentChoices, MergeChoices, listed_choices, pick
from ssmprune_search.space.faults import SCHEMAS, Schema, unfit
from ssmprune_search.space.limits import Limits
from ssmprune_search.space.parameterisation import PARAMETERISATIONS, Named, Parameterisation
from ssmprune_search.space.ratios import Ratios, distinct
from ssmprune_search.space.schedules import Schedule, uniform_schedule

_DEFAULT_MERGE = Merge()
_BOUNDED = list(Limits.model_fields)

MOST_OBJECTIVES = 3
"""With more, nearly every candidate is on the front."""


def _few(objectives: tuple[str, ...]) -> tuple[str, ...]:
    if len(objectives) > MOST_OBJECTIVES:
        got = f"objectives must be at most {MOST_OBJECTIVES}, got {len(objectives)}"
        raise ValueError(Fault(got, "remove those that matter least"))
    return objectives


class SearchSpace(FilePart):
    """Which policies a search may propose, for one model."""

    schema_: Schema = Field(
        alias="schema",
        description=f"{SCHEMAS[0]}, or {SCHEMAS[1]} of a space whose policies may merge tokens",
    )
    model: ModelName = Field(description="the name of a model of `ssmprune models`")
    reduction: ReductionName = Field(default=DEFAULT, description=SUMMARIES)
    ratios: Ratios = Field(description="where tokens may leave: per, layers, low, high, step")
    scorer: Annotated[tuple[ScorerName, ...], AfterValidator(distinct)] = listed_choices(
        "a list of scorers, such as [l1, clipped_sum]", ("clipped_sum",)
    )
    scorer_per: Literal["policy", "stage"] = Field(
        default="policy",
        description="policy: one scorer for all stages; "
        "stage: one for each stage, or for each of `layers`",
    )
    reduce: Annotated[tuple[Literal["drop", "merge"], ...], AfterValidator(distinct)] = (
        listed_choices("a list of drop, merge: what stages may do", ("drop",))
    )
    match: Annotated[tuple[MatchName, ...], AfterValidator(distinct)] = listed_choices(
        f"where stages may merge, a list of {', '.join(MATCHES)}: who joins whom; a stage that "
        "would have to merge more than its match can drops tokens instead",
        (find_match(None).name,),
    )
    reduce_per: Literal["policy", "stage"] = Field(
        default="stage",
        description="where stages may merge; policy: all stages do the same; "
        "stage: each does what it does best",
    )
    merge: MergeChoices = Field(
        default=MergeChoices(),
        description="where stages may merge, lists of metric, weight, protect, untouched and fate",
    )
    alignment: AlignmentChoices = Field(
        default=AlignmentChoices(), description="lists of decay, strength, conv and sizes"
    )
    objectives: Annotated[
        tuple[ObjectiveName, ...], AfterValidator(distinct), AfterValidator(_few)
    ] = listed_choices(f"a list of up to three of {', '.join(OBJECTIVES)}", ("top1", "flops"))
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
            *merging_faults(space),
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

    @property
    def words(self) -> tuple[str, ...]:
        """What a stage may do: `drop`, and the matches that it may merge by."""
        found = ((DROP,) if does == DROP else self.match for does in self.reduce)
        return tuple(chain.from_iterable(found))

    def suggest(self, trial: BaseTrial) -> Policy:
        """The policy that a trial stands for; asks the trial for every parameter of the space."""
        stages = self.parameterisation.suggest(trial, partial(self._suggest_own, trial))
        alignment = Alignment(**self.alignment.suggest(trial))
        scorer = self.scorer[0]
        if self.scorer_per == "policy":
            scorer = pick(trial, "scorer", self.scorer)
        if self.reduce_per == "policy":
            does = doing(pick(trial, "reduce", self.words))
            stages = [stage.model_copy(update=does) for stage in stages]
        return self.normalise(stages, scorer, alignment, Merge(**self.merge.suggest(trial)))

    def _suggest_own(self, trial: BaseTrial, named: Named) -> dict[str, Any]:
        """What the trial says of a stage beside its layer and keep ratio."""
        own: dict[str, Any] = {}
        if self.scorer_per == "stage":
            own["scorer"] = Scorer(name=pick(trial, named("scorer"), self.scorer))
        if self.reduce_per == "stage":
            own |= doing(pick(trial, named("reduce"), self.words))
        return own

    def params(self, policy: Policy) -> dict[str, Any]:
        """The parameters of a trial for which `suggest` gives this policy.

        Raises:
            SpaceError: The policy is not in the space.
        """
        fault = outside(self, policy.stages, policy.scorer.name)
        if fault:
            raise SpaceError(fault.told())
        return self._params(policy.stages, policy.scorer.name, policy.alignment, policy.merge)

    def _params(
        self, stages: Sequence[Stage], scorer: str, alignment: Alignment, merge: Merge
    ) -> dict[str, Any]:
        scorers = stage_scorers(stages, scorer)
        words = [word(stage) for stage in stages]
        shared: dict[str, str] = {}
        own: list[dict[str, str]] = [{} for _ in stages]
        other: dict[str, str] = {}
        for kind, values, fallback, choices, per in (
            ("scorer", scorers, scorers[0], self.scorer, self.scorer_per),
            ("reduce", words, self.words[0], self.words, self.reduce_per),
        ):
            if len(choices) > 1 and per == "policy":
                shared[kind] = values[0] if values else fallback
            elif len(choices) > 1:
                other[kind] = fallback
                for each, value in zip(own, values, strict=False):
                    each[kind] = value
        return {
            **self.parameterisation.params(stages, own, other),
            **shared,
            **self.alignment.params(alignment),
            **self.merge.params(merge),
        }

    def distributions(self) -> dict[str, BaseDistribution]:
        """Every parameter of a trial, with the values that it can take."""
        ratios, does = self.ratios, doing(self.words[0])
        layers = ratios.layers[: ratios.stages]
        stages = [Stage(layer=layer, keep_ratio=ratios.low, **does) for layer in layers]
        trial = FixedTrial(
            self._params(stages, self.scorer[0], self._first_alignment(), self._first_merge())
        )
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

    def normalise(
        self,
        stages: Sequence[Stage],
        scorer: str,
        alignment: Alignment,
        merge: Merge = _DEFAULT_MERGE,
    ) -> Policy:
        """One policy for all settings that do the same: what changes nothing gets its default.

        The policy's scorer is that of the first stage that asks one; stages with another carry
        their own. A stage that would have to merge more tokens than its match can drops them; with
        `reduce_per: policy` all stages do.
        """
        kept = self._mergeable(self._effective(stages), merge.protect)
        scorers = stage_scorers(kept, scorer)
        if not any(map(asks_scorer, kept)):
            scorers = [self.scorer[0] for _ in scorers]
        kept = [
            stage.model_copy(update={"scorer": None if name == scorers[0] else Scorer(name=name)})
            for stage, name in zip(kept, scorers, strict=False)
        ]
        return Policy(
            model=self.model,
            reduction=self.reduction,
            stages=tuple(kept),
            scorer=Scorer(name=scorers[0]),
            alignment=counting_alignment(kept, alignment, self.config),
            merge=counting_merge(kept, merge, self.config),
        )

    def _mergeable(self, stages: Sequence[Stage], protect: int) -> list[Stage]:
        """The stages, of which those drop that cannot merge what they leave."""
        counts = self.reducer.counts(stages, self.config)
        able = [
            can_merge(stage, entering, left, protect, self.config)
            for stage, (entering, left) in zip(stages, counts, strict=True)
        ]
        if self.reduce_per == "policy":
            able = [all(able) for _ in able]
        return [
            stage.model_copy(update=doing(word(stage) if can else DROP))
            for stage, can in zip(stages, able, strict=True)
        ]

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
        """The schedule with the first settings of the space; None when it is not in the space."""
        if outside(self, stages, scorer):
            return None
        return self.normalise(stages, scorer, self._first_alignment(), self._first_merge())

    def _first_alignment(self) -> Alignment:
        return Alignment(**self.alignment.first())

    def _first_merge(self) -> Merge:
        return Merge(**self.merge.first())


@lru_cache
def _dense_flops(config: ModelConfig) -> int:
    return count_flops(config).flops
