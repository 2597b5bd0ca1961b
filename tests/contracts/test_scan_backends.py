"""What every backend of the scan and of its convolution has to fulfil, against the reference."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmprune.errors import UsageError
from ssmprune.scan import (
    BACKENDS,
    Backend,
    Gaps,
    causal_conv1d_silu,
    mamba_ssm,
    reference,
    resolve_backend,
    selective_scan,
)
from tests.conftest import INTERPRETED, ON_GPU, relative_error

few_examples = settings(max_examples=8, deadline=None, derandomize=True)
lengths = st.sampled_from([1, 2, 3, 5])
widths = st.sampled_from([1, 5, 17, 33])
state_sizes = st.sampled_from([1, 3, 8, 16])
seeds = st.integers(0, 2**16)


class Runner(NamedTuple):
    """A backend under test, what it runs on, and how near it has to come to float64."""

    name: Backend
    device: str
    dtype: torch.dtype
    tolerance: float

    def put(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)


RUNNERS = {
    "reference": Runner("reference", "cpu", torch.float64, 1e-12),
    "cpu": Runner("cpu", "cpu", torch.float32, 5e-6),
    "triton-interpreted": Runner("triton", "cpu", torch.float32, 5e-6),
    "triton-gpu": Runner("triton", "cuda", torch.float32, 5e-6),
    "mamba_ssm-stand-in": Runner("mamba_ssm", "cpu", torch.float64, 1e-12),
    "mamba_ssm-gpu": Runner("mamba_ssm", "cuda", torch.float32, 2e-5),
}
MARKS = {"triton-interpreted": INTERPRETED, "triton-gpu": ON_GPU, "mamba_ssm-gpu": ON_GPU}


@pytest.fixture(
    scope="module", params=[pytest.param(key, marks=MARKS.get(key, ())) for key in RUNNERS]
)
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    runner = RUNNERS[request.param]
    if request.param == "mamba_ssm-stand-in":
        with pytest.MonkeyPatch.context() as patch:
            install_stand_ins(patch)
            yield runner
        forget_probes()
        return
    if runner.name == "mamba_ssm":
        reason = mamba_ssm.scan_failure(runner.device, runner.dtype)
        if reason is not None:
            pytest.skip(reason)
    yield runner


@pytest.fixture(scope="module")
def sized_runner(runner: Runner) -> Runner:
    """A backend whose scan takes sizes."""
    if runner.name == "mamba_ssm":
        pytest.skip("mamba-ssm's kernel takes no sizes")
    return runner


def install_stand_ins(patch: pytest.MonkeyPatch) -> None:
    """Put modules with the documented functions where mamba-ssm and causal-conv1d would be."""
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    conv = ModuleType("causal_conv1d")
    conv.causal_conv1d_fn = causal_conv1d_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        patch.setitem(sys.modules, name, ModuleType(name))
    patch.setitem(sys.modules, interface.__name__, interface)
    patch.setitem(sys.modules, conv.__name__, conv)
    forget_probes()


def forget_probes() -> None:
    mamba_ssm.scan_failure.cache_clear()
    mamba_ssm.conv_failure.cache_clear()


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False,
):  # fmt: skip
    """mamba-ssm's function: channel-first, sequences of one type."""
    assert u.dtype == delta.dtype and u.shape == delta.shape
    sequences = [x if x.dim() == 2 else x.movedim(-1, 1) for x in (u, delta, B, C)]
    u, delta, B, C = sequences
    y, last_state = reference.selective_scan(
        u, delta, A, B, C, D, None if z is None else z.movedim(-1, 1), delta_bias, delta_softplus
    )
    y = y.movedim(1, -1)
    return (y, last_state) if return_last_state else y


def causal_conv1d_fn(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
    final_states_out=None, activation=None,
):  # fmt: skip
    """causal-conv1d's function: channel-first, 2 to 4 taps."""
    assert weight.shape[1] in (2, 3, 4) and seq_idx is None and initial_states is None
    y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(weight))
    return F.silu(y) if activation in ("silu", "swish") else y


def part_of_wider(x: Tensor) -> Tensor:
    """The same values as a part of a wider tensor, as a chunk of a projection is."""
    return torch.cat([x, torch.full_like(x, torch.nan)], dim=-1)[..., : x.shape[-1]]


def scan_inputs(
    seed: int, B: int, L: int, E: int, N: int, optional: bool, gaps: bool, sized: bool = False
) -> dict[str, Tensor | None]:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    return {
        "u": normal(B, L, E),
        "delta": normal(B, L, E).abs(),
        "A": -torch.exp(normal(E, N)),
        "B": normal(B, L, N),
        "C": normal(B, L, N),
        "D": normal(E) if optional else None,
        "z": normal(B, L, E) if optional else None,
        "carry": normal(B, L, E) if optional else None,
        "delta_bias": normal(E).abs() if optional else None,
        "count": torch.randint(0, 6, (B, L), generator=random).float() if gaps else None,
        "step": normal(E).abs() / 4 if gaps and optional else None,
        "sizes": run_sizes(random, B, L) if sized else None,
    }


