"""One line of a FLOP count, and the prices that all families share."""

from __future__ import annotations

from typing import NamedTuple

NORM_FLOPS = 5  # per element, fvcore's figure for a norm with weights
SCAN_FLOPS = 9  # per token, channel and state


class FlopRow(NamedTuple):
    """FLOPs of one operator in one part of the model, for one image."""

    part: str
    operator: str
    flops: int
    paper_flops: int
