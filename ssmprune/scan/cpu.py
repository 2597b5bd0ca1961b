"""The selective scan on the CPU in float32, forward and backward.

A kernel takes 16 channels of one image at a time, each in a lane of its vectors, and walks the
sequence with their states in registers (`ssmprune.scan.simd`). What does not depend on the
previous token, the steps above all, is computed for the whole sequence beforehand: it is short
code that keeps many reads under way, for the rows of a token are far apart in memory.

With the gradient `lambda_t` of the loss by the state h_t and the decay a_t = exp(A s_t) over the
decay step s_t = d_t + Gamma_t, the backward pass walks the sequence from its end:

    lambda_t = C_t dy_t + a_{t+1} lambda_{t+1}
    d/d(d_t u_t) = sum over n of lambda_t B_t,      d/dB_t = sum over channels of lambda_t d_t u_t
    flow_t = d/d(A s_t) = lambda_t a_t h_{t-1},     d/dC_t = sum over channels of dy_t h_t

It recomputes the states first, for at most 8 of the N at a time. Sums over images and channels are
taken in an order that depends on the shapes only, so results do not depend on the thread count.

With sizes, the decay step is s_t = size_t d_t + Gamma_t, and d_t u_t enters times the gain
gamma_t = 1 + r + ... + r^(size_t - 1) with r = exp(A d_t), whose slope gamma'_t is its derivative
by A d_t. By Horner's rule both begin at 1 and 0 and go on, size_t - 1 times, by

    gamma' <- r (gamma' + gamma),       gamma <- 1 + r gamma

Then gamma_t lambda_t takes the place of lambda_t in the second line above, and

    gain_flow_t = d/d(A d_t) by way of the gain = lambda_t B_t d_t u_t gamma'_t

Kernels are compiled without sizes and with them; tokens of size 1 are computed the same in both.
That of a run decays by r^size_t, found beside the gain, and apart from that over its gap, if any.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmprune.scan.call import ScanCall
from ssmprune.scan.rows import Rows, checked, copied, row_address
from ssmprune.scan.simd import (
    FLOAT_BYTES,
    LANES,
    LOG2_E,
    VECTOR_BYTES,
    Static,
    add_to,
    align_stack,
    dot,
    each,
    exp2,
    first_lanes,
    inline,
    kernel,
    lane_sums,
    load,
    load_column,
    load_number,
    load_numbers,
    load_rows,
    load_table,
    load_vectors,
    prefetch,
    prefetch_to_write,
    sigmoid,
    softplus,
    splat,
    store,
    store_rows,
    store_vectors,
    zeros,
)
from ssmprune.scan.threads import (
    Partition,
    blocks_of,
    images_of,
    in_team,
    ordered_sum,
    share,
    thread_count,
)

_LN_2 = 1 / LOG2_E
_STATES_PER_PASS = LANES // 2  # `lane_sums` takes dB and dC of them at once


class _Scan(NamedTuple):
    """The inputs of a scan. The address of what is absent is 0."""

    length: int
    width: int
    u: Rows
    delta: Rows
    B: Rows
    C: Rows
    gap: Rows
    sizes: Rows
    carry: Rows
    z: Rows
    A: int
    A_stride: int
    D: int
    delta_bias: int
    gap_step: int
    gap_scale: float
    delta_softplus: bool
    reverse: bool


class _Channels(NamedTuple):
    """16 neighbouring channels and their parameters, as vectors."""

    offset: int
    lanes: object
    D: object
    delta_bias: object
    gap_step: object


# --- kernels -------------------------------------------------------------------------------------


@inline
def _parameter(address, offset, lanes):
    return load(address + offset, lanes) if address != 0 else splat(0.0)


@inline
def _channels(scan, block):
    offset = block * VECTOR_BYTES
    lanes = first_lanes(scan.width - block * LANES)
    D = _parameter(scan.D, offset, lanes)
    delta_bias = _parameter(scan.delta_bias, offset, lanes)
    gap_step = _parameter(scan.gap_step, offset, lanes)
    return _Channels(offset, lanes, D, delta_bias, gap_step)


@inline
def _decay_rates(scan, block, first_state, lanes, states):
    """A of 16 channels and some states, in powers of 2."""
    stride = scan.A_stride
    address = scan.A + block * LANES * stride + first_state * FLOAT_BYTES
    return load_table(address, stride, FLOAT_BYTES, lanes, states) * LOG2_E


@inline
def _gap(scan, b, t):
    return load_number(row_address(scan.gap, b, t)) if scan.gap.address != 0 else np.float32(0.0)


@inline
def _size(scan, b, t, runs):
    """How many tokens one stands for; the Static `runs` is 1 if tokens have sizes, else 0."""
    return load_number(row_address(scan.sizes, b, t)) if runs.value else np.float32(1.0)


@inline
def _decay_step(scan, channels, gap, step):
    return step + (channels.gap_step + step * scan.gap_scale) * gap


@inline
def _prefetch_next(scan, b, t, offset):
    """Ask for what the next 16 channels of a token need: too far apart for the CPU to foresee."""
    prefetch(row_address(scan.u, b, t) + offset + VECTOR_BYTES)
    prefetch(row_address(scan.delta, b, t) + offset + VECTOR_BYTES)


@inline
def _advance(state, A, B, decay_step, step_u):
    return exp2(decay_step * A) * state + B * step_u


@inline
def _run_decay_and_gain(A, step, size):
    """exp(A size d) and gamma of a run of more than one token."""
    ratio = exp2(step * A)
    decay, gain = ratio * ratio, ratio + 1.0
    for _ in range(2, size):
        decay *= ratio
        gain = ratio * gain + 1.0
    return decay, gain


@inline
def _advance_run(state, A, B, step, step_u, size):
    decay, gain = _run_decay_and_gain(A, step, size)
    return decay * state + gain * (B * step_u)


@inline
def _advance_gap(state, A, decay_step):
    return exp2(decay_step * A) * state


# scratch memory of the forward pass: for 16 channels of the tokens of a tile, y taking the place of
# step * u, and for each block of channels A and the states before the tile
_TILE_TOKENS = 32
_DECAY_STEP, _STEP_U, _STEP = (VECTOR_BYTES * i for i in range(3))
_TILE_TOKEN_BYTES = 3 * VECTOR_BYTES
_TILE_BYTES = _TILE_TOKENS * _TILE_TOKEN_BYTES

_ABREAST, _ALONE = Static(4), Static(1)


class _Tile(NamedTuple):
    """The tokens of an image with the numbers from `start` to `stop` in the order of the walk."""

    b: int
    start: int
    stop: int
    scratch: int
    runs: object


@inline
def _token(scan, number):
    """The token with a number in the order of the walk."""
    return scan.length - 1 - number if scan.reverse else number


@inline
def _walk(scan, rows, tile, number):
    """The row of a token of the walk, and how far the next one's is from it, in bytes."""
    stride = -rows.token_stride if scan.reverse else rows.token_stride
    return row_address(rows, tile.b, _token(scan, number)), stride


