"""What pruning brings in time: speed-up against FLOPs, the price of alignment and merging.

Random weights and images: neither FLOPs nor time depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.record import Paired, paired
from ssmprune.data.base import Batch
from ssmprune.measure.accuracy import evaluate
from ssmprune.measure.flops import count_flops
from ssmprune.measure.latency import compare_latency
from ssmprune.models.factory import create_model
from ssmprune.policy import Alignment, Policy, Scorer, Stage
from ssmprune.pruning.matching import MATCHES

TITLE = "Pruned models on the CPU"
MODEL, LAYERS, BATCH = "vim_tiny_patch16_224", (5, 11, 17), 32
ALIGNED = Alignment(decay="zero_input", conv="position")


def uniform(
    keep_ratio: float, alignment: Alignment, layers: Sequence[int] = LAYERS, **does: Any
) -> Policy:
    return Policy(
        model=MODEL,
        stages=[Stage(layer=layer, keep_ratio=keep_ratio, **does) for layer in layers],
        scorer=Scorer(name="clipped_sum"),
        alignment=alignment,
    )


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def speed_row(name: str, policy: Policy) -> dict[str, Any]:
    dense = create_model(MODEL).eval()
    pruned = create_model(MODEL, policy=policy).eval()
    latency = compare_latency(dense, pruned, images(BATCH), repeats=12, warmup=2)
    config = dense.config
    flops = count_flops(config, policy).flops / count_flops(config).flops
    return {
        "what": f"{name}, batch {BATCH}: time {latency.ratio:.3f}, FLOPs {flops:.3f} of dense",
        "ms": f"{latency.latency_ms:.0f}; dense {latency.dense_ms:.0f}",
        "ratio": flops / latency.ratio,
        "95 % interval": f"{flops / latency.ratio_high:.3g} to {flops / latency.ratio_low:.3g}",
    }


def over_row(what: str, policy: Policy, peer: Policy, name: str, repeats: int) -> dict[str, Any]:
    """The time of one policy over that of another, called `name`."""
    ours, theirs = (create_model(MODEL, policy=found).eval() for found in (policy, peer))
    latency = compare_latency(theirs, ours, images(BATCH), repeats=repeats, warmup=2)
    return {
        "what": f"{what}, batch {BATCH}",
        "ms": f"{latency.latency_ms:.0f}; {name} {latency.dense_ms:.0f}",
        "ratio": latency.ratio,
        "95 % interval": f"{latency.ratio_low:.3g} to {latency.ratio_high:.3g}",
    }


def alignment_row() -> dict[str, Any]:
    what = "zero_input and position convolution over none, uniform 0.7"
    return over_row(what, uniform(0.7, ALIGNED), uniform(0.7, Alignment()), "none", 12)


def merging_row(match: str) -> dict[str, Any]:
    """One stage that merges over one that drops as many tokens."""
    layers = LAYERS[1:2]
    merging = uniform(0.7, Alignment(), layers, reduce="merge", match=match)
    what = f"a stage of 0.7 that merges by {match} over one that drops"
    return over_row(what, merging, uniform(0.7, Alignment(), layers), "dropping", 16)


def evaluation_row(model: str = "vim_small_patch16_224", count: int = 256) -> dict[str, Any]:
    given = images(count)

    def batches() -> Iterator[Batch]:
        labels = torch.zeros(BATCH, dtype=torch.long)
        return iter([(part, labels) for part in given.split(BATCH)])

    policy = Policy.load("top_vim_small")
    ours, peer = (
        create_model(model, policy=policy, backend=backend) for backend in ("cpu", "reference")
    )
    times: Paired = paired(
        lambda: evaluate(ours, batches()), lambda: evaluate(peer, batches()), repeats=1, warm=False
    )
    return {
        "what": f"evaluation of {count} images, {model} by top_vim_small, over the reference scan",
        "ms": f"{times.ours_ms:.0f}; reference {times.peer_ms:.0f}",
        "ratio": times.ratio,
        "95 % interval": "one pair",
    }


def run() -> list[dict[str, Any]]:
    return [
        speed_row("ToP-ViM's schedule", Policy.load("top_vim_tiny")),
        speed_row("uniform 0.7 at three stages", uniform(0.7, ALIGNED)),
        speed_row("uniform 0.5 at three stages", uniform(0.5, ALIGNED)),
        alignment_row(),
        *(merging_row(match) for match in MATCHES),
        evaluation_row(),
    ]
