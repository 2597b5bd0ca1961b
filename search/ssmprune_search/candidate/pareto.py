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

import math
from collections.abc import Hashable, Mapping, Sequence

import moocore
import numpy as np

from ssmprune.errors import UsageError
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement, Objective


def front(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """The candidates that no better one excludes, fewest FLOPs first.

    Of candidates that prune alike (`pruning_key`) and of candidates with equal objectives only the
    first can be a member. Anything but an empty list of candidates gives a front that is not empty.

    Raises:
        ValueError: A figure of an objective is NaN.
    """
    distinct = list({pruning_key(c.policy): c for c in reversed(candidates)}.values())[::-1]
    _refuse_nan(distinct, objectives)
    if "latency_ms" in objectives:
        members = _kernel(distinct, objectives)
    else:
        values = np.array([[c.search.value(o) for o in objectives] for c in distinct])
        values = values.reshape(len(distinct), len(objectives))
        kept = moocore.is_nondominated(values, maximise=[o == "top1" for o in objectives])
        members = [c for c, keep in zip(distinct, kept, strict=True) if keep]
    return sorted(members, key=lambda c: (c.search.flops, c.trial))


def pruning_key(policy: Policy) -> Hashable:
    """Equal for policies that leave the same number of tokens by the same rules.

    Stages that remove nothing do not count, nor do scorer and alignment where nothing is removed.
    """
    stages = []
    for stage, kept in policy.effective_stages(find_config(policy.model)):
        scorer = policy.stage_scorer(stage)
        seed = scorer.seed if scorer.name == "random" else None
        stages.append((stage.layer, kept, scorer.name, seed))
    alignment = policy.alignment
    strength = 0.0 if alignment.decay == "none" else alignment.strength
    decay = "none" if strength == 0 else alignment.decay
    return (policy.model, *stages, *((decay, strength, alignment.conv) if stages else ()))


def hypervolume(
    candidates: Sequence[Candidate],
    objectives: Sequence[Objective],
    reference: Mapping[Objective, float],
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
    losses = np.array([[_loss(c, o, reference[o]) for o in objectives] for c in candidates])
    if not len(losses):
        return 0.0
    return float(moocore.hypervolume(losses, ref=np.ones(len(objectives))))


def dense_reference(dense: Measurement) -> dict[Objective, float]:
    """The reference that hypervolumes are told against: the dense model's costs and 0 % top-1."""
    costs: tuple[Objective, ...] = ("flops", "latency_ms", "peak_memory_bytes")
    return {"top1": 0.0, **{cost: dense.value(cost) for cost in costs}}


def select(
    members: Sequence[Candidate],
    *,
    max_flops_ratio: float | None = None,
    max_latency_ratio: float | None = None,
    max_memory_ratio: float | None = None,
    min_top1: float | None = None,
) -> Candidate:
    """The member of a front with the highest top-1 within limits; of equals, fewest FLOPs.

    Only figures of the search split decide: the holdout stays a measurement that no decision saw.

    Args:
        max_flops_ratio: FLOPs over the dense model's.
        max_latency_ratio: Latency over the dense model's.
        max_memory_ratio: Peak memory over the dense model's.
        min_top1: Per cent.

    Raises:
        UsageError: No member is within the limits, or a limit is on latency or peak memory and
            the search did not measure it. The message names the nearest member.
    """
    if not members:
        raise UsageError("a front must have members to choose from, got none; search further.")
    limits = {
        "flops_ratio": max_flops_ratio,
        "latency_ratio": max_latency_ratio,
        "peak_memory_ratio": max_memory_ratio,
        "top1": min_top1,
    }
    given = {name: limit for name, limit in limits.items() if limit is not None}
    for ratio, what, objective in (
        ("latency_ratio", "latency", "latency_ms"),
        ("peak_memory_ratio", "peak memory", "peak_memory_bytes"),
    ):
        if ratio in given and any(np.isnan(getattr(c.search, ratio)) for c in members):
            raise UsageError(
                f"a limit on {what} needs a search with the objective {objective}, got "
                f"{given[ratio]:g} for one without; leave the limit out, or search again."
            )
    within = [c for c in members if _excess(c, given) <= 0]
    if not within:
        raise UsageError(_nothing_within(members, given))
    return min(within, key=lambda c: (-c.search.top1, c.search.flops, c.trial))


def _kernel(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """Goes by rank, so that whatever may exclude a candidate has been decided before it."""
    members: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: _rank(c, objectives)):
        if all(_worse(member, candidate, objectives) for member in members):
            members.append(candidate)
    return members


def _rank(candidate: Candidate, objectives: Sequence[Objective]) -> tuple[float, ...]:
    figures = candidate.search
    parts = {
        "top1": -figures.top1,
        "flops": figures.flops,
        "latency_ms": figures.latency_ratio,
        "peak_memory_bytes": figures.peak_memory_bytes,
    }
    return tuple(part for objective, part in parts.items() if objective in objectives)


def _worse(a: Candidate, b: Candidate, objectives: Sequence[Objective]) -> bool:
    """Whether `a` is worse than `b` in any objective."""
    x, y = a.search, b.search
    return (
        ("top1" in objectives and x.top1 < y.top1)
        or ("flops" in objectives and x.flops > y.flops)
        or ("latency_ms" in objectives and x.latency_ratio_low > y.latency_ratio_high)
        or ("peak_memory_bytes" in objectives and x.peak_memory_bytes > y.peak_memory_bytes)
    )


def _refuse_nan(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> None:
    for candidate in candidates:
        for objective in objectives:
            if np.isnan(candidate.search.value(objective)):
                raise ValueError(
                    f"objectives must be numbers, got NaN as {objective} of trial "
                    f"{candidate.trial}; leave candidates out that were not measured."
                )


def _loss(candidate: Candidate, objective: Objective, reference: float) -> float:
    """0 at the ideal, 1 at the reference."""
    value = candidate.search.value(objective)
    return (100 - value) / (100 - reference) if objective == "top1" else value / reference


def _excess(candidate: Candidate, limits: Mapping[str, float]) -> float:
    """By how much, as a share, a candidate misses the limit it misses most; <= 0 if within all."""
    figures = candidate.search
    return max(
        (
            (limit - figures.top1) / 100 if name == "top1" else getattr(figures, name) - limit
            for name, limit in limits.items()
        ),
        default=0.0,
    )


def _nothing_within(members: Sequence[Candidate], limits: Mapping[str, float]) -> str:
    nearest = min(members, key=lambda c: _excess(c, limits))
    wanted = " and ".join(
        f"{name} {'>=' if name == 'top1' else '<='} {limit:g}" for name, limit in limits.items()
    )
    found = ", ".join(
        f"{name} {_rounded_outwards(name, getattr(nearest.search, name)):g}"
        for name in dict.fromkeys(("top1", "flops_ratio", *limits))
    )
    return (
        f"the limits must leave one of the front's {len(members)} policies, got {wanted}; "
        f"the nearest is trial {nearest.trial} with {found}: allow for that, or search further."
    )


def _rounded_outwards(name: str, value: float) -> float:
    """Rounded so that, given as a limit, it lets `value` pass."""
    return (math.floor if name == "top1" else math.ceil)(value * 1e3) / 1e3
