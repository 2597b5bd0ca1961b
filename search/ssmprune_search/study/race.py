"""Early stopping: few images tell which candidates are worth the rest, and who needs none of it.

All candidates see the search images in one order, of which every prefix is a fair sample. A
candidate's rival is the fully evaluated one with the highest top1 among those that cost no more;
so a candidate that its rival beats in top1 is dominated. After each of `LOOKS` shares of the
images the two are compared on the images that the candidate has seen: `losses` are those that only
the rival gets right, `wins` those that only the candidate does. The candidate stops if the exact
sign test (McNemar's) of losses > wins has a p-value of at most `FALSE_STOPS / len(LOOKS)`.

So a candidate that gets as many of all images right as its rival, and with it every candidate that
nothing dominates, stops with a chance of at most `FALSE_STOPS` over the orders of the images:
among its discordant images, the losses seen are hypergeometric, whose upper tail is at most the
binomial one of the sign test, and the looks share the rate (Bonferroni).

A candidate that has a rival and has not stopped after one of `PAUSES` of the images pauses there:
the next ones are for the most promising first, see `study.screening`. Nobody loses by it: whoever
has paused goes on where it was before the search ends, then against the best rival of that time.

To cost no more is to have no more FLOPs; where latency is an objective, also to have no more tokens
in any block, which stands for a latency that would cost as much to measure as it saves. Tokens do
not stand for peak memory, which pruning can raise. Where it is an objective, it is measured before
the race, and a rival that takes more is none.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssmprune.measure.flops import count_flops
from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Measurement

FALSE_STOPS = 0.05
"""Highest chance that a candidate stops which is as good as its rival on all images."""

LOOKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the images after which a candidate is compared with its rival."""

PAUSES = LOOKS[:3]
"""Shares of the images after which a candidate pauses."""

PEERS = 5
"""Fully evaluated candidates that an estimate from few images is corrected by."""

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Cost:
    """What a policy costs, known before anything runs.

    Attributes:
        flops: Multiply-adds for one image.
        tokens: Tokens that each block scans.
    """

    flops: int
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, policy: Policy, config: ModelConfig) -> Cost:
        """The cost of a policy on the model that `config` describes."""
        return cls(count_flops(config, policy).flops, policy.entering_tokens(config))

    def is_within(self, other: Cost, objectives: Sequence[str]) -> bool:
        """Whether this costs no more than `other`, in FLOPs and, with it, in latency."""
        if "latency_ms" in objectives and any(
            mine > theirs for mine, theirs in zip(self.tokens, other.tokens, strict=True)
        ):
            return False
        return self.flops <= other.flops


@dataclass(frozen=True)
class Rival:
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


def find_rival(rivals: Iterable[Rival], cost: Cost, objectives: Sequence[str]) -> Rival | None:
    """The rival of a candidate: the best in top1 of those that cost no more, the cheaper of equals.

    None where all cost more, and where top1 is no objective.
    """
    if "top1" not in objectives:
        return None
    return max(
        (rival for rival in rivals if rival.cost.is_within(cost, objectives)),
        key=lambda rival: (rival.search.top1, -rival.cost.flops, -rival.trial),
        default=None,
    )


def estimate(seen: Bits, rivals: Bits) -> tuple[float, float]:
    """The top1 on all images, in per cent, of a candidate that has got `seen` of the first right.

    Its top1 on those, plus what its peers have on all images over what they have on those: a
    control variate that tells how hard the first images are. Peers are the `PEERS` that agree with
    it on most of them, the earlier of equals. Without rivals it is corrected by nothing.

    Args:
        seen: (images seen,), at least one.
        rivals: What fully evaluated candidates get right, (rivals, images).

    Returns:
        The estimate and the variance of its error: that of a mean of as many draws without
        replacement as images were seen, a draw being the candidate's lead over the peers' mean.
    """
    images = len(seen)
    peers, lead, unseen = 0.0, seen.astype(float), 1.0
    if len(rivals):
        nearest = np.argsort((rivals[:, :images] != seen).sum(axis=1), kind="stable")[:PEERS]
        mean = rivals[nearest].mean(axis=0)
        peers, lead, unseen = mean.mean(), seen - mean[:images], 1 - images / len(mean)
    spread = max(float(lead.var()), 1 / images)  # no lead seen is not none at all
    top1 = min(max(float(peers + lead.mean()), 0.0), 1.0)
    return 100 * top1, 100**2 * unseen * spread / images


class Race:
    """One candidate's way through the images.

    Attributes:
        rival: Whom it is compared with; with None it sees all images.
        pauses: Whether it pauses as long as it has a rival.
        known: What it got right before it paused, (images seen then,).
        correct: What it has got right so far, (images seen,).
        is_lost: Whether it has stopped.
        is_paused: Whether it waits for the rest of the images.
    """

    def __init__(self, rival: Rival | None = None, known: Bits | None = None, pauses: bool = False):
        self.rival, self.pauses = rival, pauses
        self.known: Bits = np.zeros(0, bool) if known is None else known
        self.correct = self.known
        self.is_lost = self.is_paused = False

    def start(self, peak_memory_bytes: float) -> None:
        """Drop a rival that takes more memory than the candidate; NaN where it is no objective."""
        if self.rival and self.rival.search.peak_memory_bytes > peak_memory_bytes:
            self.rival = None

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
        if self.rival is not None and len(correct) < len(self.rival.correct):
            theirs = self.rival.correct[: len(correct)]
            losses, wins = int((theirs & ~correct).sum()), int((correct & ~theirs).sum())
            self.is_lost = sign_test(losses, wins) <= FALSE_STOPS / len(LOOKS)
            images = len(self.rival.correct)
            is_due = any(len(self.known) < share * images <= len(correct) for share in PAUSES)
            self.is_paused = self.pauses and is_due and not self.is_lost
        return self.ended_early

    def told(self, measurement: Measurement, rivals: Iterable[Rival]) -> Measurement:
        """What the sampler is told: the estimate of one that ended early, at most its rival's top1.

        So no estimate from a few images takes the place of a full evaluation on the front that
        samplers see.
        """
        if not self.ended_early or self.rival is None:
            return measurement
        top1, _ = estimate(self.correct, np.array([rival.correct for rival in rivals]))
        return replace(measurement, top1=min(top1, self.rival.search.top1))


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
