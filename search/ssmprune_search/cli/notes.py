"""What the library logs, said on standard error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import typer


class _Notes(logging.Handler):
    """Says every note once in a command."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        note = record.getMessage()
        if note not in self._said:
            self._said.add(note)
            typer.echo(note, err=True)


@contextmanager
def notes_shown() -> Iterator[None]:
    """Show the notes of one command."""
    logger, notes = logging.getLogger("ssmprune"), _Notes()
    level = logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(notes)
        logger.setLevel(level)
