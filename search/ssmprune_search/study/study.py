"""The study: what has been proposed, by whom, and what came of it.

An Optuna study, the only truth about a run. A trial is one candidate; it is

    waiting     queued: a known schedule, or the candidate of a worker that died
    running     leased to one worker
    complete    evaluated; with `stopped` or `paused`, on some of the images only, or on none;
                or, with `answered_by`, equal to one that was
    failed      closed as: failed (its evaluation), infeasible, duplicate, lost (its worker)

A candidate that has paused goes on as a new trial, which has its number as `resumes`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from optuna.trial import FrozenTrial

from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import OBJECTIVES
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.leases import Leases
from ssmprune_search.study.proposals import Proposals, Suggestion
from ssmprune_search.study.race import Race
from ssmprune_search.study.records import Counts, Owner, Record, as_measured, as_raced
from ssmprune_search.study.screening import Screening
from ssmprune_search.study.storage import Place
from ssmprune_search.study.trials import Trials

_MOST_MISSES = 200  # proposals in a row that were infeasible or known: the space is exhausted


class Study:
    """One process's view of the study of a run."""

    def __init__(
        self,
        place: Place,
        space: SearchSpace,
        sampler: str,
        seed: int,
        owner: Owner | None = None,
    ):
        """Open the study.

        Args:
            place: Where it is kept.
            space: The search space.
            sampler: Who proposes.
            seed: Of the sampler.
            owner: Who asks; without one nothing can be asked.

        Raises:
            RunError: The journal is damaged, or the database does not answer.
        """
        self.place, self.space = place, space
        self._owner = owner
        self._trials = Trials(place, sampler)
        self._screening = Screening(self._trials, space)
        self._proposals = Proposals(self._trials, self._screening, space, sampler, seed)
        self._leases = Leases(self._trials, space)

    @staticmethod
    def create(place: Place, space: SearchSpace, warm: Sequence[tuple[str, Policy]] = ()) -> None:
        """Write a new study, with the space's known schedules in its queue.

        Args:
            place: Where it is to be kept.
            space: The search space.
            warm: Names and policies of the space that are queued after the schedules.
        """
        first = [(f"schedule:{name}", policy) for name, policy in space.known_schedules()]
        first += [(f"warm:{name}", policy) for name, policy in warm]
        Trials.create(
            place,
            [OBJECTIVES[objective].maximise for objective in space.objectives],
            [(source, space.params(policy)) for source, policy in first],
        )

    def owned_by(self, owner: Owner) -> Study:
        """This study for another owner; not for use at the same time."""
        study = copy.copy(self)
        study._owner = owner
        return study

    def begin_session(self, session: str) -> int:
        """Let only workers of `session` ask from now on, and queue what others left open.

        Returns:
            The number of candidates that were open.
        """
        self._trials.session = session
        self._trials.exhausted = False
        return self.close_lost(lambda owner: owner.session != session)

    def end_session(self) -> None:
        """Let no worker ask any more; what they are evaluating can still be told."""
        self._trials.session = None

    @property
    def in_session(self) -> bool:
        """Whether this study's owner may still ask."""
        assert self._owner is not None
        return self._trials.session == self._owner.session

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has found nothing new in the session so far."""
        return self._trials.exhausted

    def ask(self, trials: int, early_stopping: bool = False) -> Suggestion | None:
        """Take the next candidate: from the queue, from those that have paused, from the sampler.

        Args:
            trials: Candidates that the search is to finish.
            early_stopping: Whether candidates race, and pause before they see an image; without
                it they see all images.

        Returns:
            A feasible candidate that is new or has paused, leased to this study's owner. None when
            there is nothing to take: enough are finished or under way, the session has ended, or
            the sampler finds nothing new and none has paused. While candidates are running, more
            may come into the queue.
        """
        assert self._owner is not None
        for _ in range(_MOST_MISSES):
            with self._trials.exclusive():
                counts = self._trials.read().counts()
                if not self.in_session or counts.finished + counts.running >= trials:
                    return None
                is_full = counts.finished + counts.running + counts.paused >= trials
                is_full = is_full or (self.exhausted and not counts.waiting)
                if counts.paused and (is_full or (not counts.waiting and self._screening.is_due())):
                    return self._proposals.resume(self._owner, early_stopping)
                if is_full and not counts.waiting:
                    return None
                suggestion = self._proposals.next(self._owner, early_stopping)
            if suggestion is not None:
                return suggestion
        self._trials.exhausted = True
        return self.ask(trials, early_stopping) if counts.paused else None

    def race(self, policy: Policy) -> Race:
        """The race of a candidate against what has been evaluated so far."""
        self._trials.read()
        return self._screening.race(self._screening.encode(policy))

    def begin(self, trial: int) -> None:
        """Note that a candidate's evaluation has begun: if its worker dies now, that counts."""
        self._leases.begin(trial)

    def tell(self, trial: int, measurement: Measurement, race: Race | None = None) -> bool:
        """Record a candidate's figures, once; a figure that is not finite makes it a failure.

        Args:
            trial: Number of the candidate's trial.
            measurement: Its figures.
            race: How it came by them; what it got right is kept for later candidates to race.

        Returns:
            False when the trial was finished already, by whomever; then nothing is changed.
        """
        told = measurement
        if race is not None and race.ended_early:
            self._trials.read()
            told = race.told(measurement, self._screening.incumbents())
        values = [told.value(objective) for objective in self.space.objectives]
        for objective, value in zip(self.space.objectives, values, strict=True):
            if not math.isfinite(value):
                return self.fail(trial, f"{objective} must be finite, got {value}")
        with self._trials.exclusive():
            if not self._trials.is_running(trial):
                return False
            self._trials.set(trial, {**as_raced(race), **as_measured(measurement)})
            self._trials.tell(trial, values)
        return True

    def fail(self, trial: int, reason: str) -> bool:
        """Record that a candidate could not be evaluated, once.

        Returns:
            False when the trial was finished already.
        """
        with self._trials.exclusive():
            if not self._trials.is_running(trial):
                return False
            self._trials.close(trial, "failed", reason)
        return True

    def sync(self) -> None:
        """Return when all that was told is on the disk; others may use the study meanwhile."""
        self._trials.sync()

    def close_lost(self, is_dead: Callable[[Owner], bool]) -> int:
        """As that of `Leases`."""
        return self._leases.close_lost(is_dead)

    def release(self) -> int:
        """Queue again what this study's worker has left open, in this process or an earlier one.

        Returns:
            The number of candidates that were open.
        """
        assert self._owner is not None
        return self._leases.release(self._owner)

    def counts(self) -> Counts:
        """Trials by what became of them."""
        return self._trials.read().counts()

    def records(self) -> Sequence[Record]:
        """The records of all trials, by number; not to be changed."""
        return self._trials.read().all

    def failures(self) -> list[tuple[int, str]]:
        """Numbers and reasons of the candidates whose evaluation failed."""
        return [(r.number, r.reason) for r in self.records() if r.kind == "failed"]

    def candidates(self) -> list[Candidate]:
        """The evaluated candidates that keep to the space's limits, in order of their trials."""
        holdout, evaluated = self._trials.holdout(), self._trials.read().evaluated
        found = [evaluated[number] for number in sorted(evaluated)]
        admitted = [r.candidate for r in found if self.space.admits(r.measurement)]
        return [
            replace(candidate, holdout=holdout[candidate.trial])
            if candidate.trial in holdout
            else candidate
            for candidate in admitted
        ]

    def trials(self) -> list[FrozenTrial]:
        """Optuna's own objects for all trials, by number; not to be changed."""
        return self._trials.frozen()

    def set_holdout(self, trial: int, measurement: Measurement) -> None:
        """Keep a candidate's figures on the holdout; with the study, as its trial is finished."""
        self._trials.set_holdout(trial, measurement)
