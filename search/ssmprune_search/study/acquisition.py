"""What a candidate is expected to add: the expected improvement of the hypervolume.

Of a policy's costs nothing has to be learnt, as FLOPs follow from its token counts. So the expected
improvement has a closed form, see `expected_improvement`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssmprune_search.candidate.encoding import Encoding
from ssmprune_search.study.race import Bits, Incumbent, estimate
from ssmprune_search.study.surrogate import Array, Surrogate

REMEMBERED = 400
"""Latest measured candidates that are learnt from; the time to learn grows with their cube."""


@dataclass(frozen=True)
class Seen:
    """A candidate that has seen some of the images.

    Attributes:
        encoding: Its policy.
        correct: Whether it classifies an image rightly, (images seen,).
    """

    encoding: Encoding
    correct: Bits


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
        evaluated: At least one candidate with its top1, by the numbers of their trials.
        admitted: Those that keep to the space's limits.
        incumbents: Candidates that correct estimates from few images, by their trials.
        seen: Candidates that have seen some of the images, by the numbers of their trials.
        dense_flops: Those of the dense model.
        """
        self._dense_flops = dense_flops
        bits = np.array([incumbent.correct for incumbent in incumbents])
        measured = {n: (encoding.point, top1, 0.0) for n, (encoding, top1) in evaluated.items()}
        for number, one in seen.items():
            measured[number] = (one.encoding.point, *estimate(one.correct, bits))
        latest = sorted(measured)[-REMEMBERED:]
        points, top1, variances = zip(*(measured[number] for number in latest), strict=True)
        self._surrogate = Surrogate(np.array(points), np.array(top1), np.array(variances))
        self._found = [evaluated[number] for number in admitted]

    def top1(self, encodings: Sequence[Encoding]) -> list[float]:
        """The top1 that is expected of candidates, in per cent."""
        mean, _ = self._surrogate.predict(np.array([e.point for e in encodings]))
        return [float(top1) for top1 in np.clip(mean, 0, 100)]

    def improvements(self, encodings: Sequence[Encoding], running: Sequence[Encoding]) -> Array:
        """The hypervolume in top1 and FLOPs that candidates are expected to add, (candidates,).

        Args:
            encodings: The candidates.
            running: Candidates that are under way; their expected top1 counts as found.
        """
        found = [*self._found]
        if running:
            found += zip(running, self.top1(running), strict=True)
        front = [(encoding.cost.flops / self._dense_flops, top1) for encoding, top1 in found]
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
    """By how much policies are expected to raise the hypervolume in top1 and FLOPs.

    A policy of FLOPs f and top1 y adds the integral of max(0, y - b(g)) over g from f to the dense
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
    total: Array = (widths * improvement * deviation[:, None]).sum(axis=1) / 100
    return total
