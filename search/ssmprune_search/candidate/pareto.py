"""The Pareto front of a search, its hypervolume, and the choice of one member.

Objectives: `top1` is maximised, `flops`, `latency_ms` and `peak_memory_bytes` are minimised. All
but latency are compared as they are. Latency is compared by the 95 % interval of its ratio to
dense, because its noise would otherwise make nearly every candidate the fastest of its kind: it is
better only where the whole interval lies below the other's, and counts as equal where the two
overlap.

The rule: `a` excludes `b` if `a` is worse in no objective and ranks before `b`. Ranks go by `top1`,
then `flops`, the latency ratio and the peak memory, equals in the order given. As ranks are an
order, "excludes" has no cycle; and whoever is better in one objective and worse in none ranks
first.

"Equal within noise" is not transitive, so leaving out whatever anything excludes could lose a fast
candidate to a slower one that is itself left out. Therefore the front is the kernel of the
relation, the one set of which no member excludes another and every candidate outside is excluded
by a member. Ratios are taken to lie within their intervals.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import moocore
import numpy as np

from ssmprune.errors import UsageError
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy, Stage
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import FLOPS, OBJECTIVES, SCORES, Objective
from ssmprune_search.candidate.stages import (
    DROP,
    asks_scorer,
    counting_alignment,
    counting_merge,
    word,
)


def pareto_front(candidates: Sequence[Candidate], objectives: Sequence[str]) -> list[Candidate]:
    """The candidates that no better one excludes, fewest FLOPs first.

    Of candidates that prune alike (`pruning_key`) and of candidates with equal objectives only the
    first can be a member. Anything but an empty list of candidates gives a front that is not empty.

    Raises:
        ValueError: A figure of an objective is NaN.
    """
    judged = _judged(objectives)
    distinct = list({pruning_key(c.policy): c for c in reversed(candidates)}.values())[::-1]
    _refuse_nan(distinct, objectives)
    if any(objective.noisy for objective in judged):
        members = _kernel(distinct, judged)
    else:
        ranks = np.array([_rank(c, judged) for c in distinct]).reshape(len(distinct), len(judged))
        kept = moocore.is_nondominated(ranks)
        members = [c for c, keep in zip(distinct, kept, strict=True) if keep]
    return sorted(members, key=lambda c: (c.search.flops, c.trial))


def pruning_key(policy: Policy) -> Hashable:
    """Equal for policies that leave the same number of tokens by the same rules.

    Stages that remove nothing do not count, nor does what changes nothing at those that do.
    """
    config = find_config(policy.model)
    effective = policy.effective_stages(config)
    if not effective:
        return (policy.model,)
    stages = [stage for stage, _ in effective]
    alignment = counting_alignment(stages, policy.alignment, config)
    strength = 0.0 if alignment.decay == "none" else alignment.strength
    decay = "none" if strength == 0 else alignment.decay
    key = (
        policy.model,
        *((stage.layer, kept, *_rule(policy, stage)) for stage, kept in effective),
        *(decay, strength, alignment.conv),
    )
    if not policy.merges:
        return key
    merge = counting_merge(stages, policy.merge, config)
    return (*key, alignment.sizes, *merge.model_dump().values())


def _rule(policy: Policy, stage: Stage) -> tuple[str | int | None, ...]:
    """What decides who leaves at a stage."""
    match = () if stage.reduce == DROP else (word(stage),)
    if not asks_scorer(stage):
        return match
    scorer = policy.stage_scorer(stage)
    return (*match, scorer.name, scorer.seed if scorer.name == "random" else None)


def hypervolume(
    candidates: Sequence[Candidate],
    objectives: Sequence[str],
    reference: Mapping[str, float],
) -> float:
    """Share of the box from `reference` to the ideal that the candidates dominate, in [0, 1].

    The ideal is 100 % top-1 at no FLOPs, in no time and no memory. Latency goes in as measured,
    without its interval. What is worse than the reference in an objective adds nothing.

    Args:
        reference: The worst acceptable value of each objective, in its unit; usually 0 % top-1
            and the dense model's FLOPs, latency and peak memory.

    Raises:
        ValueError: A figure of an objective is NaN.
    """
    _refuse_nan(candidates, objectives)
    losses = np.array(
        [[OBJECTIVES[o].loss(c.search, reference[o]) for o in objectives] for c in candidates]
    )
    if not len(losses):
        return 0.0
    return float(moocore.hypervolume(losses, ref=np.ones(len(objectives))))


def dense_reference(dense: Measurement) -> dict[str, float]:
    """The reference that hypervolumes are told against: the dense model's costs and 0 % top-1."""
    return {name: objective.reference(dense) for name, objective in OBJECTIVES.items()}