@inline
def _load_tokens(scan, rows, tile, channels, number, count):
    row, stride = _walk(scan, rows, tile, number)
    return load_rows(row + channels.offset, stride, channels.lanes, count)


@inline
def _prefetch_tokens(scan, rows, tile, channels, number, count, fetch):
    row, stride = _walk(scan, rows, tile, number)
    for n in range(count.value):
        fetch(row + channels.offset + n * stride)


@inline
def _prepare(scan, y, tile, channels, number, token, count):
    """The steps of `count` tokens; asks for those of the next tile, and for where y goes."""
    whole = first_lanes(LANES)
    next_tile = number + _TILE_TOKENS
    _prefetch_tokens(scan, scan.u, tile, channels, next_tile, count, prefetch)
    _prefetch_tokens(scan, scan.delta, tile, channels, next_tile, count, prefetch)
    _prefetch_tokens(scan, y, tile, channels, number, count, prefetch_to_write)
    u = _load_tokens(scan, scan.u, tile, channels, number, count)
    step = _load_tokens(scan, scan.delta, tile, channels, number, count) + channels.delta_bias
    if scan.delta_softplus:
        step = softplus(step)
    decay_step = step
    if scan.gap.address != 0:
        gap_row, stride = _walk(scan, scan.gap, tile, number)
        decay_step = _decay_step(scan, channels, load_column(gap_row, stride, count), step)
    if tile.runs.value:
        size_row, stride = _walk(scan, scan.sizes, tile, number)
        decay_step += step * (load_column(size_row, stride, count) - 1.0)
        store_rows(token + _STEP, _TILE_TOKEN_BYTES, step, whole)
    store_rows(token + _DECAY_STEP, _TILE_TOKEN_BYTES, decay_step, whole)
    store_rows(token + _STEP_U, _TILE_TOKEN_BYTES, step * u, whole)


