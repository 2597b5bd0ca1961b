"""Where the rows of a run's log go: `log.csv`, TensorBoard, and the person who waits."""

from __future__ import annotations

from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ssmprune.measure.metric import Metric
from ssmprune.training.directory import TrainDirectory
from ssmprune.training.progress import Progress, score_column


class RunLog:
    """The log of a run that goes on from step `first`; rows after that are forgotten.

    Args:
        directory: The run's directory.
        first: Steps that were made in earlier sessions and are kept.
        steps: Steps of the whole run.
        metric: What is measured on the search split now and then.
        shown: Whether to show progress.
    """

    def __init__(
        self, directory: TrainDirectory, first: int, steps: int, metric: Metric, shown: bool
    ) -> None:
        self._directory = directory
        self._score = score_column(metric)
        self._rows = directory.read_log(until=first)
        self._progress = Progress(first, steps, shown, metric).__enter__()
        self._board = SummaryWriter(directory.path / "tensorboard", purge_step=first + 1)

    def close(self) -> None:
        """End the display; what was logged stays."""
        self._progress.__exit__(None, None, None)
        self._board.close()

    def advance(self) -> None:
        """Count one more step."""
        self._progress.advance()

    def add(self, step: int, seconds: float, lr: float, loss: float, score: float | None) -> None:
        """Add a row: means since the last one, and the search split's score if it was measured."""
        row: dict[str, Any] = {
            "step": step,
            "seconds": f"{seconds:.1f}",
            "lr": f"{lr:.3e}",
            "loss": f"{loss:.7f}",
            self._score: "" if score is None else f"{score:.2f}",
        }
        self._rows.append(row)
        self._directory.write_log(self._rows)
        scalars = {"loss": loss, "lr": lr, self._score: score}
        for name, value in scalars.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._progress.row(row)
