"""The causal depth-wise convolution with SiLU on the CPU in float32, forward and backward.

Tap k reads the token k places away, and `positions` say how far two kept tokens are apart. As they
ascend, a token reads from its next K - 1 neighbours only, each with the weights of its distance;
without positions the distance is the offset. One more row of weights holds zeros, for neighbours
out of reach, so that the inner loops have no branches.

With sizes, positions are the places of the last token of each run, and a token of size s has the
weights of s taps from its distance on. Their sum is one more row of weights, of which there is one
for each distance and size up to K; the gradient of a row goes to each tap in it. The argument
`longest` of the kernels, which are compiled for it, is that size: K, or 1 without sizes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmprune.errors import UsageError
from ssmprune.scan.reference import last_places
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
    load_number,
    load_vectors,
    sigmoid,
    splat,
    store,
    store_vectors,
    unrolled,
)
from ssmprune.scan.threads import Partition, blocks_of, images_of, in_team, ordered_sum, share


class _Conv(NamedTuple):
    """The inputs of a convolution.

    `weight` is of shape (E, K), the weights of a channel a row; `positions` is an int64 tensor of
    shape (B, L), or at address 0 where the kept tokens count as neighbours. `sizes` is of shape
    (B, L), or at address 0.
    """

    length: int
    width: int
    x: Rows
    weight: int
    weight_stride: int
    bias: int
    positions: Rows
    sizes: Rows
    reverse: bool


# --- kernels -------------------------------------------------------------------------------------


@inline
def _weights_by_distance(conv, taps, longest):
    """The weights of shape (rows + 1, E): row (s - 1) K + k those of s tokens from k places away
    on, the last row zeros."""
    table = np.zeros((longest.value * taps.value + 1, conv.width), np.float32)
    for channel in range(conv.width):
        weights = conv.weight + channel * conv.weight_stride
        for distance in range(taps.value):
            total = np.float32(0.0)
            for size in range(1, longest.value + 1):
                tap = taps.value - distance - size
                if tap >= 0:
                    total += load_number(weights + tap * FLOAT_BYTES)
                table[(size - 1) * taps.value + distance, channel] = total
    return table


@inline
def _find_tap(conv, b, t, taps, longest, tap):
    """The token that a tap reads and the row of its weights: zeros where that is out of reach."""
    other = t + tap if conv.reverse else t - tap
    nothing = longest.value * taps.value
    if other < 0 or other >= conv.length:
        return t, nothing
    distance = tap
    if conv.positions.address != 0:
        here = load_integer(row_address(conv.positions, b, t))
        distance = abs(here - load_integer(row_address(conv.positions, b, other)))
    row = distance
    if longest.value > 1:
        size = int(load_number(row_address(conv.sizes, b, other)))
        row += (min(size, longest.value) - 1) * taps.value
    return (other, row) if distance < taps.value else (t, nothing)


@inline
def _tap_addresses(conv, weights, b, t, taps, longest, tap):
    """Where a tap's weights and its token's channels begin."""
    token, row = _find_tap(conv, b, t, taps, longest, tap)
    return weights + row * conv.width * FLOAT_BYTES, row_address(conv.x, b, token)


@inline
def _convolve(conv, offset, lanes, tap_rows):
    """The convolution of 16 channels before SiLU, given the addresses of each tap."""
    total = load(conv.bias + offset, lanes)
    for weight_row, x_row in tap_rows:
        total += load(weight_row + offset, lanes) * load(x_row + offset, lanes)
    return total


_ABREAST = Static(4)  # vectors at a time, enough to keep a CPU busy
_ABREAST_BYTES = _ABREAST.value * VECTOR_BYTES


@kernel
def _forward(first, last, thread, conv, y, taps, longest):
    """SiLU of the convolution for the tokens from `first` to `last` of all images in a row."""
    table = _weights_by_distance(conv, taps, longest)
    row_bytes = conv.width * FLOAT_BYTES
    abreast_bytes = row_bytes - row_bytes % _ABREAST_BYTES
    for row in range(first, last):
        b, t = row // conv.length, row % conv.length
        y_row = row_address(y, b, t)
        places = conv, table.ctypes.data, b, t, taps, longest
        tap_rows = unrolled(_tap_addresses, places, taps)
        for offset in range(0, abreast_bytes, _ABREAST_BYTES):
            totals = load_vectors(conv.bias + offset, _ABREAST)
            for weight_row, x_row in tap_rows:
                weights = load_vectors(weight_row + offset, _ABREAST)
                totals += weights * load_vectors(x_row + offset, _ABREAST)
            store_vectors(y_row + offset, totals * sigmoid(totals))
        for offset in range(abreast_bytes, row_bytes, VECTOR_BYTES):
            lanes = first_lanes((row_bytes - offset) // FLOAT_BYTES)
            total = _convolve(conv, offset, lanes, tap_rows)
            store(y_row + offset, total * sigmoid(total), lanes)


@kernel
def _forward_team(threads, tasks, conv, y, taps, longest):
    in_team(_forward, threads, tasks, (conv, y, taps, longest))


@inline
def _gradient_addresses(conv, b, t, taps, longest, dweight, row_bytes, dx, tap):
    """Where the gradients of a tap's weights and of its token's channels begin."""
    token, row = _find_tap(conv, b, t, taps, longest, tap)
    return dweight + row * row_bytes, row_address(dx, b, token)


@kernel
def _backward(first, last, thread, partition, conv, dy, dx, dparameters, taps, longest):
    """Gradients for the tasks of the partition from `first` to `last`.

    `dparameters` is the address of float32 zeros of shape (groups, rows + 2, 16 blocks): the
    gradients of `_weights_by_distance`, then that of the bias. Tokens are taken in scan order: a
    token's row of dx is begun before later ones add to it.
    """
    table = _weights_by_distance(conv, taps, longest)
    row_bytes = partition.blocks * VECTOR_BYTES
    for task in range(first, last):
        rows = longest.value * taps.value
        dweight = dparameters + task // partition.segments * (rows + 2) * row_bytes
        dbias = dweight + (rows + 1) * row_bytes
        first_block, last_block = blocks_of(partition, task)
        for b in range(*images_of(partition, task)):
            for walked in range(conv.length):
                t = conv.length - 1 - walked if conv.reverse else walked
                places = conv, table.ctypes.data, b, t, taps, longest
                tap_rows = unrolled(_tap_addresses, places, taps)
                gradient_places = conv, b, t, taps, longest, dweight, row_bytes, dx
                gradient_rows = unrolled(_gradient_addresses, gradient_places, taps)
                for block in range(first_block, last_block):
                    offset = block * VECTOR_BYTES
                    lanes = first_lanes(conv.width - block * LANES)
                    total = _convolve(conv, offset, lanes, tap_rows)
                    gate = sigmoid(total)
                    slope = gate * (1.0 + total * (1.0 - gate))
                    dtotal = slope * load(row_address(dy, b, t) + offset, lanes)
                    add_to(dbias + offset, dtotal, lanes)
                    store(row_address(dx, b, t) + offset, splat(0.0), lanes)
                    for i in range(taps.value):
                        weight_row, x_row = tap_rows[i]
                        dweight_row, dx_row = gradient_rows[i]
                        x = load(x_row + offset, lanes)
                        add_to(dweight_row + offset, dtotal * x, lanes)
                        weight = load(weight_row + offset, lanes)
                        add_to(dx_row + offset, dtotal * weight, lanes)


@kernel
def _backward_team(threads, tasks, partition, conv, dy, dx, dparameters, taps, longest):
    arguments = partition, conv, dy, dx, dparameters, taps, longest
    in_team(_backward, threads, tasks, arguments)


# --- torch tensors in and out --------------------------------------------------------------------


def conv_forward(
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    positions_BL: Tensor | None,
    sizes_BL: Tensor | None,
    reverse: bool,
) -> Tensor:
    """The output of `reference.causal_conv1d_silu`, of shape (B, L, E).

    The rows of x are read where they are, so it may be a part of a wider tensor.

    Raises:
        UsageError: A tensor has the wrong shape or type, or is not on the CPU.
    """
    inputs = _checked(x_BLE, weight_EK, bias_E, positions_BL, sizes_BL, reverse)
    conv = _conv(*inputs, reverse)
    y_BLE = torch.empty(x_BLE.shape)
    taps = weight_EK.shape[1]
    work = conv, Rows.of(y_BLE), Static(taps), Static(_longest(taps, sizes_BL))
    share(_forward_team, _forward, x_BLE.shape[0] * x_BLE.shape[1], *work)
    return y_BLE


def conv_backward(
    dy_BLE: Tensor,
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    positions_BL: Tensor | None,
    sizes_BL: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, given that of the output.

    Raises:
        UsageError: A tensor has the wrong shape or type, or is not on the CPU.
    """
    inputs = _checked(x_BLE, weight_EK, bias_E, positions_BL, sizes_BL, reverse)
    conv = _conv(*inputs, reverse)
    dy_BLE = checked("dy", dy_BLE, tuple(x_BLE.shape))
    width, taps = weight_EK.shape
    partition = Partition.of(x_BLE.shape[0], -(-width // LANES))
    dx_BLE = torch.empty(x_BLE.shape)
    longest = _longest(taps, sizes_BL)
    rows = longest * taps
    dparameters = torch.zeros(partition.groups, rows + 2, partition.blocks * LANES)
    tensors = Rows.of(dy_BLE), Rows.of(dx_BLE), dparameters.data_ptr()
    work = partition, conv, *tensors, Static(taps), Static(longest)
    share(_backward_team, _backward, partition.tasks, *work)
    total = ordered_sum(dparameters)[:, :width]
    dweight_KE = _by_tap(total[:rows].view(longest, taps, width))
    return dx_BLE, copied(dweight_KE.flip(0).t()), copied(total[rows + 1])


def _longest(taps: int, sizes_BL: Tensor | None) -> int:
    """Above which size more tokens make no difference."""
    return 1 if sizes_BL is None else taps


def _by_tap(drows_SKE: Tensor) -> Tensor:
    """Gradients of the taps, of shape (K, E), given those of the rows by size and distance."""
    dweight_KE = ordered_sum(drows_SKE)
    for further in range(1, len(drows_SKE)):  # a size above it has this tap too
        dweight_KE[further:] += ordered_sum(drows_SKE[further:, :-further])
    return dweight_KE


def _checked(
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    positions_BL: Tensor | None,
    sizes_BL: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """The inputs as the kernels read them: rows in one piece, positions as int64.

    With sizes, positions are those of the unmerged sequence.
    """
    x_BLE = checked("x", x_BLE, (None, None, None))
    images, length, width = x_BLE.shape
    weight_EK = checked("weight", weight_EK, (width, None))
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
    if sizes_BL is not None:
        sizes_BL = checked("sizes", sizes_BL, (images, length))
        positions_BL = last_places(sizes_BL, reverse)
    return x_BLE, weight_EK, bias_E, positions_BL, sizes_BL


def _conv(
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    positions_BL: Tensor | None,
    sizes_BL: Tensor | None,
    reverse: bool,
) -> _Conv:
    return _Conv(
        *(x_BLE.shape[1:]),
        Rows.of(x_BLE),
        weight_EK.data_ptr(),
        weight_EK.stride(0) * FLOAT_BYTES,
        bias_E.data_ptr(),
        Rows.of(positions_BL),
        Rows.of(sizes_BL),
        bool(reverse),
    )
