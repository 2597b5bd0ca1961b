"""Shares the work of a kernel out to as many threads as torch uses.

Kernels release the GIL and run in the calling thread and in a few threads of Python's own. A second
OpenMP pool would be the usual way, but on a machine with few cores its idle threads and torch's
would wait in busy loops on the cores that the other ones need.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from ssmprune.scan.simd import inline

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


def share(work: Callable[[int, int], None], tasks: int) -> None:
    """Call `work(first, last)` for consecutive parts of `range(tasks)`, one part per thread."""
    parts = min(torch.get_num_threads(), tasks)
    if parts <= 1:
        work(0, tasks)
        return
    bounds = [tasks * part // parts for part in range(parts + 1)]
    pool = _pool(parts - 1)
    futures = [pool.submit(work, *bounds[part : part + 2]) for part in range(1, parts)]
    try:
        work(*bounds[:2])
    finally:
        for future in futures:
            future.result()


@functools.lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ssmprune-scan")


# a forked child has none of its parent's threads
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
