"""The selective scan in plain torch: the definition that every backend is tested against.

For channel e and state n, with the step d_t = softplus(delta_t + delta_bias),

    h_t = exp(A (d_t + Gamma_t)) h_{t-1} + d_t B_t u_t,        y_t = C_t h_t + D u_t

(Gu and Dao, "Mamba", arXiv 2312.00752, with Gamma = 0). Gamma_t is the extra decay over the
tokens that were pruned just before t in scan order: see `Gaps`.

A token of size s stands for a run of s equal tokens one after the other. Their s steps are one,

    h_t = exp(A (s d_t + Gamma_t)) h_{t-1} + gamma_t d_t B_t u_t,
    gamma_t = 1 + a + a^2 + ... + a^(s-1) with a = exp(A d_t),

by the sum of a geometric series, and y_t is the output after the last of the run in scan order.
gamma is computed by Horner's rule, gamma <- 1 + a gamma, s - 1 times from 1: exact for s = 1, and
never more work than the run itself.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Gaps(NamedTuple):
    """How the state decays over pruned tokens: `Gamma = count * (step + scale * d)`.

    Attributes:
        count_BL: Tokens missing before each kept token, in scan order.
        step_E: Step that each missing token stands for, or None for zero.
        scale: Share of the kept token's own step that each missing token stands for.
    """

    count_BL: Tensor
    step_E: Tensor | None
    scale: float


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    gaps: Gaps | None = None,
    reverse: bool = False,
    sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the scan one token after the other.

    Args:
        u: Input of shape (B, L, E).
        delta: Raw step of shape (B, L, E).
        A: Negative decay rates of shape (E, N).
        B: Input weights, (B, L, N), (B, L, G, N) for G groups of E / G channels, or (E, N).
        C: Output weights, in one of the shapes of `B`.
        D: Skip weights of shape (E,).
        z: Gate of shape (B, L, E); the output is multiplied by silu(z).
        delta_bias: Bias of shape (E,), added to `delta` before the softplus.
        delta_softplus: Apply softplus to the biased step.
        gaps: Decay over pruned tokens.
        reverse: Walk from the last token to the first.
        sizes: How many equal tokens each one stands for, (B, L): whole numbers from 1 on, which is
            not checked. None for all ones. A constant for gradients.

    Returns:
        Output of shape (B, L, E), in token order, and the last state, of shape (B, E, N).
    """
    step = delta if delta_bias is None else delta + delta_bias
    step = F.softplus(step) if delta_softplus else step
    decay_step = step
    if gaps is not None:
        missing_step = gaps.scale * step if gaps.step_E is None else gaps.step_E + gaps.scale * step
        decay_step = step + gaps.count_BL[..., None] * missing_step
    if sizes is not None:
        decay_step = decay_step + (sizes.detach()[..., None] - 1) * step
    length = u.shape[1]
    state = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])  # (B, E, N)
    outputs: list[Tensor] = []
    for t in reversed(range(length)) if reverse else range(length):
        decay = torch.exp(decay_step[:, t, :, None] * A)  # (B, E, N)
        entering = (step[:, t] * u[:, t])[..., None] * _channels(B, t, u.shape[2])
        if sizes is not None:
            entering = entering * _gain(step[:, t, :, None] * A, sizes[:, t])
        state = decay * state + entering
        outputs.append((state * _channels(C, t, u.shape[2])).sum(-1))  # (B, E)
    y = torch.stack(outputs[::-1] if reverse else outputs, dim=1)
    y = y if D is None else y + D * u
    return y if z is None else y * F.silu(z), state


def _gain(rate: Tensor, sizes: Tensor) -> Tensor:
    """gamma of shape (B, E, N), given A d of that shape and sizes of shape (B,).

    The geometric sum as (exp(s A d) - 1) / (exp(A d) - 1): a graph without a loop over sizes.
    """
    sizes = sizes.detach()[:, None, None]
    is_size = (sizes == 1) | (rate == 0)  # the limit of the quotient where it is none
    rate = rate.masked_fill(is_size, -1)
    return torch.where(is_size, sizes, torch.expm1(sizes * rate) / torch.expm1(rate))


def _channels(weights: Tensor, t: int, channels: int) -> Tensor:
    """Weights at step t, of shape (B or 1, E or 1, N)."""
    if weights.dim() == 2:
        return weights[None]
    if weights.dim() == 3:
        return weights[:, t, None]
    return weights[:, t].repeat_interleave(channels // weights.shape[2], dim=1)


def causal_conv1d_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    positions: Tensor | None = None,
    reverse: bool = False,
    sizes: Tensor | None = None,
) -> Tensor:
    """Depth-wise causal convolution followed by SiLU.

    Tap k of the kernel reads the token k places earlier (later if `reverse`). With `positions` a
    place is one of the unpruned sequence, and a pruned token reads as zero; without, the kept
    tokens count as neighbours. With `sizes` a token of size s is read as s equal tokens, by the sum
    of their taps, and the output is that of the last one in the order of the taps.

    Args:
        x: Input of shape (B, L, E).
        weight: Kernel of shape (E, K), the tap of the token itself last.
        bias: Bias of shape (E,).
        positions: Ascending original positions of shape (B, L), integers.
        reverse: Read later tokens instead of earlier ones.
        sizes: How many equal tokens each one stands for, (B, L), in place of `positions`; as the
            scan takes them.

    Returns:
        Output of shape (B, L, E).
    """
    length, taps = x.shape[1], weight.shape[1]
    # row k: weight of the token k places away; a last row of zeros for everything further
    weight_KE = torch.cat([weight.flip(1).t(), weight.new_zeros(1, weight.shape[0])])
    if sizes is not None:
        positions = last_places(sizes, reverse)
        zeros = weight.new_zeros(taps, weight.shape[0])
        # row (s - 1, k): weight of s tokens from k places away on; more than K add nothing
        shifted = torch.cat([weight_KE, zeros]).unfold(0, taps + 1, 1).transpose(1, 2)[:taps]
        weight_SKE = shifted.cumsum(0)
        extra = sizes.clamp(max=taps).long() - 1
        y = bias + weight_SKE[extra, 0] * x
    else:
        y = bias + weight_KE[0] * x
    for offset in range(1, min(taps, length)):
        if reverse:
            here, there = slice(None, length - offset), slice(offset, None)
        else:
            here, there = slice(offset, None), slice(None, length - offset)
        if positions is None:
            tap: Tensor = weight_KE[offset]
        else:
            distance = (positions[:, here] - positions[:, there]).abs().clamp(max=taps).long()
            tap = weight_KE[distance] if sizes is None else weight_SKE[extra[:, there], distance]
        term = tap * x[:, there]  # (B, L - offset, E)
        y = y + F.pad(term, (0, 0, 0, offset) if reverse else (0, 0, offset, 0))
    return F.silu(y)


def last_places(sizes: Tensor, reverse: bool) -> Tensor:
    """The place in the unmerged sequence of the last token of each run in scan order, (B, L)."""
    whole = sizes.long()
    ends = whole.cumsum(1)
    return ends - whole if reverse else ends - 1
