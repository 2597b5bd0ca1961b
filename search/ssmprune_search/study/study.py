"""The study: what has been proposed, by whom, and what came of it.

An Optuna study, the only truth about a run. A trial is one candidate; it is

    waiting     queued: a known schedule, or the candidate of a worker that died
    running     leased to one worker
    complete    evaluated; with `stopped` or `paused`, on some of the images only, or on none;
                or, with `answered_by`, equal to one that was
    failed      closed as: failed (its evaluation), infeasible, duplicate, lost (its worker)

A candidate that has paused goes on as a new trial, which has its number as `resumes`.

A lease is the name of the worker process that asked. There is no heartbeat to forget: a worker's
connection and Ray tell when it has died, and the directory's lock when a driver has; then its
trials are closed as lost, and their candidates queued once more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from ssmprune.errors import RunError, UsageError
from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import OBJECTIVES
from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.portfolio import choose
from ssmprune_search.study.race import Bits, Race, Rival, find_rival, pack, unpack
from ssmprune_search.study.records import Counts, Ledger, became, candidate_key, candidate_policy
from ssmprune_search.study.samplers import make_sampler
from ssmprune_search.study.screening import LEARNT, SCREENED, Promise, Seen
from ssmprune_search.study.storage import Place, Store
from ssmprune_search.study.surrogate import Prospect

_MOST_MISSES = 200  # proposals in a row that were infeasible or known: the space is exhausted
_MOST_ATTEMPTS = 2  # evaluations of a candidate whose workers die


@dataclass(frozen=True)
class Owner:
    """A worker process, as leases name it.

    Attributes:
        session: One call of `search`.
        worker: Number of the worker in its session.
        process: Tells the process from others that ran as this worker before.
    """

    session: str
    worker: int
    process: str


@dataclass(frozen=True)
class Suggestion:
    """A candidate that the caller now has to evaluate.

    Attributes:
        trial: Number of its trial.
        policy: What it is.
        race: How many images it is to see.
    """

    trial: int
    policy: Policy
    race: Race


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
        self.place = place
        self.space = space
        self._owner = owner
        self._sampler_name, self._seed = sampler, seed
        self._distributions = self.space.distributions()
        self._rivals: dict[int, Rival | None] = {}
        self._prospects: dict[str, Prospect] = {}
        self._seen: dict[int, Seen] = {}
        self._promised: tuple[Any, Promise] | None = None
        self._begun: set[int] = set()
        self._ledger = Ledger(self._source)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._store = Store(place)
            self._study = optuna.load_study(
                study_name=self._store.study,
                storage=self._store.storage,
                sampler=optuna.samplers.RandomSampler(),
            )
            self._study_id = self._store.storage.get_study_id_from_name(self._store.study)
        except UsageError:
            raise
        except (ValueError, KeyError, AttributeError) as fault:
            raise RunError(
                f"a study must hold the records of a search, got {place}: {fault}; "
                "restore it from a copy, or begin a new run."
            ) from None

    @staticmethod
    def create(place: Place, space: SearchSpace, warm: Sequence[tuple[str, Policy]] = ()) -> None:
        """Write a new study, with the space's known schedules in its queue.

        Args:
            place: Where it is to be kept.
            space: The search space.
            warm: Names and policies of the space that are queued after the schedules.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        store = Store(place)
        study = optuna.create_study(
            study_name=store.study,
            storage=store.storage,
            directions=[
                "maximize" if OBJECTIVES[o].maximise else "minimize" for o in space.objectives
            ],
        )
        for name, policy in space.known_schedules():
            _enqueue(study, space.params(policy), f"schedule:{name}", attempt=1)
        for name, policy in warm:
            _enqueue(study, space.params(policy), f"warm:{name}", attempt=1)

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
        self._study.set_user_attr("session", session)
        self._study.set_user_attr("exhausted", False)
        return self.close_lost(lambda owner: owner.session != session)

    def end_session(self) -> None:
        """Let no worker ask any more; what they are evaluating can still be told."""
        self._study.set_user_attr("session", None)

    @property
    def in_session(self) -> bool:
        """Whether this study's owner may still ask."""
        assert self._owner is not None
        return bool(self._study.user_attrs.get("session") == self._owner.session)

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has found nothing new in the session so far."""
        return bool(self._study.user_attrs.get("exhausted"))

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
        for _ in range(_MOST_MISSES):
            with self._store.exclusive():
                known = self._trials()
                self._ledger.read(known)
                counts = self._ledger.counts()
                if not self.in_session or counts.finished + counts.running >= trials:
                    return None
                is_full = counts.finished + counts.running + counts.paused >= trials
                is_full = is_full or (self.exhausted and not counts.waiting)
                if counts.paused and (is_full or (not counts.waiting and self._is_due())):
                    return self._lease(self._resume(), early_stopping)
                if is_full and not counts.waiting:
                    return None
                suggestion = self._ask_once(known, counts.lost, early_stopping)
            if suggestion is not None:
                return suggestion
        self._study.set_user_attr("exhausted", True)
        return self.ask(trials, early_stopping) if counts.paused else None

    def _is_due(self) -> bool:
        """Whether enough candidates have begun to wait for one more to go on."""
        new = sum("resumes" not in trial.user_attrs for trial in self._ledger.paused.values())
        return new >= SCREENED * (len(self._ledger.resumed) + 1)

    def _resume(self) -> optuna.Trial:
        """A trial for the most promising of the candidates that have paused."""
        waiting = self._ledger.waiting
        prospects = {n: self._prospect_of(trial) for n, trial in waiting.items()}
        promise = self._promise()
        best = promise.best(prospects, self._under_way()) if promise else min(waiting)
        chosen = waiting[best]
        number = len(self._trials())
        _enqueue(self._study, chosen.params, self._source(chosen), 1, resumes=chosen.number)
        trial_id = self._trial_id(number)  # it goes before what else is in the queue
        self._store.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        return optuna.Trial(self._study, trial_id)

    def _ask_once(
        self, known: list[FrozenTrial], lost: int, early_stopping: bool
    ) -> Suggestion | None:
        """One proposal; None when it needs no evaluation."""
        proposal = len(known) - lost
        sampler = self._sampler(known, proposal)
        self._study.sampler = make_sampler(
            sampler, self._seed, proposal, self._distributions, self._gains
        )
        trial = self._study.ask()
        if sampler != self._sampler_name and "source" not in trial.user_attrs:
            trial.set_user_attr("source", sampler)
        return self._lease(trial, early_stopping)

    def _lease(self, trial: optuna.Trial, early_stopping: bool) -> Suggestion | None:
        """Lease a trial's candidate to this study's owner; close one that needs no evaluation."""
        assert self._owner is not None
        policy = self.space.suggest(trial)
        prospect = self._prospect(policy)
        fault = self.space.infeasible(prospect.cost.flops)
        if fault is not None:
            self._close(trial.number, "infeasible", fault)
            return None
        goes_on = "resumes" in trial.user_attrs
        twin = None if goes_on else self._ledger.twin(prospect.key)
        if twin is None:
            candidate = {
                "policy": policy.model_dump(mode="json", by_alias=True, exclude_none=True),
                "key": prospect.key,
                "owner": vars(self._owner),
            }
            trial.set_user_attr("candidate", candidate)
            if early_stopping and not goes_on and self._screen(trial.number, prospect):
                return None
            return Suggestion(
                trial.number, policy, self._race(prospect) if early_stopping else Race()
            )
        if twin.state == TrialState.COMPLETE:
            trial.set_user_attr("answered_by", twin.number)
            self._study.tell(trial.number, twin.values)
        else:
            self._close(trial.number, "duplicate", f"equal to trial {twin.number}")
        return None

    def _screen(self, trial: int, prospect: Prospect) -> bool:
        """Let a candidate wait for its first image; False where it has no rival yet."""
        rival = self._rival(prospect) if self._promises else None
        promise = self._promise() if rival is not None else None
        if promise is None or rival is None:
            return False
        top1 = min(*promise.top1([prospect]), rival.search.top1)
        told = replace(rival.search, top1=top1, flops=prospect.cost.flops)
        self._set(trial, "paused", pack(np.zeros(0, bool)))
        self._study.tell(trial, [told.value(objective) for objective in self.space.objectives])
        return True

    @property
    def _promises(self) -> bool:
        """Whether enough candidates are evaluated to learn from."""
        return "top1" in self.space.objectives and len(self._ledger.evaluated) >= LEARNT

    def _promise(self) -> Promise | None:
        """What candidates promise by now; None before enough are evaluated."""
        if not self._promises:
            return None
        trials, ledger = self._trials(), self._ledger
        evaluated, partial = ledger.evaluated, ledger.partial
        for number in partial.keys() - self._seen.keys():
            trial = partial[number]
            self._seen[number] = Seen(self._prospect_of(trial), _correct(trial))
        seen = {n: self._seen[n] for n in partial if len(self._seen[n].correct)}
        state = (len(evaluated), *seen)
        if self._promised is None or self._promised[0] != state:
            promise = Promise(
                {n: (self._prospect_of(trials[n]), c.search.top1) for n, c in evaluated.items()},
                [n for n, c in evaluated.items() if self.space.admits(c.search)],
                self._admitted(),
                seen,
                self.space.dense_flops,
            )
            self._promised = state, promise
        return self._promised[1]

    def _under_way(self) -> list[Prospect]:
        """The candidates that workers evaluate now."""
        leased = (t for t in self._ledger.open.values() if "candidate" in t.user_attrs)
        return [self._prospect_of(trial) for trial in leased]

    def _prospect(self, policy: Policy) -> Prospect:
        key = repr(pruning_key(policy))
        if key not in self._prospects:
            self._prospects[key] = Prospect.of(policy, self.space.config)
        return self._prospects[key]

    def _prospect_of(self, trial: FrozenTrial) -> Prospect:
        known = self._prospects.get(candidate_key(trial) or "")
        return known or self._prospect(candidate_policy(trial))

    def _gains(self, proposals: Sequence[dict[str, Any]]) -> list[float] | None:
        """What proposals promise, by their parameters; None before anything can be promised.

        What is infeasible or known promises less than nothing.
        """
        promise = self._promise()
        if promise is None:
            return None
        gains = [-math.inf] * len(proposals)
        new: dict[int, Prospect] = {}
        for place, params in enumerate(proposals):
            prospect = Prospect.of(self.space.suggest(FixedTrial(params)), self.space.config)
            is_known = self._ledger.twin(prospect.key) is not None
            if not is_known and self.space.infeasible(prospect.cost.flops) is None:
                new[place] = prospect
        if new:
            promised = promise.gains([*new.values()], self._under_way())
            for place, gain in zip(new, promised, strict=True):
                gains[place] = float(gain)
        return gains

    def _sampler(self, known: list[FrozenTrial], proposal: int) -> str:
        """Name of the sampler of a proposal."""
        if self._sampler_name != "auto":
            return self._sampler_name
        finished = [trial for trial in known if trial.state == TrialState.COMPLETE]
        signs = [-1 if OBJECTIVES[o].maximise else 1 for o in self.space.objectives]
        losses = np.full((len(finished), len(signs)), np.inf)
        for row, trial in zip(losses, finished, strict=True):
            if _is_evaluated(trial):
                row[:] = np.multiply(signs, trial.values)
        sources = [trial.user_attrs.get("source") for trial in finished]
        return choose(sources, losses, self._seed, proposal)

    def race(self, policy: Policy) -> Race:
        """The race of a candidate against what has been evaluated so far."""
        self._read()
        return self._race(self._prospect(policy))

    def _race(self, prospect: Prospect) -> Race:
        twin = self._ledger.twin(prospect.key)
        known = _correct(twin) if twin is not None and twin.number in self._ledger.paused else None
        return Race(self._rival(prospect), known, pauses=self._promises)

    def _rival(self, prospect: Prospect) -> Rival | None:
        return find_rival(self._admitted(), prospect.cost, self.space.objectives)

    def _admitted(self) -> list[Rival]:
        """The fully evaluated candidates that keep to the space's limits, by their trials."""
        evaluated = self._ledger.evaluated
        new = evaluated.keys() - self._rivals.keys()
        trials = self._trials() if new else []
        for number in new:
            figures, correct = evaluated[number].search, trials[number].user_attrs.get("correct")
            self._rivals[number] = None
            if correct is not None and self.space.admits(figures):
                cost = self._prospect_of(trials[number]).cost
                self._rivals[number] = Rival(number, cost, figures, unpack(correct))
        rivals = (self._rivals[number] for number in sorted(self._rivals))
        return [rival for rival in rivals if rival is not None]

    def begin(self, trial: int) -> None:
        """Note that a candidate's evaluation has begun: if its worker dies now, that counts."""
        self._begun.add(trial)

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
            self._read()
            told = race.told(measurement, self._admitted())
        values = [told.value(objective) for objective in self.space.objectives]
        for objective, value in zip(self.space.objectives, values, strict=True):
            if not math.isfinite(value):
                return self.fail(trial, f"{objective} must be finite, got {value}")
        with self._store.exclusive():
            if not self._is_running(trial):
                return False
            self._set_race(trial, race)
            self._set(trial, "measurement", measurement.to_dict())
            self._study.tell(trial, values)
        return True

    def _set_race(self, trial: int, race: Race | None) -> None:
        if race is not None and race.is_lost:
            assert race.rival is not None
            self._set(
                trial,
                "stopped",
                {
                    "by": race.rival.trial,
                    "images": len(race.correct),
                    "correct": pack(race.correct),
                },
            )
        elif race is not None and race.is_paused:
            self._set(trial, "paused", pack(race.correct))
        elif race is not None and len(race.correct):
            self._set(trial, "correct", pack(race.correct))

    def fail(self, trial: int, reason: str) -> bool:
        """Record that a candidate could not be evaluated, once.

        Returns:
            False when the trial was finished already.
        """
        with self._store.exclusive():
            if not self._is_running(trial):
                return False
            self._close(trial, "failed", reason)
        return True

    def sync(self) -> None:
        """Return when all that was told is on the disk; others may use the study meanwhile."""
        self._store.sync()

    def close_lost(self, is_dead: Callable[[Owner], bool]) -> int:
        """Close the trials of dead workers and put their candidates back into the queue.

        A candidate whose workers die again and again is closed as failed.

        Args:
            is_dead: Whether a worker process no longer runs.

        Returns:
            The number of candidates that were open.
        """
        with self._store.exclusive():
            lost = [t for t in self._trials() if _is_abandoned(t, is_dead)]
            for trial in lost:
                self._give_back(trial)
        return sum("candidate" in trial.user_attrs for trial in lost)

    def take_over(self) -> int:
        """Queue again what this study's worker has left open, in this process or an earlier one.

        Returns:
            The number of candidates that were open.
        """
        owner = self._owner
        assert owner is not None
        mine = (owner.session, owner.worker)
        return self.close_lost(lambda other: (other.session, other.worker) == mine)

    def _give_back(self, trial: FrozenTrial) -> None:
        """Close an abandoned trial; a candidate is queued first, so that no kill can lose it."""
        attributes = trial.user_attrs
        attempt, begun = attributes.get("attempt", 1), trial.number in self._begun
        if "measurement" in attributes:
            figures = Measurement.from_dict(attributes["measurement"])
            self._study.tell(trial.number, [figures.value(o) for o in self.space.objectives])
        elif begun and attempt >= _MOST_ATTEMPTS:
            self._close(trial.number, "failed", f"its worker died in {attempt} evaluations")
        else:
            params = attributes.get("params")
            if "candidate" in attributes:
                params = self.space.params(candidate_policy(trial))
            if params is not None:
                resumes = attributes.get("resumes")
                _enqueue(self._study, params, self._source(trial), attempt + begun, resumes)
            self._close(trial.number, "lost", "its worker died")

    def counts(self) -> Counts:
        """Trials by what became of them."""
        return self._read().counts()

    def failures(self) -> list[tuple[int, str]]:
        """Numbers and reasons of the candidates whose evaluation failed."""
        return [
            (trial.number, trial.user_attrs["closed"]["reason"])
            for trial in self._trials()
            if trial.state == TrialState.FAIL and became(trial) == "failed"
        ]

    def candidates(self) -> list[Candidate]:
        """The evaluated candidates that keep to the space's limits, in order of their trials."""
        holdout = self._study.user_attrs
        evaluated = self._read().evaluated
        found = [evaluated[n] for n in sorted(evaluated) if self.space.admits(evaluated[n].search)]
        for place, candidate in enumerate(found):
            figures = holdout.get(f"holdout:{candidate.trial}")
            if figures:
                found[place] = replace(candidate, holdout=Measurement.from_dict(figures))
        return found

    def trials(self) -> list[FrozenTrial]:
        """Optuna's records of all trials, by number; not to be changed."""
        return self._trials()

    def set_holdout(self, trial: int, measurement: Measurement) -> None:
        """Keep a candidate's figures on the holdout; with the study, as its trial is finished."""
        self._study.set_user_attr(f"holdout:{trial}", measurement.to_dict())

    def _source(self, trial: FrozenTrial) -> str:
        return str(trial.user_attrs.get("source", self._sampler_name))

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _read(self) -> Ledger:
        self._ledger.read(self._trials())
        return self._ledger

    def _is_running(self, trial: int) -> bool:
        storage = self._store.storage
        return storage.get_trial(self._trial_id(trial)).state == TrialState.RUNNING

    def _trial_id(self, trial: int) -> int:
        storage = self._store.storage
        return storage.get_trial_id_from_study_id_trial_number(self._study_id, trial)

    def _set(self, trial: int, key: str, value: Any) -> None:
        self._store.storage.set_trial_user_attr(self._trial_id(trial), key, value)

    def _close(self, trial: int, kind: str, reason: str) -> None:
        self._set(trial, "closed", {"as": kind, "reason": reason})
        self._study.tell(trial, state=TrialState.FAIL)


def _enqueue(
    study: optuna.Study,
    params: dict[str, Any],
    source: str,
    attempt: int,
    resumes: int | None = None,
) -> None:
    attributes: dict[str, Any] = {"source": source, "attempt": attempt, "params": params}
    if resumes is not None:
        attributes["resumes"] = resumes
    study.enqueue_trial(params, user_attrs=attributes)


def _is_evaluated(trial: FrozenTrial) -> bool:
    """Whether a trial has figures of its own, on all images."""
    return trial.state == TrialState.COMPLETE and became(trial) == "evaluated"


def _correct(trial: FrozenTrial) -> Bits:
    """What a candidate that has paused or stopped got right, (images seen,)."""
    attributes = trial.user_attrs
    text = attributes["paused"] if "paused" in attributes else attributes["stopped"].get("correct")
    return unpack(text) if text else np.zeros(0, bool)


def _is_abandoned(trial: FrozenTrial, is_dead: Callable[[Owner], bool]) -> bool:
    """Whether nobody evaluates an open trial; one without a lease lost its worker while asking."""
    if trial.state != TrialState.RUNNING:
        return False
    candidate = trial.user_attrs.get("candidate")
    return candidate is None or is_dead(Owner(**candidate["owner"]))
