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
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, product
from operator import mul
from pathlib import Path
from typing import TypeVar

from optuna.trial import FixedTrial

from ssmprune.errors import SpaceError, UsageError
from ssmprune.measure.flops import count_flops
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Policy, Scorer, Stage
from ssmprune_search.candidate.pareto import front
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
    alignment = policy.alignment
    choices = space.alignment
    return space.normalise(
        _grid_stages(policy, space) if space.reduction == "grid" else _stages(policy, space),
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
    members = front(run.study().candidates(), run.space.objectives)
    return [(f"{path.name}@{member.trial}", member.policy) for member in members]


def _stages(policy: Policy, space: SearchSpace) -> list[Stage]:
    """Stages after which the same shares of the patch tokens are left, layer by layer."""
    ratios, config = space.ratios, find_config(policy.model)
    left: dict[int, float] = {}  # after a layer of the space
    scorers: dict[int, Scorer] = {}
    for stage, kept in policy.effective_stages(config):
        layer = _nearest(stage.layer, config.depth, space)
        left[layer] = kept / config.num_patches
        if space.scorer_per == "stage":
            name = _or_first(policy.stage_scorer(stage).name, space.scorer)
            scorers[layer] = Scorer(name=name)
    if ratios.per == "stage":
        layers = _deepest_cuts(left, ratios.stages or 0)
    else:
        layers = list(ratios.layers)
    if ratios.per == "schedule":
        line = _nearest_line(left, space)
        return [Stage(layer=n, keep_ratio=r, scorer=scorers.get(n)) for n, r in line.items()]
    stages: list[Stage] = []
    tokens, share = space.config.num_patches, 1.0
    for layer in layers:
        share = left.get(layer, share)
        stage = _leaving(share * space.config.num_patches, tokens, layer, ratios.grid())
        stages.append(stage.model_copy(update={"scorer": scorers.get(layer)}))
        tokens = stage.keep(tokens)
    return stages


def _grid_stages(policy: Policy, space: SearchSpace) -> list[Stage]:
    """A stage for each block that scans the share of the block nearest in relative depth."""
    config = find_config(policy.model)
    scanned = {
        stage.layer: kept / math.prod(config.block_grids[stage.layer])
        for stage, kept in policy.effective_stages(config)
    }
    stages = []
    for layer in space.ratios.layers:
        depth = (layer + 1) / space.config.depth
        origin = min(range(config.depth), key=lambda n: abs((n + 1) / config.depth - depth))
        ratio = _closest(scanned.get(origin, 1.0), space.ratios.grid())
        stages.append(Stage(layer=layer, keep_ratio=ratio))
    if space.ratios.per == "schedule":
        line = _nearest_line({s.layer: s.keep_ratio for s in stages if s.keep_ratio != 1}, space)
        return [Stage(layer=n, keep_ratio=r) for n, r in line.items()]
    return stages


def _nearest_line(wanted: Mapping[int, float | None], space: SearchSpace) -> dict[int, float]:
    """The keep ratios of a schedule of the space, by layer, that come closest to what is wanted.

    Args:
        wanted: The share of the tokens that is left after a layer or, with `reduction: grid`,
            scanned at it; ascending.
    """
    if not wanted:
        return {}
    ratios, tokens = space.ratios, space.reduction == "tokens"
    start, end = (ratios.layers.index(layer) for layer in (min(wanted), max(wanted)))
    shares = [1.0]
    for layer in ratios.layers[start : end + 1]:
        shares.append(wanted.get(layer) or (shares[-1] if tokens else 1.0))

    def distance(line: dict[int, float]) -> float:
        found: Iterable[float] = accumulate(line.values(), mul) if tokens else line.values()
        return sum(abs(one - other) for one, other in zip(found, shares[1:], strict=True))

    steps = range(len(ratios.grid()))
    return min((ratios.line(start, end, *pair) for pair in product(steps, steps)), key=distance)


def _leaving(wanted: float, tokens: int, layer: int, grid: Sequence[float]) -> Stage:
    """The stage that leaves, of `tokens`, the number closest to `wanted`."""
    stages = [Stage(layer=layer, keep_ratio=ratio) for ratio in grid]
    return min(stages, key=lambda stage: abs(stage.keep(tokens) - wanted))


def _closest(wanted: float, values: Sequence[float]) -> float:
    return min(values, key=lambda value: abs(value - wanted))


def _nearest(layer: int, depth: int, space: SearchSpace) -> int:
    """The layer of the space at the relative depth of another model's."""
    wanted = (layer + 1) / depth
    return min(space.ratios.layers, key=lambda n: abs((n + 1) / space.config.depth - wanted))


def _deepest_cuts(left: dict[int, float], most: int) -> list[int]:
    """The layers, ascending, after which the greatest shares of the tokens leave."""
    before = dict(zip(left, [1.0, *left.values()], strict=False))
    cuts = sorted(left, key=lambda layer: left[layer] / before[layer])
    return sorted(cuts[:most])


def _or_first(value: Choice, choices: Sequence[Choice]) -> Choice:
    return value if value in choices else choices[0]
