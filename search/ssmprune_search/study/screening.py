"""What candidates promise: the hypervolume that each is expected to add to what has been found.

Early stopping spends images by it. Candidates wait before their first image and after each of
`racing.PAUSES` of them; for every `SCREENED` new ones, the most promising of all that wait sees
images up to its next pause, and all do before the search ends. The sampler `ehvi` proposes by it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssmprune_search.study.race import Bits, Rival, estimate
from ssmprune_search.study.surrogate import Array, Prospect, Surrogate, expected_gain

SCREENED = 3
"""New candidates that begin to wait for each that goes on."""

LEARNT = 10
"""Fully evaluated candidates without which nothing is promised."""

REMEMBERED = 400
"""Latest measured candidates that promises are learnt from; time grows with their cube."""


@dataclass(frozen=True)
class Seen:
    """A candidate that has seen some of the images.

    Attributes:
        prospect: What it is.
        correct: Whether it classifies an image rightly, (images seen,).
    """

    prospect: Prospect
    correct: Bits


class Promise:
    """What candidates promise after what has been measured so far."""

    def __init__(
        self,
        evaluated: Mapping[int, tuple[Prospect, float]],
        admitted: Collection[int],
        rivals: Sequence[Rival],
        seen: Mapping[int, Seen],
        dense_flops: int,
    ):
        """Args:
        evaluated: At least one candidate with its top1, by the numbers of their trials.
        admitted: Those that keep to the space's limits.
        rivals: Candidates that estimates from few images are corrected by, by their trials.
        seen: Candidates that have seen some of the images, by the numbers of their trials.
        dense_flops: Those of the dense model.
        """
        self._dense_flops = dense_flops
        bits = np.array([rival.correct for rival in rivals])
        measured = {n: (prospect.point, top1, 0.0) for n, (prospect, top1) in evaluated.items()}
        for number, one in seen.items():
            measured[number] = (one.prospect.point, *estimate(one.correct, bits))
        latest = sorted(measured)[-REMEMBERED:]
        points, top1, variances = zip(*(measured[number] for number in latest), strict=True)
        self._surrogate = Surrogate(np.array(points), np.array(top1), np.array(variances))
        self._found = [evaluated[number] for number in admitted]

    def top1(self, prospects: Sequence[Prospect]) -> list[float]:
        """What is expected of candidates, in per cent."""
        mean, _ = self._surrogate.predict(np.array([p.point for p in prospects]))
        return [float(top1) for top1 in np.clip(mean, 0, 100)]

    def gains(self, prospects: Sequence[Prospect], running: Sequence[Prospect]) -> Array:
        """The hypervolume in top1 and FLOPs that candidates are expected to add, (candidates,).

        Args:
            prospects: The candidates.
            running: Those that are under way; they count as what they are expected to be.
        """
        found = [*self._found]
        if running:
            found += zip(running, self.top1(running), strict=True)
        front = [(prospect.cost.flops / self._dense_flops, top1) for prospect, top1 in found]
        mean, deviation = self._surrogate.predict(np.array([p.point for p in prospects]))
        flops = np.array([p.cost.flops for p in prospects]) / self._dense_flops
        return expected_gain(mean, deviation, flops, front)

    def best(self, waiting: Mapping[int, Prospect], running: Sequence[Prospect]) -> int:
        """The trial of at least one that promises most; of equals the first."""
        numbers = sorted(waiting)
        return numbers[int(self.gains([waiting[n] for n in numbers], running).argmax())]
