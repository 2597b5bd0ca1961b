"""Which candidates see images, and how many: candidates wait, and the best of them go on.

Under early stopping a candidate waits before its first image and after each of `race.PAUSES` of
them. For every `SCREENED` new candidates that wait, one goes on up to its next pause. It is the one
of all that wait with the largest expected improvement. All go on before the search ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ssmprune.policy import Policy
from ssmprune_search.candidate.encoding import Encoding, encoding_key
from ssmprune_search.candidate.objective import has_score
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.acquisition import Acquisition, Seen
from ssmprune_search.study.race import Incumbent, Race, find_incumbent
from ssmprune_search.study.records import Record, as_paused
from ssmprune_search.study.surrogate import Array
from ssmprune_search.study.trials import Trials

SCREENED = 3
"""New candidates that begin to wait for each that goes on."""

LEARNT = 10
"""Fewest fully evaluated candidates from which improvements are expected."""


class Screening:
    """Lets candidates wait and go on; goes by the records that its `Trials` have read last."""

    def __init__(self, trials: Trials, space: SearchSpace):
        self._trials, self._space = trials, space
        self._encodings: dict[str, Encoding] = {}
        self._incumbents: dict[int, Incumbent | None] = {}
        self._learnt: tuple[Any, Acquisition] | None = None

    def encode(self, policy: Policy) -> Encoding:
        """The encoding of a policy of the space."""
        key = encoding_key(policy)
        if key not in self._encodings:
            self._encodings[key] = Encoding.of(policy, self._space.config)
        return self._encodings[key]

    def race(self, encoding: Encoding) -> Race:
        """The race of a candidate against what has been evaluated so far."""
        earlier = self._trials.records.with_key(encoding.key)
        known = earlier.scores if earlier is not None and earlier.kind == "paused" else None
        return Race(self._find_incumbent(encoding), known, pauses=self.has_learnt)

    def incumbents(self) -> list[Incumbent]:
        """The fully evaluated candidates that keep to the space's limits, by their trials."""
        evaluated = self._trials.records.evaluated
        for number in evaluated.keys() - self._incumbents.keys():
            self._incumbents[number] = self._as_incumbent(evaluated[number])
        found = (self._incumbents[number] for number in sorted(self._incumbents))
        return [incumbent for incumbent in found if incumbent is not None]

    def hold(self, number: int, encoding: Encoding) -> bool:
        """Let a new candidate wait for its first image.

        Returns:
            False when it need not wait: it has no incumbent, or too little is known.
        """
        incumbent = self._find_incumbent(encoding) if self.has_learnt else None
        if incumbent is None:
            return False
        score = min(*self._acquisition().score([encoding]), incumbent.search.score)
        told = replace(incumbent.search.with_score(score), flops=encoding.cost.flops)
        self._trials.set(number, as_paused(np.zeros(0, bool)))
        self._trials.tell(number, [told.value(objective) for objective in self._space.objectives])
        return True

    def is_due(self) -> bool:
        """Whether enough candidates have begun to wait for one more to go on."""
        records = self._trials.records
        new = sum(record.resumes is None for record in records.paused.values())
        return new >= SCREENED * (len(records.resumed) + 1)

    def next(self) -> Record:
        """The candidate to go on first; at least one has to wait."""
        waiting = self._trials.records.waiting
        if not self.has_learnt:
            return waiting[min(waiting)]
        encodings = {number: self._encoding_of(record) for number, record in waiting.items()}
        best = self._acquisition().best(encodings, self._under_way())
        return waiting[best]

    @property
    def has_learnt(self) -> bool:
        """Whether enough candidates are evaluated to learn from."""
        evaluated = self._trials.records.evaluated
        return has_score(self._space.objectives) and len(evaluated) >= LEARNT

    def improvements(self, encodings: Sequence[Encoding]) -> Array:
        """The hypervolume that candidates are expected to add, (candidates,); once `has_learnt`."""
        return self._acquisition().improvements(encodings, self._under_way())

    def _acquisition(self) -> Acquisition:
        """What candidates are expected to add by now; once `has_learnt`."""
        evaluated = self._trials.records.evaluated
        seen = {n: r for n, r in self._trials.records.partial.items() if len(r.scores)}
        state = (len(evaluated), *seen)
        if self._learnt is None or self._learnt[0] != state:
            acquisition = Acquisition(
                {n: (self._encoding_of(r), r.measurement.score) for n, r in evaluated.items()},
                [n for n, r in evaluated.items() if self._space.admits(r.measurement)],
                self.incumbents(),
                {n: Seen(self._encoding_of(r), r.scores) for n, r in seen.items()},
                self._space.dense_flops,
            )
            self._learnt = state, acquisition
        return self._learnt[1]

    def _under_way(self) -> list[Encoding]:
        """The candidates that workers evaluate now."""
        leased = (r for r in self._trials.records.open.values() if r.key is not None)
        return [self._encoding_of(record) for record in leased]

    def _as_incumbent(self, record: Record) -> Incumbent | None:
        """An evaluated candidate; None where it breaks a limit, or was evaluated without a race."""
        figures, scores = record.measurement, record.scores
        if not len(scores) or not self._space.admits(figures):
            return None
        return Incumbent(record.number, self._encoding_of(record).cost, figures, scores)

    def _find_incumbent(self, encoding: Encoding) -> Incumbent | None:
        return find_incumbent(self.incumbents(), encoding.cost, self._space.objectives)

    def _encoding_of(self, record: Record) -> Encoding:
        return self._encodings.get(record.key or "") or self.encode(record.policy)
