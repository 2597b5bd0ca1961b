"""A place for what libraries keep between processes, where the user has no other."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def temporary_cache() -> Path | None:
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


def prepare_matplotlib() -> None:
    """Give matplotlib a place for its list of fonts, before it is imported.

    Without a home it would make the list anew in every process, and warn of that.
    """
    if "MPLCONFIGDIR" in os.environ or all(map(_is_writable, _matplotlib_directories())):
        return
    directory = temporary_cache()
    if directory is not None:
        os.environ["MPLCONFIGDIR"] = str(directory)


def _matplotlib_directories() -> list[Path]:
    home = Path(os.path.expanduser("~"))
    return [
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config"),
        Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache"),
    ]


def _is_writable(directory: Path) -> bool:
    """Whether files can be made in a directory, or the directory itself."""
    there = next(place for place in (directory, *directory.parents) if place.exists())
    return os.access(there, os.W_OK | os.X_OK)
