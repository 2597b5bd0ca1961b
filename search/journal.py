"""The study's file: one JSON record a line, appended by many processes, whole after any kill.

Optuna's own file backend guards an append with a file that outlives a killed process and makes
all others wait; and a half line that a killed process or a full disk leaves behind swallows the
next record. Here the kernel holds the lock, and an append cuts off such a line first.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from ssmprune.errors import RunError

logger = logging.getLogger(__name__)


class JournalFile(JournalFileBackend):
    """Optuna's storage backend on one file; many processes append, one at a time."""

    def __init__(self, path: Path):
        super().__init__(str(path))
        self.path = path
        self._held: int | None = None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep all other processes from appending; appends of this object go through.

        The lock ends with the process, however it ends.
        """
        if self._held is not None:
            yield
            return
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._held = handle
            _cut_half_line(handle, self.path)
            yield
        finally:
            self._held = None
            os.close(handle)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records; they survive the death of this process, and with `sync` of the machine."""
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self.exclusive():
            assert self._held is not None
            data = text.encode()
            while data:
                data = data[os.write(self._held, data) :]

    def sync(self) -> None:
        """Return when all records are on the disk."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def recover(path: Path) -> str | None:
    """Cut off a last record that was not written whole; what is cut stays in a file beside it.

    Nobody else may be writing.

    Returns:
        A sentence on what was cut; None when the file is whole.

    Raises:
        RunError: A record before the last one is broken.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    broken = [n for n, line in enumerate(lines) if not _is_record(line)]
    if not broken:
        return None
    if broken[0] < len(lines) - 1:
        raise RunError(
            f"every line of a study journal must be a JSON record, got something else at {path}, "
            f"line {broken[0] + 1}; restore the file from a copy, or begin a new run."
        )
    backup = _back_up(path, lines[-1])
    os.truncate(path, sum(map(len, lines[:-1])))
    return (
        f"{path} ended in a half-written record (line {len(lines)}); it was cut off and kept "
        f"as {backup.name}."
    )


def _is_record(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _cut_half_line(handle: int, path: Path) -> None:
    """Remove what a killed process left after the last line end; the lock must be held."""
    size = os.fstat(handle).st_size
    if size == 0 or os.pread(handle, 1, size - 1) == b"\n":
        return
    data = os.pread(handle, size, 0)
    whole = data.rfind(b"\n") + 1
    backup = _back_up(path, data[whole:])
    os.ftruncate(handle, whole)
    logger.warning("%s ended in a half-written record; it was cut off, see %s.", path, backup)


def _back_up(path: Path, data: bytes) -> Path:
    number = 1
    while (backup := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    backup.write_bytes(data)
    return backup
