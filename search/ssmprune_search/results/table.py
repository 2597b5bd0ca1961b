"""The front as a table for people and as rows for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy, Stage
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import FLOPS, MEASURED_COSTS, OBJECTIVES, SCORES, Objective
from ssmprune_search.candidate.stages import asks_scorer, counting_merge, word

COLUMNS = {
    "trial": "number of the trial",
    "source": "who proposed it: schedule:NAME for a known schedule, warm:NAME for a policy from "
    "elsewhere, else the sampler",
    "tokens": "patch tokens left after each pruning layer, as LAYER:COUNT, or LAYER:COUNT:MATCH "
    "where they were merged",
    "scorer": "the scorer; several with / where stages name their own, none where none is asked",
    "merge": "what tokens that were merged were compared by, and what is not the default; or none",
    "alignment": "decay, its strength, what the convolution reads, and the step of merged tokens "
    "where it is not their own",
    **FLOPS.columns,
    **{column: means for o in OBJECTIVES.values() for column, means in o.columns.items()},
}
"""Names and meanings of the columns of `front.csv`, which are the keys of a row too."""


def row(candidate: Candidate) -> dict[str, Any]:
    """A candidate by `COLUMNS`; None where something was not measured."""
    policy, search = candidate.policy, candidate.search.to_dict()
    holdout = candidate.holdout.to_dict() if candidate.holdout else {}
    figures = {
        "trial": candidate.trial,
        "source": candidate.source,
        "tokens": tokens_text(policy),
        "scorer": scorer_text(policy),
        "merge": merge_text(policy) or "none",
        "alignment": alignment_text(policy),
        **search,
        **{f"search_{key}": value for key, value in search.items()},
        **{f"holdout_{key}": value for key, value in holdout.items()},
    }
    return {column: figures.get(column) for column in COLUMNS}


def to_csv(candidates: Sequence[Candidate]) -> str:
    """The candidates as CSV with a header line; empty cells where something was not measured."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(candidate) for candidate in candidates)
    return text.getvalue()


def to_table(
    candidates: Sequence[Candidate], dense: Measurement, dense_holdout: Measurement | None
) -> Table:
    """The candidates below the dense model, two lines each."""
    costs = [cost for cost in MEASURED_COSTS if cost.is_measured(dense)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Trial\n", justify="right")
    table.add_column("FLOPs ratio\n[dim]M, paper's M")
    title = next(score.title for score in SCORES if score.is_measured(dense))
    table.add_column(f"{title} search\n[dim]95 % interval")
    table.add_column(f"{title} holdout\n[dim]95 % interval")
    for cost in costs:
        under = "95 % interval" if cost.ends else cost.unit[0]
        table.add_column(f"{cost.limit.replace('_', ' ').capitalize()}\n[dim]{under}")
    table.add_column("Tokens left after layer\n[dim]scorer, alignment, source", overflow="fold")
    table.add_row("dense", *_cells(dense, dense_holdout, costs), "all")
    for candidate in candidates:
        policy = candidate.policy
        settings = (scorer_text(policy), merge_text(policy), alignment_text(policy))
        about = ", ".join([*filter(None, settings), escape(candidate.source)])
        table.add_row(
            str(candidate.trial),
            *_cells(candidate.search, candidate.holdout, costs),
            f"{tokens_text(policy) or 'all'}\n[dim]{about}",
        )
    return table


def tokens_text(policy: Policy) -> str:
    """Patch tokens that each stage leaves, or has scanned: `0:52 3:31`, merged `0:52:neighbors`."""
    counts = policy.keep_counts(find_config(policy.model))
    pairs = zip(policy.stages, counts, strict=True)
    return " ".join(f"{stage.layer}:{count}{_match_text(stage)}" for stage, count in pairs)


def _match_text(stage: Stage) -> str:
    return f":{word(stage)}" if stage.reduce == "merge" else ""


def scorer_text(policy: Policy) -> str:
    """The scorer's name; those of the stages that ask one where they differ; `none` without any."""
    asking = [stage for stage in policy.stages if asks_scorer(stage)]
    if not policy.reducer.scores or (policy.stages and not asking):
        return "none"
    names = [policy.stage_scorer(stage).name for stage in asking]
    return "/".join(names if len(set(names)) > 1 else names[:1]) or policy.scorer.name


def merge_text(policy: Policy) -> str:
    """How tokens are merged: `output`, or `stream equal protect 2`; nothing where none is."""
    if not policy.merges:
        return ""
    merge = counting_merge(policy.stages, policy.merge, find_config(policy.model))
    return " ".join(
        [
            merge.metric,
            *([merge.weight] if merge.weight == "equal" else ()),
            *([f"protect {merge.protect}"] if merge.protect else ()),
            *([f"untouched {merge.untouched:g}"] if merge.untouched else ()),
            *([merge.fate] if merge.fate == "half" else ()),
        ]
    )


def alignment_text(policy: Policy) -> str:
    """The alignment in words: `none compact`, `zero_input 0.5 runs exact`, or the reduction."""
    if not policy.reducer.scores:
        return policy.reduction
    alignment = policy.alignment
    strength = "" if alignment.decay == "none" else f" {alignment.strength:g}"
    sizes = "" if alignment.sizes == "own" else f" {alignment.sizes}"
    return f"{alignment.decay}{strength} {alignment.conv}{sizes}"


def settings_text(policy: Policy) -> str:
    """Scorer and alignment in a clause, or what the policy does without them."""
    if not policy.reducer.scores:
        return policy.reducer.does
    merged = f", merged by {merge_text(policy)}" if policy.merges else ""
    return f"scorer {scorer_text(policy)}{merged}, alignment {alignment_text(policy)}"


def _cells(
    search: Measurement, holdout: Measurement | None, costs: Sequence[Objective]
) -> list[str]:
    millions = f"{search.flops / 1e6:,.1f}, {search.paper_flops / 1e6:,.1f}"
    cells = [f"{search.flops_ratio:.3f}\n[dim]{millions}", _score(search)]
    cells.append(_score(holdout) if holdout else "")
    for cost in costs:
        if cost.ends:
            cells.append(_with_interval(*cost.interval(search), 3))
        else:
            value = search.value(cost.name) / cost.unit[1]
            cells.append(f"{getattr(search, cost.share):.3f}\n[dim]{value:,.1f}")
    return cells


def _score(figures: Measurement) -> str:
    return _with_interval(figures.score, figures.score_low, figures.score_high, 1)


def _with_interval(value: float, low: float, high: float, digits: int) -> str:
    return f"{value:.{digits}f}\n[dim]{low:.{digits}f}-{high:.{digits}f}"
