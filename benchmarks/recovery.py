"""A searched policy fine-tuned with distillation, aligned and unaligned, over several seeds.

A quarter of the steps that trained the dense model; the policy is that of `benchmarks.search` at
60 % of the FLOPs. Seeds order and compose the training images; both variants see the same ones.
"""

from __future__ import annotations

import multiprocessing
import statistics
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student_t

from benchmarks.search import MODEL, POLICIES
from ssmprune.data import open_images
from ssmprune.measure.accuracy import evaluate
from ssmprune.measure.flops import count_flops
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.models.factory import create_model
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Policy
from ssmprune.training import load_recipe, train

TITLE = "Fine-tuning under a searched policy, top-1 on the holdout in per cent, 95 % interval"
POLICY = POLICIES / "searched-60.yaml"
STEPS = 650
DISTILL = 0.5
SEEDS = (0, 1, 2)
ALIGNMENTS = {"off": Alignment(), "on": Alignment(decay="zero_input")}
FOLDER = Path(__file__).parents[1] / "runs" / "benchmarks" / "recovery"
PROCESSES = 2


def tuned(call: tuple[str, int]) -> tuple[float, float]:
    """Top-1 before and after, for an alignment and a seed; an interrupted run goes on."""
    torch.set_num_threads(1)
    name, seed = call
    policy = Policy.load(POLICY).model_copy(update={"alignment": ALIGNMENTS[name]})
    settings = load_recipe("fine_tune").changed(steps=STEPS, distill=DISTILL, seed=seed)
    out, init = FOLDER / f"{name}-{seed}", shipped_checkpoint(MODEL)
    result = train(MODEL, "digits", out, settings, policy=policy, init=init, progress=False)
    assert result.before is not None
    return result.before.top1, result.accuracy.top1


def interval(values: list[float]) -> str:
    """Mean over the seeds, with Student's 95 % interval."""
    half_width = student_t.ppf(0.975, len(values) - 1) * statistics.stdev(values)
    return f"{statistics.mean(values):.2f} ± {half_width / len(values) ** 0.5:.2f}"


def dense_top1() -> float:
    config = find_config(MODEL)
    shape: dict[str, Any] = {"image_size": config.image_size, "channels": config.channels}
    model = create_model(MODEL, shipped_checkpoint(MODEL))
    return evaluate(model, open_images("digits", "holdout", **shape).loader).top1


def run() -> list[dict[str, Any]]:
    config, dense = find_config(MODEL), dense_top1()
    calls = [(name, seed) for seed in SEEDS for name in ALIGNMENTS]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        measured = dict(zip(calls, pool.map(tuned, calls, chunksize=1), strict=True))
    after = {name: [measured[name, seed][1] for seed in SEEDS] for name in ALIGNMENTS}
    flops = count_flops(config, Policy.load(POLICY)).flops / count_flops(config).flops
    rows: list[dict[str, Any]] = [
        {
            "alignment": name,
            "FLOPs": f"{100 * flops:.1f} %",
            "before": f"{measured[name, SEEDS[0]][0]:.2f}",
            **{f"seed {seed}": f"{measured[name, seed][1]:.2f}" for seed in SEEDS},
            "mean": interval(after[name]),
            "below dense": interval([dense - value for value in after[name]]),
        }
        for name in ALIGNMENTS
    ]
    gains = [on - off for on, off in zip(after["on"], after["off"], strict=True)]
    rows.append(
        {
            "alignment": "on - off",
            "FLOPs": "",
            "before": f"{measured['on', SEEDS[0]][0] - measured['off', SEEDS[0]][0]:+.2f}",
            **{f"seed {seed}": f"{gain:+.2f}" for seed, gain in zip(SEEDS, gains, strict=True)},
            "mean": interval(gains),
            "below dense": "",
        }
    )
    return rows
