"""numba's compiler, with its cache on disk wherever one can be kept."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

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
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # numba's word for "no place"
            directory = _temporary_cache()
        if directory is None:
            return numba.njit(**options)(function)
        settings: Any = numba.config
        before, settings.CACHE_DIR = settings.CACHE_DIR, str(directory)
        try:
            return numba.njit(cache=True, **options)(function)
        finally:
            settings.CACHE_DIR = before

    return decorate


def _temporary_cache() -> Path | None:
    """A directory that nobody else can write to, as what is cached there will run; or None."""
    user = os.getuid()
    try:
        directory = Path(tempfile.gettempdir(), f"ssmprune-{user}")
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
        tempfile.TemporaryFile(dir=directory).close()
    except OSError:
        return None
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == user and not found.st_mode & 0o077
    return directory if is_own else None
