"""Peak memory of one forward pass: what a model needs beside its weights and its images.

On the CPU the bytes of every storage that an operator creates are added up, and taken away when it
is freed, so the peak is the same in every run and on every machine. What an operator takes and
gives back before it returns, such as the scratch memory of a scan, does not show there. On CUDA the
allocator tells the peak, and it shows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Forward = Callable[[Tensor], object]


def peak_memory(forward: Forward, images: Tensor, *, amp: bool = False) -> int:
    """The most bytes that tensors take at one time in a forward pass without gradients.

    Weights, images and what else there was before do not count; what the pass returns does. A pass
    before the one that counts fills caches.

    Args:
        forward: Takes the images.
        images: One batch `(B, C, H, W)` on the device to be measured.
        amp: Run under bfloat16 autocast.
    """
    device = images.device
    measure = _peak_on_cuda if device.type == "cuda" else _peak_on_cpu
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
        forward(images)
        return measure(forward, images)


def _peak_on_cuda(forward: Forward, images: Tensor) -> int:
    device = images.device
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    forward(images)
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def _peak_on_cpu(forward: Forward, images: Tensor) -> int:
    live = _LiveStorages()
    with live:
        forward(images)
    return live.peak


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operators create.

    Attributes:
        bytes: Those that are alive.
        peak: The most that have been alive at one time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._counted: dict[int, int] = {}  # bytes of a storage by its address, while it is alive

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self._count(storage)
        self.peak = max(self.peak, self.bytes)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._counted:
            return
        self._counted[storage._cdata] = storage.nbytes()
        self.bytes += storage.nbytes()
        weakref.finalize(storage, self._forget, storage._cdata).atexit = False

    def _forget(self, address: int) -> None:
        self.bytes -= self._counted.pop(address)


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in nested arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
