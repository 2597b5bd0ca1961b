"""Which patches of an image a policy keeps, stage by stage, and which it merges."""

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
        groups: The token that each patch of the block's grid is in, -1 where it has left,
            (B, H, W).
        similarity: Cosine of each token that joined another and that one, (B, R); None of a stage
            that merges nothing.
    """

    layer: int
    groups: Tensor
    similarity: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """True at the patches that are in a token, (B, H, W)."""
        return self.groups >= 0

    @property
    def count(self) -> int:
        """Tokens that an image's patches are in, as many for every one."""
        return len(set(self.groups[0].flatten().tolist()) - {-1})


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
        KeptPatches(
            layer,
            steps[layer].groups(layer, stream, model.config).cpu(),
            steps[layer].similarity(layer, stream),
        )
        for layer in sorted(steps)
    )