@inline
def _finish(scan, y, tile, channels, number, token, count):
    """Add D u and the carry of `count` tokens, gate, and write y."""
    u = _load_tokens(scan, scan.u, tile, channels, number, count)
    total = load_rows(token + _STEP_U, _TILE_TOKEN_BYTES, first_lanes(LANES), count)
    total += channels.D * u
    if scan.carry.address != 0:
        total += _load_tokens(scan, scan.carry, tile, channels, number, count)
    if scan.z.address != 0:
        z = _load_tokens(scan, scan.z, tile, channels, number, count)
        total *= z * sigmoid(z)
    y_row, stride = _walk(scan, y, tile, number)
    store_rows(y_row + channels.offset, stride, total, channels.lanes)


@inline
def _for_all(part, scan, y, tile, channels):
    """Call `part` for all tokens of a tile, with some at a time: enough to keep a CPU busy."""
    together = tile.stop - (tile.stop - tile.start) % _ABREAST.value
    for number in range(tile.start, together, _ABREAST.value):
        token = tile.scratch + (number - tile.start) * _TILE_TOKEN_BYTES
        part(scan, y, tile, channels, number, token, _ABREAST)
    for number in range(together, tile.stop):
        token = tile.scratch + (number - tile.start) * _TILE_TOKEN_BYTES
        part(scan, y, tile, channels, number, token, _ALONE)


@inline
def _read_token(scan, tile, number, states):
    """What the states take of a token: its decay step, step * u, B and C."""
    whole = first_lanes(LANES)
    token = tile.scratch + (number - tile.start) * _TILE_TOKEN_BYTES
    B = load_numbers(_walk(scan, scan.B, tile, number)[0], states)
    C = load_numbers(_walk(scan, scan.C, tile, number)[0], states)
    return token, load(token + _DECAY_STEP, whole), load(token + _STEP_U, whole), B, C


@inline
def _scan_token(scan, tile, number, A, state, states):
    token, decay_step, step_u, B, C = _read_token(scan, tile, number, states)
    state = each(_advance, (state, A, B, decay_step, step_u))
    store(token + _STEP_U, dot(C, state), first_lanes(LANES))
    return state


@inline
def _scan_run(scan, tile, number, A, state, size, states):
    whole = first_lanes(LANES)
    token, decay_step, step_u, B, C = _read_token(scan, tile, number, states)
    step = load(token + _STEP, whole)
    if _gap(scan, tile.b, _token(scan, number)) != 0:
        state = each(_advance_gap, (state, A, decay_step - step * size))
    state = each(_advance_run, (state, A, B, step, step_u, int(size)))
    store(token + _STEP_U, dot(C, state), whole)
    return state


@inline
def _tile_size(scan, tile, number):
    return _size(scan, tile.b, _token(scan, number), tile.runs)


@inline
def _scan_tile(scan, tile, memory, states):
    """Go on with the states of 16 channels; y, so far without D, takes the place of step * u.

    Tokens of size 1 have a loop of their own, in which the states stay in registers.
    """
    A = load_vectors(memory, states)
    state = load_vectors(memory + states.value * VECTOR_BYTES, states)
    if tile.runs.value:
        number = tile.start
        while number < tile.stop:
            while number < tile.stop and _tile_size(scan, tile, number) <= 1:
                state = _scan_token(scan, tile, number, A, state, states)
                number += 1
            if number < tile.stop:
                size = _tile_size(scan, tile, number)
                state = _scan_run(scan, tile, number, A, state, size, states)
                number += 1
    else:
        for number in range(tile.start, tile.stop):
            state = _scan_token(scan, tile, number, A, state, states)
    store_vectors(memory + states.value * VECTOR_BYTES, state)


