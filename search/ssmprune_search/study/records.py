"""The records of a study: what each trial is, what became of it, and how that is written.

Optuna keeps what is ours in a trial's user attributes; their names are in this file alone.

A finished trial does not change any more, so it is read once. Optuna hands out all trials whenever
it is asked for any, and a search asks several times for each candidate; reading what is new must
not take longer the more trials there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.study.race import Race, Scores, pack, unpack


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
class Counts:
    """Trials of a study by what became of them.

    Attributes:
        evaluated: Candidates with a measurement on all images.
        stopped: Candidates that lost to their incumbent early.
        paused: Candidates that wait for the rest of the images.
        failed: Candidates whose evaluation failed.
        running: Candidates that a worker evaluates, or evaluated when it died.
        waiting: Candidates in the queue.
        duplicate: Proposals equal to an earlier one, which answers for them.
        infeasible: Proposals that broke the FLOPs limits.
        lost: Evaluations that ended with their worker; their candidates were queued again.
    """

    evaluated: int = 0
    stopped: int = 0
    paused: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    duplicate: int = 0
    infeasible: int = 0
    lost: int = 0

    @property
    def finished(self) -> int:
        """What counts towards the number of trials of a search."""
        return self.evaluated + self.stopped + self.failed


@dataclass(frozen=True)
class Record:
    """One trial, as it was when it was read.

    Attributes:
        number: Of the trial.
        kind: What became of it so far, by a name of `Counts`.
        source: Who proposed it, as `Candidate.source`.
        params: Its parameters.
        queued: The parameters that it was queued with; None where the sampler chose them.
        values: Its objectives; None where it is not complete.
        attempt: Number of its candidate's evaluation, from 1; only evaluations that began count.
        resumes: The trial that paused and goes on as this one, if any.
        answered_by: The earlier trial of an equal candidate whose values it took, if any.
        reason: Why it was closed; empty where it was not.
        key: Equal for candidates that prune alike; None for a trial that is no candidate yet.
        owner: Who evaluates it, or did.
        begun: When it began.
        ended: When it was finished.
    """

    number: int
    kind: str
    source: str
    params: Mapping[str, Any]
    queued: Mapping[str, Any] | None
    values: Sequence[float] | None
    attempt: int
    resumes: int | None
    answered_by: int | None
    reason: str
    key: str | None
    owner: Owner | None
    begun: datetime | None
    ended: datetime | None
    _attributes: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, trial: FrozenTrial, sampler: str) -> Record:
        """Read a trial.

        Args:
            trial: As Optuna keeps it.
            sampler: Who proposed it if it does not say so.
        """
        attributes = trial.user_attrs
        candidate = attributes.get("candidate") or {}
        owner = candidate.get("owner")
        return cls(
            number=trial.number,
            kind=_kind(trial),
            source=str(attributes.get("source", sampler)),
            params=trial.params,
            queued=attributes.get("params"),
            values=trial.values,
            attempt=attributes.get("attempt", 1),
            resumes=attributes.get("resumes"),
            answered_by=attributes.get("answered_by"),
            reason=attributes.get("closed", {}).get("reason", ""),
            key=candidate.get("key"),
            owner=Owner(**owner) if owner else None,
            begun=trial.datetime_start,
            ended=trial.datetime_complete,
            _attributes=attributes,
        )

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return self.kind in ("waiting", "running")

    @property
    def is_measured(self) -> bool:
        """Whether it has figures of its own, on some or all images."""
        return "measurement" in self._attributes

    @cached_property
    def policy(self) -> Policy:
        """What is evaluated; only for a candidate."""
        return Policy.model_validate(self._attributes["candidate"]["policy"])

    @cached_property
    def measurement(self) -> Measurement:
        """Its figures; only where it `is_measured`."""
        return Measurement.from_dict(self._attributes["measurement"])

    @cached_property
    def scores(self) -> Scores:
        """Its scores of the images that it has seen, (images seen,).

        Empty where that is not known.
        """
        attributes = self._attributes
        known = attributes.get("stopped", {}).get("correct") or attributes.get("correct")
        text = attributes.get("paused") or known
        return unpack(text) if text else np.zeros(0, bool)

    @cached_property
    def candidate(self) -> Candidate:
        """As an evaluated candidate; only where it `is_measured`."""
        return Candidate(self.number, self.policy, self.source, self.measurement)


def _kind(trial: FrozenTrial) -> str:
    if not trial.state.is_finished():
        return trial.state.name.lower()
    attributes = trial.user_attrs
    if trial.state != TrialState.COMPLETE:
        closed = attributes.get("closed")
        return str(closed["as"]) if closed else "failed"
    if "answered_by" in attributes:
        return "duplicate"
    return next((kind for kind in ("stopped", "paused") if kind in attributes), "evaluated")


class Records:
    """The records of all trials that `read` has been shown.

    Attributes:
        all: Every trial, by number.
        open: Trials that wait or run, by number.
        evaluated: Candidates that were evaluated on all images, by number.
        stopped: Candidates that lost to their incumbent early, by number.
        paused: Trials that saw the first images only, or none, by number, gone on or not.
    """

    def __init__(self, sampler: str):
        """Args:
        sampler: Who proposed a trial that does not say so.
        """
        self._sampler = sampler
        self._open: dict[int, FrozenTrial] = {}
        self._finished = Counter[str]()
        self._by_key: dict[str, Record] = {}
        self._gone_on: set[int] = set()
        self.all: list[Record] = []
        self.open: dict[int, Record] = {}
        self.evaluated: dict[int, Record] = {}
        self.stopped: dict[int, Record] = {}
        self.paused: dict[int, Record] = {}

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Look at what is new in the study's trials, which are in the order of their numbers."""
        for number in [*self._open, *range(len(self.all), len(trials))]:
            trial = trials[number]
            if self._open.get(number) is trial:
                continue
            record = Record.of(trial, self._sampler)
            self.all[number : number + 1] = [record]
            if record.is_open:
                self._open[number], self.open[number] = trial, record
            else:
                self._open.pop(number, None)
                self.open.pop(number, None)
                self._enter(record)

    def counts(self) -> Counts:
        """Trials by what became of them."""
        kinds = self._finished + Counter(record.kind for record in self.open.values())
        kinds["paused"] -= len(self.resumed)
        return Counts(**kinds)

    @property
    def resumed(self) -> set[int]:
        """Trials that paused and whose candidates have gone on since, or are in the queue to."""
        return self._gone_on | {r.resumes for r in self.open.values() if r.resumes is not None}

    @property
    def waiting(self) -> dict[int, Record]:
        """Trials that paused and have not gone on, by number."""
        resumed = self.resumed
        return {n: record for n, record in self.paused.items() if n not in resumed}

    @property
    def partial(self) -> dict[int, Record]:
        """The latest trial of each candidate that has not seen all images, by number."""
        return self.stopped | {n: r for n, r in self.paused.items() if n not in self._gone_on}

    def with_key(self, key: str) -> Record | None:
        """The last trial whose candidate has this `key`, unless its worker has died."""
        under_way = (record for record in self.open.values() if record.key == key)
        return self._by_key.get(key) or next(under_way, None)

    def _enter(self, record: Record) -> None:
        number, kind = record.number, record.kind
        self._finished[kind] += 1
        if kind != "lost":
            if record.key is not None:
                self._by_key[record.key] = record
            if record.resumes is not None:
                self._gone_on.add(record.resumes)
        if kind == "stopped":
            self.stopped[number] = record
        if kind == "paused":
            self.paused[number] = record
        if kind == "evaluated":
            self.evaluated[number] = record


