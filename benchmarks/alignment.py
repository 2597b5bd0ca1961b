"""The same policies with alignment off and on, on the same images of the holdout."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from benchmarks.search import MODEL, POLICIES, TARGETS
from ssmprune.data import open_images
from ssmprune.measure.accuracy import correct
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.models.factory import create_model
from ssmprune.policy import Alignment, Policy
from ssmprune.pruning.apply import apply_policy

TITLE = "Alignment on against off, difference in points of top-1 on the holdout, 95 % interval"
SETTINGS = {
    "zero_input": Alignment(decay="zero_input"),
    "zero_input, half": Alignment(decay="zero_input", strength=0.5),
    "neighbor": Alignment(decay="neighbor"),
    "conv at position": Alignment(conv="position"),
    "zero_input, conv at position": Alignment(decay="zero_input", conv="position"),
}


def hits(model: Backbone, policy: Policy, alignment: Alignment, loader: Any) -> Tensor:
    apply_policy(model, policy.model_copy(update={"alignment": alignment}))
    return correct(model, loader).double()


def difference(on: Tensor, off: Tensor) -> str:
    """Mean of the paired differences in points, with its normal 95 % interval."""
    paired = 100 * (on - off)
    half_width = 1.96 * paired.std().item() / math.sqrt(len(paired))
    return f"{paired.mean().item():+.1f} ± {half_width:.1f}"


def run() -> list[dict[str, Any]]:
    model = create_model(MODEL, checkpoint=shipped_checkpoint(MODEL))
    config = model.config
    loader = open_images(
        "digits", "holdout", image_size=config.image_size, channels=config.channels
    ).loader
    rows = []
    for name in ("searched", "three", "family"):
        for target in TARGETS:
            policy = Policy.load(POLICIES / f"{name}-{round(100 * target)}.yaml")
            off = hits(model, policy, Alignment(), loader)
            row = {
                "policy": name,
                "FLOPs": f"{round(100 * target)} %",
                "off": 100 * off.mean().item(),
            }
            for setting, alignment in SETTINGS.items():
                row[setting] = difference(hits(model, policy, alignment, loader), off)
            rows.append(row)
    return rows