@kernel
def _forward(first, last, thread, scan, y, scratch, blocks_per_task, states, runs):
    """Scan some blocks of 16 channels of an image per task, those from `first` to `last`.

    All blocks of a task scan a tile of tokens before any goes on to the next one: so what is under
    way fits into a core's caches, however long the sequence. `scratch` is the address of memory for
    a tile and `blocks_per_task` blocks per thread.
    """
    align_stack()
    blocks = (scan.width + LANES - 1) // LANES
    tasks_per_image = (blocks + blocks_per_task - 1) // blocks_per_task
    block_bytes = 2 * states.value * VECTOR_BYTES
    scratch += thread * (_TILE_BYTES + blocks_per_task * block_bytes)
    for task in range(first, last):
        b = task // tasks_per_image
        first_block = task % tasks_per_image * blocks_per_task
        last_block = min(first_block + blocks_per_task, blocks)
        memory = scratch + _TILE_BYTES
        for block in range(first_block, last_block):
            lanes = first_lanes(scan.width - block * LANES)
            store_vectors(memory, _decay_rates(scan, block, 0, lanes, states))
            store_vectors(memory + states.value * VECTOR_BYTES, zeros(states))
            memory += block_bytes
        for start in range(0, scan.length, _TILE_TOKENS):
            tile = _Tile(b, start, min(start + _TILE_TOKENS, scan.length), scratch, runs)
            memory = scratch + _TILE_BYTES
            for block in range(first_block, last_block):
                channels = _channels(scan, block)
                _for_all(_prepare, scan, y, tile, channels)
                _scan_tile(scan, tile, memory, states)
                _for_all(_finish, scan, y, tile, channels)
                memory += block_bytes


@kernel
def _forward_team(threads, tasks, scan, y, scratch, blocks_per_task, states, runs):
    in_team(_forward, threads, tasks, (scan, y, scratch, blocks_per_task, states, runs))


class _Gradients(NamedTuple):
    """What the backward kernel reads of dy and where its results go.

    `dBC` is float32 of shape (segments, B, L, passes, 16), the last dimension dB of up to 8 states
    and then dC of the same ones; `dparameters` is float32 of shape (groups, blocks, N + 3, 16), a
    row per state for dA, then those of D, delta_bias and gap_step. Both start as zeros.
    """

    dy: Rows
    du: Rows
    ddelta: Rows
    dBC: int
    dparameters: int


class _Pass(NamedTuple):
    """Some states of 16 channels of an image."""

    b: int
    channels: object
    first_state: int
    A: object
    tokens: int  # scratch memory for L tokens
    history: int  # scratch memory for L + 1 states and L decays
    runs: object


# one token of 16 channels in the scratch memory of the backward pass, from the fourth on; the last
# is there with sizes only
_SLOPE, _D_DECAY_STEP, _D_STEP_U, _D_STEP = (VECTOR_BYTES * i for i in range(3, 7))
_TOKEN_VECTORS = 6


@inline
def _token_memory(tokens, t, runs):
    return tokens + t * (_TOKEN_VECTORS + runs.value) * VECTOR_BYTES


@inline
def _history_bytes(length, states):
    return (2 * length + 1) * states * VECTOR_BYTES


@inline
def _run_gain_and_slope(A, step, size):
    """gamma and gamma' of a run of more than one token."""
    ratio = exp2(step * A)
    gain, slope = ratio + 1.0, ratio
    for _ in range(2, size):
        slope = ratio * (slope + gain)
        gain = ratio * gain + 1.0
    return gain, slope


@inline
def _prepare_tokens(scan, channels, b, tokens, runs):
    """The steps of every token, the slope of softplus there, and zeros for their gradients."""
    whole = first_lanes(LANES)
    offset, lanes = channels.offset, channels.lanes
    for t in range(scan.length):
        token = _token_memory(tokens, t, runs)
        u = load(row_address(scan.u, b, t) + offset, lanes)
        step = load(row_address(scan.delta, b, t) + offset, lanes) + channels.delta_bias
        slope = splat(1.0)
        if scan.delta_softplus:
            slope = sigmoid(step)
            step = softplus(step)
        decay_step = _decay_step(scan, channels, _gap(scan, b, t), step)
        if runs.value:
            decay_step += step * (_size(scan, b, t, runs) - 1.0)
        store(token + _DECAY_STEP, decay_step, whole)
        store(token + _STEP_U, step * u, whole)
        store(token + _STEP, step, whole)
        store(token + _SLOPE, slope, whole)
        store(token + _D_DECAY_STEP, splat(0.0), whole)
        store(token + _D_STEP_U, splat(0.0), whole)
        if runs.value:
            store(token + _D_STEP, splat(0.0), whole)


