"""Reduction of the token sequence: after a stage's block tokens leave, for good or into others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ssmprune.faults import Fault, Location
from ssmprune.models.configs import ModelConfig
from ssmprune.pruning.drop import DropStep
from ssmprune.pruning.matching import MATCHES, ByScore, find_match
from ssmprune.pruning.merge import MergeStep
from ssmprune.pruning.reduction import Reduction, Step, TokenStep
from ssmprune.stage import Merge, Stage, conv_fault, protect_fault, scorer_fault

if TYPE_CHECKING:
    from ssmprune.policy import Policy


def _drop(policy: Policy, stage: Stage, left: int) -> TokenStep:
    return DropStep(left, policy.stage_scorer(stage), policy.alignment)


def _merge(policy: Policy, stage: Stage, left: int) -> TokenStep:
    match, scorer = find_match(stage.match), policy.stage_scorer(stage)
    return MergeStep(left, match, policy.merge, scorer, policy.alignment)


STEPS: dict[str, Callable[[Policy, Stage, int], TokenStep]] = {"drop": _drop, "merge": _merge}
"""The step of a stage by its `reduce`, given the tokens that it leaves."""


class SequenceReduction(Reduction):
    """Tokens leave the sequence."""

    name = "tokens"
    summary = "tokens leave for good, or join others"
    does = "tokens leave for good, or join others"
    verb = "kept"
    where = "left after"
    scores = True
    compounds = True

    def fits(self, config: ModelConfig) -> bool:
        return config.prunable

    def faults(
        self, data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
    ) -> Iterator[Fault]:
        if not stages:
            return
        if not self.fits(config):
            yield Fault(
                f"reduction must be grid for {config.name}, which needs whole grids between its "
                "blocks, got tokens",
                "write `reduction: grid`",
                ("reduction",),
            )
            return
        yield from _grid_setting_faults(data, stages)
        yield from _count_faults(data, stages, config)
        yield from _choice_faults(data, stages, config)
        yield from _merge_setting_faults(data, stages, config)

    def counts(self, stages: Sequence[Stage], config: ModelConfig) -> Iterator[tuple[int, int]]:
        tokens = config.num_patches
        for stage in stages:
            entering, tokens = tokens, stage.keep(tokens)
            yield entering, tokens

    def scanned(self, stages: Sequence[tuple[Stage, int]], config: ModelConfig) -> tuple[int, ...]:
        scanned = list(config.block_tokens)
        for stage, kept in stages:
            left = kept + len(config.prefix_positions)
            scanned[stage.layer + 1 :] = [left] * (config.depth - stage.layer)
        return tuple(scanned)

    def steps(self, policy: Policy, config: ModelConfig) -> Mapping[int, Step]:
        prefix = len(config.prefix_positions)
        return {
            stage.layer: STEPS[stage.reduce](policy, stage, kept + prefix)
            for stage, kept in policy.effective_stages(config)
        }


def _grid_setting_faults(data: Mapping[str, Any], stages: Sequence[Any]) -> Iterator[Fault]:
    given: list[tuple[Location, Any, str]] = [(("pool",), data.get("pool"), "middle")]
    for index, stage in enumerate(stages):
        axes = stage.get("axes") if isinstance(stage, Mapping) else None
        given.append((("stages", index, "axes"), axes, "both"))
    for location, value, default in given:
        if value not in (None, default):
            rule = f"{location[-1]} must not be given without `reduction: grid`, got {value}"
            yield Fault(rule, "remove it", location)


def _count_faults(
    data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
) -> Iterator[Fault]:
    tokens, merge = config.num_patches, _merge_settings(data)
    for index, written in enumerate(stages):
        try:
            stage = Stage.model_validate(written)
        except ValidationError:
            continue
        kept = stage.keep(tokens)
        if kept > tokens:
            yield Fault(
                f"keep_count must not exceed the {tokens} patch tokens that enter the stage, "
                f"got {kept}",
                "lower it",
                ("stages", index),
            )
        elif stage.reduce == "merge" and kept < tokens:
            yield from _merge_faults(stage, index, tokens, kept, merge, config)
        tokens = min(tokens, kept)


def _merge_faults(
    stage: Stage, index: int, entering: int, kept: int, merge: Merge, config: ModelConfig
) -> Iterator[Fault]:
    match, has_prefix = find_match(stage.match), bool(config.prefix_positions)
    most = match.most(entering, merge.protect, has_prefix)
    if entering - kept <= most:
        return
    beside = f" with protect {merge.protect}" if merge.protect and has_prefix else ""
    rule = (
        f"`match: {match.name}`{beside} can merge at most {most} of the {entering} patch tokens "
        f"that enter the stage, got {entering - kept}"
    )
    others = [
        name
        for name, other in MATCHES.items()
        if other.most(entering, merge.protect, has_prefix) >= entering - kept
    ]
    instead = f", or write {' or '.join(f'`match: {name}`' for name in others)}" if others else ""
    remedy = f"keep {entering - most} or more{instead}, or write `reduce: drop`"
    yield Fault(rule, remedy, ("stages", index))


def _merge_setting_faults(
    data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
) -> Iterator[Fault]:
    """Settings of merging that would change nothing."""
    merging = [s for s in stages if isinstance(s, Mapping) and s.get("reduce") == "merge"]
    settings = _merge_settings(data)
    if not merging:
        yield from _idle_faults(data)
        return
    fault = protect_fault(settings.protect, config)
    if fault:
        yield replace(fault, location=("merge", "protect"))
    if any(stage.get("match") == ByScore.name for stage in merging):
        return
    for key in ("untouched", "fate"):
        value = getattr(settings, key)
        if value != Merge.model_fields[key].default:
            yield Fault(
                f"{key} must not be given where no stage has `match: score`, got {value}",
                "remove it, or write `match: score` at a stage",
                ("merge", key),
            )


def _idle_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Settings of merging where no stage merges."""
    alignment = data.get("alignment")
    alignment = alignment if isinstance(alignment, Mapping) else {}
    given: list[tuple[Location, Any, Any]] = [
        (("alignment", "sizes"), alignment.get("sizes", "own"), "own"),
        (("alignment", "conv"), alignment.get("conv"), None),
    ]
    if _merge_settings(data) != Merge():
        given.append((("merge",), data["merge"], None))
    for location, value, idle in given:
        if value == idle or (location[-1] == "conv" and value != "runs"):
            continue
        yield Fault(
            f"{location[-1]} must not be {value} where no stage merges tokens",
            "change it, or write `reduce: merge` at a stage",
            location,
        )


def _merge_settings(data: Mapping[str, Any]) -> Merge:
    """Those of a policy; the defaults where they break a rule of their own."""
    try:
        return Merge.model_validate(data.get("merge") or {})
    except ValidationError:
        return Merge()


def _choice_faults(
    data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
) -> Iterator[Fault]:
    parts: list[tuple[Location, Any]] = [((), data)]
    parts += [(("stages", index), stage) for index, stage in enumerate(stages)]
    for place, part in parts:
        scorer = part.get("scorer") if isinstance(part, Mapping) else None
        name = scorer.get("name") if isinstance(scorer, Mapping) else None
        fault = scorer_fault(name, config) if isinstance(name, str) else None
        if fault:
            yield replace(fault, location=(*place, "scorer", "name"))
    alignment = data.get("alignment", {})
    if isinstance(alignment, Mapping):
        fault = conv_fault(alignment.get("conv", "compact"), config)
        if fault:
            yield replace(fault, location=("alignment", "conv"))
