"""Watching workers: how the search stands, Ctrl-C, and a Ray that has died."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ssmprune.errors import RunError
from ssmprune.ray_session import log_directory
from ssmprune_search.run.progress import SearchProgress
from ssmprune_search.run.status import Observer
from ssmprune_search.run.tensorboard import Board
from ssmprune_search.study import surrogate
from ssmprune_search.workers.cluster import Workers, is_cut_off
from ssmprune_search.workers.service import StudyService

POLL_SECONDS = 0.5
CHECK_SECONDS = 5.0
STARTING_SECONDS = 90.0
LOOKING_SHARE = 0.01  # of the time; nobody else uses the study meanwhile


class Watch:
    """Watches the workers of one session."""

    def __init__(
        self,
        service: StudyService,
        workers: Workers,
        observer: Observer,
        shown: SearchProgress,
        board: Board,
    ):
        """Args:
        service: Serves the study to the workers.
        workers: They have not started yet.
        observer, shown, board: See how the search stands, and show it.
        """
        self._service, self._workers = service, workers
        self._observer, self._shown, self._board = observer, shown, board
        self._next_look = self._next_check = 0.0
        self._patience = math.inf

    def until_done(self) -> bool:
        """Start the workers, and show how the search stands until they have ended.

        Returns:
            Whether Ctrl-C was pressed, which makes them end soon; a second one is raised.

        Raises:
            RunError: The study's storage has failed, or Ray has.
        """
        told = False
        self._patience = time.monotonic() + STARTING_SECONDS
        with _first_interrupt() as interrupted:
            self._workers.start()
            surrogate.load()  # while they start
            while self._workers.is_alive():
                self._workers.join(POLL_SECONDS)
                if interrupted() and not told:
                    self._service.end_session()
                    self._shown.say(
                        "search: ending after the candidates under way; Ctrl-C ends it at once"
                    )
                    told = True
                now = time.monotonic()
                self._tell_of_late_workers(now)
                if now >= self._next_look:
                    self._look()
                    end = time.monotonic()
                    self._next_look = end + (end - now) / LOOKING_SHARE
                if now >= self._next_check:
                    self._next_check = now + CHECK_SECONDS
                    _check_ray()
        self._look()
        return told

    def _look(self) -> None:
        connected = self._service.connected
        status = self._service.use(lambda study: self._observer.look(study, connected))
        self._shown.show(status)
        self._board.add(status)

    def _tell_of_late_workers(self, now: float) -> None:
        if self._service.connected:
            self._patience = math.inf
        if now >= self._patience:
            self._patience = math.inf
            self._shown.say(
                f"search: no worker has begun for {STARTING_SECONDS:g} s; Ray tells why in "
                f"{log_directory()}"
            )


def _check_ray() -> None:
    if is_cut_off():  # its workers may live on, and wait for Tune for ever
        raise RunError(
            "Ray must run for the time of a search, but its node on this machine has died; go on "
            "with --resume."
        )


@contextmanager
def _first_interrupt() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C instead of raising it.

    Raised, it could leave the study's view of the journal half read, at any instruction.
    """
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread is told of signals
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
