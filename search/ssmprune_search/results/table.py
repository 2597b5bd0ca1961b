"""The front as a table for people and as rows for programs."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence, Set
from typing import Any

from rich.markup import escape
from rich.table import Table

from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement

COLUMNS = {
    "trial": "number of the trial",
    "source": "who proposed it: schedule:NAME for a known schedule, warm:NAME for a policy from "
    "elsewhere, else the sampler",
    "tokens": "patch tokens left after each pruning layer, as LAYER:COUNT",
    "scorer": "the scorer; several with / where stages name their own",
    "alignment": "decay, its strength, and what the convolution reads",
    "flops": "multiply-adds for one image, everything that runs",
    "flops_ratio": "flops over those of the dense model",
    "paper_flops": "multiply-adds on the rule of the family's publications",
    "search_top1": "per cent on the search split, which the search decided by",
    "search_top1_low": "lower end of its 95 % interval",
    "search_top1_high": "upper end",
    "search_images": "images of the search split",
    "holdout_top1": "per cent on the holdout, which no decision saw; empty if not measured",
    "holdout_top1_low": "lower end of its 95 % interval",
    "holdout_top1_high": "upper end",
    "holdout_images": "images of the holdout",
    "latency_ratio": "latency over the dense model's; empty if not measured",
    "latency_ratio_low": "lower end of its 95 % interval",
    "latency_ratio_high": "upper end",
    "latency_ms": "milliseconds for one batch",
    "peak_memory_ratio": "peak memory over the dense model's; empty if not measured",
    "peak_memory_bytes": "most bytes that the tensors of a pass take, for one batch",
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
    ratios = ("latency_ratio", "peak_memory_ratio")
    measured = {ratio for ratio in ratios if not math.isnan(getattr(dense, ratio))}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Trial\n", justify="right")
    table.add_column("FLOPs ratio\n[dim]M, paper's M")
    table.add_column("Top-1 search\n[dim]95 % interval")
    table.add_column("Top-1 holdout\n[dim]95 % interval")
    if "latency_ratio" in measured:
        table.add_column("Latency ratio\n[dim]95 % interval")
    if "peak_memory_ratio" in measured:
        table.add_column("Memory ratio\n[dim]MiB")
    table.add_column("Tokens left after layer\n[dim]scorer, alignment, source", overflow="fold")
    table.add_row("dense", *_cells(dense, dense_holdout, measured), "all")
    for candidate in candidates:
        policy = candidate.policy
        about = f"{scorer_text(policy)}, {alignment_text(policy)}, {escape(candidate.source)}"
        table.add_row(
            str(candidate.trial),
            *_cells(candidate.search, candidate.holdout, measured),
            f"{tokens_text(policy) or 'all'}\n[dim]{about}",
        )
    return table


def tokens_text(policy: Policy) -> str:
    """Patch tokens that each stage leaves, or has scanned: `0:52 3:31`."""
    counts = policy.keep_counts(find_config(policy.model))
    pairs = zip(policy.stages, counts, strict=True)
    return " ".join(f"{stage.layer}:{count}" for stage, count in pairs)


def scorer_text(policy: Policy) -> str:
    """The scorer's name; those of all stages where they differ; `none` for a grid policy."""
    if policy.reduction == "grid":
        return "none"
    names = [policy.stage_scorer(stage).name for stage in policy.stages]
    return "/".join(names if len(set(names)) > 1 else names[:1]) or policy.scorer.name


def alignment_text(policy: Policy) -> str:
    """The alignment in words: `none compact`, `zero_input 0.5 position`, or `grid`."""
    if policy.reduction == "grid":
        return "grid"
    alignment = policy.alignment
    strength = "" if alignment.decay == "none" else f" {alignment.strength:g}"
    return f"{alignment.decay}{strength} {alignment.conv}"


def _cells(search: Measurement, holdout: Measurement | None, measured: Set[str]) -> list[str]:
    millions = f"{search.flops / 1e6:,.1f}, {search.paper_flops / 1e6:,.1f}"
    cells = [f"{search.flops_ratio:.3f}\n[dim]{millions}", _top1(search)]
    cells.append(_top1(holdout) if holdout else "")
    if "latency_ratio" in measured:
        low, high = search.latency_ratio_low, search.latency_ratio_high
        cells.append(_with_interval(search.latency_ratio, low, high, 3))
    if "peak_memory_ratio" in measured:
        mebibytes = search.peak_memory_bytes / 2**20
        cells.append(f"{search.peak_memory_ratio:.3f}\n[dim]{mebibytes:,.1f}")
    return cells


def _top1(figures: Measurement) -> str:
    return _with_interval(figures.top1, figures.top1_low, figures.top1_high, 1)


def _with_interval(value: float, low: float, high: float, digits: int) -> str:
    return f"{value:.{digits}f}\n[dim]{low:.{digits}f}-{high:.{digits}f}"
