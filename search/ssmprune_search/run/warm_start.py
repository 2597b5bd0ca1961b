"""Warm start: policies that are good elsewhere, brought into a space, of another model too.

A stage goes to the layer of the space that is nearest in relative depth, (layer + 1) / depth, and
the share of the patch tokens that are left after it stays what it was, as far as the space's steps
allow. A setting that the space does not have becomes its first, a match the first of its matches.
What a stage has of its own, its scorer and whether it merges, it keeps where the space has that per
stage; else all stages have that of the first. In a space `per: schedule`
the keep ratios become the line from the first of the layers to the last that leaves most nearly the
same shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FixedTrial

from ssmprune.errors import SpaceError, UsageError
from ssmprune.measure.flops import count_flops
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Merge, Policy, Scorer, Stage
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.candidate.stages import DROP, doing, word
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.space.choices import or_first
from ssmprune_search.space.space import SearchSpace


def warm_start(origins: Sequence[str | Path], space: SearchSpace) -> list[tuple[str, Policy]]:
    """Names and policies, in `space`, of what each origin offers.

    Args:
        origins: Directories of runs, whose fronts are taken, and policies by file or name.

    Raises:
        RunError, PolicyError: An origin is not what it has to be.
        UsageError: Nothing of an origin can be brought into the space.
    """
    found: list[tuple[str, Policy]] = []
    for origin in origins:
        adapted = [(name, adapt(policy, space)) for name, policy in _policies(origin)]
        fitting = [(name, policy) for name, policy in adapted if policy is not None]
        if not fitting:
            raise UsageError(
                f"--warm-start must offer a policy for the space of {space.model}, but none of "
                f"{origin} has its reduction, {space.reduction}, and keeps to its FLOPs limits; "
                "leave it out."
            )
        found += fitting
    return found


def adapt(policy: Policy, space: SearchSpace) -> Policy | None:
    """The policy of the space that is most like `policy`.

    None where tokens leave in the one and grids shrink in the other, and where the FLOPs limits
    of the space are broken.
    """
    if policy.reduction != space.reduction:
        return None
    found = _member(policy, space) or _fitted(policy, space)
    try:
        space.params(found)
    except SpaceError:
        return None
    flops = count_flops(space.config, found).flops
    return found if space.infeasible(flops) is None else None


def _member(policy: Policy, space: SearchSpace) -> Policy | None:
    """The policy itself, where it is in the space."""
    if policy.model != space.model:
        return None
    try:
        return space.suggest(FixedTrial(space.params(policy)))
    except SpaceError:
        return None


def _fitted(policy: Policy, space: SearchSpace) -> Policy:
    compounds = space.reducer.compounds
    left = _left(policy, space) if compounds else _scanned(policy, space)
    kept = space.parameterisation.nearest(left, space.config.num_patches, compounds)
    own = _own(policy, space)
    between = doing(_words(policy, space)[0])
    return space.normalise(
        [Stage(layer=n, keep_ratio=ratio, **own.get(n, between)) for n, ratio in kept.items()],
        or_first(policy.scorer.name, space.scorer),
        Alignment(**space.alignment.nearest(policy.alignment)),
        Merge(**space.merge.nearest(policy.merge)),
    )


def _policies(origin: str | Path) -> list[tuple[str, Policy]]:
    path = Path(origin)
    if not path.is_dir():
        return [(path.stem, Policy.load(path))]
    run = RunDirectory.open(path)
    members = pareto_front(run.study().candidates(), run.space.objectives)
    return [(f"{path.name}@{member.trial}", member.policy) for member in members]


def _left(policy: Policy, space: SearchSpace) -> dict[int, float]:
    """The share of the patch tokens that is left after a layer of the space."""
    config = find_config(policy.model)
    return {
        _nearest(stage.layer, config.depth, space): kept / config.num_patches
        for stage, kept in policy.effective_stages(config)
    }


def _own(policy: Policy, space: SearchSpace) -> dict[int, dict[str, Any]]:
    """What stages have of their own at layers of the space, as fields of `Stage`."""
    config = find_config(policy.model)
    stages = [stage for stage, _ in policy.effective_stages(config)]
    found: dict[int, dict[str, Any]] = {}
    for stage, does in zip(stages, _words(policy, space), strict=False):
        own = doing(does)
        if space.scorer_per == "stage":
            own["scorer"] = Scorer(name=or_first(policy.stage_scorer(stage).name, space.scorer))
        found[_nearest(stage.layer, config.depth, space)] = own
    return found


def _words(policy: Policy, space: SearchSpace) -> list[str]:
    """What each stage does in the space; where there is none, what the first would do."""
    stages = [stage for stage, _ in policy.effective_stages(find_config(policy.model))]
    words = [_nearest_word(word(stage), space.words) for stage in stages] or [space.words[0]]
    return words if space.reduce_per == "stage" else words[:1] * len(words)


def _nearest_word(wanted: str, words: Sequence[str]) -> str:
    """A word itself, else the first match in place of a match, else the first word."""
    matches = [found for found in words if found != DROP]
    return or_first(wanted, matches if wanted != DROP and matches else words)


def _scanned(policy: Policy, space: SearchSpace) -> dict[int, float]:
    """The share of its tokens that a layer scans: that of the block nearest in relative depth."""
    config = find_config(policy.model)
    scanned = {
        stage.layer: kept / math.prod(config.block_grids[stage.layer])
        for stage, kept in policy.effective_stages(config)
    }
    found: dict[int, float] = {}
    for layer in space.ratios.layers:
        depth = (layer + 1) / space.config.depth
        origin = min(range(config.depth), key=lambda n: abs((n + 1) / config.depth - depth))
        wanted = scanned.get(origin, 1.0)
        found[layer] = min(space.ratios.grid(), key=lambda ratio: abs(ratio - wanted))
    return {layer: ratio for layer, ratio in found.items() if ratio != 1}


def _nearest(layer: int, depth: int, space: SearchSpace) -> int:
    """The layer of the space at the relative depth of another model's."""
    wanted = (layer + 1) / depth
    return min(space.ratios.layers, key=lambda n: abs((n + 1) / space.config.depth - wanted))
