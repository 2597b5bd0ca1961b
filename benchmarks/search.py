"""A searched front against hand-picked schedules, on images that no decision saw.

The searched policy of a target is the member of the front with the highest search accuracy within
the target; the space is the shipped one without latency. A hand-picked schedule has one ratio, set
to the target, and one scorer; the scorer, and of the family the layers, are chosen on the search
split, as for the searched policy. The column "best of five" lets the family choose once more, on
the holdout itself, among its five best.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from ssmprune.measure.flops import count_flops
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy, Scorer, Stage
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.pareto import select
from ssmprune_search.evaluation.evaluator import Evaluator, ModelEvaluators
from ssmprune_search.run.launch import search

TITLE = "Searched and hand-picked policies, top-1 on the holdout in per cent"
MODEL = "vim_nano"
SPACE = Path(__file__).parents[1] / "spaces" / f"{MODEL}.yaml"
TRIALS = 300
TARGETS = (0.50, 0.55, 0.60, 0.65, 0.70, 0.80)
SCORERS = ("l1", "l2", "clipped_sum")
THREE_STAGES = (1, 3, 5)
FAMILY = tuple(
    tuple(range(first, last + 1)) for first in range(3) for last in range(first + 1, first + 4)
)
POLICIES = RESULTS / "policies"


def hand_picked(layers: Sequence[int], scorer: str, target: float) -> Policy | None:
    """The schedule with one ratio after each of `layers` that comes closest below the target."""
    config = find_config(MODEL)
    limit = target * count_flops(config).flops
    for thousandths in range(1000, 0, -1):
        stages = tuple(Stage(layer=layer, keep_ratio=thousandths / 1000) for layer in layers)
        policy = Policy(model=MODEL, stages=stages, scorer=Scorer(name=scorer))
        if count_flops(config, policy).flops <= limit:
            return policy
    return None


def ranked(evaluate: Evaluator, layer_sets: Sequence[Sequence[int]], target: float) -> list[Policy]:
    """The hand-picked schedules by accuracy on the evaluator's split, best first."""
    policies = [
        policy
        for layers in layer_sets
        for scorer in SCORERS
        if (policy := hand_picked(layers, scorer, target)) is not None
    ]
    return sorted(policies, key=lambda policy: evaluate(policy).top1, reverse=True)


def figure(found: Measurement) -> str:
    return f"{found.top1:.1f} ({found.top1_low:.1f} to {found.top1_high:.1f})"


def run() -> list[dict[str, Any]]:
    checkpoint = shipped_checkpoint(MODEL)
    assert checkpoint is not None
    evaluators = ModelEvaluators(MODEL, checkpoint, "digits", "cpu", ("top1", "flops"), 128)
    on_search, on_holdout = (evaluators.open(split, threads=2) for split in ("search", "holdout"))
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "space.yaml"
        space.write_text(SPACE.read_text().replace(", latency_ms]", "]"))
        found = search(space, Path(folder) / "run", trials=TRIALS, workers=2, progress=False)
    shutil.rmtree(POLICIES, ignore_errors=True)
    rows = []
    for target in TARGETS:
        searched = select(found.front, max_flops_ratio=target)
        assert searched.holdout is not None
        three = ranked(on_search, [THREE_STAGES], target)[0]
        families = ranked(on_search, FAMILY, target)
        family = families[0]
        percent = round(100 * target)
        for name, policy in (("searched", searched.policy), ("three", three), ("family", family)):
            policy.save(POLICIES / f"{name}-{percent}.yaml")
        three_top1, family_top1 = on_holdout(three), on_holdout(family)
        bound = max((on_holdout(policy) for policy in families[:5]), key=lambda m: m.top1)
        rows.append(
            {
                "FLOPs": f"{percent} %",
                "searched": figure(searched.holdout),
                "three equal stages after 1, 3, 5": figure(three_top1),
                "equal ratio after each of a..b": figure(family_top1),
                "best of five": figure(bound),
                "over three": searched.holdout.top1 - three_top1.top1,
                "over family": searched.holdout.top1 - family_top1.top1,
                "over best of five": searched.holdout.top1 - bound.top1,
            }
        )
    return rows
