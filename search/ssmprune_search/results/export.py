"""Members of a front as policy files that carry their figures and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ssmprune.errors import FileError, UsageError
from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import MEASURED_COSTS, Objective
from ssmprune_search.results.outcome import Outcome


def annotate(candidate: Candidate, outcome: Outcome) -> Policy:
    """The candidate's policy with `measured` and `provenance`."""
    update = {
        "measured": _measured(candidate, outcome),
        "provenance": _provenance(candidate, outcome),
    }
    return candidate.policy.model_copy(update=update)


def file_name(candidate: Candidate) -> str:
    """The file of a candidate among all of a front: `flops-58.3-trial-17.yaml`."""
    return f"flops-{100 * candidate.search.flops_ratio:04.1f}-trial-{candidate.trial}.yaml"


def write_policies(policies: Mapping[Path, Policy], *, force: bool = False) -> None:
    """Write policy files, all or, where one of them must not be written, none.

    Args:
        force: Overwrite files that exist.

    Raises:
        UsageError: A path is a directory.
        FileError: A file exists and `force` is not given, or cannot be written.
    """
    for path in policies:
        if path.is_dir():
            raise UsageError(f"-o must name a file, but {path} is a directory; add a file name.")
        if path.exists() and not force:
            raise FileError(
                f"an export must not overwrite, but {path} exists; give --force or another path."
            )
    for path, policy in policies.items():
        try:
            policy.save(path)
        except OSError as fault:
            raise FileError(
                f"an export must be written, but {path} cannot be: {fault.strerror}; "
                "give another path."
            ) from None


def _measured(candidate: Candidate, outcome: Outcome) -> dict[str, Any]:
    search, dense = candidate.search, outcome.dense
    measured: dict[str, Any] = {"search": _scored(search, dense, outcome.score)}
    if candidate.holdout and outcome.dense_holdout:
        measured["holdout"] = _scored(candidate.holdout, outcome.dense_holdout, outcome.score)
    measured["flops"] = _cost(search.flops, dense.flops)
    measured["paper_flops"] = _cost(search.paper_flops, dense.paper_flops)
    for cost in MEASURED_COSTS:
        if cost.is_measured(search):
            measured[cost.key if cost.ends else cost.name] = _measured_cost(cost, search, dense)
    return measured


def _scored(figures: Measurement, dense: Measurement, score: Objective) -> dict[str, Any]:
    return {
        "split": figures.split,
        "images": figures.images,
        score.name: round(figures.score, 2),
        f"{score.name}_low": round(figures.score_low, 2),
        f"{score.name}_high": round(figures.score_high, 2),
        f"dense_{score.name}": round(dense.score, 2),
    }


def _measured_cost(cost: Objective, search: Measurement, dense: Measurement) -> dict[str, Any]:
    if cost.ends:
        return _latency(search, dense)
    protocol = getattr(search, cost.protocol) if cost.protocol else {}
    return {**_cost(int(search.value(cost.name)), int(dense.value(cost.name))), **protocol}


def _cost(value: int, dense: int) -> dict[str, Any]:
    return {"policy": value, "dense": dense, "ratio": round(value / dense, 4)}


def _latency(figures: Measurement, dense: Measurement) -> dict[str, Any]:
    return {
        "ratio": round(figures.latency_ratio, 4),
        "ratio_low": round(figures.latency_ratio_low, 4),
        "ratio_high": round(figures.latency_ratio_high, 4),
        "policy_ms": round(figures.latency_ms, 3),
        "dense_ms": round(dense.latency_ms, 3),
        **figures.latency_protocol,
    }


def _provenance(candidate: Candidate, outcome: Outcome) -> dict[str, Any]:
    run, info = outcome.run, outcome.run.info
    return {
        "space": Path(info["call"]["space"]).name,
        "space_sha256": hashlib.sha256(run.space_path.read_bytes()).hexdigest(),
        "run": run.path.name,
        "trial": candidate.trial,
        "source": candidate.source,
        "sampler": info["call"]["sampler"],
        "seed": info["call"]["seed"],
        "checkpoint_sha256": info["identity"]["checkpoint"],
        "checkpoint_key": info["identity"].get("checkpoint_key"),
        "num_classes": run.space.config.num_classes,
        "data": info["identity"]["data"],
        **({"imports": list(run.imports)} if run.imports else {}),
        "versions": info["versions"],
        "searched": info["begun"],
        "exported": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
