"""Scans of merged tokens against the unmerged scan, where the merged tokens were equal."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmprune.models.plain_mamba import GridTokens, PlainMamba
from ssmprune.models.plain_mamba import ScanInputs as PlainScanInputs
from ssmprune.models.vim import ScanInputs, Vim
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment
from ssmprune.pruning.alignment import AlignedTokens

RUNS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2)), min_size=1, max_size=8)
"""How many tokens each run has, and how many have left for good behind it."""


def numbers(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def laid_out(runs):
    """The run that each position of the unpruned sequence is in, -1 for none, and each run's place.

    A run stands at its middle, as a merged token stands where one of its members stood.
    """
    members, places = [], []
    for index, (size, gone) in enumerate(runs):
        places.append(len(members) + size // 2)
        members += [index] * size + [-1] * gone
    return torch.tensor(members), torch.tensor(places)


@pytest.fixture(scope="module")
def mixer():
    torch.manual_seed(0)
    config = replace(find_config("vim_nano"), image_size=(24, 24), embed_dim=8, depth=1)
    return Vim(config).double().eval().layers[0].mixer


@given(RUNS, st.booleans())
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_exact_scan_of_merged_tokens_is_the_scan_of_all_of_them(mixer, runs, reverse):
    """With `zero_input` over what has left: a token that has no input and takes the bias's step."""
    members, places = laid_out(runs)
    E, N = mixer.A_log.shape
    u, delta, B, C = (numbers(1, len(runs), width) for width in (E, E, N, N))
    bias = mixer.dt_proj_b.bias if reverse else mixer.dt_proj.bias
    weights = dict(A=-mixer.A_log.exp(), D=mixer.D, delta_bias=bias)
    there = (members >= 0)[None, :, None]
    index = members.clamp(min=0)
    dense = ScanInputs(
        u=u[:, index] * there,
        delta=delta[:, index] * there,
        B=B[:, index],
        C=C[:, index],
        **weights,
    )
    expected = mixer.scan(dense, None, reverse)
    settings = Alignment(decay="zero_input", sizes="exact")
    aligned = AlignedTokens.of(settings, places[None], len(members), members[None])
    found = mixer.scan(ScanInputs(u=u, delta=delta, B=B, C=C, **weights), aligned, reverse)
    for run in range(len(runs)):
        positions = (members == run).nonzero()[:, 0]
        last = positions[0] if reverse else positions[-1]
        torch.testing.assert_close(found[:, run], expected[:, last], rtol=0, atol=1e-10)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=10), st.booleans())
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_convolution_of_runs_is_that_of_all_tokens_at_the_end_of_each_run(mixer, sizes, reverse):
    members, places = laid_out([(size, 0) for size in sizes])
    x = numbers(1, len(sizes), mixer.A_log.shape[0])
    expected = mixer.scan_inputs(x[:, members], None, reverse).u
    aligned = AlignedTokens.of(Alignment(conv="runs"), places[None], len(members), members[None])
    found = mixer.scan_inputs(x, aligned, reverse).u
    for run in range(len(sizes)):
        positions = (members == run).nonzero()[:, 0]
        last = positions[0] if reverse else positions[-1]
        torch.testing.assert_close(found[:, run], expected[:, last], rtol=0, atol=1e-10)


@pytest.mark.parametrize("reverse", [False, True])
@torch.no_grad()
def test_walk_along_the_rows_is_exact_for_runs_within_a_row(reverse):
    """Where all steps have the same dt, B and C, and moves add nothing to B."""
    torch.manual_seed(0)
    config = replace(
        find_config("plainmamba_l1"), image_size=(48, 80), embed_dim=8, depth=1, d_state=4
    )
    mixer = PlainMamba(config).double().eval().layers[0].mamba
    mixer.direction_Bs.zero_()
    height, width = config.grid
    sizes = [2, 1, width - 3] * height
    members = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    places = torch.tensor([(members == run).nonzero()[0, 0] for run in range(len(sizes))])
    E, N = mixer.A_log.shape
    u, step = numbers(1, len(sizes), E), [numbers(1, 1, n) for n in (E, N, N)]

    def walked(values, tokens, length):
        walk = tokens.walks[0]
        inputs = PlainScanInputs(*(part.expand(1, length, -1) for part in step))
        order = walk.order if walk.order.dim() == 1 else walk.order[0]
        y = mixer.scan(values[:, order], inputs, walk, reverse)
        return y[:, order.argsort()]

    device = torch.device("cpu")
    expected = walked(u[:, members], GridTokens(config.grid, device), len(members))
    settings = Alignment(conv="position", sizes="exact")
    tokens = GridTokens(config.grid, device, places[None], settings, members[None])
    found = walked(u, tokens, len(sizes))
    for run, size in enumerate(sizes):
        first = int(places[run])
        leftwards = bool(first // width % 2) != reverse
        last = first if leftwards else first + size - 1
        torch.testing.assert_close(found[:, run], expected[:, last], rtol=0, atol=1e-10)