@inline
def _recompute_states(scan, gradients, now, states):
    """Fill the history: the states before the first token of the walk, its decays, and so on."""
    whole = first_lanes(LANES)
    states_bytes = states.value * VECTOR_BYTES
    state = zeros(states)
    store_vectors(now.history, state)
    for i in range(scan.length):
        t = _token(scan, i)
        token = _token_memory(now.tokens, t, now.runs)
        prefetch(row_address(gradients.dy, now.b, t) + now.channels.offset)
        for rows in (gradients.du, gradients.ddelta):
            prefetch_to_write(row_address(rows, now.b, t) + now.channels.offset)
        B = load_numbers(row_address(scan.B, now.b, t) + now.first_state * FLOAT_BYTES, states)
        size = _size(scan, now.b, t, now.runs)
        if size > 1:
            step = load(token + _STEP, whole)
            decay, gain = _run_decay_and_gain(now.A, step, int(size))
            if _gap(scan, now.b, t) != 0:
                decay *= exp2((load(token + _DECAY_STEP, whole) - step * size) * now.A)
            state = decay * state + gain * (B * load(token + _STEP_U, whole))
        else:
            decay = exp2(load(token + _DECAY_STEP, whole) * now.A)
            state = decay * state + B * load(token + _STEP_U, whole)
        store_vectors(now.history + (2 * i + 1) * states_bytes, decay)
        store_vectors(now.history + (2 * i + 2) * states_bytes, state)


@inline
def _walk_back(scan, gradients, now, dBC, dBC_stride, states):
    """Add the gradients of the steps and of B and C; returns that of A."""
    whole = first_lanes(LANES)
    offset, lanes = now.channels.offset, now.channels.lanes
    states_bytes = states.value * VECTOR_BYTES
    dA = zeros(states)
    carried = zeros(states)
    for i in range(scan.length - 1, -1, -1):
        t = _token(scan, i)
        token = _token_memory(now.tokens, t, now.runs)
        _prefetch_next(scan, now.b, t, offset)
        state_before = load_vectors(now.history + 2 * i * states_bytes, states)
        decay = load_vectors(now.history + (2 * i + 1) * states_bytes, states)
        state = load_vectors(now.history + (2 * i + 2) * states_bytes, states)
        B = load_numbers(row_address(scan.B, now.b, t) + now.first_state * FLOAT_BYTES, states)
        C = load_numbers(row_address(scan.C, now.b, t) + now.first_state * FLOAT_BYTES, states)
        dy = load(row_address(gradients.dy, now.b, t) + offset, lanes)
        dstate = C * dy + carried
        carried = dstate * decay
        flow = carried * state_before
        dA += flow * load(token + _DECAY_STEP, whole)
        size = _size(scan, now.b, t, now.runs)
        if size > 1:
            step = load(token + _STEP, whole)
            gain, slope = _run_gain_and_slope(now.A, step, int(size))
            gain_flow = dstate * slope * (B * load(token + _STEP_U, whole))
            dA += gain_flow * step
            add_to(token + _D_STEP, dot(gain_flow, now.A) * _LN_2, whole)
            dstate *= gain
        dB_dC = lane_sums(dstate * load(token + _STEP_U, whole), state * dy)
        add_to(dBC + t * dBC_stride, dB_dC, whole)
        add_to(token + _D_STEP_U, dot(dstate, B), whole)
        add_to(token + _D_DECAY_STEP, dot(flow, now.A) * _LN_2, whole)
    return dA


