"""What is known of a policy's top1 without an image: a Gaussian process over measured policies.

Policies that leave about as many tokens to each block, by the same scorers and with the same
alignment, have about the same top1. Of a policy's costs nothing has to be learnt: FLOPs follow from
its token counts. So its expected gain in hypervolume has a closed form, see `expected_gain`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Policy
from ssmprune.pruning.alignment import decays
from ssmprune.pruning.scorers import scorers
from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.study.race import Cost

LENGTHS = (1.5, 3.0, 6.0)
"""Length scales to choose from; 1 is another scorer, or 1/3 more or less of log tokens."""

NOISES = (0.003, 0.03)
"""Variances to choose from, of what is not smooth, as shares of the variance of top1."""

SQRT2 = 2**0.5  # so that two of them are 1 apart

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prospect:
    """What a policy is before anything runs.

    Attributes:
        key: Equal for policies that prune alike.
        cost: What it costs.
        point: Where it lies for the surrogate, (features,).
    """

    key: str
    cost: Cost
    point: Array

    @classmethod
    def of(cls, policy: Policy, config: ModelConfig) -> Prospect:
        """What a policy is on the model that `config` describes."""
        cost = Cost.of(policy, config)
        logs = np.log(np.divide(cost.tokens, config.block_tokens))
        stages = policy.effective_stages(config)
        names = sorted(scorers.names())
        chosen = [policy.stage_scorer(stage).name for stage, _ in stages]
        alignment = policy.alignment
        return cls(
            repr(pruning_key(policy)),
            cost,
            np.concatenate(
                [
                    3 * logs / np.sqrt(len(logs)),
                    [chosen.count(s) / max(1, len(stages)) / SQRT2 for s in names],
                    [(alignment.decay == decay) / SQRT2 for decay in decays.names()],
                    [alignment.strength * (alignment.decay != "none")],
                    [alignment.conv != "compact"],
                ]
            ),
        )


def load() -> None:
    """Import what takes seconds, so that no proposal has to wait for it.

    Not done by importing this module: workers, which import the study, do without.
    """
    import scipy.special  # noqa: F401
    import sklearn.gaussian_process  # noqa: F401


class Surrogate:
    """Top1 of policies as those that have been measured tell: Matern 5/2 around their mean.

    The length scale and the noise are those of `LENGTHS` and `NOISES` under which the measured
    ones are most likely; the amplitude grows with the length scale, so that slopes stay.
    """

    def __init__(self, points: Array, top1: Array, variances: Array):
        """Args:
        points: Of the measured policies, (policies, features).
        top1: Theirs, in per cent, (policies,).
        variances: Of the errors of `top1`, (policies,); zero where all images were seen.
        """
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self._mean, self._scale = top1.mean(), top1.std() or 1.0
        self._process = GaussianProcessRegressor(
            ConstantKernel() * Matern(nu=2.5) + WhiteKernel(),
            alpha=variances / self._scale**2 + 1e-8,
            optimizer=_most_likely,
        ).fit(points, (top1 - self._mean) / self._scale)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the top1 of policies, in per cent, (policies,) each."""
        mean, deviation = self._process.predict(points, return_std=True)
        return mean * self._scale + self._mean, deviation * self._scale


def _most_likely(loss: Callable[..., float], start: Array, bounds: Array) -> tuple[Array, float]:
    """The logarithms of amplitude, length scale and noise with the least loss, and that."""
    choices = [
        np.log([length**2, length, noise]) for length, noise in itertools.product(LENGTHS, NOISES)
    ]
    losses = [loss(choice, eval_gradient=False) for choice in choices]
    return choices[int(np.argmin(losses))], min(losses)


def expected_gain(
    mean: Array, deviation: Array, flops: Array, front: Sequence[tuple[float, float]]
) -> Array:
    """By how much policies are expected to raise the hypervolume in top1 and FLOPs.

    A policy of FLOPs f and top1 y gains the integral of max(0, y - b(g)) over g from f to the dense
    model's, where b(g) is the best top1 of the front within g. For a normal y each step of b adds
    its width times the expected improvement over it (Jones et al., 1998, for one objective).

    Args:
        mean: Of the top1, in per cent, (policies,).
        deviation: Of the top1, positive, (policies,).
        flops: As shares of the dense model's, (policies,).
        front: FLOPs and top1 of evaluated policies, dominated or not, in any order.

    Returns:
        (policies,), where all of top1 at no FLOPs would be 1.
    """
    from scipy.special import ndtr

    ordered = np.array([(0.0, 0.0), *sorted(front), (1.0, 0.0)])
    starts, ends = ordered[:-1, 0], ordered[1:, 0]
    best = np.maximum.accumulate(ordered[:-1, 1])
    widths = np.clip(np.minimum(ends, 1) - np.maximum(starts, flops[:, None]), 0, None)
    z = (mean[:, None] - best) / deviation[:, None]
    improvement = z * ndtr(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    gains: Array = (widths * improvement * deviation[:, None]).sum(axis=1) / 100
    return gains
