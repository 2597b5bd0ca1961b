"""Which patches of an image a policy keeps, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmprune.models.backbone import Backbone


@dataclass(frozen=True)
class KeptPatches:
    """The patches that a stage keeps, or has scanned.

    Attributes:
        layer: The block of the stage, counted from 0.
        mask: True at the kept patches of the block's grid, (B, H, W).
    """

    layer: int
    mask: Tensor

    @property
    def count(self) -> int:
        """Kept patches of an image, the same for every one."""
        return int(self.mask[0].sum())


def kept_patches(model: Backbone, images: Tensor) -> tuple[Tensor, tuple[KeptPatches, ...]]:
    """Run a pruned model and record what its policy keeps.

    Args:
        model: Put into eval mode; a dense one keeps everything and has no stages.
        images: Batch of shape (B, channels, height, width) on the model's device.

    Returns:
        The logits, (B, num_classes), and one entry for each stage that removes anything.
    """
    model.eval()
    with torch.inference_mode():
        stream = model.encode(images, restore=False)
        logits = model.forward_head(stream)
    steps = {} if model.plan is None else model.plan.steps
    return logits, tuple(
        KeptPatches(layer, steps[layer].mask(layer, stream, model.config))
        for layer in sorted(steps)
    )
