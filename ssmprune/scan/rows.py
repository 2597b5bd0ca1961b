"""Torch tensors as the CPU kernels see them: addresses and strides in bytes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssmprune.errors import UsageError
from ssmprune.scan.simd import inline


class Rows(NamedTuple):
    """Where the rows of a (B, L, ...) tensor lie: an address and strides, in bytes."""

    address: int
    image_stride: int
    token_stride: int

    @classmethod
    def of(cls, x: Tensor | None) -> Rows:
        """The rows of a tensor; address 0 for None."""
        if x is None:
            return cls(0, 0, 0)
        return cls(x.data_ptr(), x.stride(0) * x.itemsize, x.stride(1) * x.itemsize)


@inline
def row_address(rows: Rows, b: int, t: int) -> int:
    return rows.address + b * rows.image_stride + t * rows.token_stride


def checked(name: str, x: Tensor, shape: tuple[int | None, ...]) -> Tensor:
    """`x` with its last dimension contiguous; `shape` holds None where any size will do.

    Raises:
        UsageError: The shape differs, or `x` is not float32 on the CPU.
    """
    if x.dtype != torch.float32 or not x.is_cpu:
        raise UsageError(
            f"the CPU kernels must get float32 on the CPU, got {x.dtype} on {x.device} for {name}; "
            "convert it or use the reference backend."
        )
    if x.shape != shape and not _fits(x.shape, shape):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise UsageError(f"{name} must be of shape ({expected}), got {tuple(x.shape)}.")
    return x if x.shape[-1] == 1 or x.stride(-1) == 1 else x.contiguous()


def _fits(given: torch.Size, shape: tuple[int | None, ...]) -> bool:
    return len(given) == len(shape) and all(
        size in (None, number) for size, number in zip(shape, given, strict=True)
    )


def copied(x: Tensor) -> Tensor:
    """A contiguous copy: results of a torch operator must not share memory."""
    return x.clone(memory_format=torch.contiguous_format)
