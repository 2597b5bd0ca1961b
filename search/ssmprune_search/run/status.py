"""How a search stands while it runs: what people are shown, and what TensorBoard keeps."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import Objective, score_of
from ssmprune_search.candidate.pareto import dense_reference, hypervolume, pareto_front
from ssmprune_search.study.records import Counts
from ssmprune_search.study.study import Study

WINDOW_SECONDS = 60.0
BANDS = tuple(tenth / 10 for tenth in range(1, 11))
"""Shares of the dense model's FLOPs that bound the bands."""


@dataclass(frozen=True)
class Status:
    """A search at one moment.

    Attributes:
        trials: Candidates that the search is to finish.
        workers: Workers that are at work, of `workers_wanted`.
        per_second: Candidates finished per second in the last minute; NaN before the second one.
        hypervolume: That of the front, as `ssmprune front` tells it.
        members: Candidates on the front.
        best: For each band of FLOPs that does better than those below it, its upper bound as a
            share of the dense model's FLOPs, and the best score within, in per cent.
        score: What that score is.
    """

    trials: int
    counts: Counts
    workers: int
    workers_wanted: int
    per_second: float
    hypervolume: float
    members: int
    best: tuple[tuple[float, float], ...]
    score: Objective

    @property
    def seconds_left(self) -> float:
        """Until all candidates are finished, at the present rate; NaN while none is known."""
        left = self.trials - self.counts.finished
        return left / self.per_second if self.per_second > 0 else math.nan


class Observer:
    """Looks at a study again and again."""

    def __init__(self, dense: Measurement, trials: int, workers: int):
        self._dense, self._trials, self._workers = dense, trials, workers
        self._finished: deque[tuple[float, int]] = deque()

    def look(self, study: Study, workers: int) -> Status:
        """How the study stands now, with so many workers at work."""
        counts, candidates = study.counts(), study.candidates()
        objectives = study.space.objectives
        members = pareto_front(candidates, objectives)
        return Status(
            trials=self._trials,
            counts=counts,
            workers=workers,
            workers_wanted=self._workers,
            per_second=self._rate(counts.finished),
            hypervolume=hypervolume(members, objectives, dense_reference(self._dense)),
            members=len(members),
            best=best_by_flops(candidates),
            score=score_of(study.space.config),
        )

    def _rate(self, finished: int) -> float:
        now = time.monotonic()
        self._finished.append((now, finished))
        while now - self._finished[0][0] > WINDOW_SECONDS and len(self._finished) > 2:
            self._finished.popleft()
        (begin, before) = self._finished[0]
        return (finished - before) / (now - begin) if finished > before else math.nan


def best_by_flops(candidates: Iterable[Candidate]) -> tuple[tuple[float, float], ...]:
    """As `Status.best`."""
    best: list[tuple[float, float]] = []
    figures = sorted((c.search.flops_ratio, c.search.score) for c in candidates)
    for bound in BANDS:
        within = max((score for ratio, score in figures if ratio <= bound), default=-math.inf)
        if within > (best[-1][1] if best else -math.inf):
            best.append((bound, within))
    return tuple(best)
