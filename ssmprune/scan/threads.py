"""Shares the work of a kernel out to as many threads as torch uses.

The threads are torch's own: `in_team` starts a team of the OpenMP runtime that torch brought into
the process. With a second pool, numba's or one of Python's, the idle threads of each would wait in
busy loops on the cores that the other one needs.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import llvmlite.binding
import torch
from llvmlite import ir
from numba.core import cgutils, types
from torch import Tensor

from ssmprune.scan.simd import inline, primitive

_TASKS = 32


class Partition(NamedTuple):
    """Work on B images times blocks of 16 channels, in groups of images and segments of blocks.

    Depends on the shape only: the partial sums of a task are the same whatever the thread count.
    """

    images: int
    blocks: int
    groups: int
    segments: int

    @classmethod
    def of(cls, images: int, blocks: int) -> Partition:
        """About as many tasks as keep a large machine busy, of one image or more."""
        groups = min(images, _TASKS)
        return cls(images, blocks, groups, min(blocks, -(-_TASKS // groups)))

    @property
    def tasks(self) -> int:
        return self.groups * self.segments


@inline
def images_of(partition: Partition, task: int) -> tuple[int, int]:
    """First and last image of a task."""
    group = task // partition.segments
    start = group * partition.images // partition.groups
    return start, (group + 1) * partition.images // partition.groups


@inline
def blocks_of(partition: Partition, task: int) -> tuple[int, int]:
    """First and last block of channels of a task."""
    segment = task % partition.segments
    start = segment * partition.blocks // partition.segments
    return start, (segment + 1) * partition.blocks // partition.segments


def ordered_sum(partial_sums: Tensor) -> Tensor:
    """The sum over the first dimension, always in the same order."""
    if partial_sums.shape[0] == 1:
        return partial_sums[0]
    return torch.from_numpy(partial_sums.numpy().sum(axis=0))


_INT32, _INT64, _ADDRESS = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


def _find_openmp() -> bool:
    """Let kernels call torch's OpenMP runtime; False where that is not GNU's, as on macOS."""
    library = ctypes.CDLL(torch._C.__file__)
    if not all(hasattr(library, name) for name in _OPENMP):
        return False
    for name in _OPENMP:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
        llvmlite.binding.add_symbol(f"ssmprune_{name}", address)
    return True


_has_openmp = _find_openmp()


@primitive
def in_team(typingctx: Any, function: Any, threads: Any, tasks: Any, arguments: Any) -> Any:
    """Call `function(first, last, thread, *arguments)` in each of `threads` threads at once, for
    consecutive parts of `range(tasks)`."""
    call = typingctx.resolve_function_type(function, [types.int64] * 3 + list(arguments), {})

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        _, threads, tasks, packed = values
        fields = [tasks, *cgutils.unpack_tuple(builder, packed)]
        shared = cgutils.alloca_once(
            builder, ir.LiteralStructType([field.type for field in fields]), name="shared"
        )
        builder.store(cgutils.make_anonymous_struct(builder, fields), shared)
        member = _team_member(context, builder, context.get_function(function, call), shared.type)
        start = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [member.type, _ADDRESS, _INT32, _INT32]),
            "ssmprune_GOMP_parallel",
        )
        flags = ir.Constant(_INT32, 0)
        data = builder.bitcast(shared, _ADDRESS)
        builder.call(start, [member, data, builder.trunc(threads, _INT32), flags])
        return context.get_dummy_value()

    return types.none(function, types.int64, types.int64, arguments), lower


def _team_member(
    context: Any, builder: ir.IRBuilder, function: Callable[..., Any], shared: ir.Type
) -> ir.Function:
    """What each thread runs: `void member(shared *)`, which finds its part of the tasks.

    numba's functions can only be called from one of its own, which has an exception to return; a
    kernel raises none.
    """
    module, name = builder.module, builder.function.name
    numba_type = context.call_conv.get_function_type(types.none, (types.voidptr,))
    body = ir.Function(module, numba_type, f"{name}.team_body")
    body.linkage = "internal"
    inside = ir.IRBuilder(body.append_basic_block())
    fields = inside.load(inside.bitcast(body.args[2], shared))
    tasks, *arguments = cgutils.unpack_tuple(inside, fields)
    thread, threads = (
        inside.zext(
            inside.call(
                cgutils.get_or_insert_function(
                    module, ir.FunctionType(_INT32, []), f"ssmprune_{query}"
                ),
                [],
            ),
            _INT64,
        )
        for query in ("omp_get_thread_num", "omp_get_num_threads")
    )
    next_thread = inside.add(thread, ir.Constant(_INT64, 1))
    first, last = (
        inside.sdiv(inside.mul(tasks, number), threads) for number in (thread, next_thread)
    )
    function(inside, [first, last, thread, *arguments])
    inside.ret(ir.Constant(_INT32, 0))

    member = ir.Function(module, ir.FunctionType(ir.VoidType(), [_ADDRESS]), f"{name}.team")
    member.linkage = "internal"
    outside = ir.IRBuilder(member.append_basic_block())
    result, exception = (outside.alloca(argument.type.pointee) for argument in body.args[:2])
    outside.call(body, [result, exception, member.args[0]])
    outside.ret_void()
    return member


def thread_count(tasks: int) -> int:
    """Over how many threads to share tasks out."""
    return max(1, min(torch.get_num_threads(), tasks))


def share(
    team: Callable[..., None], part: Callable[..., None], tasks: int, *arguments: Any
) -> None:
    """Run the kernel `part(first, last, thread, *arguments)` on parts of `range(tasks)`.

    Args:
        team: The kernel `team(threads, tasks, *arguments)`, which runs `part` `in_team`.
    """
    threads = thread_count(tasks)
    if threads == 1:
        part(0, tasks, 0, *arguments)
    elif _has_openmp:
        team(threads, tasks, *arguments)
    else:
        bounds = [tasks * thread // threads for thread in range(threads + 1)]
        with ThreadPoolExecutor(threads, thread_name_prefix="ssmprune-scan") as pool:
            for future in [
                pool.submit(part, *bounds[thread : thread + 2], thread, *arguments)
                for thread in range(threads)
            ]:
                future.result()


def _forget_openmp() -> None:
    global _has_openmp
    _has_openmp = False


# a forked child has none of its parent's threads, and GNU's OpenMP would wait for them
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_openmp)
