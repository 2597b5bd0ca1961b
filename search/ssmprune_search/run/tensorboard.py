"""Scalars for TensorBoard, in the run's directory."""

from __future__ import annotations

import math
from pathlib import Path

from ssmprune_search.run.status import Status


class Board:
    """Writes a search's course while it is used as a context; the step is candidates finished."""

    def __init__(self, directory: Path):
        """Args:
        directory: `tensorboard` in the run's directory; several calls may add to it.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))
        self._step = -1

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, status: Status) -> None:
        """Write the figures of a moment, if candidates have been finished since the last."""
        step = status.counts.finished
        if step == self._step:
            return
        self._step = step
        scalars = {
            "front/hypervolume": status.hypervolume,
            "front/members": status.members,
            "candidates/evaluated": status.counts.evaluated,
            "candidates/stopped": status.counts.stopped,
            "candidates/failed": status.counts.failed,
            "candidates/cached": status.counts.duplicate,
            "candidates/per_second": status.per_second,
            **{
                f"{status.score.name}/flops_{100 * bound:.0f}_percent": score
                for bound, score in status.best
            },
        }
        for name, value in scalars.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
