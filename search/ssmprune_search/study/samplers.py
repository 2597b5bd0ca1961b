"""Optuna's samplers by name and one of our own, made anew for each proposal.

What a sampler has learnt is in the study, and its randomness follows from the seed and the number
of the proposal. So a search that was ended and resumed goes on as if it had not been.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import moocore
import numpy as np
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ssmprune.errors import UsageError, unknown_name

SAMPLERS = ("auto", "ehvi", "gp", "nsga2", "qmc", "random", "tpe")
"""What a search can be told to use; `auto` is `study.portfolio`, which picks one of the others."""

Distributions = Mapping[str, BaseDistribution]

Improvements = Callable[[Sequence[dict[str, Any]]], list[float] | None]
"""Expected improvements of proposals, by their parameters.

Negative for proposals that are not to be made; None before enough is known.
"""

_POPULATION = 24
_NEIGHBOURS = 24  # that one proposal of `ehvi` is chosen from
_RANDOM = 6


class _KnownSpace(BaseSampler):
    """Samples the given parameters; Optuna would find them by reading all earlier trials."""

    def __init__(self, distributions: Distributions, **settings: Any):
        super().__init__(**settings)
        self._distributions = dict(distributions)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._distributions


class _Nsga2(_KnownSpace, NSGAIISampler): ...


class _Tpe(_KnownSpace, TPESampler): ...


class _Gp(_KnownSpace, GPSampler): ...


class EhviSampler(_KnownSpace, RandomSampler):
    """Proposes the largest expected improvement, of neighbours of the front and random candidates.

    A neighbour is a member drawn at random with one parameter moved, and each further one with a
    chance of one in their number. A number moves by one or two steps of its grid, a choice to any
    other. Before enough is known for an expectation, all proposals are random.
    """

    def __init__(self, distributions: Distributions, seed: int, improvements: Improvements):
        super().__init__(distributions, seed=seed)
        self._dice, self._improvements = random.Random(seed), improvements

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        members = [t.params for t in _best(study) if t.params.keys() == search_space.keys()]
        proposals = [
            {name: self._draw(distribution) for name, distribution in search_space.items()}
            for _ in range(_RANDOM)
        ]
        if members:
            proposals += [self._neighbour(members) for _ in range(_NEIGHBOURS)]
        improvements = self._improvements(proposals)
        if improvements is None or max(improvements) < 0:
            return {}
        return proposals[improvements.index(max(improvements))]

    def _neighbour(self, members: list[dict[str, Any]]) -> dict[str, Any]:
        params, names = dict(self._dice.choice(members)), list(self._distributions)
        first = self._dice.choice(names)
        for name in names:
            if name == first or self._dice.random() < 1 / len(names):
                params[name] = self._move(params[name], self._distributions[name])
        return params

    def _draw(self, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            return self._dice.choice(distribution.choices)
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, step = distribution.low, distribution.step or 1
        value = low + self._dice.randint(0, round((distribution.high - low) / step)) * step
        return value if isinstance(low, int) else round(value, 9)

    def _move(self, value: Any, distribution: BaseDistribution) -> Any:
        if isinstance(distribution, CategoricalDistribution):
            others = [choice for choice in distribution.choices if choice != value]
            return self._dice.choice(others or [value])
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        step = distribution.step or 0
        moved = value + self._dice.choice((-2, -1, 1, 2)) * step
        moved = min(max(moved, distribution.low), distribution.high)
        return type(value)(moved) if isinstance(value, int) else round(moved, 9)


def _best(study: Study) -> list[FrozenTrial]:
    """The trials that no other dominates; `Study.best_trials` copies all for it."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not trials:
        return []
    maximise = [direction == StudyDirection.MAXIMIZE for direction in study.directions]
    kept = moocore.is_nondominated(
        np.array([trial.values for trial in trials]), maximise=maximise, keep_weakly=True
    )
    return [trial for trial, keep in zip(trials, kept, strict=True) if keep]


def make_sampler(
    name: str, seed: int, proposal: int, distributions: Distributions, improvements: Improvements
) -> BaseSampler:
    """The sampler for one proposal.

    Args:
        name: One of `SAMPLERS` but `auto`.
        seed: Seed of the search.
        proposal: Number of the proposal.
        distributions: The parameters of every trial.
        improvements: Tells the expected improvements of proposals.

    Raises:
        UsageError: There is no such sampler.
    """
    digest = hashlib.sha256(f"{seed} {proposal}".encode()).digest()
    own_seed = int.from_bytes(digest[:4], "big")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "nsga2":
            return _Nsga2(distributions, population_size=_POPULATION, seed=own_seed)
        if name == "tpe":
            return _Tpe(distributions, multivariate=True, constant_liar=True, seed=own_seed)
        if name == "ehvi":
            return EhviSampler(distributions, own_seed, improvements)
        if name == "random":
            return RandomSampler(seed=own_seed)
        if name == "gp":
            return _Gp(distributions, seed=own_seed)
        if name == "qmc":  # one sequence for all proposals; Optuna keeps the place in the study
            return QMCSampler(scramble=True, seed=seed, warn_independent_sampling=False)
    raise UsageError(unknown_name("sampler", name, SAMPLERS))
