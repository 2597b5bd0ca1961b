"""Where the next candidate comes from: the queue, a sampler, or those that have paused.

A proposal needs no evaluation where it is infeasible, or a duplicate of an earlier candidate. Then
its trial is closed, or takes the values of the earlier one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import optuna
from optuna.trial import FixedTrial

from ssmprune.policy import Policy
from ssmprune_search.candidate.encoding import Encoding
from ssmprune_search.candidate.objective import OBJECTIVES
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.portfolio import choose
from ssmprune_search.study.race import Race
from ssmprune_search.study.records import Owner, Record, as_answered, as_leased, as_proposed
from ssmprune_search.study.samplers import make_sampler
from ssmprune_search.study.screening import Screening
from ssmprune_search.study.trials import Trials

_REMEMBERED = 10_000
"""Proposals whose encodings are kept: neighbours of a front come again and again."""


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


class Proposals:
    """Proposes candidates; goes by the records that its `Trials` have read last."""

    def __init__(
        self, trials: Trials, screening: Screening, space: SearchSpace, sampler: str, seed: int
    ):
        """Args:
        trials: The study's trials.
        screening: Decides which candidates wait.
        space: The search space.
        sampler: Name of the sampler.
        seed: Seed of the search.
        """
        self._trials, self._screening, self._space = trials, screening, space
        self._sampler, self._seed = sampler, seed
        self._distributions = space.distributions()
        self._encode = lru_cache(_REMEMBERED)(self._encoding_of)

    def next(self, owner: Owner, early_stopping: bool) -> Suggestion | None:
        """A candidate of the queue or the sampler; None when it needs no evaluation for now.

        Args:
            owner: Who is to evaluate it.
            early_stopping: Whether it races, and may have to wait for its first image.
        """
        records = self._trials.records
        proposal = len(records.all) - records.counts().lost
        name = self._choose_sampler(proposal)
        trial = self._trials.ask(
            make_sampler(name, self._seed, proposal, self._distributions, self._improvements)
        )
        is_queued = trial.number < len(records.all)
        if not is_queued and name != self._sampler:
            self._trials.set(trial.number, as_proposed(name))
        resumes = is_queued and records.all[trial.number].resumes is not None
        return self._lease(trial, owner, early_stopping, resumes)

    def resume(self, owner: Owner, early_stopping: bool) -> Suggestion | None:
        """The best of the candidates that have paused; arguments are those of `next`."""
        number, paused = len(self._trials.records.all), self._screening.next()
        self._trials.enqueue(paused.source, 1, paused.params, resumes=paused.number)
        return self._lease(self._trials.start(number), owner, early_stopping, resumes=True)

    def _lease(
        self, trial: optuna.Trial, owner: Owner, early_stopping: bool, resumes: bool
    ) -> Suggestion | None:
        """Lease a trial's candidate to its owner; None when it needs no evaluation for now."""
        number, policy = trial.number, self._space.suggest(trial)
        encoding = self._screening.encode(policy)
        fault = self._space.infeasible(encoding.cost.flops)
        if fault is not None:
            self._trials.close(number, "infeasible", fault)
            return None
        earlier = None if resumes else self._trials.records.with_key(encoding.key)
        if earlier is not None:
            self._answer(number, earlier)
            return None
        self._trials.set(number, as_leased(policy, encoding.key, owner))
        if early_stopping and not resumes and self._screening.hold(number, encoding):
            return None
        race = self._screening.race(encoding) if early_stopping else Race()
        return Suggestion(number, policy, race)

    def _answer(self, number: int, earlier: Record) -> None:
        """Settle a duplicate of an earlier candidate: with its values, once it has them."""
        if earlier.values is None:
            self._trials.close(number, "duplicate", f"equal to trial {earlier.number}")
            return
        self._trials.set(number, as_answered(earlier.number))
        self._trials.tell(number, earlier.values)

    def _choose_sampler(self, proposal: int) -> str:
        """Name of the sampler of a proposal."""
        if self._sampler != "auto":
            return self._sampler
        complete = [record for record in self._trials.records.all if record.values is not None]
        signs = [-1 if OBJECTIVES[o].maximise else 1 for o in self._space.objectives]
        losses = np.full((len(complete), len(signs)), np.inf)
        for row, record in zip(losses, complete, strict=True):
            if record.kind == "evaluated":
                row[:] = np.multiply(signs, record.values or ())
        return choose([record.source for record in complete], losses, self._seed, proposal)

    def _improvements(self, proposals: Sequence[dict[str, Any]]) -> list[float] | None:
        """The expected improvements of proposals, by their parameters.

        None before enough is known. It is minus infinity for a proposal that is infeasible or equal
        to an earlier one, as that adds nothing.
        """
        if not self._screening.has_learnt:
            return None
        found = [-math.inf] * len(proposals)
        new: dict[int, Encoding] = {}
        for place, params in enumerate(proposals):
            encoding = self._encode(tuple(params.items()))
            is_known = self._trials.records.with_key(encoding.key) is not None
            if not is_known and self._space.infeasible(encoding.cost.flops) is None:
                new[place] = encoding
        if new:
            improvements = self._screening.improvements([*new.values()])
            for place, improvement in zip(new, improvements, strict=True):
                found[place] = float(improvement)
        return found

    def _encoding_of(self, params: tuple[tuple[str, Any], ...]) -> Encoding:
        policy = self._space.suggest(FixedTrial(dict(params)))
        return Encoding.of(policy, self._space.config)