def as_queued(
    source: str, attempt: int, params: Mapping[str, Any], resumes: int | None
) -> dict[str, Any]:
    """The attributes of a trial in the queue; arguments are those of `Record`."""
    attributes: dict[str, Any] = {"source": source, "attempt": attempt, "params": params}
    return attributes if resumes is None else {**attributes, "resumes": resumes}


def as_proposed(source: str) -> dict[str, Any]:
    """The attributes of a trial that a sampler other than the study's has proposed."""
    return {"source": source}


def as_leased(policy: Policy, key: str, owner: Owner) -> dict[str, Any]:
    """The attributes of a candidate that a worker evaluates."""
    written = policy.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"candidate": {"policy": written, "key": key, "owner": vars(owner)}}


def as_raced(race: Race | None) -> dict[str, Any]:
    """The attributes of a candidate that has seen what its race has shown it."""
    if race is None:
        return {}
    if race.is_lost:
        assert race.incumbent is not None
        images, packed = len(race.scores), pack(race.scores)
        return {"stopped": {"by": race.incumbent.trial, "images": images, "correct": packed}}
    if race.is_paused:
        return as_paused(race.scores)
    is_per_image = len(race.scores) and race.scores.ndim == 1
    return {"correct": pack(race.scores)} if is_per_image else {}


def as_paused(scores: Scores) -> dict[str, Any]:
    """The attributes of a candidate that waits for more images, with its scores, (images seen,)."""
    return {"paused": pack(scores)}


def as_measured(measurement: Measurement) -> dict[str, Any]:
    """The attributes of a candidate with figures."""
    return {"measurement": measurement.to_dict()}


def as_answered(by: int) -> dict[str, Any]:
    """The attributes of a proposal that takes the values of an earlier trial."""
    return {"answered_by": by}


def as_closed(kind: str, reason: str) -> dict[str, Any]:
    """The attributes of a trial that came to nothing."""
    return {"closed": {"as": kind, "reason": reason}}
