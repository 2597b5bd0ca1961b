"""What is the Triton kernels' own: half precision, blocks and chunks, and being torch operators."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ssmprune.measure.trace import trace_flops
from ssmprune.models.families import build_model
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Policy, Stage
from ssmprune.pruning.apply import apply_policy
from ssmprune.scan import (
    Gaps,
    causal_conv1d_silu,
    gpu,
    operators,
    reference,
    resolve_backend,
    selective_scan,
)
from ssmprune.scan.call import ScanCall
from tests.conftest import INTERPRETED, ON_GPU, ROOT, relative_error

SMALL = replace(find_config("vim_nano"), image_size=(18, 12), embed_dim=12, depth=2)


@pytest.fixture(params=[pytest.param("cpu", marks=INTERPRETED), pytest.param("cuda", marks=ON_GPU)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def scan_tensors(B: int, L: int, E: int, N: int, device: str) -> tuple[torch.Tensor, ...]:
    """u, delta, A, B, C, D, delta_bias, gap counts and steps, sizes."""
    random = torch.Generator().manual_seed(0)
    sequences = [torch.randn(B, L, n, generator=random) for n in (E, E, N, N)]
    u, delta, B_BLN, C_BLN = sequences
    A, D = -torch.rand(E, N, generator=random), torch.randn(E, generator=random)
    count = torch.randint(0, 4, (B, L), generator=random).float()
    sizes = torch.randint(1, 4, (B, L), generator=random).float()
    bias, step = torch.rand(E, generator=random) - 4, torch.rand(E, generator=random)
    parameters = (D, bias, count, step, sizes)
    return tuple(x.to(device) for x in (u, delta, A, B_BLN, C_BLN, *parameters))


def assert_rounded(found: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    """`found` is `exact` in `dtype`, cut off or rounded: Triton's interpreter cuts bfloat16 off."""
    assert found.dtype == dtype
    assert torch.allclose(found.float(), exact, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("L", "E", "N"), [(26, 3, 2), (2, 150, 1), (2, 3, 100), (1, 1, 300)])
