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
from ssmprune.stage import Alignment, Stage

if TYPE_CHECKING:  # a policy's FLOPs need the counts alone
    from torch import Tensor

    from ssmprune.policy import Policy
    from ssmprune.pruning.block import BlockOutput, BlockShape
    from ssmprune.tokens import TokenStream


class Step(ABC):
    """What a policy has one block do beyond its dense work."""

    @abstractmethod
    def groups(self, layer: int, stream: TokenStream, config: ModelConfig) -> Tensor:
        """The token that each patch is in after block `layer`, or that it scans, (B, H, W).

        -1 where there is none.

        Args:
            stream: What the model has returned.
        """

    def similarity(self, layer: int, stream: TokenStream) -> Tensor | None:
        """Cosine of each token that joined another and that one, (B, R); None where none did."""
        return None


class TokenStep(Step):
    """Fewer tokens leave a block than enter it.

    Attributes:
        keep_count: Tokens left per image, prefix tokens included.
        alignment: How the blocks behind it treat the places of those that have left.
        merges: Whether tokens join others.
        asks_sizes: Whether it matters to it what its tokens stand for.
    """

    keep_count: int
    alignment: Alignment
    merges: ClassVar[bool] = False
    asks_sizes: bool = False

    @abstractmethod
    def reduce(self, stream: TokenStream, block: BlockOutput) -> TokenStream:
        """The tokens that are left, with what the block adds to them.

        Args:
            stream: The tokens that entered the block, (B, L, D).
            block: What the block computed for them.
        """

    @abstractmethod
    def projected(self, L: int) -> int:
        """Tokens that the block's output projection takes, of L that enter the block."""

    @abstractmethod
    def rows(self, part: str, shape: BlockShape) -> Iterator[FlopRow]:
        """FLOPs of one image beside the block's own, of the block called `part`."""

    def groups(self, layer: int, stream: TokenStream, config: ModelConfig) -> Tensor:
        from ssmprune.tokens import members_of

        left = stream.left_after(layer)
        members = left.members
        if members is None:
            members = members_of(left.positions, config.num_tokens)
        patches = [p for p in range(config.num_tokens) if p not in config.prefix_positions]
        return members[:, patches].view(-1, *config.grid)

    def similarity(self, layer: int, stream: TokenStream) -> Tensor | None:
        return stream.left_after(layer).similarity


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
