"""Files that are written whole or not at all, and directories that one process holds at a time."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssmprune.errors import RunError

_MOST_ATTEMPTS = 100

LOCK = ".lock"
"""The file in a directory that whoever holds it has locked; holds the number of its process."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new, empty file beside `path`, which takes its place if nothing goes wrong.

    No reader ever sees half a file. Missing directories are made.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{uuid.uuid4().hex[:8]}")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str) -> None:
    """Put `text`, in UTF-8, in the place of what `path` held."""
    write_bytes_atomically(path, text.encode("utf-8"))


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Put `content` in the place of what `path` held."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def holding(directory: Path, user: str) -> Iterator[None]:
    """Hold a run's directory, which is made if there is none; ends with the process at the latest.

    A directory that this makes is removed again if nothing was written meanwhile.

    Args:
        directory: The directory.
        user: Who uses one alone, for messages: a search.

    Raises:
        RunError: A live process holds it, it cannot be made, or its file system has no locks.
    """
    made = not directory.exists()
    lock = directory / LOCK
    handle = _hold(directory, user, made)
    try:
        yield
    finally:
        _release(handle, lock, made)


def is_held(directory: Path) -> bool:
    """Whether a live process holds the directory."""
    try:
        handle = os.open(directory / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _hold(directory: Path, user: str, made: bool) -> int:
    """The lock file, opened and locked; one that its holder removed meanwhile locks nothing."""
    lock = directory / LOCK
    while True:
        handle = _open_lock(lock)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 20, 0).decode(errors="replace").strip()
            os.close(handle)
            raise RunError(
                f"a run directory must be used by one {user} at a time, but process {owner} uses "
                f"{directory}; wait for it, or give another directory."
            ) from None
        except OSError as fault:
            _release(handle, lock, made)
            raise RunError(
                "a run directory must be on a file system with locks, but that of "
                f"{directory} has none ({fault.strerror}); give a directory on a local disk."
            ) from None
        try:
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
                    return handle
        except OSError as fault:
            _release(handle, lock, made)
            raise _not_writable(directory, fault) from None
        os.close(handle)


def _open_lock(lock: Path) -> int:
    """The lock file, made with its directory if it is not there.

    Raises:
        RunError: It cannot be made.
    """
    for _ in range(_MOST_ATTEMPTS):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            return os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileExistsError:
            raise RunError(
                f"a run directory must be a directory, but {lock.parent} is a file; give another."
            ) from None
        except FileNotFoundError as fault:
            refusal = fault  # unless its holder has removed the directory since it was made
        except OSError as fault:
            raise _not_writable(lock.parent, fault) from None
    raise _not_writable(lock.parent, refusal)


def _release(handle: int, lock: Path, made: bool) -> None:
    """Give up a lock file, and a directory that was made for it if nothing is in it."""
    lock.unlink(missing_ok=True)
    if made:
        with suppress(OSError):  # unless something has been written into it
            lock.parent.rmdir()
    os.close(handle)


def _not_writable(directory: Path, fault: OSError) -> RunError:
    return RunError(
        f"a run directory must be writable, but {directory} is not: {fault.strerror}; "
        "give another directory."
    )