@inline
def _finish_tokens(scan, gradients, channels, b, tokens, runs):
    """Write du and ddelta; returns the gradients of D, delta_bias and gap_step."""
    whole = first_lanes(LANES)
    offset, lanes = channels.offset, channels.lanes
    dD, ddelta_bias, dgap_step = splat(0.0), splat(0.0), splat(0.0)
    for t in range(scan.length):
        token = _token_memory(tokens, t, runs)
        u = load(row_address(scan.u, b, t) + offset, lanes)
        dy = load(row_address(gradients.dy, b, t) + offset, lanes)
        gap = _gap(scan, b, t)
        dstep_u = load(token + _D_STEP_U, whole)
        ddecay_step = load(token + _D_DECAY_STEP, whole)
        dstep = dstep_u * u + ddecay_step * (_size(scan, b, t, runs) + gap * scan.gap_scale)
        if runs.value:
            dstep += load(token + _D_STEP, whole)
        ddelta = dstep * load(token + _SLOPE, whole)
        du = dstep_u * load(token + _STEP, whole) + channels.D * dy
        store(row_address(gradients.du, b, t) + offset, du, lanes)
        store(row_address(gradients.ddelta, b, t) + offset, ddelta, lanes)
        dD += dy * u
        ddelta_bias += ddelta
        dgap_step += ddecay_step * gap
    return dD, ddelta_bias, dgap_step


@kernel
def _backward(first, last, thread, partition, scan, gradients, scratch, passes, states, runs):
    """Gradients from the tasks of the partition with numbers from `first` to `last`.

    `passes` times `states` states make N; `scratch` is the address of memory for the `tokens` and
    the `history` of a `_Pass` per thread.
    """
    align_stack()
    tokens_bytes = _token_memory(0, scan.length, runs)
    tokens = scratch + thread * (tokens_bytes + _history_bytes(scan.length, states.value))
    history = tokens + tokens_bytes
    whole = first_lanes(LANES)
    states_bytes = states.value * VECTOR_BYTES
    parameters_bytes = passes * states_bytes + 3 * VECTOR_BYTES
    dBC_stride = passes * VECTOR_BYTES
    for task in range(first, last):
        group, segment = task // partition.segments, task % partition.segments
        first_image, last_image = images_of(partition, task)
        first_block, last_block = blocks_of(partition, task)
        for b in range(first_image, last_image):
            dBC = gradients.dBC + (segment * partition.images + b) * scan.length * dBC_stride
            for block in range(first_block, last_block):
                channels = _channels(scan, block)
                _prepare_tokens(scan, channels, b, tokens, runs)
                row = gradients.dparameters
                row += (group * partition.blocks + block) * parameters_bytes
                for part in range(passes):
                    first_state = part * states.value
                    A = _decay_rates(scan, block, first_state, channels.lanes, states)
                    now = _Pass(b, channels, first_state, A, tokens, history, runs)
                    _recompute_states(scan, gradients, now, states)
                    part_dBC = dBC + part * VECTOR_BYTES
                    dA = _walk_back(scan, gradients, now, part_dBC, dBC_stride, states)
                    store_vectors(row, load_vectors(row, states) + dA)
                    row += states_bytes
                for total in _finish_tokens(scan, gradients, channels, b, tokens, runs):
                    add_to(row, total, whole)
                    row += VECTOR_BYTES


@kernel
def _backward_team(threads, tasks, partition, scan, gradients, scratch, passes, states, runs):
    arguments = partition, scan, gradients, scratch, passes, states, runs
    in_team(_backward, threads, tasks, arguments)


# --- torch tensors in and out --------------------------------------------------------------------


