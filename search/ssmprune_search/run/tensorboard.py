"""Scalars for TensorBoard, in the run's directory."""

from __future__ import annotations

import math
from pathlib import Path

from ssmprune_search.run.status import Standing


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

    def add(self, standing: Standing) -> None:
        """Write the figures of a moment, if candidates have been finished since the last."""
        step = standing.counts.finished
        if step == self._step:
            return
        self._step = step
        scalars = {
            "front/hypervolume": standing.hypervolume,
            "front/members": standing.members,
            "candidates/evaluated": standing.counts.evaluated,
            "candidates/stopped": standing.counts.stopped,
            "candidates/failed": standing.counts.failed,
            "candidates/cached": standing.counts.duplicate,
            "candidates/per_second": standing.per_second,
            **{f"top1/flops_{100 * bound:.0f}_percent": top1 for bound, top1 in standing.best},
        }
        for name, value in scalars.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()
