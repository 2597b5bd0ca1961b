"""What every model is: a backbone that follows a pruning plan, with a classifier on top."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, overload

from torch import Tensor, nn

from ssmprune.models.configs import ModelConfig
from ssmprune.pruning.apply import PruningPlan
from ssmprune.pruning.block import BlockOutput
from ssmprune.pruning.reduction import TokenStep
from ssmprune.scan import Backend
from ssmprune.tokens import TokenStream


class Backbone(nn.Module, ABC):
    """A classifier of one family; with no classes, what its features are.

    Attributes:
        config: The model's configuration.
        backend: The scan's backend.
        plan: What to prune after which block; None for dense.
        checkpoint_key: Where in their file the weights lay, such as `model_ema`; None at its top.
        has_new_head: Whether the classifier was left random, as the checkpoint had no such one.
        resumes: Whether the family has `embed`, `run_dense` and `forward_from`, so that its first
            blocks can be run once for many plans.
        restores: Whether the head takes every patch, those that have left included.
        head_name: Name of the module whose weights grow with the number of classes.
    """

    config: ModelConfig
    resumes: ClassVar[bool] = False
    restores: ClassVar[bool] = False
    head_name: ClassVar[str] = "head"

    def __init__(self, config: ModelConfig, backend: Backend = "auto"):
        super().__init__()
        self.config = config
        self.backend: Backend = backend
        self.plan: PruningPlan | None = None
        self.checkpoint_key: str | None = None
        self.has_new_head = False

    @abstractmethod
    def encode(self, images: Tensor, restore: bool) -> TokenStream:
        """The tokens after the final norm: those that are left, or with `restore` all of them.

        Args:
            images: Batch of shape (B, channels, height, width).
            restore: Put every token that has left back, with the value of the residual stream that
                it entered its last block with, or with that of the token that it has joined.
        """

    def reduces_after(self, layer: int) -> bool:
        """Whether tokens leave after a block."""
        return self.plan is not None and layer in self.plan.steps

    def reduce(self, stream: TokenStream, block: BlockOutput) -> TokenStream:
        """The tokens that a stage leaves, with what its block adds to them.

        Args:
            stream: The tokens that entered the block, (B, L, D).
            block: What it computed for them.
        """
        assert self.plan is not None
        step = self.plan.steps[block.features.layer]
        assert isinstance(step, TokenStep)
        return step.reduce(stream, block)

    @abstractmethod
    def forward_head(self, stream: TokenStream) -> Tensor:
        """Logits of shape (B, num_classes); for no classes the pooled features, (B, D)."""

    def embed(self, images: Tensor) -> Tensor:
        """What enters the first block, of shape (B, L, D)."""
        raise NotImplementedError

    def run_dense(self, entering: Tensor, first: int, last: int) -> Tensor:
        """What enters block `last`, given what enters block `first` and no pruning in between."""
        raise NotImplementedError

    def forward_from(self, entering: Tensor, first: int) -> Tensor:
        """Logits of shape (B, num_classes), given what enters block `first`."""
        raise NotImplementedError

    @overload
    def forward_features(self, images: Tensor, restore: Literal[False] = False) -> TokenStream: ...

    @overload
    def forward_features(self, images: Tensor, restore: Literal[True]) -> Tensor: ...

    def forward_features(self, images: Tensor, restore: bool = False) -> TokenStream | Tensor:
        """The tokens that are left, or the whole grid for heads that need every patch.

        Args:
            images: Batch of shape (B, channels, height, width).
            restore: Return the patch tokens as a grid of shape (B, H, W, D), the pruned ones with
                the value of the residual stream that they entered their last block with. All
                have passed the final norm, so that they are on one scale.
        """
        stream = self.encode(images, restore)
        return stream.patch_grid() if restore else stream

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (B, num_classes)."""
        return self.forward_head(self.encode(images, restore=self.restores))

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a checkpoint under this model's names, in its shapes where they can be.

        What cannot be adapted stays as it is.
        """
        return weights