def scan_forward(call: ScanCall) -> Tensor:
    """The output of `reference.selective_scan`, of shape (B, L, E).

    The rows of u, delta, B, C, carry and z are read where they are, so these may be parts of wider
    tensors.

    Raises:
        UsageError: A tensor has the wrong shape, is not float32 or not on the CPU.
    """
    call = _checked(call)
    scan = _as_read(call)
    u_BLE, A_EN = call.u, call.A
    y_BLE = torch.empty(u_BLE.shape)
    images, state_size = u_BLE.shape[0], A_EN.shape[1]
    blocks = -(-scan.width // LANES)
    parts = -(-thread_count(images * blocks) // images)  # of an image
    blocks_per_task = -(-blocks // parts)
    tasks = images * -(-blocks // blocks_per_task)
    bytes_per_thread = _TILE_BYTES + blocks_per_task * 2 * state_size * VECTOR_BYTES
    scratch, states = _scratch(tasks, bytes_per_thread), Static(state_size)
    work = scan, Rows.of(y_BLE), scratch.data_ptr(), blocks_per_task, states, _runs(call)
    share(_forward_team, _forward, tasks, *work)
    return y_BLE


def scan_backward(dy_BLE: Tensor, call: ScanCall) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, delta_bias and gap_step, given that of the output.

    The gradient of an input that is None is None.

    Raises:
        UsageError: A tensor has the wrong shape, is not float32 or not on the CPU.
    """
    call = _checked(call)
    scan = _as_read(call)
    u_BLE, A_EN = call.u, call.A
    dy_BLE = checked("dy", dy_BLE, tuple(u_BLE.shape))
    images, length, width = u_BLE.shape
    state_size = A_EN.shape[1]
    part = next(n for n in range(_STATES_PER_PASS, 0, -1) if state_size % n == 0)
    passes = state_size // part
    partition = Partition.of(images, -(-width // LANES))

    du_BLE, ddelta_BLE = torch.empty(u_BLE.shape), torch.empty(u_BLE.shape)
    dBC = torch.zeros(partition.segments, images, length, passes, LANES)
    dparameters = torch.zeros(partition.groups, partition.blocks, state_size + 3, LANES)
    gradients = _Gradients(
        Rows.of(dy_BLE),
        Rows.of(du_BLE),
        Rows.of(ddelta_BLE),
        dBC.data_ptr(),
        dparameters.data_ptr(),
    )
    runs = _runs(call)
    tokens_bytes = length * (_TOKEN_VECTORS + runs.value) * VECTOR_BYTES
    scratch = _scratch(partition.tasks, tokens_bytes + _history_bytes(length, part))
    work = partition, scan, gradients, scratch.data_ptr(), passes, Static(part), runs
    share(_backward_team, _backward, partition.tasks, *work)
    dBC = ordered_sum(dBC)  # (B, L, passes, 16)
    dB_BLN = copied(dBC[..., :part]).view(images, length, state_size)
    dC_BLN = copied(dBC[..., LANES // 2 : LANES // 2 + part]).view(images, length, state_size)
    by_channel = ordered_sum(dparameters).transpose(1, 2).reshape(-1, state_size + 3)[:width]
    dA_EN = copied(by_channel[:, :state_size])
    dparameters_E = [
        None if parameter is None else copied(by_channel[:, state_size + row])
        for row, parameter in enumerate((call.D, call.delta_bias, call.gap_step))
    ]
    return du_BLE, ddelta_BLE, dA_EN, dB_BLN, dC_BLN, *dparameters_E


def _runs(call: ScanCall) -> Static:
    return Static(int(call.sizes is not None))


def _scratch(tasks: int, bytes_per_thread: int) -> Tensor:
    return torch.empty(thread_count(tasks), bytes_per_thread, dtype=torch.uint8)


def _checked(call: ScanCall) -> ScanCall:
    """The same with readable rows, or an error for the first that the kernels cannot take."""
    images, length, width = checked("u", call.u, (None, None, None)).shape
    _, states = checked("A", call.A, (width, None)).shape
    shapes = {
        "u": (images, length, width),
        "delta": (images, length, width),
        "A": (width, states),
        "B": (images, length, states),
        "C": (images, length, states),
        "D": (width,),
        "delta_bias": (width,),
        "gap": (images, length),
        "gap_step": (width,),
        "sizes": (images, length),
        "carry": (images, length, width),
        "z": (images, length, width),
    }
    tensors = {name: getattr(call, name) for name in shapes}
    readable: dict[str, Any] = {
        name: checked(name, x, shapes[name]) for name, x in tensors.items() if x is not None
    }
    return call._replace(**readable)


def _as_read(call: ScanCall) -> _Scan:
    """The call as the kernels read it: by addresses."""

    def address(x: Tensor | None) -> int:
        return 0 if x is None else x.data_ptr()

    rows = (call.u, call.delta, call.B, call.C, call.gap, call.sizes, call.carry, call.z)
    return _Scan(
        *(call.u.shape[1:]),
        *(Rows.of(x) for x in rows),
        call.A.data_ptr(),
        call.A.stride(0) * FLOAT_BYTES,
        *(address(x) for x in (call.D, call.delta_bias, call.gap_step)),
        float(call.gap_scale),
        bool(call.delta_softplus),
        bool(call.reverse),
    )
