"""The causal depth-wise convolution with SiLU on the CPU in float32, forward and backward.

Tap k reads the token k places away, and `positions` say how far two kept tokens are apart. As they
ascend, the tokens that a token reads are its next neighbours up to the first one out of reach;
without positions the distance to a neighbour is its offset, and nothing else changes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssmprune.errors import UsageError
from ssmprune.scan.rows import Rows, checked, copied, row_address
from ssmprune.scan.simd import (
    FLOAT_BYTES,
    LANES,
    VECTOR_BYTES,
    Static,
    add_to,
    first_lanes,
    inline,
    kernel,
    load,
    load_integer,
    sigmoid,
    store,
)
from ssmprune.scan.workers import Partition, blocks_of, images_of, ordered_sum, share

_OUT_OF_REACH = 1 << 62


class _Conv(NamedTuple):
    """The inputs of a convolution.

    `weight` is a float32 tensor of shape (K, E), row k the weights of the token k places away;
    `positions` is an int64 tensor of shape (B, L), or address 0 for tokens side by side.
    """

    length: int
    width: int
    x: Rows
    weight: int
    bias: int
    positions: Rows
    reverse: bool


# --- kernels -------------------------------------------------------------------------------------


@inline
def _distance(conv, b, t, offset):
    """The neighbour `offset` tokens away that token t may read, and its distance."""
    other = t + offset if conv.reverse else t - offset
    if other < 0 or other >= conv.length:
        return t, _OUT_OF_REACH
    if conv.positions.address == 0:
        return other, offset
    here = load_integer(row_address(conv.positions, b, t))
    return other, abs(here - load_integer(row_address(conv.positions, b, other)))


@inline
def _weights(conv, distance, channel):
    return conv.weight + (distance * conv.width + channel) * FLOAT_BYTES


@inline
def _convolve(conv, b, t, channel, lanes, taps):
    """The convolution at token t, before SiLU."""
    offset = channel * FLOAT_BYTES
    total = load(conv.bias + offset, lanes)
    total += load(_weights(conv, 0, channel), lanes) * load(
        row_address(conv.x, b, t) + offset, lanes
    )
    for i in range(1, taps.value):
        other, distance = _distance(conv, b, t, i)
        if distance >= taps.value:
            break
        x = load(row_address(conv.x, b, other) + offset, lanes)
        total += load(_weights(conv, distance, channel), lanes) * x
    return total


@kernel
def _forward(first, last, partition, conv, y, taps):
    """SiLU of the convolution for the tasks of the partition from `first` to `last`."""
    for task in range(first, last):
        for b in range(*images_of(partition, task)):
            for t in range(conv.length):
                for block in range(*blocks_of(partition, task)):
                    channel = block * LANES
                    lanes = first_lanes(conv.width - channel)
                    total = _convolve(conv, b, t, channel, lanes, taps)
                    address = row_address(y, b, t) + channel * FLOAT_BYTES
                    store(address, total * sigmoid(total), lanes)


@kernel
def _backward(first, last, partition, conv, dy, dx, dparameters, taps):
    """Gradients for the tasks of the partition from `first` to `last`.

    `dparameters` is the address of float32 zeros of shape (groups, K + 1, 16 blocks): the gradients
    of the weights by distance and of the bias. Tokens are taken in scan order, so that a token has
    its own share of dx before later ones add theirs.
    """
    row_bytes = partition.blocks * VECTOR_BYTES
    for task in range(first, last):
        sums = dparameters + task // partition.segments * (taps.value + 1) * row_bytes
        for b in range(*images_of(partition, task)):
            for walked in range(conv.length):
                t = conv.length - 1 - walked if conv.reverse else walked
                for block in range(*blocks_of(partition, task)):
                    channel = block * LANES
                    offset = channel * FLOAT_BYTES
                    lanes = first_lanes(conv.width - channel)
                    total = _convolve(conv, b, t, channel, lanes, taps)
                    gate = sigmoid(total)
                    slope = gate * (1.0 + total * (1.0 - gate))
                    dtotal = slope * load(row_address(dy, b, t) + offset, lanes)
                    x = load(row_address(conv.x, b, t) + offset, lanes)
                    add_to(sums + offset, dtotal * x, lanes)
                    add_to(sums + taps.value * row_bytes + offset, dtotal, lanes)
                    weight = load(_weights(conv, 0, channel), lanes)
                    store(row_address(dx, b, t) + offset, dtotal * weight, lanes)
                    for i in range(1, taps.value):
                        other, distance = _distance(conv, b, t, i)
                        if distance >= taps.value:
                            break
                        x = load(row_address(conv.x, b, other) + offset, lanes)
                        add_to(sums + distance * row_bytes + offset, dtotal * x, lanes)
                        weight = load(_weights(conv, distance, channel), lanes)
                        add_to(row_address(dx, b, other) + offset, dtotal * weight, lanes)


# --- torch tensors in and out --------------------------------------------------------------------


def conv_forward(
    x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, positions_BL: Tensor | None, reverse: bool
) -> Tensor:
    """The output of `reference.causal_conv1d_silu`, of shape (B, L, E).

    The rows of x are read where they are, so it may be a part of a wider tensor.

    Raises:
        UsageError: A tensor has the wrong shape or type, or is not on the CPU.
    """
    x_BLE, weight_KE, bias_E, positions_BL = _checked(x_BLE, weight_EK, bias_E, positions_BL)
    conv = _conv(x_BLE, weight_KE, bias_E, positions_BL, reverse)
    y_BLE = torch.empty(x_BLE.shape)
    y, taps = Rows.of(y_BLE), Static(weight_EK.shape[1])
    partition = Partition.of(x_BLE.shape[0], -(-x_BLE.shape[2] // LANES))
    share(
        lambda first, last: _forward(first, last, partition, conv, y, taps),
        partition.tasks,
    )
    return y_BLE


def conv_backward(
    dy_BLE: Tensor,
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    positions_BL: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, given that of the output.

    Raises:
        UsageError: A tensor has the wrong shape or type, or is not on the CPU.
    """
    x_BLE, weight_KE, bias_E, positions_BL = _checked(x_BLE, weight_EK, bias_E, positions_BL)
    conv = _conv(x_BLE, weight_KE, bias_E, positions_BL, reverse)
    dy_BLE = checked("dy", dy_BLE, tuple(x_BLE.shape))
    taps, width = weight_KE.shape
    partition = Partition.of(x_BLE.shape[0], -(-width // LANES))
    dx_BLE = torch.empty(x_BLE.shape)
    dparameters = torch.zeros(partition.groups, taps + 1, partition.blocks * LANES)
    dy, dx, sums, static_taps = (
        Rows.of(dy_BLE),
        Rows.of(dx_BLE),
        dparameters.data_ptr(),
        Static(taps),
    )
    share(
        lambda first, last: _backward(first, last, partition, conv, dy, dx, sums, static_taps),
        partition.tasks,
    )
    total = ordered_sum(dparameters)[:, :width]
    return dx_BLE, copied(total[:taps].flip(0).t()), copied(total[taps])


def _checked(
    x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, positions_BL: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The inputs as the kernels read them: the weights by distance, positions as int64."""
    x_BLE = checked("x", x_BLE, (None, None, None))
    images, length, width = x_BLE.shape
    weight_KE = checked("weight", weight_EK, (width, None)).flip(1).t().contiguous()
    bias_E = checked("bias", bias_E, (width,))
    if positions_BL is not None:
        if positions_BL.dtype not in (torch.int32, torch.int64) or positions_BL.is_cuda:
            raise UsageError(
                "positions must be int32 or int64 on the CPU, got "
                f"{positions_BL.dtype} on {positions_BL.device}."
            )
        if positions_BL.shape != (images, length):
            raise UsageError(
                f"positions must be of shape ({images}, {length}), got {tuple(positions_BL.shape)}."
            )
        positions_BL = positions_BL.long()
    return x_BLE, weight_KE, bias_E, positions_BL


def _conv(
    x_BLE: Tensor, weight_KE: Tensor, bias_E: Tensor, positions_BL: Tensor | None, reverse: bool
) -> _Conv:
    return _Conv(
        *(x_BLE.shape[1:]),
        Rows.of(x_BLE),
        weight_KE.data_ptr(),
        bias_E.data_ptr(),
        Rows.of(positions_BL),
        bool(reverse),
    )
