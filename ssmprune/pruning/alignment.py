"""How the scan crosses the gaps that pruned tokens leave.

With q_1 < q_2 < ... the kept positions, g_j = q_j - q_{j-1} - 1 tokens are missing before token j
in scan order. Aligned, the state decays over the gap but takes no input there,

    h_j = exp(A (d_j + Gamma_j)) h_{j-1} + d_j B_j u_j,

with Gamma_j = strength * g_j * softplus(dt_bias) for `zero_input`, the step a zero token would
take, and strength * g_j * d_j for `neighbor`. `none` is the compacted scan. With `zero_input` and
strength 1 the result equals the full-length scan in which the pruned tokens have u = 0 and
d = softplus(dt_bias).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmprune.registry import Registry

if TYPE_CHECKING:  # a policy needs the names alone
    from torch import Tensor

    from ssmprune.policy import Alignment
    from ssmprune.scan import Gaps

DecayFunction = Callable[["Tensor", "Tensor", float], "Gaps"]

decays: Registry[DecayFunction | None] = Registry("decay")
decays.add("none", None)


def register_decay(name: str) -> Callable[[DecayFunction], DecayFunction]:
    """File a decay under a name that policies can use.

    A decay is a function of the gap counts of one scan direction, (B, L), of that direction's bias
    of the step, (E,), and of the policy's strength, which is above 0. It returns the scan's `Gaps`.

    Raises:
        UsageError: The name is taken.
    """

    def register(decay: DecayFunction) -> DecayFunction:
        decays.add(name, decay)
        return decay

    return register


def find_decay(name: str) -> DecayFunction | None:
    """The decay called `name`; None for `none`.

    Raises:
        UsageError: There is no such decay; near names are suggested.
    """
    return decays[name]


@register_decay("zero_input")
def _zero_input(counts_BL: Tensor, delta_bias_E: Tensor, strength: float) -> Gaps:
    import torch.nn.functional as F

    from ssmprune.scan import Gaps

    return Gaps(counts_BL, strength * F.softplus(delta_bias_E), 0.0)


@register_decay("neighbor")
def _neighbor(counts_BL: Tensor, delta_bias_E: Tensor, strength: float) -> Gaps:
    from ssmprune.scan import Gaps

    return Gaps(counts_BL, None, strength)


def gap_counts(positions_BL: Tensor, num_tokens: int, reverse: bool) -> Tensor:
    """Tokens missing before each kept one in scan order, of shape (B, L).

    Args:
        positions_BL: Ascending positions of the kept tokens in the scan's sequence.
        num_tokens: Length of that sequence before pruning.
        reverse: The scan walks from the last token to the first.
    """
    if reverse:
        return positions_BL.diff(dim=1, append=_column(positions_BL, num_tokens)) - 1
    return positions_BL.diff(dim=1, prepend=_column(positions_BL, -1)) - 1


def _column(like_BL: Tensor, value: int) -> Tensor:
    return like_BL.new_full((like_BL.shape[0], 1), value)


@dataclass(frozen=True)
class AlignedTokens:
    """The settings of a policy's alignment, for the tokens that are left.

    Attributes:
        settings: The policy's alignment.
        positions: Positions of the kept tokens in the unpruned sequence, (B, L).
        counts: Gap counts of the forward and of the backward scan, (B, L) each; None where the
            decay is `none`.
    """

    settings: Alignment
    positions: Tensor
    counts: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, settings: Alignment, positions_BL: Tensor, num_tokens: int) -> AlignedTokens:
        """Prepare the gaps of a token sequence for both directions."""
        counts = None
        if find_decay(settings.decay) is not None and settings.strength > 0:
            counts = (
                gap_counts(positions_BL, num_tokens, reverse=False),
                gap_counts(positions_BL, num_tokens, reverse=True),
            )
        return cls(settings, positions_BL, counts)

    @property
    def conv_positions(self) -> Tensor | None:
        """What the convolution takes as positions, (B, L); None where it is compact."""
        return self.positions if self.settings.conv == "position" else None

    def gaps(self, delta_bias_E: Tensor, reverse: bool) -> Gaps | None:
        """The scan's gaps for a direction whose zero-input step is softplus(delta_bias)."""
        decay = find_decay(self.settings.decay)
        if self.counts is None or decay is None:
            return None
        count_BL = self.counts[reverse].to(delta_bias_E.dtype)
        return decay(count_BL, delta_bias_E, self.settings.strength)
