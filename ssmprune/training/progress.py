"""What a person sees of a running training."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich import progress
from rich.console import Console

from ssmprune.measure.metric import Metric

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """A bar where stderr is a terminal, a plain line now and then where it is not.

    Args:
        first: Steps that were made in earlier sessions.
        steps: Steps of the whole run.
        shown: Whether to show anything.
        metric: What a score of a row is.
    """

    def __init__(self, first: int, steps: int, shown: bool, metric: Metric) -> None:
        self._console = Console(stderr=True, quiet=not shown, highlight=False)
        self._steps, self._metric = steps, metric
        self._last_line = time.monotonic()
        self._bar = progress.Progress(
            progress.TextColumn("training"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[figures]}"),
            progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=first, figures="")
        if first:
            self._console.print(f"going on from step {first}")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Count that many more steps."""
        self._bar.advance(self._task, steps)

    def row(self, row: dict[str, Any]) -> None:
        """Show a new row of the log."""
        score = row[score_column(self._metric)]
        figures = f"loss {row['loss']}"
        if score:
            figures += f"  search {self._metric.title.lower()} {score} %"
        self._bar.update(self._task, figures=figures)
        now = time.monotonic()
        is_due = score or now - self._last_line > _SECONDS_BETWEEN_LINES
        if is_due and not self._console.is_terminal:
            self._last_line = now
            self._console.print(f"step {row['step']}/{self._steps}  {row['seconds']} s  {figures}")


def score_column(metric: Metric) -> str:
    """The column of a log with the score on the search split."""
    return f"search_{metric.name}"
