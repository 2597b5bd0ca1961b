"""Where the rows of a run's log go: `log.csv`, TensorBoard, and the person who waits."""

from __future__ import annotations

from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ssmprune.training.directory import TrainDirectory
from ssmprune.training.progress import Progress


class RunLog:
    """The log of a run that goes on from step `first`; rows after that are forgotten.

    Args:
        directory: The run's directory.
        first: Steps that were made in earlier sessions and are kept.
        steps: Steps of the whole run.
        shown: Whether to show progress.
    """

    def __init__(self, directory: TrainDirectory, first: int, steps: int, shown: bool) -> None:
        self._directory = directory
        self._rows = directory.read_log(until=first)
        self._progress = Progress(first, steps, shown).__enter__()
        self._board = SummaryWriter(directory.path / "tensorboard", purge_step=first + 1)

    def close(self) -> None:
        """End the display; what was logged stays."""
        self._progress.__exit__(None, None, None)
        self._board.close()

    def advance(self) -> None:
        """Count one more step."""
        self._progress.advance()

    def add(self, step: int, seconds: float, lr: float, loss: float, top1: float | None) -> None:
        """Add a row: means since the last one, and top-1 on the search split if it was measured."""
        row: dict[str, Any] = {
            "step": step,
            "seconds": f"{seconds:.1f}",
            "lr": f"{lr:.3e}",
            "loss": f"{loss:.7f}",
            "search_top1": "" if top1 is None else f"{top1:.2f}",
        }
        self._rows.append(row)
        self._directory.write_log(self._rows)
        scalars = {"loss": loss, "lr": lr, "search_top1": top1}
        for name, value in scalars.items():
            if value is not None:
                self._board.add_scalar(name, value, step)
        self._progress.row(row)
