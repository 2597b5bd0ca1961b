"""What merging is worth in a search: the shipped space, and with a part of it switched off.

Each row is a search of its own, with the same seed and number of candidates; a figure is the top-1
on the holdout of the policy that has the highest search accuracy within a target, with its 95 %
interval. The policies of the first two rows are kept, for `benchmarks.recovery`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import RESULTS
from benchmarks.search import SPACE, figure
from ssmprune.errors import UsageError
from ssmprune_search.candidate.measurement import Candidate
from ssmprune_search.candidate.pareto import select
from ssmprune_search.run.launch import search

TITLE = "Merging in a search, top-1 on the holdout in per cent"
TRIALS = 100
TARGETS = (0.45, 0.50, 0.60, 0.70)
MIXED, DROPPING = "dropping and merging", "dropping alone"
VARIANTS: dict[str, dict[str, Any]] = {
    MIXED: {},
    DROPPING: {"reduce": ["drop"]},
    "merging alone": {"reduce": ["merge"], "ratios": {"low": 0.55}},
    "one reduction for all stages": {"reduce_per": "policy"},
    "without neighbors": {"match": ["alternate"]},
    "without alternate": {"match": ["neighbors"]},
    "score beside them": {"match": ["neighbors", "alternate", "score"]},
    "compared by the residual stream": {"merge": {"metric": ["stream"]}},
    "compared by y": {"merge": {"metric": ["y"]}},
    "equal weights": {"merge": {"weight": ["equal"]}},
    "sizes own": {"alignment": {"sizes": ["own"]}},
    "sizes exact": {"alignment": {"sizes": ["exact"]}},
    "sizes scaled": {"alignment": {"sizes": ["scaled"]}},
}
POLICIES = RESULTS / "merging"
KEPT = {MIXED: "mixed", DROPPING: "dropping"}


def changed(space: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The space with some of its keys, in mappings too, set to other values."""
    found = dict(space)
    for key, value in changes.items():
        is_part = isinstance(value, Mapping)
        found[key] = changed(found.get(key, {}), value) if is_part else value
    return found


def spaced(changes: Mapping[str, Any]) -> str:
    """The shipped space without latency and with some changes; known schedules that are outside it
    are left away, as is what only merging needs where nothing merges."""
    space = changed(yaml.safe_load(SPACE.read_text()), {"objectives": ["top1", "flops"], **changes})
    merges = space.get("reduce", ["drop"]) != ["drop"]
    if not merges:
        for key in ("match", "merge", "reduce_per"):
            space.pop(key, None)
        space["alignment"].pop("sizes", None)
        space["alignment"]["conv"].remove("runs")
    kinds = {"merge"} & set(space.get("reduce", [])), {"drop"} & set(space.get("reduce", ["drop"]))
    space["schedules"] = [s for s in space.get("schedules", ()) if _is_in(s, kinds, space)]
    return yaml.safe_dump(space, sort_keys=False)


def _is_in(schedule: Mapping[str, Any], kinds: tuple[set[str], set[str]], space: Any) -> bool:
    stages = schedule.get("stages", [{}])
    used = {stage.get("reduce", "drop") for stage in stages}
    matches = {stage["match"] for stage in stages if "match" in stage}
    known = used <= kinds[0] | kinds[1] and matches <= set(space.get("match", []))
    return known and (space.get("reduce_per") != "policy" or len(used) == 1)


def run() -> list[dict[str, Any]]:
    shutil.rmtree(POLICIES, ignore_errors=True)
    rows = []
    for name, changes in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            space = Path(folder) / "space.yaml"
            space.write_text(spaced(changes))
            found = search(space, Path(folder) / "run", trials=TRIALS, workers=2, progress=False)
        best = {f"{100 * target:.0f}": _best(found.front, target) for target in TARGETS}
        for percent, member in best.items():
            if name in KEPT and member is not None:
                member.policy.save(POLICIES / f"{KEPT[name]}-{percent}.yaml")
        rows.append({"space": name} | {f"{p} %": _top1(member) for p, member in best.items()})
    return rows


def _best(front: list[Candidate], target: float) -> Candidate | None:
    try:
        return select(front, max_flops_ratio=target)
    except UsageError:
        return None


def _top1(member: Candidate | None) -> str:
    return "none" if member is None or member.holdout is None else figure(member.holdout)
