"""The selective scan and its convolution on the GPU in Triton, forward and backward.

A program of the scan takes some channels of one image and walks the sequence with their states in
registers, in float32 whatever the inputs are. It reads and writes every row where it is, and the
reverse direction counts its index down.

The backward pass has the formulas of `ssmprune.scan.cpu`. A program first walks forward and notes
the state before each chunk of about sqrt(L) tokens. Then it takes the chunks from the last one,
recomputes the states within, and walks back over them; so 2 sqrt(L) states of a channel are in
memory, not L. What is summed over channels or images leaves the kernels as partial sums, and torch
adds these in an order that depends on the shapes only.

What is None, sizes above all, is not in the code of the kernel that is compiled for it.

With `TRITON_INTERPRET=1` in the environment before triton is imported, everything here runs on the
CPU, slowly.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmprune.scan.call import ScanCall
from ssmprune.scan.reference import last_places

_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2))

_STATES_PER_PROGRAM = 256  # 8 of each thread of one warp: more of them spill registers
_MAX_CHANNELS = 128
_CONV_TOKENS, _CONV_CHANNELS = 16, 64


# --- kernels -------------------------------------------------------------------------------------


@triton.jit
def _sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def _softplus(x):
    e = tl.exp(-tl.abs(x))
    sum = 1.0 + e
    is_one = sum == 1.0  # else the factor undoes the rounding of the sum
    log1p = tl.where(is_one, e, tl.log(sum) * (e / tl.where(is_one, 1.0, sum - 1.0)))
    return tl.maximum(x, 0.0) + log1p


@triton.jit
def _load(address, mask):
    return tl.load(address, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _parameter(weights, e, has_e):
    """Weights of the channels; zeros where there are none."""
    return e.to(tl.float32) * 0.0 if weights is None else _load(weights + e, has_e)


@triton.jit
def _missing(gap, offset):
    """The tokens missing before a token."""
    return 0.0 if gap is None else tl.load(gap + offset).to(tl.float32)


@triton.jit
def _size(sizes, offset):
    """How many tokens one stands for."""
    return 1.0 if sizes is None else tl.load(sizes + offset).to(tl.float32)


@triton.jit
def _decay_step(step, missing, gap, gap_step, gap_scale, size, sizes):
    decay_step = step if gap is None else step + missing * (gap_step + gap_scale * step)
    return decay_step if sizes is None else decay_step + (size - 1.0) * step


@triton.jit
def _gain(step, rates, size):
    """gamma of a run of more than one token, for each channel and state."""
    ratio = tl.exp2(step[:, None] * rates)
    gain = 1.0 + ratio
    for _ in range(2, size.to(tl.int32)):
        gain = 1.0 + ratio * gain
    return gain


@triton.jit
def _gain_and_slope(step, rates, size):
    """The same and gamma'."""
    ratio = tl.exp2(step[:, None] * rates)
    gain, slope = 1.0 + ratio, ratio
    for _ in range(2, size.to(tl.int32)):
        slope = ratio * (slope + gain)
        gain = 1.0 + ratio * gain
    return gain, slope


