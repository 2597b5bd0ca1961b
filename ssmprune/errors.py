"""What goes wrong, as a tree.

SsmpruneError
├── UsageError         the call is wrong: unknown name, impossible option (exit status 2)
└── FileError          a file is not what it has to be (exit status 1)
    ├── PolicyError    a policy file
    ├── SpaceError     a search space file
    ├── CheckpointError  a checkpoint
    ├── DataError      a folder of images
    ├── RecipeError    a training recipe
    └── RunError       a run directory

Every message states the rule, the value, the place and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from ssmprune.faults import unknown


class SsmpruneError(Exception):
    """Anything that the user can put right; shown as a message, never as a traceback."""


class UsageError(SsmpruneError, ValueError):
    """The call names something unknown or asks for something impossible."""


class FileError(SsmpruneError):
    """A file or directory is not what it has to be."""


class PolicyError(FileError, ValueError):
    """A policy breaks the rules of its file format or does not fit the model."""


class SpaceError(FileError, ValueError):
    """A search space breaks the rules of its file format or does not fit the model."""


class CheckpointError(FileError):
    """A file is no checkpoint, is damaged, or belongs to another model."""


class DataError(FileError):
    """A data set is missing, empty or unreadable."""


class RecipeError(FileError, ValueError):
    """A training recipe breaks the rules of its file format."""


class RunError(FileError):
    """A run directory is in use, incomplete or belongs to another search."""


class Faults:
    """Faults of independent parts of a call, gathered so that one message tells them all."""

    def __init__(self) -> None:
        self._found: list[SsmpruneError] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Keep what goes wrong inside for `tell`."""
        try:
            yield
        except SsmpruneError as fault:
            self._found.append(fault)

    def tell(self) -> None:
        """Raise what was found: a single fault as it is, several as one.

        Raises:
            UsageError: One of several is.
            FileError: None of several is.
        """
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            is_call = any(isinstance(fault, UsageError) for fault in self._found)
            message = "\n".join(dict.fromkeys(map(str, self._found)))
            raise (UsageError if is_call else FileError)(message)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not registered, with the nearest registered ones."""
    return unknown(kind, name, known).told()
