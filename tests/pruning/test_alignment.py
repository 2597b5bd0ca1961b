"""The aligned scan over kept tokens equals the full-length scan over masked ones."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmprune.models.plain_mamba import GridTokens, ScanInputs
from ssmprune.models.plain_mamba import Mixer as PlainMambaMixer
from ssmprune.models.plain_mamba_config import PlainMambaConfig
from ssmprune.models.vim import Mixer
from ssmprune.models.vim_config import VimConfig
from ssmprune.policy import Alignment
from ssmprune.pruning.alignment import AlignedTokens, gap_counts
from ssmprune.scan import selective_scan
from ssmprune.tokens import take
from tests.conftest import relative_error

LENGTH, CHANNELS, STATES = 14, 6, 3
ZERO_INPUT = Alignment(decay="zero_input", conv="position")
PATTERNS = st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH).filter(any)


def scan_inputs(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "u": draw(2, LENGTH, CHANNELS),
        "delta": draw(2, LENGTH, CHANNELS),
        "A": -draw(CHANNELS, STATES).exp(),
        "B": draw(2, LENGTH, STATES),
        "C": draw(2, LENGTH, STATES),
        "D": draw(CHANNELS),
        "delta_bias": draw(CHANNELS),
    }


def at(inputs: dict[str, torch.Tensor], kept: torch.Tensor) -> dict[str, torch.Tensor]:
    return {k: v[:, kept] if k in ("u", "delta", "B", "C") else v for k, v in inputs.items()}


@given(keep=PATTERNS, reverse=st.booleans(), seed=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_zero_input_equals_the_masked_full_length_scan(keep, reverse, seed):
    mask = torch.tensor(keep)
    kept = mask.nonzero()[:, 0]
    inputs = scan_inputs(seed)
    masked = dict(inputs)
    masked["u"] = inputs["u"] * mask[None, :, None]
    masked["delta"] = inputs["delta"] * mask[None, :, None]  # softplus(0 + bias) at pruned tokens
    full = selective_scan(**masked, delta_softplus=True, reverse=reverse)

    aligned = AlignedTokens.of(Alignment(decay="zero_input"), kept.expand(2, -1), LENGTH)
    gaps = aligned.gaps(inputs["delta_bias"], reverse)
    compact = selective_scan(**at(inputs, kept), delta_softplus=True, gaps=gaps, reverse=reverse)
    assert relative_error(compact, full[:, kept]) <= 1e-10


@given(keep=PATTERNS, reverse=st.booleans(), strength=st.floats(0, 1), seed=st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_neighbor_equals_a_scan_that_repeats_the_kept_tokens_step(keep, reverse, strength, seed):
    mask = torch.tensor(keep)
    kept = mask.nonzero()[:, 0]
    inputs = at(scan_inputs(seed), kept)
    step = F.softplus(inputs["delta"] + inputs["delta_bias"])
    order = reversed(range(len(kept))) if reverse else range(len(kept))
    ends = [LENGTH, -1] if reverse else [-1, LENGTH]
    previous, state, expected = ends[0], torch.zeros(2, CHANNELS, STATES).double(), {}
    for j in order:
        for _ in range(abs(int(kept[j]) - previous) - 1):
            state = torch.exp(strength * step[:, j, :, None] * inputs["A"]) * state
        fed = (step[:, j] * inputs["u"][:, j])[..., None] * inputs["B"][:, j, None]
        state = torch.exp(step[:, j, :, None] * inputs["A"]) * state + fed
        expected[j] = (state * inputs["C"][:, j, None]).sum(-1) + inputs["D"] * inputs["u"][:, j]
        previous = int(kept[j])

    settings_ = Alignment(decay="neighbor", strength=strength)
    gaps = AlignedTokens.of(settings_, kept.expand(2, -1), LENGTH).gaps(
        inputs["delta_bias"], reverse
    )
    found = selective_scan(**inputs, delta_softplus=True, gaps=gaps, reverse=reverse)
    assert relative_error(found, torch.stack([expected[j] for j in range(len(kept))], 1)) <= 1e-10


@given(keep=PATTERNS)
@settings(max_examples=50, deadline=None)
def test_gap_counts_are_the_tokens_missing_before_each_kept_one(keep):
    kept = [t for t in range(LENGTH) if keep[t]]
    before = [t - p - 1 for p, t in zip([-1, *kept], kept, strict=False)]
    after = [n - t - 1 for t, n in zip(kept, [*kept[1:], LENGTH], strict=True)]
    positions = torch.tensor([kept])
    assert gap_counts(positions, LENGTH, reverse=False).tolist() == [before]
    assert gap_counts(positions, LENGTH, reverse=True).tolist() == [after]


@given(keep=PATTERNS, seed=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_aligned_mixer_equals_the_full_length_mixer_with_pruned_tokens_masked(keep, seed):
    torch.manual_seed(seed)
    config = VimConfig(name="test", embed_dim=4, d_state=STATES)
    mixer = Mixer(config, "auto").double()
    mask = torch.tensor(keep)
    kept = mask.nonzero()[:, 0]
    normed = torch.randn(2, LENGTH, 4, dtype=torch.float64)

    column = mask[None, :, None]
    x, z = mixer.in_proj(normed).chunk(2, dim=-1)
    total = torch.zeros_like(x)
    for reverse in (False, True):
        inputs = mixer.scan_inputs(x * column, None, reverse)
        masked = inputs._replace(u=inputs.u * column, delta=inputs.delta * column)
        total = total + mixer.scan(masked, None, reverse)

    settings_ = Alignment(decay="zero_input", conv="position")
    aligned = AlignedTokens.of(settings_, kept.expand(2, -1), LENGTH)
    mixed = mixer(normed[:, kept], aligned)
    assert relative_error(mixed.y, total[:, kept]) <= 1e-10
    assert relative_error(mixed.gated, (total * F.silu(z))[:, kept]) <= 1e-10


GRIDS = [(3, 4), (4, 3), (1, 5), (5, 1), (2, 2)]
MOVES = {(0, 1): 1, (0, -1): 2, (-1, 0): 3, (1, 0): 4}  # right, left, up, down


def zigzag_order(height: int, width: int, direction: int) -> list[int]:
    """The raster index at each step of a PlainMamba scan: rows, reversed, columns, reversed."""
    by_rows = direction < 2
    order = []
    for line in range(height if by_rows else width):
        places = list(range(width if by_rows else height))
        for place in reversed(places) if line % 2 else places:
            order.append(line * width + place if by_rows else place * width + line)
    return order[::-1] if direction % 2 else order


def zigzag_moves(order: list[int], width: int) -> list[int]:
    cells = [divmod(index, width) for index in order]
    moves = [MOVES[b[0] - a[0], b[1] - a[1]] for a, b in pairwise(cells)]
    return [0, *moves]


@given(
    grid=st.sampled_from(GRIDS),
    data=st.data(),
    seed=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_four_aligned_walks_equal_full_length_scans_with_pruned_steps_masked(grid, data, seed):
    """The pairing of the released code on the kept tokens, laid out on each whole order."""
    height, width = grid
    length = height * width
    count = data.draw(st.integers(1, length))
    kept = torch.tensor(
        [sorted(data.draw(st.permutations(range(length)))[:count]) for _ in range(2)]
    )
    torch.manual_seed(seed)
    config = PlainMambaConfig(name="test", embed_dim=4, d_state=STATES)
    mixer = PlainMambaMixer(config, "auto").double()
    for vector in (mixer.dt_proj.bias, mixer.D, mixer.direction_Bs):
        vector.data.normal_()
    normed = torch.randn(2, count, 4, dtype=torch.float64)

    x, z = mixer.in_proj(normed).chunk(2, dim=-1)
    cells = torch.zeros(2, length, x.shape[2], dtype=torch.float64)
    for image in range(2):
        cells[image, kept[image]] = x[image]
    convolved = F.silu(mixer.conv2d(cells.reshape(2, height, width, -1).permute(0, 3, 1, 2)))
    cells = convolved.flatten(2).transpose(1, 2)
    u = torch.stack([cells[image, kept[image]] for image in range(2)])
    dt, B, C = mixer.x_proj(u).split(mixer.split, dim=-1)
    delta = mixer.dt_proj(dt)

    bias, tokens = mixer.dt_proj.bias, GridTokens(grid, u.device, kept, ZERO_INPUT)
    total = torch.zeros_like(u)
    inputs = ScanInputs(delta, B, C)
    for direction in range(4):
        order = zigzag_order(height, width, direction)
        moves = zigzag_moves(order, width)
        expected = torch.zeros_like(u)
        for image in range(2):
            where = {token: index for index, token in enumerate(kept[image].tolist())}
            full = {"u": torch.zeros(length, u.shape[2]), "delta": bias.repeat(length, 1)}
            full |= {"B": torch.zeros(length, STATES), "C": torch.zeros(length, STATES)}
            full = {name: values.double() for name, values in full.items()}
            steps = [step for step, token in enumerate(order) if token in where]
            for number, step in enumerate(steps):
                full["u"][step] = u[image, where[order[step]]]
                full["delta"][step] = delta[image, number]
                full["B"][step] = B[image, number] + mixer.direction_Bs[moves[step]]
                full["C"][step] = C[image, number]
            y = selective_scan(
                **{name: values[None] for name, values in full.items()},
                A=-mixer.A_log.exp(),
                D=mixer.D,
                delta_bias=bias,  # the second time: a zero token's step is softplus(2 bias)
                delta_softplus=True,
            )
            for step in steps:
                expected[image, where[order[step]]] = y[0, step]
        walk, reverse = tokens.walks[direction // 2], bool(direction % 2)
        given_ = inputs.backwards() if reverse else inputs
        found = take(mixer.scan(take(u, walk.order), given_, walk, reverse), walk.place)
        assert relative_error(found, expected) <= 1e-10
        total = total + expected

    mixed = mixer(normed, tokens)
    assert relative_error(mixed.y, total) <= 1e-10
    assert relative_error(mixed.gated, total * F.silu(z)) <= 1e-10


@pytest.mark.parametrize("settings_", [Alignment(), Alignment(decay="zero_input", strength=0.0)])
def test_alignment_without_decay_leaves_the_scan_as_it_is(settings_):
    aligned = AlignedTokens.of(settings_, torch.tensor([[0, 3, 5]]), 6)
    assert aligned.gaps(torch.zeros(4), reverse=False) is None
