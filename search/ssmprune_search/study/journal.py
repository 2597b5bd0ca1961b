"""The study's file: one JSON record a line, appended by many processes, whole after any kill.

Optuna's own file backend writes and reads the file for every single record, guards it with a lock
that outlives a killed process, and lets a half line, which a killed process or a full disk leaves
behind, swallow the next record. Here all records of an `exclusive` block go into the file
together, the kernel holds the lock, and a half line is cut off before anything is appended.
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

from optuna.storages.journal import BaseJournalBackend

from ssmprune.errors import RunError

logger = logging.getLogger(__name__)


class JournalFile(BaseJournalBackend):
    """Optuna's storage backend on one file; for one thread of one process, beside others."""

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            path.touch()
        self._handle: int | None = None
        self._pending: list[bytes] = []
        self._records, self._bytes = 0, 0  # read so far
        self._is_read = False  # to the end, since the lock is held

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep all other processes from appending; what this one appends is written at the end.

        The lock ends with the process, however it ends.

        Raises:
            OSError: The disk refuses the records, a full one for example; then none is in the
                file, and this object, which has shown them already, must not be used any more.
        """
        if self._handle is not None:
            yield
            return
        handle = os.open(self.path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            _cut_half_line(handle, self.path)
            self._handle = handle
            yield
        finally:
            self._handle = None
            try:
                self._flush(handle)
            finally:
                os.close(handle)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records; once written they survive the death of this process, after `sync` any."""
        with self.exclusive():
            self._pending += [json.dumps(log, separators=(",", ":")).encode() for log in logs]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from a number on, those that are about to be written included."""
        if log_number_from < self._records:
            self._records, self._bytes = 0, 0
            self._is_read = False
        skip = log_number_from - self._records
        found = [] if self._is_read else self._read_new()
        return map(json.loads, (found + self._pending)[skip:])

    def sync(self) -> None:
        """Return when all records are on the disk."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _read_new(self) -> list[bytes]:
        """Whole records that were written since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._bytes)
            lines = file.read().splitlines(keepends=True)
        if lines and not _is_record(lines[-1]):
            del lines[-1]
        self._records += len(lines)
        self._bytes += sum(map(len, lines))
        self._is_read = self._handle is not None
        return lines

    def _flush(self, handle: int) -> None:
        """Write what is pending, or, where the disk refuses, nothing of it."""
        data = b"".join(record + b"\n" for record in self._pending)
        if self._is_read:
            self._records += len(self._pending)
            self._bytes += len(data)
        self._pending, self._is_read = [], False
        size = os.fstat(handle).st_size
        try:
            while data:
                data = data[os.write(handle, data) :]
        except OSError:
            os.ftruncate(handle, size)
            raise


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
