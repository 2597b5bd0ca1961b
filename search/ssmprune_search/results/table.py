"""The front as a table for people and as rows for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import FLOPS, MEASURED_COSTS, OBJECTIVES, SCORES, Objective

COLUMNS = {
    "trial": "number of the trial",
    "source": "who proposed it: schedule:NAME for a known schedule, warm:NAME for a policy from "
    "elsewhere, else the sampler",
    "tokens": "patch tokens left after each pruning layer, as LAYER:COUNT",
    "scorer": "the scorer; several with / where stages name their own",
    "alignment": "decay, its strength, and what the convolution reads",
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
        about = f"{scorer_text(policy)}, {alignment_text(policy)}, {escape(candidate.source)}"
        table.add_row(
            str(candidate.trial),
            *_cells(candidate.search, candidate.holdout, costs),
            f"{tokens_text(policy) or 'all'}\n[dim]{about}",
        )
    return table


def tokens_text(policy: Policy) -> str:
    """Patch tokens that each stage leaves, or has scanned: `0:52 3:31`."""
    counts = policy.keep_counts(find_config(policy.model))
    pairs = zip(policy.stages, counts, strict=True)
    return " ".join(f"{stage.layer}:{count}" for stage, count in pairs)


def scorer_text(policy: Policy) -> str:
    """The scorer's name; those of all stages where they differ; `none` where none is asked."""
    if not policy.reducer.scores:
        return "none"
    names = [policy.stage_scorer(stage).name for stage in policy.stages]
    return "/".join(names if len(set(names)) > 1 else names[:1]) or policy.scorer.name


def alignment_text(policy: Policy) -> str:
    """The alignment in words: `none compact`, `zero_input 0.5 position`, or the reduction."""
    if not policy.reducer.scores:
        return policy.reduction
    alignment = policy.alignment
    strength = "" if alignment.decay == "none" else f" {alignment.strength:g}"
    return f"{alignment.decay}{strength} {alignment.conv}"


def settings_text(policy: Policy) -> str:
    """Scorer and alignment in a clause, or what the policy does without them."""
    if not policy.reducer.scores:
        return policy.reducer.does
    return f"scorer {scorer_text(policy)}, alignment {alignment_text(policy)}"


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
