"""What is not in a space, and what in a space does not fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ssmprune.faults import Fault
from ssmprune.pruning.reductions import fitting_reduction
from ssmprune.stage import Stage

if TYPE_CHECKING:
    from ssmprune_search.space.space import SearchSpace


def outside(space: SearchSpace, stages: Sequence[Stage], scorer: str) -> Fault | None:
    """Why stages are not in the space; None when they are."""
    ratios = space.ratios
    places = [stage.layer for stage in stages]
    if places != sorted(set(places)):
        rule = f"the stages' layers must ascend, got {places}"
        return Fault(rule, "list each once, sorted")
    own = [stage.scorer.name for stage in stages if stage.scorer]
    if own and not space.reducer.scores:
        rule = f"scorer must not be given with `reduction: {space.reduction}`, got {own[0]!r}"
        return Fault(rule, "remove it")
    scorers = stage_scorers(stages, scorer)
    unknown = [name for name in scorers if name not in space.scorer]
    if unknown:
        rule = f"scorer must be one of {list(space.scorer)}, got {unknown[0]!r}"
        return Fault(rule, "add it to scorer")
    if space.scorer_per == "policy" and len(set(scorers)) > 1:
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
    return space.parameterisation.fault(stages)


def reduction_faults(space: SearchSpace) -> Iterator[Fault]:
    fitting = fitting_reduction(space.config).name
    if not space.reducer.fits(space.config):
        yield Fault(
            f"reduction must be {fitting} for {space.model}, got {space.reduction}",
            f"write `reduction: {fitting}`",
            ("reduction",),
        )
    for key in () if space.reducer.scores else ("scorer", "scorer_per", "alignment"):
        if getattr(space, key) != type(space).model_fields[key].default:
            yield Fault(
                f"{key} must not be given with `reduction: {space.reduction}`, where no token "
                "is scored or leaves a gap, got one",
                "remove it",
                (key,),
            )


def schedule_faults(space: SearchSpace) -> Iterator[Fault]:
    for index, schedule in enumerate(space.schedules):
        for _, stages in schedule.expand():
            fault = outside(space, stages, schedule.scorer or space.scorer[0])
            if fault:
                yield replace(fault, location=("schedules", index))
                break


def stage_scorers(stages: Sequence[Stage], scorer: str) -> list[str]:
    """The scorer of each stage, where `scorer` is the policy's; that one if there is no stage."""
    return [stage.scorer.name if stage.scorer else scorer for stage in stages] or [scorer]
