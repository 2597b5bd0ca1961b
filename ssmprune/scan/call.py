"""What one scan is given, as every backend takes it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ScanCall(NamedTuple):
    """The inputs and the settings of one scan; the letters are those of the paper.

    Attributes:
        u: (B, L, E).
        delta: Raw steps, (B, L, E).
        A: (E, N).
        B, C: (B, L, N); by groups of channels or without the sequence where a backend takes that.
        D: (E,).
        delta_bias: (E,).
        gap: Counts of the tokens that are missing before each one, (B, L).
        gap_step: Step of a missing token, (E,).
        sizes: How many equal tokens each one stands for, (B, L).
        gap_scale: Share of the token's own step that a missing one takes.
        delta_softplus: Whether steps go through a softplus.
        reverse: Whether the scan begins at the last token.
        carry: The output of another direction, (B, L, E), which is added before the gate.
        z: The gate, (B, L, E).
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    gap: Tensor | None
    gap_step: Tensor | None
    sizes: Tensor | None
    gap_scale: float
    delta_softplus: bool
    reverse: bool
    carry: Tensor | None = None
    z: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The inputs, without the settings, carry and gate."""
        weights = self.A, self.B, self.C, self.D, self.delta_bias
        return self.u, self.delta, *weights, self.gap, self.gap_step, self.sizes