def run_sizes(random: torch.Generator, B: int, L: int) -> Tensor:
    """From 1 to 5, half of them 1."""
    return torch.randint(-3, 6, (B, L), generator=random).clamp(min=1).float()


def scan_on(
    runner: Runner,
    inputs: dict[str, Tensor | None],
    scale: float = 0.0,
    softplus: bool = True,
    reverse: bool = False,
) -> Tensor:
    given = {name: None if x is None else runner.put(x) for name, x in inputs.items()}
    count, step = given.pop("count"), given.pop("step")
    gaps = None if count is None else Gaps(count, step, scale)
    for name in ("u", "delta", "B", "C", "z", "carry"):
        if given[name] is not None:
            given[name] = part_of_wider(given[name])
    return selective_scan(
        **given, delta_softplus=softplus, gaps=gaps, reverse=reverse, backend=runner.name
    )


def assert_near(found: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    assert found.shape == expected.shape, name
    error = (found.detach().cpu().double() - expected).abs().max()
    # a sum that cancels is as exact as its terms, and these are about 1
    assert error <= tolerance * expected.abs().max().clamp(min=1.0), name


def assert_like_the_reference(runner: Runner, inputs: dict[str, Tensor | None], *settings) -> None:
    """Output and gradients of `scan_on` with the backend and with the reference in float64."""
    results = []
    for each in (runner, RUNNERS["reference"]):
        leaves = {k: None if x is None else x.double().requires_grad_() for k, x in inputs.items()}
        for name in ("count", "sizes"):
            if leaves[name] is not None:
                leaves[name].requires_grad_(False)
        y = scan_on(each, leaves, *settings)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).to(y.device))
        gradients = {k: x.grad for k, x in leaves.items() if x is not None and x.requires_grad}
        with torch.no_grad():
            without_gradients = scan_on(each, leaves, *settings)
        results.append({"y": y.detach(), "y without gradients": without_gradients} | gradients)
    found, expected = results
    for name, value in expected.items():
        assert_near(found[name], value, runner.tolerance, name)


