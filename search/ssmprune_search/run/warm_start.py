"""Warm start: policies that are good elsewhere, brought into a space, of another model too.

A stage goes to the layer of the space that is nearest in relative depth, (layer + 1) / depth, and
the share of the patch tokens that are left after it stays what it was, as far as the space's steps
allow. A scorer or alignment that the space does not have becomes its first. A policy whose stages
have scorers of their own keeps them where the space has them per stage. In a space `per: schedule`
the keep ratios become the line from the first of the layers to the last that leaves most nearly the
same shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from optuna.trial import FixedTrial

from ssmprune.errors import SpaceError, UsageError
from ssmprune.measure.flops import count_flops
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Policy, Scorer, Stage
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.space.space import SearchSpace

Choice = TypeVar("Choice")


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
    compounds, scorers = space.reducer.compounds, _scorers(policy, space)
    left = _left(policy, space) if compounds else _scanned(policy, space)
    kept = space.parameterisation.nearest(left, space.config.num_patches, compounds)
    alignment, choices = policy.alignment, space.alignment
    return space.normalise(
        [Stage(layer=n, keep_ratio=ratio, scorer=scorers.get(n)) for n, ratio in kept.items()],
        _or_first(policy.scorer.name, space.scorer),
        Alignment(
            decay=_or_first(alignment.decay, choices.decay),
            strength=_or_first(alignment.strength, choices.strength),
            conv=_or_first(alignment.conv, choices.conv),
        ),
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


def _scorers(policy: Policy, space: SearchSpace) -> dict[int, Scorer]:
    """The scorer at a layer of the space, where stages have their own."""
    if space.scorer_per == "policy":
        return {}
    config = find_config(policy.model)
    return {
        _nearest(stage.layer, config.depth, space): Scorer(
            name=_or_first(policy.stage_scorer(stage).name, space.scorer)
        )
        for stage, _ in policy.effective_stages(config)
    }


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


def _or_first(value: Choice, choices: Sequence[Choice]) -> Choice:
    return value if value in choices else choices[0]
