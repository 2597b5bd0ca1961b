"""What a reduction is: how the stages of a policy become work of blocks, and what that leaves.

A new one is a `Reduction` with its `Step`, and an entry in `ssmprune.pruning.reductions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ssmprune.faults import Fault
from ssmprune.measure.rows import FlopRow
from ssmprune.models.configs import ModelConfig
from ssmprune.stage import Stage

if TYPE_CHECKING:  # a policy's FLOPs need the counts alone
    from torch import Tensor

    from ssmprune.policy import Policy
    from ssmprune.pruning.scorers import Features
    from ssmprune.tokens import TokenStream


class Step(ABC):
    """What a policy has one block do beyond its dense work."""

    @abstractmethod
    def mask(self, layer: int, stream: TokenStream, config: ModelConfig) -> Tensor:
        """True at the patches that are left after block `layer`, or that it scans, (B, H, W).

        Args:
            stream: What the model has returned.
        """


class TokenStep(Step):
    """Fewer tokens leave a block than enter it.

    Attributes:
        keep_count: Tokens left per image, prefix tokens included.
    """

    keep_count: int

    @abstractmethod
    def reduce(
        self, stream: TokenStream, update: Tensor, features: Features
    ) -> tuple[TokenStream, Tensor]:
        """The tokens that are left, and what the block adds to them, (B, keep_count, E).

        Args:
            stream: The tokens that entered the block, (B, L, D).
            update: What the block adds, before its output projection, (B, L, E).
            features: What the block computed.
        """

    @abstractmethod
    def rows(self, part: str, L: int, E: int, K: int, moved: int) -> Iterator[FlopRow]:
        """FLOPs of one image beside the block's own.

        Args:
            part: The block.
            L: Tokens that enter it.
            E: Its inner width.
            K: Its scan directions.
            moved: Elements that are gathered for each token that is left.
        """


class Reduction(ABC):
    """What the stages of a policy do.

    Attributes:
        name: As policies and spaces call it.
        summary: For people, in a line.
        does: What a policy does, in a clause.
        verb: What has been done to the patches that a stage counts: `kept`, `scanned`.
        where: The same with the place: `left after`, `scanned in` a block.
        scores: Whether tokens are scored and leave gaps, so that scorer and alignment matter.
        compounds: Whether a stage counts of what the stages before it have left.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    does: ClassVar[str]
    verb: ClassVar[str]
    where: ClassVar[str]
    scores: ClassVar[bool]
    compounds: ClassVar[bool]

    @abstractmethod
    def fits(self, config: ModelConfig) -> bool:
        """Whether it can serve a model."""

    @abstractmethod
    def faults(
        self, data: Mapping[str, Any], stages: Sequence[Any], config: ModelConfig
    ) -> Iterator[Fault]:
        """What does not fit it or the model in a policy.

        Values that break a rule of their own are passed over.

        Args:
            data: The policy as it is written.
            stages: Its stages, as they are written.
        """

    @abstractmethod
    def counts(self, stages: Sequence[Stage], config: ModelConfig) -> Iterator[tuple[int, int]]:
        """Of each stage, the patch tokens that it counts from and those that it leaves."""

    @abstractmethod
    def scanned(self, stages: Sequence[tuple[Stage, int]], config: ModelConfig) -> tuple[int, ...]:
        """Tokens that each block scans, prefix tokens included; last, those that leave the model.

        Args:
            stages: Those that remove anything, each with the patch tokens that it leaves.

        Returns:
            `depth + 1` counts.
        """

    @abstractmethod
    def steps(self, policy: Policy, config: ModelConfig) -> Mapping[int, Step]:
        """What each block does beyond its dense work, by its index."""
