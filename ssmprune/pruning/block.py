"""What a block hands to the step that reduces its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ssmprune.pruning.scorers import Features

if TYPE_CHECKING:  # a policy's FLOPs need the steps alone
    from torch import Tensor

    from ssmprune.pruning.reduction import TokenStep


@dataclass(frozen=True)
class BlockOutput:
    """What a block computed for the tokens that entered it, before it adds anything to them.

    Attributes:
        features: What scorers go by.
        gated: SSM output times the gate, (B, L, E).
        weights: B and C of each scan direction, (B, L, N) each; one pair where they share them.
        out_proj: From (B, L, E) to (B, L, D).
        share: Of the projection that is added to the residual stream.
    """

    features: Features
    gated: Tensor
    weights: tuple[tuple[Tensor, Tensor], ...]
    out_proj: Callable[[Tensor], Tensor]
    share: float = 1.0

    @cached_property
    def projected(self) -> Tensor:
        """The projection of all tokens, (B, L, D)."""
        return self.out_proj(self.gated)

    def added(self, hidden: Tensor, projected: Tensor) -> Tensor:
        """The residual stream after the block, (B, L, D)."""
        import torch

        return torch.add(hidden, projected, alpha=self.share)


@dataclass(frozen=True)
class BlockShape:
    """The sizes that the FLOPs of a block's reduction follow from, for one image.

    Attributes:
        L: Tokens that enter the block.
        D: Width of the residual stream.
        E: Inner width.
        N: State size.
        K: Scan directions.
        positions: Length of the unpruned sequence.
        prefix: Tokens that always stay.
        placed: Whether somebody asks where the tokens are that are left.
        merged: Whether it is known what each token stands for: an earlier stage has merged.
        tracked: Whether somebody asks what each token that is left stands for.
    """

    L: int
    D: int
    E: int
    N: int
    K: int
    positions: int
    prefix: int
    placed: bool
    merged: bool
    tracked: bool


def tracked(
    steps: Mapping[int, TokenStep], asks: Callable[[int, TokenStep], bool]
) -> Mapping[int, bool]:
    """Of each step, by its block, whether somebody asks what the tokens it leaves stand for.

    Args:
        steps: By block.
        asks: Whether the blocks behind a step, or the head, do.
    """
    merging = [layer for layer, step in steps.items() if step.merges]
    found: dict[int, bool] = {}
    asked = False
    for layer, step in sorted(steps.items(), reverse=True):
        merged = any(before <= layer for before in merging)
        found[layer] = merged and (asked or asks(layer, step))
        asked = found[layer] or step.asks_sizes
    return found