@triton.jit
def _scan_forward(
    y, u, delta, A, B, C, D, delta_bias, gap, gap_step, sizes,
    u_image, u_token, delta_image, delta_token, B_image, B_token, C_image, C_token,
    gap_image, gap_token, size_image, size_token, length, width, states, gap_scale,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write y, of shape (B, L, E), for BLOCK_E channels of one image."""
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    has_e, has_n = e < width, n < states
    cells, has_cell = e[:, None] * states + n[None, :], has_e[:, None] & has_n[None, :]
    rates = _load(A + cells, has_cell) * _LOG2_E
    skip, bias = _parameter(D, e, has_e), _parameter(delta_bias, e, has_e)
    missing_step = _parameter(gap_step, e, has_e)
    u_rows, delta_rows = u + b * u_image + e, delta + b * delta_image + e
    B_rows, C_rows = B + b * B_image + n, C + b * C_image + n

    state = tl.zeros([BLOCK_E, BLOCK_N], tl.float32)
    for i in range(length):
        t = length - 1 - i if REVERSE else i
        u_t = _load(u_rows + t * u_token, has_e)
        step = _load(delta_rows + t * delta_token, has_e) + bias
        if SOFTPLUS:
            step = _softplus(step)
        missing = _missing(gap, b * gap_image + t * gap_token)
        size = _size(sizes, b * size_image + t * size_token)
        decay_step = _decay_step(step, missing, gap, missing_step, gap_scale, size, sizes)
        B_t = _load(B_rows + t * B_token, has_n)
        C_t = _load(C_rows + t * C_token, has_n)
        decay = tl.exp2(decay_step[:, None] * rates)
        entering = (step * u_t)[:, None] * B_t[None, :]
        if sizes is not None and size > 1:
            entering *= _gain(step, rates, size)
        state = decay * state + entering
        y_t = tl.sum(state * C_t[None, :], 1) + skip * u_t
        tl.store(y + (b * length + t) * width + e, y_t, mask=has_e)


@triton.jit
def _scan_backward(
    du, ddelta, dA, dB, dC, dparameters, history, dy,
    u, delta, A, B, C, D, delta_bias, gap, gap_step, sizes,
    dy_image, dy_token,
    u_image, u_token, delta_image, delta_token, B_image, B_token, C_image, C_token,
    gap_image, gap_token, size_image, size_token, length, width, states, gap_scale, chunk, chunks,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Write the gradients that BLOCK_E channels of one image contribute.

    `dA` is float32 of shape (B, E, N), `dB` and `dC` of shape (blocks, B, L, N), `dparameters` of
    shape (3, B, E) for D, delta_bias and gap_step. `history` has room for `chunks` states before
    each chunk and then `chunk` states within one: (B, chunks + chunk, E, N).
    """
    b, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    e = block * BLOCK_E + tl.arange(0, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    has_e, has_n = e < width, n < states
    cells, has_cell = e[:, None] * states + n[None, :], has_e[:, None] & has_n[None, :]
    rates = _load(A + cells, has_cell) * _LOG2_E
    skip, bias = _parameter(D, e, has_e), _parameter(delta_bias, e, has_e)
    missing_step = _parameter(gap_step, e, has_e)
    u_rows, delta_rows = u + b * u_image + e, delta + b * delta_image + e
    dy_rows = dy + b * dy_image + e
    B_rows, C_rows = B + b * B_image + n, C + b * C_image + n
    images = tl.num_programs(0)
    slots = history + b * (chunks + chunk) * width * states + cells
    slot = width * states

    state = tl.zeros([BLOCK_E, BLOCK_N], tl.float32)
    for c in range(chunks):
        tl.store(slots + c * slot, state, mask=has_cell)
        for i in range(c * chunk, tl.minimum(c * chunk + chunk, length)):
            t = length - 1 - i if REVERSE else i
            step = _load(delta_rows + t * delta_token, has_e) + bias
            if SOFTPLUS:
                step = _softplus(step)
            missing = _missing(gap, b * gap_image + t * gap_token)
            size = _size(sizes, b * size_image + t * size_token)
            decay_step = _decay_step(step, missing, gap, missing_step, gap_scale, size, sizes)
            step_u = step * _load(u_rows + t * u_token, has_e)
            entering = step_u[:, None] * _load(B_rows + t * B_token, has_n)[None, :]
            if sizes is not None and size > 1:
                entering *= _gain(step, rates, size)
            state = tl.exp2(decay_step[:, None] * rates) * state + entering

    carried = tl.zeros([BLOCK_E, BLOCK_N], tl.float32)
    dA_sum = tl.zeros([BLOCK_E, BLOCK_N], tl.float32)
    dD_sum = tl.zeros([BLOCK_E], tl.float32)
    dbias_sum = tl.zeros([BLOCK_E], tl.float32)
    dmissing_sum = tl.zeros([BLOCK_E], tl.float32)
    for walked in range(chunks):
        c = chunks - 1 - walked
        first = c * chunk
        last = tl.minimum(first + chunk, length)
        tl.debug_barrier()  # what a thread reads of the history, another may have written
        state = tl.load(slots + c * slot, mask=has_cell, other=0.0)
        for i in range(first, last):
            tl.store(slots + (chunks + i - first) * slot, state, mask=has_cell)
            t = length - 1 - i if REVERSE else i
            step = _load(delta_rows + t * delta_token, has_e) + bias
            if SOFTPLUS:
                step = _softplus(step)
            missing = _missing(gap, b * gap_image + t * gap_token)
            size = _size(sizes, b * size_image + t * size_token)
            decay_step = _decay_step(step, missing, gap, missing_step, gap_scale, size, sizes)
            step_u = step * _load(u_rows + t * u_token, has_e)
            entering = step_u[:, None] * _load(B_rows + t * B_token, has_n)[None, :]
            if sizes is not None and size > 1:
                entering *= _gain(step, rates, size)
            state = tl.exp2(decay_step[:, None] * rates) * state + entering
        tl.debug_barrier()
        for back in range(last - first):
            i = last - 1 - back
            t = length - 1 - i if REVERSE else i
            u_t = _load(u_rows + t * u_token, has_e)
            dy_t = _load(dy_rows + t * dy_token, has_e)
            step = _load(delta_rows + t * delta_token, has_e) + bias
            slope = 1.0
            if SOFTPLUS:
                slope = _sigmoid(step)
                step = _softplus(step)
            missing = _missing(gap, b * gap_image + t * gap_token)
            size = _size(sizes, b * size_image + t * size_token)
            decay_step = _decay_step(step, missing, gap, missing_step, gap_scale, size, sizes)
            step_u = step * u_t
            B_t = _load(B_rows + t * B_token, has_n)
            C_t = _load(C_rows + t * C_token, has_n)
            before = tl.load(slots + (chunks + i - first) * slot, mask=has_cell, other=0.0)
            decay = tl.exp2(decay_step[:, None] * rates)
            entering = step_u[:, None] * B_t[None, :]
            dstate = C_t[None, :] * dy_t[:, None] + carried
            carried = dstate * decay
            flow = carried * before

            dA_sum += flow * decay_step[:, None]
            if sizes is not None:
                dgain_step = tl.zeros([BLOCK_E], tl.float32)
                if size > 1:
                    gain, gain_slope = _gain_and_slope(step, rates, size)
                    gain_flow = dstate * gain_slope * entering
                    dA_sum += gain_flow * step[:, None]
                    dgain_step = tl.sum(gain_flow * rates, 1) * _LN_2
                    entering *= gain
                    dstate *= gain
            state = decay * before + entering
            row = ((block * images + b) * length + t) * states + n
            tl.store(dB + row, tl.sum(dstate * step_u[:, None], 0), mask=has_n)
            tl.store(dC + row, tl.sum(state * dy_t[:, None], 0), mask=has_n)
            dstep_u = tl.sum(dstate * B_t[None, :], 1)
            ddecay_step = tl.sum(flow * rates, 1) * _LN_2
            dstep = dstep_u * u_t + ddecay_step * (size + missing * gap_scale)
            if sizes is not None:
                dstep += dgain_step
            ddelta_t = dstep * slope
            row = (b * length + t) * width + e
            tl.store(du + row, dstep_u * step + skip * dy_t, mask=has_e)
            tl.store(ddelta + row, ddelta_t, mask=has_e)
            dD_sum += dy_t * u_t
            dbias_sum += ddelta_t
            dmissing_sum += ddecay_step * missing

    tl.store(dA + b * width * states + cells, dA_sum, mask=has_cell)
    tl.store(dparameters + b * width + e, dD_sum, mask=has_e)
    tl.store(dparameters + (images + b) * width + e, dbias_sum, mask=has_e)
    tl.store(dparameters + (2 * images + b) * width + e, dmissing_sum, mask=has_e)


@triton.jit
def _tap_of(positions, t, tap, position_token, length, TAPS: tl.constexpr, REVERSE: tl.constexpr):
    """The token that a tap of each token reads, its distance, and whether that is within reach."""
    other = t + tap if REVERSE else t - tap
    reaches = (t < length) & (other >= 0) & (other < length)
    distance = tl.abs(other - t)
    if positions is not None:
        here = tl.load(positions + t * position_token, mask=reaches, other=0)
        there = tl.load(positions + other * position_token, mask=reaches, other=0)
        distance = tl.abs(here - there).to(tl.int32)
    return other, distance, reaches & (distance < TAPS)


@triton.jit
def _convolve(
    x_rows, x_token, positions, position_token, sizes, size_token, weight_rows, t, has_e, length,
    total, PASSES_ON: tl.constexpr, TAPS: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Add what the taps read of a tile of tokens and channels to `total`.

    A token has as many taps as its size: that which is read, or the reader if it `PASSES_ON` its
    gradient.
    """
    for tap in tl.static_range(TAPS):
        other, distance, reaches = _tap_of(positions, t, tap, position_token, length, TAPS, REVERSE)
        mask = reaches[:, None] & has_e[None, :]
        weight = _load(weight_rows + (TAPS - 1 - distance)[:, None], mask)
        if sizes is not None:
            token = t if PASSES_ON else other
            size = tl.load(sizes + token * size_token, mask=reaches, other=1).to(tl.int32)
            for further in tl.static_range(1, TAPS):
                has_tap = (further < size) & (distance + further < TAPS)
                place = weight_rows + (TAPS - 1 - distance - further)[:, None]
                weight += _load(place, mask & has_tap[:, None])
        total += weight * _load(x_rows + other[:, None] * x_token, mask)
    return total


@triton.jit
def _conv_forward(
    y, x, weight, bias, positions, sizes, x_image, x_token, position_image, position_token,
    size_image, size_token, length, width,
    TAPS: tl.constexpr, REVERSE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write SiLU of the convolution for a tile, or without a bias what tokens pass on."""
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(2) * BLOCK_E + tl.arange(0, BLOCK_E)
    has_e = e < width
    if positions is not None:
        positions += b * position_image
    if sizes is not None:
        sizes += b * size_image
    x_rows, weight_rows = x + b * x_image + e[None, :], weight + e[None, :] * TAPS
    total = tl.zeros([BLOCK_T, BLOCK_E], tl.float32) + _parameter(bias, e, has_e)[None, :]
    total = _convolve(
        x_rows, x_token, positions, position_token, sizes, size_token, weight_rows, t, has_e,
        length, total, bias is None, TAPS, REVERSE,
    )  # fmt: skip
    if bias is not None:
        total = total * _sigmoid(total)
    row = (b * length + t[:, None]) * width + e[None, :]
    tl.store(y + row, total, mask=(t < length)[:, None] & has_e[None, :])


@triton.jit
def _conv_backward(
    dtotal, dparameters, dy, x, weight, bias, positions, sizes, dy_image, dy_token,
    x_image, x_token, position_image, position_token, size_image, size_token, length, width,
    TAPS: tl.constexpr, REVERSE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write the gradient before SiLU of a tile, and what it contributes to the parameters.

    `dparameters` is float32 of shape (B, tiles of tokens, K + 1, E): the taps, then the bias.
    """
    b = tl.program_id(0).to(tl.int64)
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(2) * BLOCK_E + tl.arange(0, BLOCK_E)
    has_e = e < width
    if positions is not None:
        positions += b * position_image
    if sizes is not None:
        sizes += b * size_image
    x_rows, weight_rows = x + b * x_image + e[None, :], weight + e[None, :] * TAPS
    total = tl.zeros([BLOCK_T, BLOCK_E], tl.float32) + _parameter(bias, e, has_e)[None, :]
    total = _convolve(
        x_rows, x_token, positions, position_token, sizes, size_token, weight_rows, t, has_e,
        length, total, False, TAPS, REVERSE,
    )  # fmt: skip
    mask = (t < length)[:, None] & has_e[None, :]
    gate = _sigmoid(total)
    dy_t = _load(dy + b * dy_image + t[:, None] * dy_token + e[None, :], mask)
    dtotal_t = gate * (1.0 + total * (1.0 - gate)) * dy_t
    tl.store(dtotal + (b * length + t[:, None]) * width + e[None, :], dtotal_t, mask=mask)

    rows = dparameters + (b * tl.num_programs(1) + tl.program_id(1)) * (TAPS + 1) * width + e
    tl.store(rows + TAPS * width, tl.sum(dtotal_t, 0), mask=has_e)
    for far in tl.static_range(TAPS):
        dweight = tl.zeros([BLOCK_E], tl.float32)
        for tap in tl.static_range(far + 1):  # the distance of a tap is at least its offset
            other, distance, reaches = _tap_of(
                positions, t, tap, position_token, length, TAPS, REVERSE
            )
            if sizes is None:
                has_tap = distance == far
            else:
                size = tl.load(sizes + other * size_token, mask=reaches, other=1).to(tl.int32)
                has_tap = (distance <= far) & (far < distance + size)
            read = (reaches & has_tap)[:, None] & has_e[None, :]
            dweight += tl.sum(dtotal_t * _load(x_rows + other[:, None] * x_token, read), 0)
        tl.store(rows + (TAPS - 1 - far) * width, dweight, mask=has_e)


# --- torch tensors in and out --------------------------------------------------------------------

INTERPRETED = not isinstance(_scan_forward, triton.JITFunction)
"""Whether the kernels run under Triton's interpreter, and so on the CPU."""


class _Blocks(NamedTuple):
    """How many channels and, rounded up to a power of 2, states a program of the scan takes."""

    channels: int
    states: int

    @classmethod
    def of(cls, width: int, states: int) -> _Blocks:
        block_n = triton.next_power_of_2(states)
        fitting = max(1, _STATES_PER_PROGRAM // block_n)
        return cls(min(fitting, _MAX_CHANNELS, triton.next_power_of_2(width)), block_n)


def scan_forward(call: ScanCall) -> Tensor:
    """The output of `reference.selective_scan` without a gate, of shape (B, L, E).

    Every input is float32, bfloat16 or float16, and the output has the type of `u`. The rows of u,
    delta, B and C are read where they are, so these may be parts of wider tensors.
    """
    u_BLE, _, A_EN, *_ = call
    tensors, strides = _scan_arguments(call)
    images, length, width = u_BLE.shape
    states = A_EN.shape[1]
    blocks = _Blocks.of(width, states)
    y_BLE = u_BLE.new_empty(u_BLE.shape)
    with torch.cuda.device_of(u_BLE):
        _scan_forward[images, triton.cdiv(width, blocks.channels)](
            y_BLE, *tensors, *strides, length, width, states, call.gap_scale,
            call.delta_softplus, call.reverse, *blocks, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    return y_BLE


def scan_backward(dy_BLE: Tensor, call: ScanCall) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, delta_bias and gap_step, given that of the output.

    Each has the type of its input; the gradient of an input that is None is None.
    """
    u_BLE, delta_BLE, A_EN, B_BLN, C_BLN, *_ = call
    tensors, strides = _scan_arguments(call)
    dy_BLE = _rows(dy_BLE)
    images, length, width = u_BLE.shape
    states = A_EN.shape[1]
    blocks = _Blocks.of(width, states)
    grid = images, triton.cdiv(width, blocks.channels)
    chunk = math.isqrt(length - 1) + 1
    chunks = triton.cdiv(length, chunk)

    def partial(*shape: int) -> Tensor:
        return u_BLE.new_empty(shape, dtype=torch.float32)

    du_BLE, ddelta_BLE = u_BLE.new_empty(u_BLE.shape), delta_BLE.new_empty(u_BLE.shape)
    dA, dparameters = partial(images, width, states), partial(3, images, width)
    dB, dC = (partial(grid[1], images, length, states) for _ in range(2))
    history = partial(images, chunks + chunk, width, states)
    with torch.cuda.device_of(u_BLE):
        _scan_backward[grid](
            du_BLE, ddelta_BLE, dA, dB, dC, dparameters, history, dy_BLE, *tensors,
            *dy_BLE.stride()[:2], *strides, length, width, states, call.gap_scale, chunk,
            chunks, call.delta_softplus, call.reverse, *blocks, num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip
    dparameters_E = [
        None if parameter is None else row.sum(0).to(parameter.dtype)
        for row, parameter in zip(
            dparameters, (call.D, call.delta_bias, call.gap_step), strict=True
        )
    ]
    dB_BLN, dC_BLN = dB.sum(0).to(B_BLN.dtype), dC.sum(0).to(C_BLN.dtype)
    return du_BLE, ddelta_BLE, dA.sum(0).to(A_EN.dtype), dB_BLN, dC_BLN, *dparameters_E


def conv_forward(
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    positions_BL: Tensor | None,
    sizes_BL: Tensor | None,
    reverse: bool,
) -> Tensor:
    """The output of `reference.causal_conv1d_silu`, of the type of x.

    The rows of x are read where they are, so it may be a part of a wider tensor.
    """
    if sizes_BL is not None:
        positions_BL = last_places(sizes_BL, reverse)
    places = positions_BL, sizes_BL
    return _convolved(_rows(x_BLE), weight_EK, bias_E.contiguous(), *places, reverse)


def conv_backward(
    dy_BLE: Tensor,
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor,
    positions_BL: Tensor | None,
    sizes_BL: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, given that of the output; each has the type of its input."""
    if sizes_BL is not None:
        positions_BL = last_places(sizes_BL, reverse)
    dy_BLE, x_BLE = _rows(dy_BLE), _rows(x_BLE)
    images, length, width = x_BLE.shape
    taps = weight_EK.shape[1]
    grid = _conv_grid(x_BLE)
    dtotal_BLE = x_BLE.new_empty(x_BLE.shape, dtype=torch.float32)
    dparameters = dtotal_BLE.new_empty(images, grid[1], taps + 1, width)
    with torch.cuda.device_of(x_BLE):
        _conv_backward[grid](
            dtotal_BLE, dparameters, dy_BLE, x_BLE, weight_EK.contiguous(), bias_E.contiguous(),
            positions_BL, sizes_BL, *dy_BLE.stride()[:2], *x_BLE.stride()[:2],
            *_strides(positions_BL), *_strides(sizes_BL), length, width, taps, reverse,
            _CONV_TOKENS, _CONV_CHANNELS, enable_fp_fusion=True,
        )  # fmt: skip
    # a token passes its gradient on to the tokens that its taps read: the other direction
    dx_BLE = _convolved(dtotal_BLE, weight_EK, None, positions_BL, sizes_BL, not reverse)
    total = dparameters.sum((0, 1))
    dweight_EK = total[:taps].t().contiguous().to(weight_EK.dtype)
    return dx_BLE.to(x_BLE.dtype), dweight_EK, total[taps].to(bias_E.dtype, copy=True)


def _convolved(
    x_BLE: Tensor,
    weight_EK: Tensor,
    bias_E: Tensor | None,
    positions_BL: Tensor | None,
    sizes_BL: Tensor | None,
    reverse: bool,
) -> Tensor:
    y_BLE = x_BLE.new_empty(x_BLE.shape)
    with torch.cuda.device_of(x_BLE):
        _conv_forward[_conv_grid(x_BLE)](
            y_BLE, x_BLE, weight_EK.contiguous(), bias_E, positions_BL, sizes_BL,
            *x_BLE.stride()[:2], *_strides(positions_BL), *_strides(sizes_BL), *x_BLE.shape[1:],
            weight_EK.shape[1], reverse, _CONV_TOKENS, _CONV_CHANNELS, enable_fp_fusion=True,
        )  # fmt: skip
    return y_BLE


def _conv_grid(x_BLE: Tensor) -> tuple[int, int, int]:
    images, length, width = x_BLE.shape
    return images, triton.cdiv(length, _CONV_TOKENS), triton.cdiv(width, _CONV_CHANNELS)


def _rows(x: Tensor) -> Tensor:
    """`x` with its last dimension contiguous."""
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def _scan_arguments(call: ScanCall) -> tuple[list[Tensor | None], list[int]]:
    """The inputs as the kernels take them: tensors, then strides of image and token."""
    u, delta, B, C = (_rows(x) for x in (call.u, call.delta, call.B, call.C))
    D, delta_bias, gap_step = (
        None if x is None else x.contiguous() for x in (call.D, call.delta_bias, call.gap_step)
    )
    tensors = [u, delta, call.A.contiguous(), B, C, D, delta_bias, call.gap, gap_step, call.sizes]
    strided = u, delta, B, C, call.gap, call.sizes
    return tensors, [stride for x in strided for stride in _strides(x)]
