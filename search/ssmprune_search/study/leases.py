"""Who evaluates what, and what becomes of the candidates of workers that have died.

A lease is the name of the worker process that asked. There is no heartbeat to forget. The
connection of a worker, and Ray, tell when it has died; the lock of the directory tells when a
driver has. Then the trials of the dead are closed as lost, and their candidates queued once more.
"""

from __future__ import annotations

from collections.abc import Callable

from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.records import Owner, Record
from ssmprune_search.study.trials import Trials

_MOST_ATTEMPTS = 2  # evaluations of a candidate whose workers die


class Leases:
    """The leases of a study's open trials."""

    def __init__(self, trials: Trials, space: SearchSpace):
        self._trials, self._space = trials, space
        self._begun: set[int] = set()

    def begin(self, number: int) -> None:
        """Note that a candidate's evaluation has begun: if its worker dies now, that counts."""
        self._begun.add(number)

    def close_lost(self, is_dead: Callable[[Owner], bool]) -> int:
        """Close the trials of dead workers and put their candidates back into the queue.

        A candidate whose workers die again and again is closed as failed.

        Args:
            is_dead: Whether a worker process no longer runs.

        Returns:
            The number of candidates that were open.
        """
        with self._trials.exclusive():
            lost = [r for r in self._trials.read().open.values() if _is_lost(r, is_dead)]
            for record in lost:
                self._close(record)
        return sum(record.key is not None for record in lost)

    def release(self, owner: Owner) -> int:
        """Close what a worker has left open, in its present process or an earlier one.

        Returns:
            The number of candidates that were open.
        """
        worker = (owner.session, owner.worker)
        return self.close_lost(lambda other: (other.session, other.worker) == worker)

    def _close(self, record: Record) -> None:
        """Close a lost trial; its candidate is queued first, so that no kill can lose it."""
        number, attempt, begun = record.number, record.attempt, record.number in self._begun
        if record.is_measured:
            figures = record.measurement
            self._trials.tell(number, [figures.value(o) for o in self._space.objectives])
        elif begun and attempt >= _MOST_ATTEMPTS:
            self._trials.close(number, "failed", f"its worker died in {attempt} evaluations")
        else:
            is_candidate = record.key is not None
            params = self._space.params(record.policy) if is_candidate else record.queued
            if params is not None:
                self._trials.enqueue(record.source, attempt + begun, params, record.resumes)
            self._trials.close(number, "lost", "its worker died")


def _is_lost(record: Record, is_dead: Callable[[Owner], bool]) -> bool:
    """Whether nobody evaluates an open trial.

    A trial that runs without a lease lost its worker while that was asking.
    """
    return record.kind == "running" and (record.owner is None or is_dead(record.owner))
