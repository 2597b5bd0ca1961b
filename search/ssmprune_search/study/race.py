"""Early stopping: a candidate races the best one that costs no more, on a few images.

All candidates see the search images in one order, of which every prefix is a fair sample. The
incumbent of a candidate is the fully evaluated one with the highest top1 among those that cost no
more. So a candidate that its incumbent beats in top1 is dominated. After each of `LOOKS` shares of
the images the two are compared on the images that the candidate has seen: `losses` are those that
only the incumbent gets right, `wins` those that only the candidate does. The candidate stops if the
exact sign test (McNemar's) of losses > wins has a p-value of at most `FALSE_STOPS / len(LOOKS)`.

So a candidate that gets as many of all images right as its incumbent stops with a chance of at most
`FALSE_STOPS` over the orders of the images. That holds for every candidate that nothing dominates.
Among its discordant images, the losses seen are hypergeometric, whose upper tail is at most the
binomial one of the sign test, and the looks share the rate (Bonferroni).

A candidate that has an incumbent and has not stopped pauses after each of `PAUSES` of the images;
`study.screening` decides which one goes on. Every paused candidate goes on before the search ends.
It goes on from the image where it paused, and races the best incumbent of that time.

What costs no more is told by `Cost.is_within`. Neither FLOPs nor tokens stand for peak memory,
which pruning can raise. Where it is an objective, it is measured before the race, and an incumbent
that takes more is dropped.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssmprune_search.candidate.cost import Cost
from ssmprune_search.candidate.measurement import Measurement

FALSE_STOPS = 0.05
"""Highest chance that a candidate stops although it equals its incumbent on all images."""

LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the images after which a candidate is compared with its incumbent."""

PAUSES = LOOKS[:3]
"""Shares of the images after which a candidate pauses."""

PEERS = 5
"""Fully evaluated candidates that an estimate from few images is corrected by."""

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Incumbent:
    """A fully evaluated candidate.

    Attributes:
        trial: Number of its trial.
        cost: What its policy costs.
        search: Its figures on the search split.
        correct: Whether it classifies an image rightly, (images,).
    """

    trial: int
    cost: Cost
    search: Measurement
    correct: Bits


def find_incumbent(
    incumbents: Iterable[Incumbent], cost: Cost, objectives: Sequence[str]
) -> Incumbent | None:
    """The incumbent of a candidate: the best in top1 of those that cost no more.

    Of equals it is the cheaper one. None where all cost more, and where top1 is no objective.
    """
    if "top1" not in objectives:
        return None
    return max(
        (one for one in incumbents if one.cost.is_within(cost, objectives)),
        key=lambda one: (one.search.top1, -one.cost.flops, -one.trial),
        default=None,
    )


def estimate(seen: Bits, incumbents: Bits) -> tuple[float, float]:
    """Estimate a candidate's top1 on all images, in per cent, from the first ones.

    The estimate is its top1 on the first images, plus the difference between its peers' top1 on all
    images and on the first ones. This control variate tells how hard the first images are. Peers
    are the `PEERS` incumbents that agree with it on most of them, of equals the earlier. Without
    incumbents there is no correction.

    Args:
        seen: Whether it gets each of the first images right, (images seen,), at least one.
        incumbents: What fully evaluated candidates get right, (incumbents, images).

    Returns:
        The estimate and the variance of its error: that of a mean of as many draws without
        replacement as images were seen, a draw being the candidate's lead over the peers' mean.
    """
    images = len(seen)
    peers, lead, unseen = 0.0, seen.astype(float), 1.0
    if len(incumbents):
        nearest = np.argsort((incumbents[:, :images] != seen).sum(axis=1), kind="stable")[:PEERS]
        mean = incumbents[nearest].mean(axis=0)
        peers, lead, unseen = mean.mean(), seen - mean[:images], 1 - images / len(mean)
    spread = max(float(lead.var()), 1 / images)  # no lead seen is not none at all
    top1 = min(max(float(peers + lead.mean()), 0.0), 1.0)
    return 100 * top1, 100**2 * unseen * spread / images


class Race:
    """One candidate's way through the images.

    Attributes:
        incumbent: What it is compared with; with None it sees all images.
        pauses: Whether it pauses as long as it has an incumbent.
        known: What it got right before it paused, (images seen then,).
        correct: What it has got right so far, (images seen,).
        is_lost: Whether it has stopped.
        is_paused: Whether it waits for the rest of the images.
    """

    def __init__(
        self, incumbent: Incumbent | None = None, known: Bits | None = None, pauses: bool = False
    ):
        self.incumbent, self.pauses = incumbent, pauses
        self.known: Bits = np.zeros(0, bool) if known is None else known
        self.correct = self.known
        self.is_lost = self.is_paused = False

    def start(self, peak_memory_bytes: float) -> None:
        """Drop an incumbent that takes more memory than the candidate.

        Args:
            peak_memory_bytes: The candidate's; NaN where it is no objective.
        """
        if self.incumbent and self.incumbent.search.peak_memory_bytes > peak_memory_bytes:
            self.incumbent = None

    @property
    def ended_early(self) -> bool:
        """Whether it has not been shown all images."""
        return self.is_lost or self.is_paused

    def rungs(self, images: int) -> tuple[int, ...]:
        """Numbers of images after which `show` is to be called, ascending; last, all of them."""
        shares = sorted({math.ceil(images * share) for share in (*LOOKS, 1)})
        return tuple(rung for rung in shares if rung > len(self.known))

    def show(self, correct: Bits) -> bool:
        """Take what the candidate has got right so far.

        Args:
            correct: (images seen,), in the common order, `known` included; of any number of images.

        Returns:
            Whether the candidate is to see no more for now.
        """
        self.correct = correct
        if self.incumbent is not None and len(correct) < len(self.incumbent.correct):
            theirs = self.incumbent.correct[: len(correct)]
            losses, wins = int((theirs & ~correct).sum()), int((correct & ~theirs).sum())
            self.is_lost = sign_test(losses, wins) <= FALSE_STOPS / len(LOOKS)
            images = len(self.incumbent.correct)
            is_due = any(len(self.known) < share * images <= len(correct) for share in PAUSES)
            self.is_paused = self.pauses and is_due and not self.is_lost
        return self.ended_early

    def told(self, measurement: Measurement, incumbents: Iterable[Incumbent]) -> Measurement:
        """What the sampler is told: of a candidate that ended early, an estimate of its top1.

        The estimate is at most the incumbent's top1. So on the front that samplers see, no estimate
        from a few images replaces a full evaluation.
        """
        if not self.ended_early or self.incumbent is None:
            return measurement
        top1, _ = estimate(self.correct, np.array([incumbent.correct for incumbent in incumbents]))
        return replace(measurement, top1=min(top1, self.incumbent.search.top1))


def sign_test(losses: int, wins: int) -> float:
    """The chance of at least so many losses among `losses + wins` fair coins."""
    coins = losses + wins
    return sum(math.comb(coins, heads) for heads in range(wins + 1)) / (1 << coins)


def pack(correct: Bits) -> str:
    """The bits as text for the study: their number, then zlib in base64."""
    packed = zlib.compress(np.packbits(correct).tobytes(), 9)
    return f"{len(correct)}:{base64.b64encode(packed).decode()}"


def unpack(text: str) -> Bits:
    """What `pack` was given."""
    count, _, packed = text.partition(":")
    octets = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    return np.unpackbits(octets, count=int(count)).astype(bool)
