"""The reference scan against the official one, and the convolution against its definition."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmprune.errors import UsageError
from ssmprune.scan import causal_conv1d_silu, reference, resolve_backend, selective_scan
from tests.conftest import relative_error

CASES = (
    "full",
    "no_z",
    "no_D",
    "no_bias",
    "no_softplus",
    "bare",
    "len1",
    "len1_grouped",
    "grouped",
    "grouped_n1_k4",
    "const_bc",
    "mixed_bc",
    "extreme_delta",
    "strong_decay",
    "long",
    "batch1_vim",
)
SEQUENCES = ("u", "delta", "z", "dout")
WEIGHTS = ("B", "C")


def channel_last(name: str, x: torch.Tensor) -> torch.Tensor:
    """The goldens' (B, E, L), (B, N, L) and (B, G, N, L) in this project's order."""
    if name in SEQUENCES or (name in WEIGHTS and x.dim() == 3):
        return x.transpose(1, 2)
    if name in WEIGHTS and x.dim() == 4:
        return x.permute(0, 3, 1, 2)
    return x


def case_inputs(golden, case: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    arrays = golden.under(f"{case}/")
    inputs = {k: channel_last(k, v).to(dtype) for k, v in arrays.items() if "_f" not in k}
    return {k: v.contiguous() for k, v in inputs.items()}


def run_case(inputs: dict[str, torch.Tensor], case: str):
    arguments = {k: v for k, v in inputs.items() if k != "dout"}
    softplus = case not in ("no_softplus", "bare")
    return reference.selective_scan(**arguments, delta_softplus=softplus)


@pytest.fixture(scope="module")
def scans(load_golden):
    return load_golden("selective_scan.npz")


@pytest.mark.parametrize("case", CASES)
def test_reference_equals_the_official_scan_in_float64(scans, case):
    inputs = case_inputs(scans, case, torch.float64)
    for tensor in inputs.values():
        tensor.requires_grad_()
    out, last_state = run_case(inputs, case)
    expected = scans.under(f"{case}/")
    assert relative_error(out, expected["out_f64"].transpose(1, 2)) <= 1e-10
    assert relative_error(last_state, expected["last_state_f64"]) <= 1e-10
    (out * inputs["dout"]).sum().backward()
    for name, tensor in inputs.items():
        if name != "dout":
            gradient = channel_last(name, expected[f"grad_{name}_f64"])
            assert relative_error(tensor.grad, gradient) <= 1e-9, name


@pytest.mark.parametrize("case", CASES)
def test_reference_equals_the_official_scan_in_float32(scans, case):
    out, last_state = run_case(case_inputs(scans, case, torch.float32), case)
    expected = scans.under(f"{case}/")
    assert relative_error(out, expected["out_f64"].transpose(1, 2)) <= 1e-5
    assert relative_error(last_state, expected["last_state_f64"]) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_scan_on_its_default_backend_equals_the_official_scan(scans, case):
    inputs = case_inputs(scans, case, torch.float32)
    for tensor in inputs.values():
        tensor.requires_grad_()
    softplus = case not in ("no_softplus", "bare")
    arguments = {k: v for k, v in inputs.items() if k != "dout"}
    out = selective_scan(**arguments, delta_softplus=softplus)
    expected = scans.under(f"{case}/")
    assert relative_error(out, expected["out_f64"].transpose(1, 2)) <= 1e-5
    (out * inputs["dout"]).sum().backward()
    for name, tensor in arguments.items():
        gradient = channel_last(name, expected[f"grad_{name}_f64"])
        assert relative_error(tensor.grad, gradient) <= 2e-5, name


def test_scan_in_half_precision_keeps_its_state_in_float32():
    torch.manual_seed(0)
    u, delta, B, C = (torch.randn(2, 300, n) for n in (8, 8, 4, 4))
    A = -torch.rand(8, 4) * 0.01
    exact = selective_scan(u, delta, A, B, C, delta_softplus=True)
    half = selective_scan(*(x.bfloat16() for x in (u, delta)), A, B.bfloat16(), C.bfloat16(),
                          delta_softplus=True)  # fmt: skip
    assert half.dtype == torch.bfloat16
    assert relative_error(half, exact) < 0.02


@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
def test_scan_takes_a_mix_of_precisions_as_autocast_leaves_it(name):
    torch.manual_seed(0)
    shapes = {"u": 8, "delta": 8, "B": 4, "C": 4}
    inputs = {key: torch.randn(2, 5, width) for key, width in shapes.items()}
    inputs["A"] = -torch.rand(8, 4)
    exact = selective_scan(**inputs, delta_softplus=True)
    mixed = selective_scan(**inputs | {name: inputs[name].bfloat16()}, delta_softplus=True)
    assert mixed.dtype == (torch.bfloat16 if name == "u" else torch.float32)
    assert relative_error(mixed, exact) < 0.02


@given(
    length=st.integers(1, 12),
    taps=st.integers(1, 5),
    reverse=st.booleans(),
    keep=st.lists(st.booleans(), min_size=12, max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_convolution_at_positions_equals_the_full_length_one_with_zeros(
    length, taps, reverse, keep
):
    torch.manual_seed(0)
    full = torch.randn(2, length, 3, dtype=torch.float64)
    weight, bias = torch.randn(3, taps, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    kept = torch.tensor([t for t in range(length) if keep[t]] or [0])
    masked = torch.zeros_like(full)
    masked[:, kept] = full[:, kept]
    expected = F.conv1d(
        F.pad((masked.flip(1) if reverse else masked).transpose(1, 2), (taps - 1, 0)),
        weight[:, None],
        bias,
        groups=3,
    ).transpose(1, 2)
    expected = F.silu(expected.flip(1) if reverse else expected)
    found = causal_conv1d_silu(full[:, kept], weight, bias, kept.expand(2, -1), reverse)
    assert torch.allclose(found, expected[:, kept], atol=1e-12)


def test_backend_that_cannot_run_the_inputs_is_refused():
    cpu = torch.device("cpu")
    assert resolve_backend("auto", cpu, torch.float32) == "cpu"
    assert resolve_backend("auto", cpu, torch.float64) == "reference"
    with pytest.raises(UsageError, match="float32 on the CPU"):
        resolve_backend("cpu", cpu, torch.float64)
    with pytest.raises(UsageError, match="did you mean"):
        resolve_backend("refrence", cpu, torch.float32)
