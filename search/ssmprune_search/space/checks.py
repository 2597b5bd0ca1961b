"""What is not in a space, and what in a space does not fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ssmprune.faults import Fault, Location
from ssmprune.pruning.matching import MATCHES
from ssmprune.pruning.reductions import fitting_reduction
from ssmprune.stage import Stage
from ssmprune.yamlfile import FilePart
from ssmprune_search.candidate.stages import DROP, merges, stage_scorers, word

if TYPE_CHECKING:
    from ssmprune_search.space.space import SearchSpace

_MERGING = ("reduce", "match", "reduce_per", "merge")
"""Keys of a space that say how stages merge."""


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
    fault = _does_otherwise(space, stages)
    if fault:
        return fault
    for stage in stages:
        if stage.layer not in ratios.layers:
            rule = f"layer must be one of ratios.layers, got {stage.layer}"
            return Fault(rule, f"the layers are {list(ratios.layers)}")
        if stage.keep_ratio not in ratios.grid():
            grid = f"{ratios.low}, {ratios.low + ratios.step:g}, ... {ratios.high}"
            rule = f"keep_ratio must be one of {grid}, got {stage.keep_ratio}"
            return Fault(rule, "change it, or ratios.step")
    return space.parameterisation.fault(stages)


def _does_otherwise(space: SearchSpace, stages: Sequence[Stage]) -> Fault | None:
    """Why stages do what they may not in the space; None where they may."""
    words = [word(stage) for stage in stages]
    unknown = [found for found in words if found not in space.words]
    if unknown:
        rule = f"a stage must do one of {list(space.words)}, got {unknown[0]!r}"
        return Fault(rule, "add it to reduce" if unknown[0] == DROP else "add it to match")
    if space.reduce_per == "policy" and len(set(words)) > 1:
        rule = "stages must do the same with `reduce_per: policy`"
        return Fault(f"{rule}, got {', '.join(words)}", "write `reduce_per: stage`")
    return None


def reduction_faults(space: SearchSpace) -> Iterator[Fault]:
    fitting = fitting_reduction(space.config).name
    if not space.reducer.fits(space.config):
        yield Fault(
            f"reduction must be {fitting} for {space.model}, got {space.reduction}",
            f"write `reduction: {fitting}`",
            ("reduction",),
        )
    for key in () if space.reducer.scores else ("scorer", "scorer_per", "alignment", *_MERGING):
        if _is_given(space, key):
            yield Fault(
                f"{key} must not be given with `reduction: {space.reduction}`, where no token "
                "is scored, joins others or leaves a gap, got one",
                "remove it",
                (key,),
            )


def merging_faults(space: SearchSpace) -> Iterator[Fault]:
    """What does not fit together in what a space says about merging."""
    if not space.reducer.scores:
        return
    if "merge" not in space.reduce:
        yield from _idle_faults(space)
        return
    if "score" not in space.match:
        for key in ("untouched", "fate"):
            if _is_given(space.merge, key):
                rule = f"{key} must be given where match has score, got {list(space.match)}"
                yield Fault(rule, "add score to match, or remove it", ("merge", key))
    for index, protect in enumerate(space.merge.protect):
        short = [name for name in space.match if not _most(space, name, protect)]
        if short:
            yield Fault(
                f"protect must leave patch tokens to merge, got {protect} with `match: {short[0]}` "
                f"on {space.model}, which has {space.config.num_patches}",
                "lower it",
                ("merge", "protect", index),
            )
    if DROP not in space.reduce:
        yield from _too_low(space)


def _idle_faults(space: SearchSpace) -> Iterator[Fault]:
    """What is said about merging where no stage may merge."""
    given: list[Location] = [(key,) for key in _MERGING if key != "reduce"]
    found = [location for location in given if _is_given(space, str(location[-1]))]
    if _is_given(space.alignment, "sizes"):
        found.append(("alignment", "sizes"))
    if "runs" in space.alignment.conv:
        found.append(("alignment", "conv"))
    for location in found:
        what = "conv runs" if location[-1] == "conv" else location[-1]
        yield Fault(
            f"{what} must be given where stages may merge, got reduce {list(space.reduce)}",
            "add merge to reduce",
            location,
        )


def _too_low(space: SearchSpace) -> Iterator[Fault]:
    """That a match cannot merge what a space asks for in which no stage may drop."""
    low = space.ratios.low
    for name in space.match:
        for entering in range(space.config.num_patches, 0, -1):
            asked = entering - Stage(layer=0, keep_ratio=low).keep(entering)
            most = min(_most(space, name, n, entering) for n in space.merge.protect)
            if asked > most:
                yield Fault(
                    f"ratios.low must leave what each match can merge where no stage may drop, got "
                    f"{low}, but `match: {name}` can merge at most {most} of {entering} patch "
                    "tokens",
                    "raise it, or add drop to reduce",
                    ("ratios", "low"),
                )
                return


def _most(space: SearchSpace, match: str, protect: int, entering: int | None = None) -> int:
    """The most patch tokens of those that enter a stage, else of all, that a match can merge."""
    entering = entering or space.config.num_patches
    return MATCHES[match].most(entering, protect, bool(space.config.prefix_positions))


def _is_given(part: FilePart, key: str) -> bool:
    """Whether a part of a space says anything but the default."""
    return bool(getattr(part, key) != type(part).model_fields[key].default)


def schedule_faults(space: SearchSpace) -> Iterator[Fault]:
    for index, schedule in enumerate(space.schedules):
        for _, stages in schedule.expand():
            fault = outside(space, stages, schedule.scorer or space.scorer[0])
            fault = fault or _unmergeable(space, stages)
            if fault:
                yield replace(fault, location=("schedules", index))
                break


def _unmergeable(space: SearchSpace, stages: Sequence[Stage]) -> Fault | None:
    """Why stages cannot merge what they leave; None where they can."""
    if not merges(stages) or not space.reducer.fits(space.config):
        return None
    settings = {"merge": space.merge.first(), "alignment": space.alignment.first()}
    written = [stage.model_dump() for stage in stages]
    return next(space.reducer.faults(settings, written, space.config), None)
