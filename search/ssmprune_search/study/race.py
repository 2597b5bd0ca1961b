"""Early stopping: a candidate races the best one that costs no more, on a few images.

All candidates see the search images in one order, of which every prefix is a fair sample. The
incumbent of a candidate is the fully evaluated one with the highest score among those that cost no
more. So a candidate that its incumbent beats in its score is dominated. After each of `LOOKS`
shares of the images the two are compared on the images that the candidate has seen: `losses` are
those that only the incumbent gets right, `wins` those that only the candidate does. The candidate
stops if the exact sign test (McNemar's) of losses > wins has a p-value of at most
`FALSE_STOPS / len(LOOKS)`.

So a candidate that gets as many of all images right as its incumbent stops with a chance of at most
`FALSE_STOPS` over the orders of the images. That holds for every candidate that nothing dominates.
Among its discordant images, the losses seen are hypergeometric, whose upper tail is at most the
binomial one of the sign test, and the looks share the rate (Bonferroni).

Where images have numbers as scores, Student's paired test takes the place of the sign test; its
rate holds for many images. Where a metric has no score per image, a few images tell nothing of the
rest: there are no incumbents, and all candidates see all images.

A candidate that has an incumbent and has not stopped pauses after each of `PAUSES` of the images;
`study.screening` decides which one goes on. Every paused candidate goes on before the search ends.
It goes on from the image where it paused, and races the best incumbent of that time.

What costs no more is told by `Cost.is_within`. Neither FLOPs nor tokens stand for other costs, such
as peak memory, which pruning can raise. Where one is an objective, it is measured before the race,
and an incumbent that takes more is dropped.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmprune_search.candidate.cost import Cost
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.objective import MEASURED_COSTS, has_score

FALSE_STOPS = 0.05
"""Highest chance that a candidate stops although it equals its incumbent on all images."""

LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the images after which a candidate is compared with its incumbent."""

PAUSES = LOOKS[:3]
"""Shares of the images after which a candidate pauses."""

PEERS = 5
"""Fully evaluated candidates that an estimate from few images is corrected by."""

_NUMBERS = "<f4"

Scores = NDArray[Any]
"""One score for each image: whether it is right, or a number in [0, 1]."""


@dataclass(frozen=True)
class Incumbent:
    """A fully evaluated candidate.

    Attributes:
        trial: Number of its trial.
        cost: What its policy costs.
        search: Its figures on the search split.
        scores: Of each image, (images,).
    """

    trial: int
    cost: Cost
    search: Measurement
    scores: Scores


def find_incumbent(
    incumbents: Iterable[Incumbent], cost: Cost, objectives: Sequence[str]
) -> Incumbent | None:
    """The incumbent of a candidate: the best score of those that cost no more.

    Of equals it is the cheaper one. None where all cost more, and where no score is an objective.
    """
    if not has_score(objectives):
        return None
    return max(
        (one for one in incumbents if one.cost.is_within(cost, objectives)),
        key=lambda one: (one.search.score, -one.cost.flops, -one.trial),
        default=None,
    )


def estimate(seen: Scores, incumbents: Scores) -> tuple[float, float]:
    """Estimate a candidate's score on all images, in per cent, from the first ones.

    The estimate is its score on the first images, plus the difference between its peers' score on
    all images and on the first ones. This control variate tells how hard the first images are.
    Peers are the `PEERS` incumbents that agree with it on most of them, of equals the earlier.
    Without incumbents there is no correction.

    Args:
        seen: Its scores of the first images, (images seen,), at least one.
        incumbents: Those of fully evaluated candidates, (incumbents, images).

    Returns:
        The estimate and the variance of its error: that of a mean of as many draws without
        replacement as images were seen, a draw being the candidate's lead over the peers' mean.
    """
    images = len(seen)
    peers, lead, unseen = 0.0, seen.astype(float), 1.0
    if len(incumbents):
        distance = np.abs(np.subtract(incumbents[:, :images], seen, dtype=float)).sum(axis=1)
        nearest = np.argsort(distance, kind="stable")[:PEERS]
        mean = incumbents[nearest].mean(axis=0)
        peers, lead, unseen = mean.mean(), seen - mean[:images], 1 - images / len(mean)
    spread = max(float(lead.var()), 1 / images)  # no lead seen is not none at all
    score = min(max(float(peers + lead.mean()), 0.0), 1.0)
    return 100 * score, 100**2 * unseen * spread / images


