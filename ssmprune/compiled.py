"""numba's compiler, with its cache on disk wherever one can be kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numba

from ssmprune.caches import temporary_cache

Function = TypeVar("Function", bound=Callable[..., Any])


def cached_njit(**options: Any) -> Callable[[Function], Any]:
    """`numba.njit` whose machine code is cached beside the source, or in the user's own cache.

    numba refuses to cache where it may write to neither, as in a container without a home. There
    a directory of the user among the temporary files serves, and else every process compiles.

    Args:
        options: As `numba.njit` takes them.
    """

    def decorate(function: Function) -> Any:
        try:
            return _readable(numba.njit(cache=True, **options)(function))
        except RuntimeError:  # numba's word for "no place"
            directory = temporary_cache()
        if directory is None:
            return numba.njit(**options)(function)
        settings: Any = numba.config
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(directory)
        try:
            return _readable(numba.njit(cache=True, **options)(function))
        finally:
            settings.CACHE_DIR = before

    return decorate


def _readable(function: Any) -> Any:
    """The function without a cache of an earlier version that holds types from where they were.

    numba would read it before it sees that it is too old, and fail at the first call.
    """
    cache = function._cache
    index = getattr(cache, "_cache_file", None)
    try:
        if index is not None:
            index._load_index()
    except Exception:  # noqa: BLE001 - whatever unpickling ends with
        with suppress(OSError):  # an installation that cannot be written to is of one version
            cache.flush()
    return function
