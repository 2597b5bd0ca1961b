"""Live progress of a search on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from search.study import Counts

LINE_SECONDS = 10.0


class SearchProgress:
    """Shows how far a search is, while it is used as a context."""

    def __init__(self, trials: int, shown: bool):
        """Args:
        trials: Candidates that the search is to finish.
        shown: Whether anything is written at all.
        """
        self._console = Console(stderr=True, quiet=not shown)
        self._bar = Progress(
            TextColumn("search"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("search", total=trials, state="")
        self._trials = trials
        self._last_line = time.monotonic()

    def __enter__(self) -> SearchProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, counts: Counts) -> None:
        """Show the counts; without a terminal at most one line in ten seconds."""
        state = _state(counts)
        self._bar.update(self._task, completed=counts.finished, state=state)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._last_line >= LINE_SECONDS:
            self.say(f"search: {counts.finished}/{self._trials} candidates, {state}".rstrip(", "))
            self._last_line = now

    def say(self, message: str) -> None:
        """Write one line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)


def _state(counts: Counts) -> str:
    """What is under way and what went wrong, without zeros."""
    parts = (
        (counts.running, "running"),
        (counts.stopped, "stopped early"),
        (counts.failed, "failed"),
        (counts.lost, "lost with their worker and queued again"),
    )
    return ", ".join(f"{number} {what}" for number, what in parts if number)