class Race:
    """One candidate's way through the images.

    Attributes:
        incumbent: What it is compared with; with None it sees all images.
        pauses: Whether it pauses as long as it has an incumbent.
        known: Its scores before it paused, (images seen then,).
        scores: Its scores so far, (images seen,).
        is_lost: Whether it has stopped.
        is_paused: Whether it waits for the rest of the images.
    """

    def __init__(
        self, incumbent: Incumbent | None = None, known: Scores | None = None, pauses: bool = False
    ):
        self.incumbent, self.pauses = incumbent, pauses
        self.known: Scores = np.zeros(0, bool) if known is None else known
        self.scores = self.known
        self.is_lost = self.is_paused = False

    def start(self, figures: Mapping[str, Any]) -> None:
        """Drop an incumbent that costs more than the candidate.

        Args:
            figures: What was measured of the candidate before the race; NaN where a cost is no
                objective.
        """
        costs = [cost.name for cost in MEASURED_COSTS if cost.name in figures]
        incumbent = self.incumbent
        if incumbent and any(incumbent.search.value(name) > figures[name] for name in costs):
            self.incumbent = None

    @property
    def ended_early(self) -> bool:
        """Whether it has not been shown all images."""
        return self.is_lost or self.is_paused

    def rungs(self, images: int) -> tuple[int, ...]:
        """Numbers of images after which `show` is to be called, ascending; last, all of them."""
        shares = sorted({math.ceil(images * share) for share in (*LOOKS, 1)})
        return tuple(rung for rung in shares if rung > len(self.known))

    def show(self, scores: Scores) -> bool:
        """Take the candidate's scores so far.

        Args:
            scores: (images seen,), in the common order, `known` included; of any number of images.

        Returns:
            Whether the candidate is to see no more for now.
        """
        self.scores = scores
        if self.incumbent is not None and len(scores) < len(self.incumbent.scores):
            theirs = self.incumbent.scores[: len(scores)]
            self.is_lost = paired_test(theirs, scores) <= FALSE_STOPS / len(LOOKS)
            images = len(self.incumbent.scores)
            is_due = any(len(self.known) < share * images <= len(scores) for share in PAUSES)
            self.is_paused = self.pauses and is_due and not self.is_lost
        return self.ended_early

    def told(self, measurement: Measurement, incumbents: Iterable[Incumbent]) -> Measurement:
        """What the sampler is told: of a candidate that ended early, an estimate of its score.

        The estimate is at most the incumbent's score. So on the front that samplers see, no
        estimate from a few images replaces a full evaluation.
        """
        if not self.ended_early or self.incumbent is None:
            return measurement
        score, _ = estimate(self.scores, np.array([incumbent.scores for incumbent in incumbents]))
        return measurement.with_score(min(score, self.incumbent.search.score))


def paired_test(other: Scores, own: Scores) -> float:
    """The p-value of `own` scores being as much below another model's, if both were equally good.

    Args:
        other, own: Scores of the same images, (images,).
    """
    if own.dtype == bool:
        return sign_test(int((other & ~own).sum()), int((own & ~other).sum()))
    from scipy.stats import ttest_rel

    lead = np.subtract(other, own)
    if np.ptp(lead) < 1e-9:  # no spread to judge it by
        return float(0.5 ** len(own)) if lead[0] > 0 else 1.0
    return float(ttest_rel(other, own, alternative="greater").pvalue)


def sign_test(losses: int, wins: int) -> float:
    """The chance of at least so many losses among `losses + wins` fair coins."""
    coins = losses + wins
    return sum(math.comb(coins, heads) for heads in range(wins + 1)) / (1 << coins)


def pack(scores: Scores) -> str:
    """The scores as text for the study: their number, then zlib in base64; numbers as float32."""
    if scores.dtype == bool:
        kind, octets = "", np.packbits(scores).tobytes()
    else:
        kind, octets = _NUMBERS, scores.astype(_NUMBERS).tobytes()
    packed = base64.b64encode(zlib.compress(octets, 9)).decode()
    return f"{len(scores)}:{kind}:{packed}" if kind else f"{len(scores)}:{packed}"


def unpack(text: str) -> Scores:
    """What `pack` was given."""
    count, *kind, packed = text.split(":")
    octets = zlib.decompress(base64.b64decode(packed))
    if kind:
        return np.frombuffer(octets, kind[0])
    return np.unpackbits(np.frombuffer(octets, np.uint8), count=int(count)).astype(bool)
