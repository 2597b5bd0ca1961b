"""The study, owned by the process that holds the run directory and lent to its workers.

One process writes. So a worker needs nothing but a connection: neither the run's directory nor the
storage has to be reachable from other machines, proposals need no lock between them, and when the
owner dies, nobody writes any more. A connection that ends tells at once that a worker has died.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import AuthenticationError
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    answer_challenge,
    deliver_challenge,
)
from typing import Any, TypeVar, cast

from ssmprune.errors import RunError
from ssmprune_search.study.proposals import Suggestion
from ssmprune_search.study.records import Owner
from ssmprune_search.study.storage import patiently
from ssmprune_search.study.study import Study

T = TypeVar("T")

_BACKLOG = 256  # workers that connect at the same moment
_CLOSING_SECONDS = 2.0
_HANDSHAKE_SECONDS = 10
_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # dead after 40 s


class StudyClosed(Exception):
    """The study takes no more calls: its owner is ending the search."""


@dataclass(frozen=True)
class StudyAddress:
    """Where the study is lent; goes to every worker."""

    host: str
    port: int
    key: bytes = field(repr=False)

    def open(self, owner: Owner) -> Study:
        """The study for a worker, with all methods and properties that a `Study` has.

        Raises:
            OSError: It cannot be reached.
        """
        return cast(Study, RemoteStudy(self, owner))


class RemoteStudy:
    """A study at the other end of a connection.

    Every call raises `StudyClosed` when the search is over, and EOFError or OSError when the
    process that owns the study has died.
    """

    def __init__(self, address: StudyAddress, owner: Owner):
        self._connection = Client((address.host, address.port), authkey=address.key)
        _send_at_once(self._connection)
        self._connection.send(owner)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        is_method = callable(getattr(Study, name, None))
        return partial(self._call, name) if is_method else self._call(name)

    def begin(self, trial: int) -> None:
        """As that of `Study`; nobody waits for an answer."""
        self._connection.send(("begin", (trial,)))

    def _call(self, name: str, *arguments: Any) -> Any:
        self._connection.send((name, arguments))
        fault, answer = self._connection.recv()
        if fault is not None:
            raise fault
        return answer


class StudyService:
    """Lends a study for the time that it is used as a context.

    Attributes:
        address: For the workers.
        fault: Why the study takes no more calls, once its storage has failed for good.
        connected: Workers that are connected, of which `waiting` wait for a candidate.
    """

    def __init__(self, study: Study, host: str, say: Callable[[str], None]):
        """Args:
        study: What is lent; nobody else uses it from now on.
        host: Address of this machine that workers reach.
        say: Takes one line for people.
        """
        self.fault: RunError | None = None
        self.connected = self.waiting = 0
        self._study, self._say = study, say
        self._changed = threading.Condition()
        self._is_open = True
        self._written = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="disk", daemon=True)
        self._listener = Listener((host, 0), backlog=_BACKLOG)
        port = int(self._listener.address[1])
        self.address = StudyAddress(host, port, secrets.token_bytes(32))

    def __enter__(self) -> StudyService:
        threading.Thread(target=self._accept, name="study", daemon=True).start()
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        if self._changed.acquire(timeout=_CLOSING_SECONDS):  # unless a call waits for its database
            self._changed.notify_all()
            self._changed.release()
        self._written.set()
        self._keeper.join(_CLOSING_SECONDS)
        with suppress(OSError):  # wakes the thread that accepts
            socket.create_connection(self._listener.address, timeout=1).close()
        self._listener.close()

    def use(self, action: Callable[[Study], T]) -> T:
        """Do something with the study while nobody else does.

        Raises:
            RunError: The storage has failed for good, now or before.
            StudyClosed: The search is over.
        """
        return self._use(self._study, action)

    def end_session(self) -> None:
        """Let no worker ask any more; those that wait for a candidate end."""
        with self._changed:
            self.use(Study.end_session)
            self._changed.notify_all()

    def close_lost(self, is_dead: Callable[[Owner], bool]) -> int:
        """As that of `Study`; workers that wait take what comes into the queue."""
        with self._changed:
            lost = self.use(lambda study: study.close_lost(is_dead))
            self._changed.notify_all()
        return lost

    def _use(
        self, study: Study, action: Callable[[Study], T], mend: Callable[[], object] = int
    ) -> T:
        with self._changed:
            if self.fault:
                raise self.fault
            try:
                return patiently(partial(self._act, study, action), mend, self._say)
            except RunError as fault:
                self.fault = fault
            except OSError as fault:
                self.fault = _unwritable(study, fault)
            raise self.fault

    def _act(self, study: Study, action: Callable[[Study], T]) -> T:
        if not self._is_open:
            raise StudyClosed
        return action(study)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self._listener.accept()
                if not self._is_open:
                    connection.close()
                    return
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        """Answer one worker until it, or the search, ends."""
        owner: Owner | None = None
        with connection, suppress(EOFError, OSError, AuthenticationError):
            _set_patience(connection, _HANDSHAKE_SECONDS)
            deliver_challenge(connection, self.address.key)
            answer_challenge(connection, self.address.key)
            owner = connection.recv()
            _set_patience(connection, 0)
            study = self._study.owned_by(owner)
            self._count_connected(1)
            while True:
                name, arguments = connection.recv()
                if name == "begin":
                    study.begin(*arguments)
                else:
                    connection.send(self._answer(study, connection, name, arguments))
        if owner is not None:
            self._count_connected(-1)
            with suppress(RunError, StudyClosed):
                self.close_lost(lambda other: other == owner)

    def _count_connected(self, more: int) -> None:
        with self._changed:
            self.connected += more

    def _answer(
        self, study: Study, connection: Connection, name: str, arguments: tuple[Any, ...]
    ) -> tuple[Exception | None, Any]:
        """A call's fault and answer, as the worker is sent them.

        Raises:
            EOFError: The worker has died.
        """
        try:
            if name == "ask":
                return None, self._ask(study, connection, *arguments)
            return None, self._call(study, name, arguments)
        except StudyClosed as fault:
            return fault, None
        except EOFError:
            raise
        except Exception as fault:  # noqa: BLE001 - raised again at the other end
            if fault is self.fault:
                return StudyClosed(), None
            self._say(f"search: a worker's {name} failed with {type(fault).__name__}: {fault}")
            return fault, None

    def _call(self, study: Study, name: str, arguments: tuple[Any, ...]) -> Any:
        with self._changed:
            answer = self._use(study, partial(_get, name=name, arguments=arguments))
            if self.waiting and self._use(study, partial(_has_freed, name=name)):
                self._changed.notify_all()
        self._written.set()
        return answer

    def _keep(self) -> None:
        """Bring to the disk what workers have told, all that came meanwhile at once.

        Nobody waits for it: what a dead process has written stays, and what a machine that loses
        its power has not is evaluated again.
        """
        is_open = True
        while is_open:
            self._written.wait()
            self._written.clear()
            is_open = self._is_open
            try:
                self._study.sync()
            except OSError as fault:
                self.fault = _unwritable(self._study, fault)
                return

    def _ask(
        self, study: Study, connection: Connection, trials: int, early_stopping: bool = False
    ) -> Suggestion | None:
        """The next candidate; waits for those of others, which come back if their worker dies.

        Raises:
            EOFError: The worker has died, so nothing may be leased to it.
        """
        with self._changed:
            while True:
                if connection.poll():  # one that waits for an answer says nothing: it has ended
                    raise EOFError
                suggestion = self._use(
                    study, lambda study: study.ask(trials, early_stopping), study.release
                )
                if suggestion is not None or not self._use(study, _is_under_way):
                    return suggestion
                self.waiting += 1
                try:
                    self._changed.wait()
                finally:
                    self.waiting -= 1


def _set_patience(connection: Connection, seconds: float) -> None:
    """Let a silent connection fail after so many seconds, or with 0 only when its host is dead."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        for kind in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            same.setsockopt(socket.SOL_SOCKET, kind, struct.pack("ll", int(seconds), 0))
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # not on macOS, which asks after two hours
            for option, value in _KEEP_ALIVE.items():
                same.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _send_at_once(connection: Connection) -> None:
    """Hold no message back: what follows one without an answer would wait for 40 ms."""
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _get(study: Study, name: str, arguments: tuple[Any, ...]) -> Any:
    value = getattr(study, name)
    return value(*arguments) if callable(value) else value


def _has_freed(study: Study, name: str) -> bool:
    """Whether a call has given waiting workers something to do, or nothing to wait for."""
    return name == "release" or not study.counts().running


def _unwritable(study: Study, fault: OSError) -> RunError:
    return RunError(
        f"a search must be able to write its study, but {study.place} "
        f"cannot be written: {fault.strerror}; make room, and go on with --resume."
    )


def _is_under_way(study: Study) -> bool:
    return study.in_session and study.counts().running > 0
