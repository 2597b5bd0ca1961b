"""The aligned scan over kept tokens equals the full-length scan over masked ones."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmprune.models.configs import VimConfig
from ssmprune.models.vim import Mixer
from ssmprune.policy import Alignment
from ssmprune.pruning.alignment import AlignedTokens, gap_counts
from ssmprune.scan import selective_scan
from tests.conftest import relative_error

LENGTH, CHANNELS, STATES = 14, 6, 3
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


@pytest.mark.parametrize("settings_", [Alignment(), Alignment(decay="zero_input", strength=0.0)])
def test_alignment_without_decay_leaves_the_scan_as_it_is(settings_):
    aligned = AlignedTokens.of(settings_, torch.tensor([[0, 3, 5]]), 6)
    assert aligned.gaps(torch.zeros(4), reverse=False) is None
