"""A token of size s does what a run of s equal tokens does, in the reference and so everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmprune.scan import Gaps, causal_conv1d_silu, selective_scan
from ssmprune.scan.reference import last_places

WIDTH, STATES = 3, 2

some_examples = settings(max_examples=30, deadline=None, derandomize=True)
run_lengths = st.lists(st.integers(1, 5), min_size=1, max_size=7)


def near(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-10, atol=1e-10)


def scan_inputs(length: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    return {
        "u": normal(1, length, WIDTH),
        "delta": normal(1, length, WIDTH),
        "A": -normal(WIDTH, STATES).exp(),
        "B": normal(1, length, STATES),
        "C": normal(1, length, STATES),
        "D": normal(WIDTH),
        "delta_bias": normal(WIDTH),
    }


def runs(merged: Tensor, lengths: list[int]) -> Tensor:
    """The unmerged sequence of one whose tokens stand for as many."""
    return merged.repeat_interleave(torch.tensor(lengths), dim=1)


def first_of_runs(counts: list[int], lengths: list[int], reverse: bool) -> Tensor:
    """Gap counts of the unmerged sequence: what is missing is missing before the whole run."""
    sizes = torch.tensor([lengths], dtype=torch.float64)
    unmerged = torch.zeros(1, sum(lengths), dtype=torch.float64)
    unmerged[0, last_places(sizes, not reverse)[0]] = torch.tensor(counts, dtype=torch.float64)
    return unmerged


@some_examples
@given(run_lengths, st.booleans(), st.booleans(), st.data())
def test_scan_of_sizes_is_the_one_of_runs(lengths, reverse, softplus, data):
    sizes = torch.tensor([lengths], dtype=torch.float64)
    merged = scan_inputs(len(lengths))
    unmerged = merged | {name: runs(merged[name], lengths) for name in ("u", "delta", "B", "C")}
    gaps = unmerged_gaps = None
    if data.draw(st.booleans(), label="has gaps"):
        counts = [data.draw(st.integers(0, 3)) for _ in lengths]
        step, scale = torch.rand(WIDTH, dtype=torch.float64), data.draw(st.sampled_from([0.0, 0.5]))
        gaps = Gaps(torch.tensor([counts], dtype=torch.float64), step, scale)
        unmerged_gaps = Gaps(first_of_runs(counts, lengths, reverse), step, scale)
    settings = {"delta_softplus": softplus, "reverse": reverse}
    every = selective_scan(**unmerged, gaps=unmerged_gaps, **settings)
    found = selective_scan(**merged, gaps=gaps, sizes=sizes, **settings)
    assert near(found, every[:, last_places(sizes, reverse)[0]])


@some_examples
@given(run_lengths, st.integers(1, 6), st.booleans())
def test_convolution_of_sizes_is_the_one_of_runs(lengths, taps, reverse):
    torch.manual_seed(0)
    x = torch.randn(1, len(lengths), WIDTH, dtype=torch.float64)
    weight, bias = (torch.randn(shape, dtype=x.dtype) for shape in ((WIDTH, taps), (WIDTH,)))
    sizes = torch.tensor([lengths], dtype=torch.float64)
    every = causal_conv1d_silu(runs(x, lengths), weight, bias, None, reverse)
    found = causal_conv1d_silu(x, weight, bias, None, reverse, sizes=sizes)
    assert near(found, every[:, last_places(sizes, reverse)[0]])


@pytest.mark.parametrize("reverse", [False, True])
def test_images_of_a_batch_have_sizes_of_their_own(reverse):
    torch.manual_seed(0)
    inputs = scan_inputs(4)
    lengths = [[1, 3, 2, 1], [5, 1, 1, 2]]
    sizes = torch.tensor(lengths, dtype=torch.float64)
    both = inputs | {name: inputs[name].expand(2, -1, -1) for name in ("u", "delta", "B", "C")}
    weight = torch.randn(WIDTH, 4, dtype=torch.float64)

    def results(given: dict[str, Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        return (
            selective_scan(**given, delta_softplus=True, reverse=reverse, sizes=sizes),
            causal_conv1d_silu(given["u"], weight, given["D"], None, reverse, sizes=sizes),
        )

    for found, *alone in zip(
        results(both, sizes), *(results(inputs, row[None]) for row in sizes), strict=True
    ):
        assert near(found, torch.cat(alone))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_gradients_of_the_scan_are_those_of_finite_differences(scale, reverse):
    inputs = scan_inputs(4)
    leaves = [x.requires_grad_() for x in inputs.values()]
    sizes = torch.tensor([[2.0, 1.0, 5.0, 3.0]], dtype=torch.float64)
    count = torch.tensor([[0.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    if scale is not None:
        leaves.append(torch.rand(WIDTH, dtype=torch.float64).requires_grad_())

    def scan(*given: Tensor) -> Tensor:
        gaps = None if scale is None else Gaps(count, given[7], scale)
        arguments = dict(zip(inputs, given, strict=False))
        return selective_scan(
            **arguments, delta_softplus=True, gaps=gaps, reverse=reverse, sizes=sizes
        )

    assert torch.autograd.gradcheck(scan, leaves)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_the_convolution_are_those_of_finite_differences(reverse):
    torch.manual_seed(0)
    leaves = [
        torch.randn(shape, dtype=torch.float64).requires_grad_()
        for shape in ((1, 5, WIDTH), (WIDTH, 4), (WIDTH,))
    ]
    sizes = torch.tensor([[2.0, 1.0, 1.0, 5.0, 3.0]], dtype=torch.float64)

    def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d_silu(x, weight, bias, None, reverse, sizes=sizes)

    assert torch.autograd.gradcheck(convolution, leaves)


def test_sizes_get_no_gradient():
    inputs, sizes = scan_inputs(3), torch.full((1, 3), 2.0, dtype=torch.float64)
    sizes.requires_grad_()
    inputs["u"].requires_grad_()
    selective_scan(**inputs, sizes=sizes).sum().backward()
    assert sizes.grad is None
