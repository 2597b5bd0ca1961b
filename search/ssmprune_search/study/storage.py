"""Where a study is kept: in a journal beside the run, or in a database.

Either way one process writes it, the one that holds the run directory; see `workers.service`.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage

from ssmprune.errors import RunError, UsageError
from ssmprune_search.study.journal import JournalFile

PATIENCE_SECONDS = 300.0
CONNECT_SECONDS = 10

JOURNAL = "journal"
"""What `--storage` calls the file."""

T = TypeVar("T")


@dataclass(frozen=True)
class Database:
    """A study in a database.

    Attributes:
        url: As SQLAlchemy reads it.
        study: Name of the study there.
    """

    url: str
    study: str

    def __str__(self) -> str:
        return f"{self.study} in {without_password(self.url)}"


Place = Path | Database
"""A journal's path, or a study in a database."""


class Store:
    """An open storage.

    Attributes:
        storage: For Optuna.
        study: Name of the study in it.
    """

    def __init__(self, place: Place):
        """Open the storage; a journal or tables that are not there are made.

        Raises:
            UsageError: A database's URL is malformed, or its driver is not installed.
            RunError: The database does not answer.
        """
        self._journal = JournalFile(place) if isinstance(place, Path) else None
        self.storage: BaseStorage
        if isinstance(place, Database):
            database = _connect(place.url)
            weakref.finalize(self, database.engine.dispose)  # closes its connections
            self.storage, self.study = get_storage(database), place.study
        else:
            assert self._journal is not None
            self.storage, self.study = JournalStorage(self._journal), "search"

    def exclusive(self) -> AbstractContextManager[None]:
        """Keep other processes out; a database has none that write."""
        return self._journal.exclusive() if self._journal else nullcontext()

    def sync(self) -> None:
        """Return when all records are on the disk; a database commits by itself."""
        if self._journal:
            self._journal.sync()


def move(source: Place, target: Place) -> None:
    """Copy a study to a storage that does not have it."""
    old, new = Store(source), Store(target)
    with new.exclusive():
        optuna.copy_study(
            from_study_name=old.study,
            from_storage=old.storage,
            to_storage=new.storage,
            to_study_name=new.study,
        )


def _connect(url: str) -> RDBStorage:
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    settings: dict[str, object] = {"pool_pre_ping": True}
    if url.startswith("postgresql"):
        settings["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
    try:
        return RDBStorage(url, engine_kwargs=settings)
    except (ArgumentError, ImportError) as fault:
        raise UsageError(
            f"--storage must be journal, or a database's URL whose driver is installed, such as "
            f"postgresql+psycopg://USER:PASSWORD@HOST/DATABASE, got {without_password(url)!r}: "
            f"{_first_line(fault)}; for PostgreSQL, `pip install ssmprune[postgresql]`."
        ) from None
    except (SQLAlchemyError, OptunaError) as fault:
        raise RunError(
            f"a study's database must answer, but {without_password(url)} does not: "
            f"{_first_line(fault)}; start it, check the URL, and give the password with --storage "
            "or as the database's own tools take it (PGPASSWORD, ~/.pgpass)."
        ) from None


def absolute_url(url: str) -> str:
    """The URL with the path of an SQLite file made absolute; others as they are.

    Raises:
        UsageError: The database would be gone with this process.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except ArgumentError:
        return url  # told when it is opened
    if parts.get_backend_name() != "sqlite":
        return url
    if parts.database in (None, "", ":memory:"):
        raise UsageError(
            f"--storage must outlive the search, but {url} is in memory; name a file, such as "
            "sqlite:///study.db, or leave it out."
        )
    path = str(Path(str(parts.database)).absolute())
    return parts.set(database=path).render_as_string(hide_password=False)


def without_password(url: str) -> str:
    """The URL as it may be shown and recorded."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url).difference_update_query(["password"])
    except ArgumentError:
        return url.split("@")[-1]
    return parts._replace(password=None).render_as_string(hide_password=False)


def patiently(act: Callable[[], T], mend: Callable[[], object], say: Callable[[str], None]) -> T:
    """Do something with a study, again and again while its database is away.

    Args:
        act: What is to be done.
        mend: Puts right what an attempt in vain left behind; comes before the next one.
        say: Takes one line for people.

    Raises:
        RunError: The database has been away for `PATIENCE_SECONDS`.
    """
    try:
        return act()
    except Exception as fault:
        if not is_away(fault):
            raise
        reason = _first_line(fault)
    say(f"search: the study's database is away, trying for {PATIENCE_SECONDS:g} s: {reason}")
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, 0.1
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
        try:
            mend()
            result = act()
        except Exception as fault:
            if not is_away(fault):
                raise
            reason = _first_line(fault)
        else:
            say("search: the study's database is back")
            return result
    raise RunError(
        f"a study's database must answer, but it has not for {PATIENCE_SECONDS:g} s: {reason}; "
        "put it right, and go on with --resume."
    )


def is_away(fault: BaseException) -> bool:
    """Whether a database has failed, not what was asked of it."""
    if isinstance(fault, StorageInternalError):
        return True
    from sqlalchemy.exc import InterfaceError, OperationalError, PendingRollbackError

    return isinstance(fault, (OperationalError, InterfaceError, PendingRollbackError))


def _first_line(fault: BaseException) -> str:
    fault = fault.__cause__ or fault
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0].rstrip(".")