@few_examples
@example(0, 1, 17, 17, 16, True, True, True, True, 0.5)
@given(
    seeds, st.integers(1, 2), lengths, widths, state_sizes, *[st.booleans()] * 4,
    st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_scan_and_its_gradients_equal_the_reference(
    runner, seed, B, L, E, N, optional, gaps, softplus, reverse, scale
):
    inputs = scan_inputs(seed, B, L, E, N, optional, gaps)
    assert_like_the_reference(runner, inputs, scale, softplus, reverse)


@few_examples
@example(0, 1, 17, 17, 16, True, True, True, True, 0.5)
@given(
    seeds, st.integers(1, 2), lengths, widths, st.sampled_from([3, 16]), *[st.booleans()] * 4,
    st.sampled_from([0.0, 0.5]),
)  # fmt: skip
def test_scan_of_runs_and_its_gradients_equal_the_reference(
    sized_runner, seed, B, L, E, N, optional, gaps, softplus, reverse, scale
):
    inputs = scan_inputs(seed, B, L, E, N, optional, gaps, sized=True)
    assert_like_the_reference(sized_runner, inputs, scale, softplus, reverse)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_with_sizes_of_one_is_the_one_without_bit_by_bit(sized_runner, gaps, reverse):
    inputs = scan_inputs(0, 2, 5, 17, 3, optional=True, gaps=gaps)
    results = []
    for sizes in (None, torch.ones(2, 5)):
        leaves = [sized_runner.put(inputs[name]).requires_grad_() for name in ("u", "delta", "A")]
        given = inputs | dict(zip(("u", "delta", "A"), leaves, strict=True)) | {"sizes": sizes}
        y = scan_on(sized_runner, given, 0.5, True, reverse)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_scan_of_runs_with_steps_of_zero_equals_the_reference(sized_runner):
    inputs = scan_inputs(0, 1, 4, 5, 3, optional=True, gaps=True, sized=True)
    inputs["sizes"][:] = 3.0
    inputs["delta"][:, 1:3] = 0.0
    inputs["delta_bias"].zero_()
    assert_like_the_reference(sized_runner, inputs, 0.5, False)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("zero_input", [True, False])
def test_scan_with_steps_of_zero_equals_the_reference(runner, softplus, zero_input):
    inputs = scan_inputs(0, 1, 4, 5, 3, optional=True, gaps=True)
    inputs["delta"][:, 1:3] = -1e4 if softplus else 0.0
    inputs["delta"][:, :, 2] = -80.0 if softplus else 1e-35
    inputs["delta_bias"].zero_()
    if not zero_input:
        inputs["step"] = None
    assert_like_the_reference(runner, inputs, 0.0 if zero_input else 0.7, softplus)


def test_scan_knows_small_steps_as_exactly_as_large_ones(runner):
    inputs = scan_inputs(0, 1, 3, 17, 3, optional=False, gaps=False)
    inputs["delta"] -= 14.0
    found = scan_on(runner, inputs).cpu()
    assert relative_error(found, scan_on(RUNNERS["reference"], inputs)) <= runner.tolerance


def test_scan_forgets_everything_over_a_huge_gap(runner):
    inputs = scan_inputs(0, 1, 4, 5, 3, optional=True, gaps=True)
    inputs["count"] = torch.tensor([[0.0, 1e9, 0.0, 1e9]])
    assert_like_the_reference(runner, inputs, 1.0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["u", "delta"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, under Triton's interpreter
def test_scan_keeps_what_is_not_finite_in_its_channel(runner, name, value):
    inputs = scan_inputs(0, 2, 5, 17, 3, optional=True, gaps=True)
    inputs[name][1, 2, 4] = value
    found = scan_on(runner, inputs, 0.5).isfinite().cpu()
    assert torch.equal(found, scan_on(RUNNERS["reference"], inputs, 0.5).isfinite())
    found[1, :, 4] = True
    assert found.all()


@few_examples
@example(0, 1, 19, 70, 4, True, "positions")
@example(0, 1, 19, 70, 4, True, "sizes")
@given(
    seeds, st.integers(1, 2), lengths, widths, st.integers(1, 4), st.booleans(),
    st.sampled_from(["neighbours", "positions", "sizes"]),
)  # fmt: skip
def test_convolution_and_its_gradients_equal_the_reference(
    runner, seed, B, L, E, K, reverse, distances
):
    random = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=random) for shape in ((B, L, E), (E, K), (E,))]
    positions = None
    sizes = run_sizes(random, B, L) if distances == "sizes" else None
    if distances == "positions":
        order = torch.rand(B, 2 * L, generator=random).argsort(1)
        positions = order[:, :L].sort(1).values.to(torch.int32 if L % 2 else torch.int64)
    results = []
    for each in (runner, RUNNERS["reference"]):
        leaves = [x.double().requires_grad_() for x in values]
        x, weight, bias = (each.put(leaf) for leaf in leaves)
        places = None if positions is None else positions.to(each.device)
        runs = None if sizes is None else each.put(sizes)
        y = causal_conv1d_silu(part_of_wider(x), weight, bias, places, reverse, each.name, runs)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y).to(y.device))
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for name, found, expected in zip(("y", "x", "weight", "bias"), *results, strict=True):
        assert_near(found, expected, runner.tolerance, name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("u", lambda x: x[:, :0], r"u must be of shape \(B, L, E\) with at least one token"),
        ("u", lambda x: x[0], r"u must be of shape \(B, L, E\)"),
        ("delta", lambda x: x[:, :3], r"delta must be of shape \(2, 5, 6\) .*got \(2, 3, 6\)"),
        ("A", lambda x: x[:4], r"A must be of shape \(6, 3\) .*got \(4, 3\)"),
        ("B", lambda x: x[..., :2], r"B must be of shape \(2, 5, 3\) .*got \(2, 5, 2\)"),
        ("C", lambda x: x[:1], r"C must be of shape \(2, 5, 3\) .*got \(1, 5, 3\)"),
        ("D", lambda x: x[:, None], r"D must be of shape \(6,\) .*got \(6, 1\)"),
        ("delta_bias", lambda x: x[:1], r"delta_bias must be of shape \(6,\)"),
        ("z", lambda x: x[:, :, :1], r"z must be of shape \(2, 5, 6\)"),
        ("carry", lambda x: x[:, :1], r"carry must be of shape \(2, 5, 6\)"),
        ("count", lambda x: x[:, 1:], r"gaps.count_BL must be of shape \(2, 5\)"),
        ("step", lambda x: x[:3], r"gaps.step_E must be of shape \(6,\)"),
        ("sizes", lambda x: x[:, 1:], r"sizes must be of shape \(2, 5\)"),
        ("sizes", lambda x: x.int(), "sizes must be float.*got torch.int32; convert"),
        ("A", lambda x: x.to("meta"), "A must be on .* as the sequence is, got meta; move it"),
        ("C", lambda x: x.int(), "C must be float.*got torch.int32; convert"),
    ],
)
def test_scan_refuses_what_does_not_go_with_its_first_input(runner, name, change, message):
    inputs = scan_inputs(0, 2, 5, 6, 3, optional=True, gaps=True, sized=True)
    given = {key: runner.put(x) for key, x in inputs.items()}
    given[name] = change(given[name])
    gaps = Gaps(given.pop("count"), given.pop("step"), 0.0)
    with pytest.raises(UsageError, match=message):
        selective_scan(**given, gaps=gaps, backend=runner.name)


