"""What the page's scripts draw, as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssmprune.measure.flops import count_flops
from ssmprune.policy import Policy
from ssmprune.pruning.picture import GROUP_COLORS
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import COSTS, MEASURED_COSTS
from ssmprune_search.report.findings import Findings
from ssmprune_search.report.references import KnownSchedule
from ssmprune_search.report.samples import Bench, data_uri, passage_data
from ssmprune_search.results.export import annotate
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.results.table import settings_text, tokens_text


def page_data(findings: Findings, bench: Bench | None) -> dict[str, Any]:
    """Points of the front, its policies in full, and how the search went.

    Args:
        findings: What the report tells.
        bench: The model at work, for the kept tokens; None where it is not at hand.
    """
    outcome = findings.outcome
    config = outcome.run.space.config
    dense = count_flops(config)
    holdout = outcome.dense_holdout
    return {
        "objectives": list(outcome.objectives),
        "score": {"name": outcome.score.name, "title": outcome.score.title},
        "costs": [
            {"name": cost.name, "key": cost.key, "title": cost.title, "unit": cost.unit}
            for cost in COSTS
        ],
        "images": {"search": outcome.dense.images, "holdout": holdout and holdout.images},
        "points": list(_points(findings)),
        "policies": dict(_policies(findings, bench)),
        "dense": {
            "tokens": list(config.block_tokens),
            "operators": dense.by_operator(),
            "flops": dense.flops,
            "paper_flops": dense.paper_flops,
        },
        "samples": _samples(findings, bench),
        "group_colors": GROUP_COLORS,
        "history": [
            [moment.candidates, round(moment.seconds, 1), round(moment.hypervolume, 5)]
            for moment in findings.moments
        ],
    }


def _points(findings: Findings) -> Iterator[dict[str, Any]]:
    """Everything that stands on the axes of the front."""
    outcome, smaller = findings.outcome, findings.smaller
    on_front = {member.trial for member in outcome.members}
    for candidate in outcome.candidates:
        if candidate.trial not in on_front and not candidate.source.startswith("schedule:"):
            yield _candidate_point(candidate, "candidate")
    for identity, schedule in schedule_ids(findings.schedules):
        count = count_flops(outcome.run.space.config, schedule.policy)
        yield {
            "id": identity,
            "name": schedule.name,
            "kind": "schedule",
            "family": schedule.name.partition("@")[0],
            "flops": count.flops / outcome.dense.flops,
            **_accuracies(schedule.figures),
            **_costs(schedule.figures.get("search")),
        }
    for model in smaller.models if smaller.comparable else ():
        interval = [model.score] * 3
        yield {
            "id": f"model-{model.name}",
            "name": model.name,
            "kind": "smaller",
            "flops": model.flops_ratio,
            "search": interval,
            "holdout": interval,
            **_costs(None),
        }
    figures = {f.split: f for f in (outcome.dense, outcome.dense_holdout) if f}
    yield {
        "id": "dense",
        "name": "dense",
        "kind": "dense",
        "flops": 1.0,
        **_accuracies(figures),
        **_costs(outcome.dense),
    }
    for member in outcome.members:
        yield _candidate_point(member, "front")


def _candidate_point(candidate: Candidate, kind: str) -> dict[str, Any]:
    figures = {f.split: f for f in (candidate.search, candidate.holdout) if f}
    return {
        "id": f"trial-{candidate.trial}",
        "name": f"trial {candidate.trial}",
        "kind": kind,
        "flops": candidate.search.flops_ratio,
        **_accuracies(figures),
        **_costs(candidate.search),
        "tokens": tokens_text(candidate.policy),
    }


def _accuracies(figures: Mapping[str, Measurement]) -> dict[str, list[float] | None]:
    """The score with the ends of its interval by split; None where it was not measured."""
    return {
        split: [round(v, 3) for v in (f.score, f.score_low, f.score_high)]
        if (f := figures.get(split))
        else None
        for split in ("search", "holdout")
    }


def _costs(figures: Measurement | None) -> dict[str, list[float] | None]:
    """Measured costs over the dense model's, with the ends of their intervals; None if unknown."""
    return {
        cost.key: [round(ratio, 4) for ratio in cost.interval(figures)]
        if figures is not None and cost.is_measured(figures)
        else None
        for cost in MEASURED_COSTS
    }


def _policies(findings: Findings, bench: Bench | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is told of a policy that is chosen, by the id of its point."""
    outcome = findings.outcome
    for member in outcome.members:
        about = f"proposed by {member.source}"
        yaml = annotate(member, outcome).to_yaml()
        figures = _policy_data(outcome, member.policy, member.search, bench)
        yield f"trial-{member.trial}", {**figures, "about": about, "yaml": yaml}
    for identity, schedule in schedule_ids(findings.schedules):
        about = "a known schedule"
        figures = _policy_data(outcome, schedule.policy, schedule.figures.get("search"), bench)
        yield identity, {**figures, "about": about, "yaml": schedule.policy.to_yaml()}


def _policy_data(
    outcome: Outcome, policy: Policy, search: Measurement | None, bench: Bench | None
) -> dict[str, Any]:
    config = outcome.run.space.config
    count = count_flops(config, policy)
    return {
        "tokens": list(policy.entering_tokens(config)),
        "settings": settings_text(policy),
        "stages": tokens_text(policy) if policy.merges else None,
        "where": policy.reducer.where,
        "operators": count.by_operator(),
        "flops": count.flops,
        "paper_flops": count.paper_flops,
        "costs": {
            cost.key: [search.value(cost.name), outcome.dense.value(cost.name)]
            for cost in MEASURED_COSTS
            if search is not None and cost.is_measured(search) and cost.is_measured(outcome.dense)
        },
        "protocol": dict(search.latency_protocol) if search else {},
        "kept": None if bench is None else passage_data(bench.run(policy), policy, bench),
    }


def schedule_ids(schedules: Sequence[KnownSchedule]) -> list[tuple[str, KnownSchedule]]:
    """Each schedule with the id of its point."""
    return [(f"schedule-{number}", schedule) for number, schedule in enumerate(schedules)]


def _samples(findings: Findings, bench: Bench | None) -> list[dict[str, str]]:
    """The images; with the colours of their patches where a policy merges some."""
    if bench is None:
        return []
    pairs = zip(bench.pixels, bench.labels, strict=True)
    samples = [{"source": data_uri(pixels), "label": label} for pixels, label in pairs]
    if not findings.merges:
        return samples
    colors = bench.patch_colors
    return [{**sample, "patches": text} for sample, text in zip(samples, colors, strict=True)]
