"""Which patches of an image a policy keeps, stage by stage, and which it merges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmprune.models.backbone import Backbone
from ssmprune.pruning.reduction import Step
from ssmprune.tokens import TokenStream


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

    @property
    def merged(self) -> int:
        """Tokens of an image that have joined others at this stage, as many for every one."""
        return 0 if self.similarity is None else self.similarity.shape[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the block's grid."""
        height, width = self.groups.shape[1:]
        return height, width

    @property
    def patches(self) -> int:
        """Patches of the block's grid."""
        return self.groups[0].numel()

    @property
    def mean_similarity(self) -> float | None:
        """Over the images and the tokens that joined others; None where none did."""
        return None if self.similarity is None else self.similarity.mean().item()

    @property
    def shares(self) -> bool:
        """Whether some token stands for several patches."""
        return int(self.mask.sum()) > self.count * len(self.groups)

    def shared(self, image: int) -> list[list[int]]:
        """The patches of each token of an image that stands for several, in raster order."""
        patches: dict[int, list[int]] = {}
        for patch, token in enumerate(self.groups[image].flatten().tolist()):
            patches.setdefault(token, []).append(patch)
        patches.pop(-1, None)
        return [group for group in patches.values() if len(group) > 1]


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
    return logits, tuple(_kept(step, layer, stream, model) for layer, step in sorted(steps.items()))


def _kept(step: Step, layer: int, stream: TokenStream, model: Backbone) -> KeptPatches:
    similarity = step.similarity(layer, stream)
    return KeptPatches(
        layer,
        step.groups(layer, stream, model.config).cpu(),
        None if similarity is None else similarity.cpu(),
    )
