"""The causal depth-wise convolution with SiLU on the CPU in float32, forward and backward.

Tap k reads the token k places away, and `positions` say how far two kept tokens are apart. As they
ascend, a token reads from its next K - 1 neighbours only, each with the weights of its distance;
without positions the distance is the offset. One more row of weights holds zeros, for neighbours
out of reach, so that the inner loops have no branches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
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
    splat,
    store,
)
from ssmprune.scan.workers import Partition, blocks_of, images_of, ordered_sum, share


class _Conv(NamedTuple):
    """The inputs of a convolution.

    `weight` is a float32 tensor of shape (K + 1, E), row k the weights of the token k places away
    and row K zeros; `positions` is an int64 tensor of shape (B, L), or at address 0 where the kept
    tokens count as neighbours.
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
def _find_tap(conv, b, t, tap, taps):
    """The token that a tap reads and the row of its weights: K where that is out of reach."""
    other = t + tap if conv.reverse else t - tap
    if other < 0 or other >= conv.length:
        return t, taps.value
    distance = tap
    if conv.positions.address != 0:
        here = load_integer(row_address(conv.positions, b, t))
        distance = abs(here - load_integer(row_address(conv.positions, b, other)))
    return (other, distance) if distance < taps.value else (t, taps.value)


@inline
def _convolve(conv, offset, lanes, taps, weight_rows, x_rows):
    """The convolution of 16 channels before SiLU, given the addresses that each tap reads."""
    total = load(conv.bias + offset, lanes)
    for i in range(taps.value):
        total += load(weight_rows[i] + offset, lanes) * load(x_rows[i] + offset, lanes)
    return total


@kernel
def _forward(first, last, partition, conv, y, taps):
    """SiLU of the convolution for the tasks of the partition from `first` to `last`."""
    weight_rows, x_rows = np.empty(taps.value, np.int64), np.empty(taps.value, np.int64)
    for task in range(first, last):
        first_block, last_block = blocks_of(partition, task)
        for b in range(*images_of(partition, task)):
            for t in range(conv.length):
                for i in range(taps.value):
                    token, distance = _find_tap(conv, b, t, i, taps)
                    weight_rows[i] = conv.weight + distance * conv.width * FLOAT_BYTES
                    x_rows[i] = row_address(conv.x, b, token)
                for block in range(first_block, last_block):
                    offset = block * VECTOR_BYTES
                    lanes = first_lanes(conv.width - block * LANES)
                    total = _convolve(conv, offset, lanes, taps, weight_rows, x_rows)
                    store(row_address(y, b, t) + offset, total * sigmoid(total), lanes)


@kernel
def _backward(first, last, partition, conv, dy, dx, dparameters, taps):
    """Gradients for the tasks of the partition from `first` to `last`.

    `dparameters` is the address of float32 zeros of shape (groups, K + 2, 16 blocks): the gradients
    of the rows of `conv.weight`, then that of the bias. Tokens are taken in scan order: a token's
    row of dx is begun before later ones add to it.
    """
    weight_rows, x_rows = np.empty(taps.value, np.int64), np.empty(taps.value, np.int64)
    dweight_rows, dx_rows = np.empty(taps.value, np.int64), np.empty(taps.value, np.int64)
    row_bytes = partition.blocks * VECTOR_BYTES
    for task in range(first, last):
        dweight = dparameters + task // partition.segments * (taps.value + 2) * row_bytes
        dbias = dweight + (taps.value + 1) * row_bytes
        first_block, last_block = blocks_of(partition, task)
        for b in range(*images_of(partition, task)):
            for walked in range(conv.length):
                t = conv.length - 1 - walked if conv.reverse else walked
                for i in range(taps.value):
                    token, distance = _find_tap(conv, b, t, i, taps)
                    weight_rows[i] = conv.weight + distance * conv.width * FLOAT_BYTES
                    x_rows[i] = row_address(conv.x, b, token)
                    dweight_rows[i] = dweight + distance * row_bytes
                    dx_rows[i] = row_address(dx, b, token)
                for block in range(first_block, last_block):
                    offset = block * VECTOR_BYTES
                    lanes = first_lanes(conv.width - block * LANES)
                    total = _convolve(conv, offset, lanes, taps, weight_rows, x_rows)
                    gate = sigmoid(total)
                    slope = gate * (1.0 + total * (1.0 - gate))
                    dtotal = slope * load(row_address(dy, b, t) + offset, lanes)
                    add_to(dbias + offset, dtotal, lanes)
                    store(row_address(dx, b, t) + offset, splat(0.0), lanes)
                    for i in range(taps.value):
                        x = load(x_rows[i] + offset, lanes)
                        weight = load(weight_rows[i] + offset, lanes)
                        add_to(dweight_rows[i] + offset, dtotal * x, lanes)
                        add_to(dx_rows[i] + offset, dtotal * weight, lanes)


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
    width, taps = weight_EK.shape
    partition = Partition.of(x_BLE.shape[0], -(-width // LANES))
    dx_BLE = torch.empty(x_BLE.shape)
    dparameters = torch.zeros(partition.groups, taps + 2, partition.blocks * LANES)
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
    return dx_BLE, copied(total[:taps].flip(0).t()), copied(total[taps + 1])


def _checked(
    x_BLE: Tensor, weight_EK: Tensor, bias_E: Tensor, positions_BL: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The inputs as the kernels read them: weights by distance, positions as int64."""
    x_BLE = checked("x", x_BLE, (None, None, None))
    images, length, width = x_BLE.shape
    weight_EK = checked("weight", weight_EK, (width, None))
    weight_KE = torch.cat([weight_EK.flip(1).t(), weight_EK.new_zeros(1, width)])
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
