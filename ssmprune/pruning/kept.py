"""Which patches of an image a policy keeps, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssmprune.models.backbone import Backbone
from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Stage
from ssmprune.pruning.grid import line_groups
from ssmprune.tokens import TokenStream


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
    kept: dict[int, Tensor] = {}
    model.eval()
    model.watch = kept.__setitem__
    try:
        with torch.inference_mode():
            logits: Tensor = model(images)
    finally:
        model.watch = None
    config, plan = model.config, model.plan
    masks = {layer: _token_mask(positions, config) for layer, positions in kept.items()}
    if plan is not None:
        masks |= {
            layer: _grid_mask(stage, config).expand(len(images), -1, -1)
            for layer, stage in plan.grid_stages.items()
        }
    return logits, tuple(KeptPatches(layer, masks[layer]) for layer in sorted(masks))


def _token_mask(positions: Tensor, config: ModelConfig) -> Tensor:
    """True at the kept patches, (B, H, W), from positions in the unpruned sequence, (B, M)."""
    everywhere = torch.zeros(len(positions), config.num_tokens, dtype=torch.bool)
    mask = everywhere.scatter(1, positions.cpu(), True)
    stream = TokenStream(mask[..., None], positions, config.grid, config.prefix_positions)
    return stream.patch_grid()[..., 0]


def _grid_mask(stage: Stage, config: ModelConfig) -> Tensor:
    """True at the cells that a block scans, (1, H, W)."""
    height, width = config.block_grids[stage.layer]
    rows, columns = stage.keep_grid(height, width)
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, torch.tensor(line_groups(height, rows)[0])[:, None], line_groups(width, columns)[0]] = (
        True
    )
    return mask