def test_scan_refuses_single_beside_double_precision(runner):
    inputs = scan_inputs(0, 2, 5, 6, 3, optional=False, gaps=False)
    del inputs["count"], inputs["step"]
    given = {key: None if x is None else runner.put(x) for key, x in inputs.items()}
    other = torch.float32 if runner.dtype == torch.float64 else torch.float64
    with pytest.raises(UsageError, match=f"A must be float.*got {other}; convert"):
        selective_scan(**(given | {"A": given["A"].to(other)}), backend=runner.name)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x", lambda x: x[:, :0], r"x must be of shape \(B, L, E\) with at least one token"),
        ("weight", lambda x: x[:3], r"weight must be of shape \(6, 4\) .*got \(3, 4\)"),
        ("bias", lambda x: x[:1], r"bias must be of shape \(6,\)"),
        ("bias", lambda x: x.to("meta"), "bias must be on .*got meta"),
        ("positions", lambda x: x.float(), "positions must be int32 or int64, got torch.float32"),
        ("positions", lambda x: x[:, :2], r"positions must be of shape \(2, 5\) .*got \(2, 2\)"),
        ("sizes", lambda x: x[:, :4], r"sizes must be of shape \(2, 5\) .*got \(2, 4\)"),
        ("sizes", lambda x: x.int(), "sizes must be float.*got torch.int32"),
    ],
)
def test_convolution_refuses_what_does_not_go_with_its_first_input(runner, name, change, message):
    given = {
        "x": runner.put(torch.zeros(2, 5, 6)),
        "weight": runner.put(torch.zeros(6, 4)),
        "bias": runner.put(torch.zeros(6)),
        "positions": runner.put(torch.arange(5).expand(2, -1)),
        "sizes": runner.put(torch.ones(2, 5)),
    }
    given["positions" if name == "sizes" else "sizes"] = None
    given[name] = change(given[name])
    with pytest.raises(UsageError, match=message):
        causal_conv1d_silu(**given, backend=runner.name)


def test_convolution_refuses_positions_beside_sizes(runner):
    x, weight, bias = (runner.put(torch.zeros(shape)) for shape in ((2, 5, 6), (6, 4), (6,)))
    positions = runner.put(torch.arange(5).expand(2, -1))
    sizes = runner.put(torch.ones(2, 5))
    with pytest.raises(UsageError, match="must get positions or sizes, got both"):
        causal_conv1d_silu(x, weight, bias, positions, backend=runner.name, sizes=sizes)


def test_mamba_ssm_refuses_sizes(monkeypatch):
    install_stand_ins(monkeypatch)
    with pytest.raises(UsageError, match=r"'mamba_ssm' must get sizes of None, got \(1, 4\); use"):
        scan_on(RUNNERS["mamba_ssm-stand-in"], scan_inputs(0, 1, 4, 5, 3, True, True, sized=True))
    forget_probes()


def test_every_backend_has_a_runner():
    assert {"auto", *(runner.name for runner in RUNNERS.values())} == set(BACKENDS)


def test_backend_that_is_missing_is_refused_with_its_reason(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
    forget_probes()
    with pytest.raises(UsageError, match=r"working mamba-ssm, .*mamba_ssm.*; use 'auto'"):
        resolve_backend("mamba_ssm", cpu, torch.float32)
    forget_probes()
    monkeypatch.delattr("ssmprune.scan.gpu", raising=False)
    monkeypatch.setitem(sys.modules, "ssmprune.scan.gpu", None)
    with pytest.raises(UsageError, match="must have triton, which cannot be imported"):
        resolve_backend("triton", cpu, torch.float32)
    assert resolve_backend("auto", torch.device("cuda"), torch.float32) == "reference"


def test_mamba_ssm_that_fails_at_its_first_scan_is_refused_with_its_reason(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no kernel image is available\nfor this device")

    install_stand_ins(monkeypatch)
    interface = sys.modules["mamba_ssm.ops.selective_scan_interface"]
    monkeypatch.setattr(interface, "selective_scan_fn", broken)
    with pytest.raises(UsageError, match=r"\(RuntimeError: no kernel image is available\)"):
        resolve_backend("mamba_ssm", torch.device("cpu"), torch.float32)
    forget_probes()
