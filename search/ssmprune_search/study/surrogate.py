"""What is known of a policy's score without an image: a Gaussian process over measured policies.

Policies that leave about as many tokens to each block, by the same scorers and with the same
alignment, have about the same score.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

LENGTHS = (1.5, 3.0, 6.0)
"""Length scales to choose from; 1 is another scorer, or 1/3 more or less of log tokens."""

NOISES = (0.003, 0.03)
"""Variances to choose from, of what is not smooth, as shares of the variance of score."""

Array = NDArray[np.float64]


def load() -> None:
    """Import what takes seconds, so that no proposal has to wait for it.

    Importing this module does not do it, because workers import the study and need none of it.
    """
    import scipy.special  # noqa: F401
    import sklearn.gaussian_process  # noqa: F401


class Surrogate:
    """Predicts scores of policies from measured ones, with a Matern 5/2 kernel around their mean.

    The length scale and the noise are those of `LENGTHS` and `NOISES` under which the measured
    policies are most likely. The amplitude grows with the length scale, so that slopes stay.
    """

    def __init__(self, points: Array, score: Array, variances: Array):
        """Args:
        points: Of the measured policies, (policies, features).
        score: Theirs, in per cent, (policies,).
        variances: Of the errors of `score`, (policies,); zero where all images were seen.
        """
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self._mean, self._scale = score.mean(), score.std() or 1.0
        self._process = GaussianProcessRegressor(
            ConstantKernel() * Matern(nu=2.5) + WhiteKernel(),
            alpha=variances / self._scale**2 + 1e-8,
            optimizer=_most_likely,
        ).fit(points, (score - self._mean) / self._scale)

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the score of policies, in per cent, (policies,) each."""
        mean, deviation = self._process.predict(points, return_std=True)
        return mean * self._scale + self._mean, deviation * self._scale


def _most_likely(loss: Callable[..., float], start: Array, bounds: Array) -> tuple[Array, float]:
    """The logarithms of amplitude, length scale and noise with the least loss, and that."""
    choices = [
        np.log([length**2, length, noise]) for length, noise in itertools.product(LENGTHS, NOISES)
    ]
    losses = [loss(choice, eval_gradient=False) for choice in choices]
    return choices[int(np.argmin(losses))], min(losses)
