"""The HTML page: what stands on it, and how it gets into the template."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ssmprune_search.candidate.objective import MEASURED_COSTS, OBJECTIVES
from ssmprune_search.report.data import page_data, schedule_ids
from ssmprune_search.report.findings import Findings
from ssmprune_search.report.samples import Bench
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.results.table import alignment_text, scorer_text, tokens_text

GENERATOR = "ssmprune report"
"""What the page says of who wrote it."""

_HERE = Path(__file__).parent
_SCRIPTS = ("svg", "front", "growth", "groups", "policy", "page")
_CLOSE = 1.0  # points that a policy may lose to be called close to the dense model


def page_text(findings: Findings, bench: Bench | None, missing: str | None) -> str:
    """The whole page.

    Args:
        findings: What it tells.
        bench: The model at work, for the kept tokens; None where it is not at hand.
        missing: Why it is not.
    """
    outcome = findings.outcome
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    environment.filters["percent"] = _percent
    environment.filters["parameter"] = _parameter
    for write in (tokens_text, scorer_text, alignment_text):
        environment.filters[write.__name__] = write
    return environment.get_template("page.html").render(
        style=_read("page.css"),
        scripts=[_read(f"{name}.js") for name in _SCRIPTS],
        generator=GENERATOR,
        titles={name: objective.title for name, objective in OBJECTIVES.items()},
        objectives=[OBJECTIVES[name] for name in outcome.objectives],
        score=outcome.score,
        costs=[cost for cost in MEASURED_COSTS if cost.name in outcome.objectives],
        findings=findings,
        outcome=outcome,
        info=outcome.run.info,
        data_name=Path(str(outcome.run.info["call"]["data"])).name,
        headline=_headline(outcome),
        schedules=schedule_ids(findings.schedules),
        missing=missing,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        data=page_data(findings, bench),
    )


def _headline(outcome: Outcome) -> dict[str, Any]:
    """The cheapest member whose score on the search split is close to dense, or the best one.

    The search split chooses; the figures are the holdout's where they are known.
    """
    close = [m for m in outcome.members if m.search.score >= outcome.dense.score - _CLOSE]
    best = max(outcome.members, key=lambda m: m.search.score)
    chosen = min(close, key=lambda m: m.search.flops, default=best)
    is_final = chosen.holdout is not None and outcome.dense_holdout is not None
    return {
        "is_close": bool(close),
        "points": _CLOSE,
        "chosen": chosen,
        "figures": chosen.holdout if is_final else chosen.search,
        "dense": outcome.dense_holdout if is_final else outcome.dense,
    }


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f} %"


def _parameter(name: str) -> str:
    """A parameter's name in words."""
    kind, _, layer = name.rpartition("_")
    if not layer.isdecimal():
        return name.replace("_", " ")
    return f"block {layer}, {kind.removeprefix('keep_').replace('_', ' ')}"
