"""How the scan crosses the gaps that pruned tokens leave.

With q_1 < q_2 < ... the kept positions, g_j = q_j - q_{j-1} - 1 tokens are missing before token j
in scan order. Aligned, the state decays over the gap but takes no input there,

    h_j = exp(A (d_j + Gamma_j)) h_{j-1} + d_j B_j u_j,

with Gamma_j = strength * g_j * softplus(dt_bias) for `zero_input`, the step a zero token would
take, and strength * g_j * d_j for `neighbor`. `none` is the compacted scan. With `zero_input` and
strength 1 the result equals the full-length scan in which the pruned tokens have u = 0 and
d = softplus(dt_bias).

A merged token stands for s positions; those that have joined it are not missing. Its step is its
own as if s were 1 (`own`), s times that (`scaled`), or that of s equal tokens in a row (`exact`,
see `ssmprune.scan.reference`), which is the unmerged scan where the tokens that it stands for are
equal and follow each other along the walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ssmprune.measure.rows import FlopRow
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


def missing_counts(members_BT: Tensor, positions_BL: Tensor) -> tuple[Tensor, Tensor]:
    """`gap_counts` of both directions where tokens were merged; what is in a token is not missing.

    Args:
        members_BT: The token that each position of the scan's sequence is in, -1 for none.
        positions_BL: Ascending positions of the kept tokens.
    """
    seen_BT = (members_BT < 0).cumsum(1)
    seen_BL = seen_BT.gather(1, positions_BL)
    return (
        seen_BL.diff(dim=1, prepend=_column(positions_BL, 0)),
        seen_BL.diff(dim=1, append=seen_BT[:, -1:]),
    )


def _column(like_BL: Tensor, value: int) -> Tensor:
    return like_BL.new_full((like_BL.shape[0], 1), value)


class ConvReads(NamedTuple):
    """What a convolution takes beside its input: arguments of `ssmprune.scan.causal_conv1d_silu`.

    Attributes:
        positions: (B, L); None where it is compact.
        sizes: (B, L); None where it reads each token once.
    """

    positions: Tensor | None = None
    sizes: Tensor | None = None


class ScanSteps(NamedTuple):
    """The steps of a scan, as arguments of `ssmprune.scan.selective_scan`.

    Attributes:
        delta: Raw steps, (B, L, E).
        delta_bias: (E,); None where the steps are ready.
        delta_softplus: Whether they go through a softplus.
        sizes: How many tokens each stands for, (B, L); None: one.
    """

    delta: Tensor
    delta_bias: Tensor | None
    delta_softplus: bool
    sizes: Tensor | None = None


@dataclass(frozen=True)
class AlignedTokens:
    """The settings of a policy's alignment, for the tokens that are left.

    Attributes:
        settings: The policy's alignment.
        positions: Positions of the kept tokens in the unpruned sequence, (B, L).
        counts: Gap counts of the forward and of the backward scan, (B, L) each; None where the
            decay is `none`.
        members: The token that each position of the scan's sequence is in, -1 for none; None where
            no token was merged.
    """

    settings: Alignment
    positions: Tensor
    counts: tuple[Tensor, Tensor] | None
    members: Tensor | None = None

    @classmethod
    def of(
        cls,
        settings: Alignment,
        positions_BL: Tensor,
        num_tokens: int,
        members_BT: Tensor | None = None,
    ) -> AlignedTokens:
        """Prepare a token sequence for both directions.

        Args:
            settings: The policy's alignment.
            positions_BL: Ascending positions of the kept tokens in the scan's sequence.
            num_tokens: Length of that sequence before pruning.
            members_BT: The token that each of its positions is in, -1 for none; None where no token
                was merged.
        """
        counts = None
        if decays_gaps(settings) and members_BT is not None:
            counts = missing_counts(members_BT, positions_BL)
        elif decays_gaps(settings):
            counts = (
                gap_counts(positions_BL, num_tokens, reverse=False),
                gap_counts(positions_BL, num_tokens, reverse=True),
            )
        return cls(settings, positions_BL, counts, members_BT)

    @cached_property
    def sizes(self) -> Tensor | None:
        """How many positions each token stands for, (B, L) int64; None where none was merged."""
        from ssmprune.tokens import sizes

        return None if self.members is None else sizes(self.members, self.positions.shape[1])

    def conv_reads(self, x_BLE: Tensor) -> ConvReads:
        """What the convolution takes beside its input."""
        if self.settings.conv == "position":
            return ConvReads(positions=self.positions)
        if self.settings.conv == "runs" and self.sizes is not None:
            return ConvReads(sizes=self.sizes.to(x_BLE.dtype))
        return ConvReads()

    def gaps(self, delta_bias_E: Tensor, reverse: bool) -> Gaps | None:
        """The scan's gaps for a direction whose zero-input step is softplus(delta_bias)."""
        decay = find_decay(self.settings.decay)
        if self.counts is None or decay is None:
            return None
        count_BL = self.counts[reverse].to(delta_bias_E.dtype)
        return decay(count_BL, delta_bias_E, self.settings.strength)

    def steps(self, delta_BLE: Tensor, delta_bias_E: Tensor) -> ScanSteps:
        """The scan's steps, given the raw ones and their bias."""
        if self.settings.sizes == "own" or self.sizes is None:
            return ScanSteps(delta_BLE, delta_bias_E, True)
        sizes_BL = self.sizes.to(delta_bias_E.dtype)
        if self.settings.sizes == "exact":
            return ScanSteps(delta_BLE, delta_bias_E, True, sizes_BL)
        import torch.nn.functional as F

        step_BLE = F.softplus(delta_BLE + delta_bias_E)
        return ScanSteps(step_BLE * sizes_BL[..., None], None, False)


def scan_steps(aligned: AlignedTokens | None, delta_BLE: Tensor, bias_E: Tensor) -> ScanSteps:
    """The steps of a scan over tokens of which some may have left."""
    if aligned is None:
        return ScanSteps(delta_BLE, bias_E, True)
    return aligned.steps(delta_BLE, bias_E)


def decays_gaps(settings: Alignment) -> bool:
    """Whether the state decays over the gaps."""
    return find_decay(settings.decay) is not None and settings.strength > 0


def asks_members(settings: Alignment) -> bool:
    """Whether the scan asks which positions merged tokens stand for."""
    return settings.sizes != "own" or decays_gaps(settings)


def aligned_rows(
    part: str, settings: Alignment, M: int, positions: int, asks_sizes: bool
) -> Iterator[FlopRow]:
    """FLOPs of `AlignedTokens` for M tokens of one image of which some were merged."""
    if decays_gaps(settings):
        yield FlopRow(part, "score", positions, 0)
        yield FlopRow(part, "gather", M, 0)
    if asks_sizes:
        yield FlopRow(part, "score", M * positions, 0)
