"""The CPU kernels against the float64 reference, and what makes them safe to use."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmprune.errors import UsageError
from ssmprune.scan import cpu, cpu_conv, reference
from ssmprune.scan.call import ScanCall

FORWARD_TOLERANCE = 2e-6
GRADIENT_TOLERANCE = 5e-6
SCAN_INPUTS = ("u", "delta", "A", "B", "C", "D", "delta_bias", "gap", "gap_step", "sizes")

few_examples = settings(max_examples=40, deadline=None, derandomize=True)
# kernels are compiled for each of these once: N, and whether tokens have sizes
state_sizes = st.sampled_from([1, 3, 8, 16, 24])
state_sizes_of_runs = st.sampled_from([3, 16])
compiled = st.tuples(state_sizes, st.just(False)) | st.tuples(state_sizes_of_runs, st.just(True))
tap_counts = st.sampled_from([1, 2, 4])
# the kernels take 32 tokens in a tile, 4 tokens and 64 channels abreast
lengths = st.integers(1, 30) | st.integers(31, 70)
widths = st.integers(1, 50) | st.integers(51, 140)
batches = st.integers(1, 5)
seeds = st.integers(0, 2**16)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def strided(x: Tensor) -> Tensor:
    """The same values as a part of a wider tensor, as a chunk of a projection is."""
    return torch.cat([x, torch.full_like(x, torch.nan)], dim=-1)[..., : x.shape[-1]]


def scan_inputs(
    seed: int, B: int, L: int, E: int, N: int, optional: bool, gaps: bool, sized: bool = False
) -> dict[str, Tensor | None]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    count = torch.randint(0, 6, (B, L), generator=random).float()
    return {
        "u": strided(normal(B, L, E)),
        "delta": strided(normal(B, L, E).abs()),
        "A": -torch.exp(normal(E, N)),
        "B": strided(normal(B, L, N)),
        "C": strided(normal(B, L, N)),
        "D": normal(E) if optional else None,
        "delta_bias": normal(E).abs() if optional else None,
        "gap": count if gaps else None,
        "gap_step": normal(E).abs() / 4 if gaps and optional else None,
        "sizes": run_sizes(random, B, L) if sized else None,
    }


def run_sizes(random: torch.Generator, B: int, L: int) -> Tensor:
    """From 1 to 5, half of them 1, as columns that are not in one piece."""
    sizes = torch.randint(-3, 6, (L, B), generator=random).clamp(min=1)
    return sizes.float().t()


def reference_scan(
    inputs: dict[str, Tensor | None], scale: float, softplus: bool, reverse: bool
) -> Tensor:
    u, delta, A, B, C, D, delta_bias, gap, gap_step, sizes = inputs.values()
    gaps = None if gap is None else reference.Gaps(gap, gap_step, scale)
    y, _ = reference.selective_scan(
        u, delta, A, B, C, D, None, delta_bias, softplus, gaps, reverse, sizes
    )
    return y


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    assert actual.shape == expected.shape, name
    error = (actual.double() - expected.double()).abs().max()
    # a sum that cancels is as exact as its terms, and these are about 1
    assert error <= tolerance * expected.abs().max().clamp(min=1.0), name


@few_examples
@given(seeds, batches, lengths, widths, compiled, *[st.booleans()] * 4, st.sampled_from([0.0, 0.5]))
def test_scan_equals_reference_forward_and_backward(
    seed: int,
    B: int,
    L: int,
    E: int,
    kernel: tuple[int, bool],
    optional: bool,
    gaps: bool,
    softplus: bool,
    reverse: bool,
    scale: float,
) -> None:
    N, sized = kernel
    inputs = scan_inputs(seed, B, L, E, N, optional, gaps, sized)
    arguments = (*inputs.values(), scale, softplus, reverse)
    exact = {name: None if x is None else x.double().requires_grad_() for name, x in inputs.items()}
    expected = reference_scan(exact, scale, softplus, reverse)
    dy = strided(torch.randn(B, L, E, generator=torch.Generator().manual_seed(seed)))

    y = cpu.scan_forward(ScanCall(*arguments))
    gradients = cpu.scan_backward(dy, ScanCall(*arguments))

    assert_near(y, expected, FORWARD_TOLERANCE, "y")
    names = [name for name in SCAN_INPUTS if name not in ("gap", "sizes")]
    expected.backward(dy.double())
    for name, gradient in zip(names, gradients, strict=True):
        if exact[name] is None:
            assert gradient is None, name
        else:
            assert_near(gradient, exact[name].grad, GRADIENT_TOLERANCE, name)


@few_examples
@given(
    seeds,
    batches,
    lengths,
    widths,
    state_sizes_of_runs,
    *[st.booleans()] * 4,
    st.sampled_from([0.0, 0.5]),
)
def test_scan_with_sizes_of_one_is_the_one_without_bit_by_bit(
    seed: int,
    B: int,
    L: int,
    E: int,
    N: int,
    optional: bool,
    gaps: bool,
    softplus: bool,
    reverse: bool,
    scale: float,
) -> None:
    inputs = scan_inputs(seed, B, L, E, N, optional, gaps)
    dy = torch.randn(B, L, E, generator=torch.Generator().manual_seed(seed))
    results = []
    for sizes in (None, torch.ones(B, L)):
        call = ScanCall(*(inputs | {"sizes": sizes}).values(), scale, softplus, reverse)
        gradients = cpu.scan_backward(dy, call)
        results.append([cpu.scan_forward(call), *(x for x in gradients if x is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("N", "sized"), [(16, False), (64, False), (16, True)])
def test_scan_stays_accurate_over_a_long_sequence(N: int, sized: bool) -> None:
    inputs = scan_inputs(0, 2, 700, 20, N, optional=True, gaps=True, sized=sized)
    inputs["delta"] = inputs["delta"] - 4.0
    exact = {name: None if x is None else x.double() for name, x in inputs.items()}
    expected = reference_scan(exact, 0.0, True, False)
    y = cpu.scan_forward(ScanCall(*inputs.values(), 0.0, True, False))
    assert_near(y, expected, FORWARD_TOLERANCE, "y")


def test_scan_forgets_everything_over_a_huge_gap() -> None:
    inputs = scan_inputs(0, 1, 4, 16, 8, optional=True, gaps=True)
    inputs["gap"] = torch.tensor([[0.0, 1e9, 0.0, 1e9]])
    y = cpu.scan_forward(ScanCall(*inputs.values(), 1.0, True, False))
    assert_near(y, reference_scan(inputs, 1.0, True, False), FORWARD_TOLERANCE, "y")


def test_scan_passes_nan_on() -> None:
    inputs = scan_inputs(0, 1, 6, 16, 8, optional=True, gaps=False)
    inputs["delta"][0, 3, 5] = torch.nan
    y = cpu.scan_forward(ScanCall(*inputs.values(), 0.0, True, False))
    assert y[0, 3:, 5].isnan().all()
    assert y.isnan().sum() == 3


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("B", [1, 3, 70])
def test_results_do_not_depend_on_the_thread_count(B: int, sized: bool, threads: None) -> None:
    inputs = scan_inputs(1, B, 9, 50, 16, True, True, sized)
    arguments = (*inputs.values(), 0.5, True, False)
    dy, x = torch.randn(B, 9, 50), torch.randn(B, 9, 50)
    weight, bias = torch.randn(50, 4), torch.randn(50)
    conv = x, weight, bias, None, inputs["sizes"], False
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(
            [
                cpu.scan_forward(ScanCall(*arguments)),
                *cpu.scan_backward(dy, ScanCall(*arguments)),
                cpu_conv.conv_forward(*conv),
                *cpu_conv.conv_backward(dy, *conv),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@few_examples
@given(
    seeds, batches, lengths, widths, tap_counts, st.booleans(),
    st.sampled_from(["neighbours", "positions", "sizes"]),
)  # fmt: skip
def test_conv_equals_reference_forward_and_backward(
    seed: int, B: int, L: int, E: int, K: int, reverse: bool, distances: str
) -> None:
    random = torch.Generator().manual_seed(seed)
    x, dy = (strided(torch.randn(B, L, E, generator=random)) for _ in range(2))
    weight, bias = torch.randn(E, K, generator=random), torch.randn(E, generator=random)
    positions = None
    sizes = run_sizes(random, B, L) if distances == "sizes" else None
    if distances == "positions":
        order = torch.rand(B, 2 * L, generator=random).argsort(1)
        positions = order[:, :L].sort(1).values.to(torch.int32 if L % 2 else torch.int64)
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    expected = reference.causal_conv1d_silu(*exact, positions, reverse, sizes)
    expected.backward(dy.double())

    y = cpu_conv.conv_forward(x, weight, bias, positions, sizes, reverse)
    gradients = cpu_conv.conv_backward(dy, x, weight, bias, positions, sizes, reverse)

    assert_near(y, expected, FORWARD_TOLERANCE, "y")
    for name, gradient, parameter in zip(("x", "weight", "bias"), gradients, exact, strict=True):
        assert_near(gradient, parameter.grad, GRADIENT_TOLERANCE, name)


@pytest.mark.parametrize("reverse", [False, True])
def test_conv_with_sizes_of_one_is_the_one_without_bit_by_bit(reverse: bool) -> None:
    inputs, ones = [torch.randn(3, 30, 70), torch.randn(70, 4), torch.randn(70)], torch.ones(3, 30)
    dy = torch.randn(3, 30, 70)
    results = [
        [
            cpu_conv.conv_forward(*inputs, None, sizes, reverse),
            *cpu_conv.conv_backward(dy, *inputs, None, sizes, reverse),
        ]
        for sizes in (None, ones)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("reverse", [False, True])
def test_conv_with_positions_equals_the_full_length_with_pruned_tokens_at_zero(
    reverse: bool,
) -> None:
    B, L, E = 3, 30, 20
    x, weight, bias = torch.randn(B, L, E), torch.randn(E, 4), torch.randn(E)
    positions = torch.rand(B, L).argsort(1)[:, :13].sort(1).values
    kept = positions[..., None].expand(-1, -1, E)
    masked = torch.zeros_like(x).scatter(1, kept, x.gather(1, kept))
    full = cpu_conv.conv_forward(masked, weight, bias, None, None, reverse).gather(1, kept)
    compact = cpu_conv.conv_forward(x.gather(1, kept), weight, bias, positions, None, reverse)
    assert_near(compact, full, 1e-6, "y")


def test_kernels_read_columns_and_expanded_gradients() -> None:
    arguments = list(scan_inputs(2, 2, 7, 20, 16, True, True, True).values())
    columns = [x.t().contiguous().t() if x.dim() == 2 else x for x in arguments]
    dy = torch.ones(1).expand(2, 7, 20)
    for expected, actual in zip(
        cpu.scan_backward(dy.contiguous(), ScanCall(*arguments, 0.5, True, False)),
        cpu.scan_backward(dy, ScanCall(*columns, 0.5, True, False)),
        strict=True,
    ):
        assert torch.equal(actual, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kernels_run_in_a_forked_child_of_a_process_with_threads(threads: None) -> None:
    torch.set_num_threads(2)
    arguments = (*scan_inputs(3, 4, 5, 16, 8, True, True).values(), 0.5, True, False)
    expected = cpu.scan_forward(ScanCall(*arguments))
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(cpu.scan_forward(ScanCall(*arguments)), expected) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("u", torch.zeros(2, 5, 16, dtype=torch.float64), r"float64 .*for u"),
        ("A", torch.zeros(16, 8, device="meta"), "meta for A"),
        ("B", torch.zeros(2, 5, 4), r"B must be of shape \(2, 5, 8\), got \(2, 5, 4\)"),
        ("D", torch.zeros(16, 1), r"D must be of shape \(16\), got \(16, 1\)"),
        ("gap", torch.zeros(2, 4), r"gap must be of shape \(2, 5\)"),
        ("sizes", torch.ones(2, 4), r"sizes must be of shape \(2, 5\)"),
    ],
)
def test_scan_refuses_what_the_kernels_cannot_read(name: str, value: Any, message: str) -> None:
    inputs = scan_inputs(0, 2, 5, 16, 8, True, True) | {name: value}
    with pytest.raises(UsageError, match=message):
        cpu.scan_forward(ScanCall(*inputs.values(), 0.5, True, False))


def test_conv_refuses_what_the_kernels_cannot_read() -> None:
    x, weight, bias = torch.zeros(2, 5, 16), torch.zeros(16, 4), torch.zeros(16)
    with pytest.raises(UsageError, match=r"float16 .*for x"):
        cpu_conv.conv_forward(x.half(), weight, bias, None, None, False)
    with pytest.raises(UsageError, match="positions must be int32 or int64"):
        cpu_conv.conv_forward(x, weight, bias, torch.zeros(2, 5), None, False)
    with pytest.raises(UsageError, match=r"positions must be of shape \(2, 5\), got \(5,\)"):
        cpu_conv.conv_forward(x, weight, bias, torch.zeros(5, dtype=torch.long), None, False)
    with pytest.raises(UsageError, match=r"sizes must be of shape \(2, 5\), got \(5,\)"):
        cpu_conv.conv_forward(x, weight, bias, None, torch.ones(5), False)


ON_ANY_CPU = """
import torch
from ssmprune.scan import reference, selective_scan, simd
assert simd.exp2 is not simd._exp2_with_avx512
torch.manual_seed(0)
u, delta = torch.randn(2, 30, 20), torch.randn(2, 30, 20).exp()
A, B, C = -torch.rand(20, 3).exp(), torch.randn(2, 30, 3), torch.randn(2, 30, 3)
found = selective_scan(u, delta, A, B, C, backend="cpu").double()
exact, _ = reference.selective_scan(*(x.double() for x in (u, delta, A, B, C)))
assert (found - exact).abs().max() <= 2e-6 * exact.abs().max()
"""


@pytest.mark.slow
def test_scan_needs_no_special_instructions() -> None:
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic"}
    subprocess.run([sys.executable, "-c", ON_ANY_CPU], env=environment, check=True)
