"""Live progress of a search on standard error: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ssmprune_search.run.status import Status

LINE_SECONDS = 10.0
BAR_WIDTH = 40


class SearchProgress:
    """Shows how a search stands, while it is used as a context."""

    def __init__(self, shown: bool):
        """Args:
        shown: Whether anything is written at all.
        """
        self._console = Console(stderr=True, quiet=not shown)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True)
        self._next_line = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> SearchProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, status: Status) -> None:
        """Show the status; without a terminal at most one line in ten seconds."""
        now = time.monotonic()
        if self._console.is_terminal:
            self._live.update(_table(status))
        elif now >= self._next_line:
            figures = (f"{what} {value}" for what, value in _figures(status) if value)
            self.say(f"search: {', '.join(figures)}")
            self._next_line = now + LINE_SECONDS

    def say(self, message: str) -> None:
        """Write one line."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)


def _table(status: Status) -> Group:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column()
    for what, value in _figures(status):
        table.add_row(what, value or "0")
    bar = ProgressBar(status.trials, status.counts.finished, width=BAR_WIDTH)
    return Group(bar, table)


def _figures(status: Status) -> Iterator[tuple[str, str]]:
    """What is shown, with an empty text for what has not happened."""
    counts = status.counts
    yield "candidates", f"{counts.finished}/{status.trials}"
    yield "per second", _number(status.per_second, ".2f")
    yield "workers", f"{status.workers}/{status.workers_wanted}"
    yield "running", _number(counts.running)
    yield "stopped early", _number(counts.stopped)
    yield "paused", _number(counts.paused)
    yield "cached", _number(counts.duplicate)
    yield "failed", _number(counts.failed)
    yield "lost and queued again", _number(counts.lost)
    yield "on the front", _number(status.members)
    yield "hypervolume", f"{status.hypervolume:.4f}"
    best = (f"{score:.1f} at {100 * bound:.0f} %" for bound, score in status.best)
    yield f"best {status.score.title.lower()} by FLOPs", "; ".join(best)
    yield "time left", _duration(status.seconds_left)


def _number(value: float, digits: str = ".0f") -> str:
    return "" if math.isnan(value) or not value else f"{value:{digits}}"


def _duration(seconds: float) -> str:
    """As 45 s, 12 min or 3.5 h."""
    if math.isnan(seconds):
        return ""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
