"""What tokens are compared by before they are merged: `merge.metric` of a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a policy's FLOPs need the widths alone
    from torch import Tensor

    from ssmprune.pruning.block import BlockOutput, BlockShape


@dataclass(frozen=True)
class Metric:
    """What describes a token.

    Attributes:
        of: The description, (B, L, C), of a block and of the residual stream after it, (B, L, D).
        width: C.
        summary: For people, in a clause.
    """

    of: Callable[[BlockOutput, Tensor], Tensor]
    width: Callable[[BlockShape], int]
    summary: str


def _steps(block: BlockOutput, hidden: Tensor) -> Tensor:
    import torch.nn.functional as F

    return _mean([F.softplus(raw + bias) for raw, bias in block.features.steps])


def _mean(values: list[Tensor]) -> Tensor:
    """The mean over the scan directions."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)


METRICS = {
    "output": Metric(
        lambda block, hidden: block.projected, lambda shape: shape.D, "what the block adds"
    ),
    "y": Metric(
        lambda block, hidden: block.features.y, lambda shape: shape.E, "the output of the SSM"
    ),
    "stream": Metric(
        lambda block, hidden: hidden, lambda shape: shape.D, "the residual stream after the block"
    ),
    "B": Metric(
        lambda block, hidden: _mean([B for B, _ in block.weights]),
        lambda shape: shape.N,
        "the SSM's B",
    ),
    "C": Metric(
        lambda block, hidden: _mean([C for _, C in block.weights]),
        lambda shape: shape.N,
        "the SSM's C",
    ),
    "delta": Metric(_steps, lambda shape: shape.E, "the SSM's step"),
}
"""The first is the default. B, C and the step are the means over the scan directions."""
