"""A CUDA device that is not there: tensors that say they are on it, with their values on the CPU.

An operator that is given tensors of both places is refused, as on a GPU; any other one runs on the
CPU. Autocast follows CUDA's rules. In place of a Triton kernel the CPU's runs, and its results get
the types that the operator's fake implementation promises.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda:0")
_COPIES = {"aten::copy_", "aten::_to_copy"}


class PretendTensor(torch.Tensor):
    """A tensor on the pretended device; its values are in `held`, on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> PretendTensor:
        with torch.inference_mode(held.is_inference()):
            return torch.Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=DEVICE,
            )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"PretendTensor({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, operator: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _run(operator, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()

    def backward(self) -> None:
        """Add the gradients of this scalar to its leaves, as autograd's engine would do.

        The engine itself asks for the streams of a device.
        """
        assert self.grad_fn is not None
        given = {self.grad_fn: {0: torch.ones_like(self)}}
        for node in _from_the_loss(self.grad_fn):
            gradients = [given[node].get(index) for index in range(len(node._input_metadata))]
            for (next_node, index), gradient in _passed_on(node, gradients):
                gradient = _as_its_output(gradient, next_node._input_metadata[index])
                sums = given.setdefault(next_node, {})
                sums[index] = sums[index] + gradient if index in sums else gradient


class _Pretence(TorchDispatchMode):
    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None):
        return _run(operator, args, kwargs or {})


def _run(operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = operator._schema.name
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    pretended = {id(x.held): x for x in tensors if isinstance(x, PretendTensor)}
    elsewhere = [x.shape for x in tensors if not isinstance(x, PretendTensor) and x.dim() > 0]
    if pretended and elsewhere and name not in _COPIES:
        raise RuntimeError(f"{name} is given tensors on {DEVICE} and on the CPU: {elsewhere}")
    device = kwargs.get("device")
    is_pretended = bool(pretended) if device is None else torch.device(device).type == "cuda"
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map_only(PretendTensor, lambda x: x.held, (args, kwargs))
    if is_pretended and name.startswith("ssmprune::"):
        result = _in_place_of_triton(operator, *args)
    else:
        result = operator(*args, **kwargs)
    if not is_pretended:
        return result

    def wrapped(x: Tensor) -> PretendTensor:
        return pretended[id(x)] if id(x) in pretended else PretendTensor(x)

    return tree_map_only(Tensor, wrapped, result)


def _in_place_of_triton(operator: Any, *args: Any) -> Any:
    assert [x for x in args if isinstance(x, str)] == ["triton"], operator
    promised = operator(*tree_map_only(Tensor, lambda x: x.to("meta"), args))
    on_cpu = tree_map_only(str, lambda backend: "cpu", args)
    results = operator(*tree_map_only(Tensor, _widened, on_cpu))
    if isinstance(results, Tensor):
        return results.to(promised.dtype)
    return type(results)(x.to(like.dtype) for x, like in zip(results, promised, strict=True))


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def _from_the_loss(first: Any) -> Iterator[Any]:
    """The nodes of a graph, each after all that hand it gradients."""
    awaited = Counter()
    seen, stack = {first}, [first]
    while stack:
        for node, _ in stack.pop().next_functions:
            awaited[node] += 1
            if node is not None and node not in seen:
                seen.add(node)
                stack.append(node)
    ready = [first]
    while ready:
        node = ready.pop()
        yield node
        for next_node, _ in node.next_functions:
            awaited[next_node] -= 1
            if next_node is not None and awaited[next_node] == 0:
                ready.append(next_node)


def _as_its_output(gradient: Tensor, output: Any) -> Tensor:
    """A gradient in shape and type of the output that it belongs to, whose device it must be on."""
    assert gradient.device == output.device, f"a gradient is on {gradient.device}"
    return gradient.sum_to_size(output.shape).to(output.dtype)


def _passed_on(node: Any, gradients: list[Tensor | None]) -> Iterator[tuple[Any, Tensor]]:
    """What a node makes of the gradients of its outputs, for each edge that needs it."""
    edges = node.next_functions
    if hasattr(node, "apply"):  # one of Python's, with a result for every argument
        results = node.apply(*gradients)
        results = [x for x, needed in zip(results, node.needs_input_grad, strict=False) if needed]
        edges = [edge for edge in edges if edge[0] is not None]
    else:
        results = node(*gradients)
        results = results if isinstance(results, tuple) else (results,)
    for edge, result in zip(edges, results, strict=False):
        if edge[0] is not None and result is not None:
            yield edge, result


class _Event:
    """`torch.cuda.Event` on a device that has always finished."""

    def __init__(self, enable_timing: bool) -> None:
        self._seconds = 0.0

    def record(self, stream: None) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: _Event) -> float:
        return 1000 * (end._seconds - self._seconds)


def _on_the_device(answer: Any) -> Any:
    """A function of `torch.cuda` that takes tensors' own device and no other."""

    def function(device: Any, *_: Any) -> Any:
        assert torch.device(device) == DEVICE, device
        return answer

    return function


_TORCH_CUDA = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "is_bf16_supported": lambda: True,
    "device_count": lambda: 1,
    "Event": _Event,
    "get_device_name": _on_the_device("a GPU that is not there"),
    "current_stream": _on_the_device(None),
    "synchronize": _on_the_device(None),
    "reset_peak_memory_stats": _on_the_device(None),
    "memory_allocated": _on_the_device(2**20),
    "max_memory_allocated": _on_the_device(3 * 2**20),
    "get_rng_state": _on_the_device(torch.zeros(16, dtype=torch.uint8)),
}


@contextmanager
def pretended_cuda() -> Iterator[None]:
    """For the duration there seems to be one GPU."""
    torch._C._ensureCUDADeviceGuardSet()
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.backends.cudnn.flags(enabled=False),  # has operators of its own
        _Pretence(),
    ):
        patch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
        make_generator = torch.Generator
        patch.setattr(torch, "Generator", lambda device="cpu": make_generator())
        for name, stand_in in _TORCH_CUDA.items():
            patch.setattr(torch.cuda, name, stand_in)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) by way of the CPU
        try:
            yield
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
