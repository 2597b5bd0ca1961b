"""What a candidate is expected to add: the expected improvement of the hypervolume.

Of a policy's costs nothing has to be learnt, as FLOPs follow from its token counts. So the expected
improvement has a closed form, see `expected_improvement`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssmprune_search.candidate.encoding import Encoding
from ssmprune_search.study.race import Incumbent, Scores, estimate
from ssmprune_search.study.surrogate import Array, Surrogate

REMEMBERED = 400
"""Latest measured candidates that are learnt from; the time to learn grows with their cube."""


@dataclass(frozen=True)
class Seen:
    """A candidate that has seen some of the images.

    Attributes:
        encoding: Its policy.
        scores: Of the images, (images seen,).
    """

    encoding: Encoding
    scores: Scores


class Acquisition:
    """The acquisition function after what has been measured so far."""

    def __init__(
        self,
        evaluated: Mapping[int, tuple[Encoding, float]],
        admitted: Collection[int],
        incumbents: Sequence[Incumbent],
        seen: Mapping[int, Seen],
        dense_flops: int,
    ):
        """Args:
        evaluated: At least one candidate with its score, by the numbers of their trials.
        admitted: Those that keep to the space's limits.
        incumbents: Candidates that correct estimates from few images, by their trials.
        seen: Candidates that have seen some of the images, by the numbers of their trials.
        dense_flops: Those of the dense model.
        """
        self._dense_flops = dense_flops
        scores = np.array([incumbent.scores for incumbent in incumbents])
        measured = {n: (encoding.point, score, 0.0) for n, (encoding, score) in evaluated.items()}
        for number, one in seen.items():
            measured[number] = (one.encoding.point, *estimate(one.scores, scores))
        latest = sorted(measured)[-REMEMBERED:]
        points, score, variances = zip(*(measured[number] for number in latest), strict=True)
        self._surrogate = Surrogate(np.array(points), np.array(score), np.array(variances))
        self._found = [evaluated[number] for number in admitted]

    def score(self, encodings: Sequence[Encoding]) -> list[float]:
        """The score that is expected of candidates, in per cent."""
        mean, _ = self._surrogate.predict(np.array([e.point for e in encodings]))
        return [float(score) for score in np.clip(mean, 0, 100)]

    def improvements(self, encodings: Sequence[Encoding], running: Sequence[Encoding]) -> Array:
        """The hypervolume in score and FLOPs that candidates are expected to add, (candidates,).

        Args:
            encodings: The candidates.
            running: Candidates that are under way; their expected score counts as found.
        """
        found = [*self._found]
        if running:
            found += zip(running, self.score(running), strict=True)
        front = [(encoding.cost.flops / self._dense_flops, score) for encoding, score in found]
        mean, deviation = self._surrogate.predict(np.array([e.point for e in encodings]))
        flops = np.array([e.cost.flops for e in encodings]) / self._dense_flops
        return expected_improvement(mean, deviation, flops, front)

    def best(self, waiting: Mapping[int, Encoding], running: Sequence[Encoding]) -> int:
        """The trial with the largest expected improvement of at least one; of equals the first."""
        numbers = sorted(waiting)
        return numbers[int(self.improvements([waiting[n] for n in numbers], running).argmax())]


def expected_improvement(
    mean: Array, deviation: Array, flops: Array, front: Sequence[tuple[float, float]]
) -> Array:
    """By how much policies are expected to raise the hypervolume in score and FLOPs.

    A policy of FLOPs f and score y adds the integral of max(0, y - b(g)) over g from f to the dense
    model's, where b(g) is the best score of the front within g. For a normal y each step of b adds
    its width times the expected improvement over it (Jones et al., 1998, for one objective).

    Args:
        mean: Of the score, in per cent, (policies,).
        deviation: Of the score, positive, (policies,).
        flops: As shares of the dense model's, (policies,).
        front: FLOPs and score of evaluated policies, dominated or not, in any order.

    Returns:
        (policies,), where all of score at no FLOPs would be 1.
    """
    from scipy.special import ndtr

    ordered = np.array([(0.0, 0.0), *sorted(front), (1.0, 0.0)])
    starts, ends = ordered[:-1, 0], ordered[1:, 0]
    best = np.maximum.accumulate(ordered[:-1, 1])
    widths = np.clip(np.minimum(ends, 1) - np.maximum(starts, flops[:, None]), 0, None)
    z = (mean[:, None] - best) / deviation[:, None]
    improvement = z * ndtr(z) + np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    total: Array = (widths * improvement * deviation[:, None]).sum(axis=1) / 100
    return total
