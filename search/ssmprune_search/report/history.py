"""How a search got to its front: hypervolume over candidates and time, and what mattered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.candidate.stages import word
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.results.table import alignment_text, merge_text, scorer_text
from ssmprune_search.study.study import Study

MOMENTS = 150
"""Most points of the curves."""

LEAST_TRIALS = 20
"""Fewest evaluated candidates for which importance is told."""


@dataclass(frozen=True)
class Moment:
    """A search after one more evaluated candidate.

    Attributes:
        candidates: Evaluated so far.
        seconds: Since the first trial began, pauses between sessions included.
        hypervolume: That of the candidates so far, as `ssmprune front` tells it.
    """

    candidates: int
    seconds: float
    hypervolume: float


@dataclass(frozen=True)
class Choice:
    """How often one choice was made.

    Attributes:
        front: Share of the front's members, in [0, 1].
        all: Share of all evaluated candidates.
    """

    name: str
    front: float
    all: float


def follow(outcome: Outcome, study: Study) -> list[Moment]:
    """The search from its first evaluated candidate to its last, at `MOMENTS` moments at most.

    Where latency is an objective the curve may dip: a candidate that is as fast within the noise
    can take the place of one that was timed faster.
    """
    records = study.records()
    ended = {record.number: record.ended for record in records if record.ended}
    begun = min(record.begun for record in records if record.begun)
    in_order = sorted(outcome.candidates, key=lambda c: ended[c.trial])
    numbers = {round(n) for n in np.linspace(1, len(in_order), MOMENTS)}
    moments = []
    for number in sorted(numbers):
        members = pareto_front(in_order[:number], outcome.objectives)
        seconds = (ended[in_order[number - 1].trial] - begun).total_seconds()
        moments.append(Moment(number, seconds, outcome.hypervolume(members)))
    return moments


def importances(outcome: Outcome, study: Study) -> dict[str, dict[str, float]]:
    """Share of each objective's variance that each parameter explains (fANOVA, Hutter et al.).

    Over the candidates that saw all images; empty with fewer than `LEAST_TRIALS` of them.
    """
    evaluated = {candidate.trial for candidate in outcome.candidates}
    trials = [trial for trial in study.trials() if trial.number in evaluated]
    if len(trials) < LEAST_TRIALS:
        return {}
    copy = optuna.create_study(directions=["minimize"] * len(outcome.objectives))
    copy.add_trials(trials)
    found: dict[str, dict[str, float]] = {}
    for index, objective in enumerate(outcome.objectives):
        shares = optuna.importance.get_param_importances(
            copy,
            evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
            target=lambda trial, index=index: trial.values[index],  # type: ignore[misc]
        )
        found[objective] = {name: float(share) for name, share in shares.items()}
    return found


def choices(outcome: Outcome) -> dict[str, list[Choice]]:
    """How often the front and all candidates use each scorer and alignment, commonest first.

    Where a candidate merges tokens, what stages do and how they merge as well.
    """
    kinds: dict[str, Callable[[Policy], str]] = {"Scorer": scorer_text, "Alignment": alignment_text}
    if any(candidate.policy.merges for candidate in outcome.candidates):
        kinds = {"Stages": _words, "Merging": lambda p: merge_text(p) or "none", **kinds}
    return {kind: _shares(outcome, name) for kind, name in kinds.items()}


def _words(policy: Policy) -> str:
    """What the stages do, each once: `neighbors, drop`."""
    return ", ".join(dict.fromkeys(map(word, policy.stages))) or "none"


def _shares(outcome: Outcome, name: Callable[[Policy], str]) -> list[Choice]:
    front, every = (_count(cs, name) for cs in (outcome.members, outcome.candidates))
    members, candidates = len(outcome.members), len(outcome.candidates)
    found = [Choice(n, front[n] / members, every[n] / candidates) for n in every]
    return sorted(found, key=lambda choice: (-choice.front, -choice.all, choice.name))


def _count(candidates: Sequence[Candidate], name: Callable[[Policy], str]) -> Counter[str]:
    return Counter(name(candidate.policy) for candidate in candidates)