def select(members: Sequence[Candidate], **limits: float | None) -> Candidate:
    """The member of a front with the highest top-1 within limits; of equals, fewest FLOPs.

    Only figures of the search split decide: the holdout stays a measurement that no decision saw.

    Args:
        limits: By `Objective.option`: `max_flops_ratio`, `max_latency_ratio` and
            `max_memory_ratio`, each over the dense model's, and `min_top1` in per cent.

    Raises:
        UsageError: No member is within the limits, or a limit is on what the search did not
            measure. The message names the nearest member.
    """
    if not members:
        raise UsageError("a front must have members to choose from, got none; search further.")
    by_option = {objective.option: objective for objective in OBJECTIVES.values()}
    given = {by_option[option]: limit for option, limit in limits.items() if limit is not None}
    for objective, limit in given.items():
        if not all(objective.is_measured(member.search) for member in members):
            raise UsageError(
                f"a limit on {objective.title.lower()} needs a search with the objective "
                f"{objective.name}, got {limit:g} for one without; leave the limit out, or "
                "search again."
            )
    within = [c for c in members if _excess(c, given) <= 0]
    if not within:
        raise UsageError(_nothing_within(members, given))
    return min(within, key=lambda c: (-c.search.score, c.search.flops, c.trial))


def _judged(objectives: Sequence[str]) -> list[Objective]:
    """The objectives in the order of their ranks."""
    return [objective for name, objective in OBJECTIVES.items() if name in objectives]


def _kernel(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """Goes by rank, so that whatever may exclude a candidate has been decided before it."""
    members: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: _rank(c, objectives)):
        if all(_worse(member, candidate, objectives) for member in members):
            members.append(candidate)
    return members


def _rank(candidate: Candidate, objectives: Sequence[Objective]) -> tuple[float, ...]:
    return tuple(objective.rank(candidate.search) for objective in objectives)


def _worse(a: Candidate, b: Candidate, objectives: Sequence[Objective]) -> bool:
    """Whether `a` is worse than `b` in any objective."""
    return any(objective.is_worse(a.search, b.search) for objective in objectives)


def _refuse_nan(candidates: Sequence[Candidate], objectives: Sequence[str]) -> None:
    for candidate in candidates:
        for objective in objectives:
            if np.isnan(candidate.search.value(objective)):
                raise ValueError(
                    f"objectives must be numbers, got NaN as {objective} of trial "
                    f"{candidate.trial}; leave candidates out that were not measured."
                )


def _excess(candidate: Candidate, limits: Mapping[Objective, float]) -> float:
    """By how much, as a share, a candidate misses the limit it misses most; <= 0 if within all."""
    return max((o.excess(candidate.search, limit) for o, limit in limits.items()), default=0.0)


def _nothing_within(members: Sequence[Candidate], limits: Mapping[Objective, float]) -> str:
    nearest = min(members, key=lambda c: _excess(c, limits))
    wanted = " and ".join(
        f"{o.share} {'>=' if o.maximise else '<='} {limit:g}" for o, limit in limits.items()
    )
    scores = [score for score in SCORES if score.is_measured(nearest.search)]
    shown = dict.fromkeys((*scores, FLOPS, *limits))
    found = ", ".join(f"{o.share} {o.as_limit(nearest.search):g}" for o in shown)
    return (
        f"the limits must leave one of the front's {len(members)} policies, got {wanted}; "
        f"the nearest is trial {nearest.trial} with {found}: allow for that, or search further."
    )