def test_scan_is_exact_over_many_chunks_blocks_and_states(device, L, E, N, sized):
    *inputs, sizes = scan_tensors(1, L, E, N, device)
    sizes = sizes if sized else None
    exact = [x.double().cpu().requires_grad_(i != 7) for i, x in enumerate(inputs)]
    u, delta, A, B, C, D, bias, count, step = exact
    expected, _ = reference.selective_scan(
        u, delta, A, B, C, D, None, bias, True, Gaps(count, step, 0.5),
        sizes=None if sizes is None else sizes.cpu(),
    )  # fmt: skip
    expected.sum().backward()
    arguments = (*inputs, sizes, 0.5, True, False)
    found = gpu.scan_forward(ScanCall(*arguments))
    assert relative_error(found.cpu(), expected.detach()) <= 2e-6
    dy = torch.ones(1, device=device).expand(1, L, E)
    gradients = gpu.scan_backward(dy, ScanCall(*arguments))
    leaves = exact[:7] + exact[8:]
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert relative_error(gradient.cpu(), leaf.grad) <= 5e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_and_written_as_it_is_and_scanned_in_float32(device, dtype):
    u, delta, A, B, C, D, bias, count, step, sizes = scan_tensors(1, 6, 5, 4, device)
    u, delta, B, sizes = (x.to(dtype) for x in (u, delta, B, sizes))  # C stays float32
    halves = [x.clone().requires_grad_() for x in (u, delta, A, B, C, D, bias)]
    wide = [x.float().clone().requires_grad_() for x in (u, delta, A, B, C, D, bias)]
    results = []
    for u, delta, A, B, C, D, bias in (halves, wide):
        y = selective_scan(
            u, delta, A, B, C, D, None, bias, True, Gaps(count, step, 0.5), backend="triton",
            sizes=sizes,
        )  # fmt: skip
        y.backward(torch.ones_like(y))
        results.append(y.detach())
    assert_rounded(*results, dtype)
    for leaf, other in zip(halves, wide, strict=True):
        assert_rounded(leaf.grad, other.grad, leaf.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolution_in_half_precision_equals_float32_rounded(device, dtype):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 5, 6, generator=random).to(device, dtype)
    weight, bias = (torch.randn(shape, generator=random).to(device) for shape in ((6, 4), (6,)))
    half, wide = x.clone().requires_grad_(), x.float().requires_grad_()
    found = causal_conv1d_silu(half, weight, bias, backend="triton")
    exact = causal_conv1d_silu(wide, weight, bias, backend="triton")
    found.sum().backward()
    exact.sum().backward()
    assert_rounded(found.detach(), exact.detach(), dtype)
    assert_rounded(half.grad, wide.grad, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("optional", [True, False])
def test_fake_results_are_laid_out_and_typed_as_the_kernels_are(device, dtype, optional):
    u, delta, A, B, C, D, bias, count, step, sizes = scan_tensors(2, 3, 5, 4, device)
    u, delta, B = (x.to(dtype) for x in (u, delta, B))  # the parameters and C stay float32
    given = (D, bias, count, step, sizes) if optional else (None,) * 5
    scan = (u, delta, A, B, C, *given, 0.5, True, False, "triton")
    weight, conv_bias = A.contiguous(), D
    positions = torch.arange(0, 6, 2, device=device).expand(2, -1) if optional else None
    conv = (u, weight, conv_bias, positions, None, True, "triton")
    runs = (u, weight, conv_bias, None, sizes, True, "triton")
    for operator, arguments in (
        (operators.selective_scan, scan),
        (operators._selective_scan_backward, (u, *scan)),
        (operators.causal_conv1d_silu, conv),
        (operators._causal_conv1d_silu_backward, (u, *conv)),
        (operators.causal_conv1d_silu, runs),
        (operators._causal_conv1d_silu_backward, (u, *runs)),
    ):
        with FakeTensorMode() as mode:
            promised = operator(*tree_map_only(torch.Tensor, mode.from_tensor, arguments))
        found = operator(*arguments)
        assert [layout(x) for x in tree_leaves(found)] == [layout(x) for x in tree_leaves(promised)]


def layout(x: torch.Tensor) -> tuple:
    return x.dtype, x.shape, x.stride(), x.device


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own check
def test_kernels_are_proper_torch_operators(device):
    *tensors, count, step, sizes = scan_tensors(1, 2, 3, 2, device)
    leaves = [x.requires_grad_() for x in tensors]
    scan = (*leaves, count, step.requires_grad_(), sizes, 0.5, True, False, "triton")
    torch.library.opcheck(operators.selective_scan, scan)
    x, weight, bias = (
        torch.rand(shape, device=device).requires_grad_() for shape in ((1, 2, 3), (3, 2), (3,))
    )
    positions = torch.tensor([[0, 2]], device=device)
    for distances in ((positions, None), (None, sizes)):
        conv = (x, weight, bias, *distances, True, "triton")
        torch.library.opcheck(operators.causal_conv1d_silu, conv)


@torch.no_grad()
def test_pruned_model_has_the_logits_and_flops_of_the_other_backends(device):
    torch.manual_seed(0)
    model = build_model(SMALL, "triton").eval()
    other = build_model(SMALL, "reference").eval()
    other.load_state_dict(model.state_dict())
    alignment = Alignment(decay="zero_input", strength=1.0, conv="position")
    policy = Policy(model=SMALL.name, stages=(Stage(layer=0, keep_ratio=0.5),), alignment=alignment)
    for each in (model, other):
        apply_policy(each, policy)
    images = torch.randn(1, SMALL.channels, *SMALL.image_size)
    assert relative_error(model.to(device)(images.to(device)).cpu(), other(images)) <= 1e-5
    assert trace_flops(model).by_operator() == trace_flops(other).by_operator()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_results_on_the_gpu_are_the_same_every_time():
    call = ScanCall(*scan_tensors(8, 197, 384, 16, "cuda"), 0.5, True, True)
    dy = torch.randn(8, 197, 384, device="cuda")
    first, *others = ([gpu.scan_forward(call), *gpu.scan_backward(dy, call)] for _ in range(5))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_auto_is_triton_on_the_gpu_except_in_double_precision(dtype):
    cuda = torch.device("cuda", 0)
    assert resolve_backend("auto", cuda, dtype) == "triton"
    assert resolve_backend("auto", cuda, torch.float64) == "reference"


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ssmprune.scan import gpu

SEQUENCES = {"y", "dy", "u", "du", "delta", "ddelta", "B", "C", "x"}
SUMS = {"dA", "dB", "dC", "dtotal", "dparameters", "history"}
PARAMETERS = {"A", "D", "weight", "bias", "delta_bias", "gap", "gap_step", "sizes"}
CONSTANTS = dict(SOFTPLUS=True, REVERSE=True, TAPS=4, BLOCK_T=16, BLOCK_E=16, BLOCK_N=16)
TYPES = (
    dict.fromkeys(SEQUENCES, "*bf16")
    | dict.fromkeys(SUMS | PARAMETERS, "*fp32")
    | {"positions": "*i64", "gap_scale": "fp32"}
    | dict.fromkeys(CONSTANTS, "constexpr")
)
for kernel in (gpu._scan_forward, gpu._scan_backward, gpu._conv_forward, gpu._conv_backward):
    for missing in ((), ("D", "delta_bias", "gap", "gap_step", "positions", "sizes")):
        types = TYPES | dict.fromkeys(missing, "constexpr")
        constants = CONSTANTS | dict.fromkeys(missing)
        source = ASTSource(
            kernel,
            {name: types.get(name, "i32") for name in kernel.arg_names},
            {name: constants[name] for name in kernel.arg_names if name in constants},
        )
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        assert compile(source, target, {"num_warps": 1, "enable_fp_fusion": True}).asm["cubin"]
"""


SPILLS = """
import sys
import torch
from benchmarks.gpu_kernels import compiled_only, convolution, scan

with compiled_only(int(sys.argv[1])) as usages:
    for states in (1, 8, 16):
        for sized in (False, True):
            scan(states, torch.bfloat16, "zero_input", sized, True)
    for distances in ("position", "runs"):
        convolution(torch.bfloat16, distances, True)
assert len(usages) == 18, usages
assert not any(usage.spilled for usage in usages), usages
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("script", [COMPILE, SPILLS], ids=["compile", "do-not-spill"])
def test_kernels_for_gpus_that_are_not_there(script, capability, tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", script, str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
