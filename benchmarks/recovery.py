"""Searched policies fine-tuned with distillation: with merging and without, decaying and not.

A quarter of the steps that trained the dense model; the policies are those that
`benchmarks.merging` found with the same number of candidates. Seeds order and compose the training
images; all policies see the same ones.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import t as student_t

from benchmarks.merging import KEPT, POLICIES
from benchmarks.search import MODEL
from ssmprune.data import open_images
from ssmprune.measure.accuracy import evaluate
from ssmprune.measure.flops import count_flops
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.models.factory import create_model
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy
from ssmprune.training import load_recipe, train

TITLE = "Fine-tuning under searched policies, top-1 on the holdout in per cent, 95 % interval"
STEPS = 650
DISTILL = 0.5
SEEDS = (0, 1, 2)
FOLDER = Path(__file__).parents[1] / "runs" / "benchmarks" / "recovery"
PROCESSES = 2


class Variant(NamedTuple):
    """A policy that `benchmarks.merging` kept, with the decay over gaps that it trains with."""

    policy: str
    decay: str

    def load(self) -> Policy:
        policy = Policy.load(POLICIES / f"{self.policy}.yaml")
        alignment = policy.alignment.model_copy(update={"decay": self.decay, "strength": 1.0})
        return policy.model_copy(update={"alignment": alignment})

    def flops_ratio(self) -> float:
        config = find_config(MODEL)
        return count_flops(config, self.load()).flops / count_flops(config).flops


VARIANTS = [
    *(Variant(f"{kind}-{percent}", "none") for percent in (50, 60) for kind in KEPT.values()),
    *(Variant(f"{kind}-60", "zero_input") for kind in KEPT.values()),
]


def tuned(call: tuple[Variant, int]) -> tuple[float, float]:
    """Top-1 before and after, for a variant and a seed; an interrupted run goes on."""
    torch.set_num_threads(1)
    variant, seed = call
    settings = load_recipe("fine_tune").changed(steps=STEPS, distill=DISTILL, seed=seed)
    out, init = FOLDER / f"{'-'.join(variant)}-{seed}", shipped_checkpoint(MODEL)
    result = train(MODEL, "digits", out, settings, policy=variant.load(), init=init, progress=False)
    assert result.before is not None
    return result.before.top1, result.accuracy.top1


def interval(values: Sequence[float], sign: str = "") -> str:
    """Mean over the seeds, with Student's 95 % interval."""
    half_width = student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values)
    return f"{statistics.mean(values):{sign}.2f} ± {half_width / len(values) ** 0.5:.2f}"


def dense_top1() -> float:
    config = find_config(MODEL)
    shape: dict[str, Any] = {"image_size": config.image_size, "channels": config.channels}
    model = create_model(MODEL, shipped_checkpoint(MODEL))
    return evaluate(model, open_images("digits", "holdout", **shape).loader).top1


def run() -> list[dict[str, Any]]:
    dense = dense_top1()
    calls = [(variant, seed) for variant in VARIANTS for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        measured = dict(zip(calls, pool.map(tuned, calls, chunksize=1), strict=True))
    before = {variant: measured[variant, SEEDS[0]][0] for variant in VARIANTS}
    after = {variant: [measured[variant, seed][1] for seed in SEEDS] for variant in VARIANTS}
    rows: list[dict[str, Any]] = [
        {
            "policy": variant.policy,
            "decay": variant.decay,
            "FLOPs": f"{100 * variant.flops_ratio():.1f} %",
            "before": f"{before[variant]:.2f}",
            **{f"seed {s}": f"{top1:.2f}" for s, top1 in zip(SEEDS, after[variant], strict=True)},
            "mean": interval(after[variant]),
            "below dense": interval([dense - top1 for top1 in after[variant]]),
        }
        for variant in VARIANTS
    ]
    for name, ours, theirs in _pairs():
        gains = [one - other for one, other in zip(after[ours], after[theirs], strict=True)]
        rows.append(
            {
                "policy": name,
                "decay": "",
                "FLOPs": "",
                "before": f"{before[ours] - before[theirs]:+.2f}",
                **{f"seed {seed}": f"{gain:+.2f}" for seed, gain in zip(SEEDS, gains, strict=True)},
                "mean": interval(gains, "+"),
                "below dense": "",
            }
        )
    return rows


def _pairs() -> list[tuple[str, Variant, Variant]]:
    """What is compared: merging with dropping at the same target, and decay with none."""
    merging = [
        (f"merging at {p} %", Variant(f"mixed-{p}", "none"), Variant(f"dropping-{p}", "none"))
        for p in (50, 60)
    ]
    decaying = [
        (f"decay, {variant.policy}", variant, variant._replace(decay="none"))
        for variant in VARIANTS
        if variant.decay != "none"
    ]
    return merging + decaying
