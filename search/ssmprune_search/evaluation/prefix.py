"""The dense blocks before the first pruned layer, run once for all candidates of a worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssmprune.data import Batch
from ssmprune.models.backbone import Backbone


class Piece(NamedTuple):
    """Images that are classified together.

    Attributes:
        number: Their place among all pieces of the split.
        rung: Number of images that have been seen after the rung that they lead to.
        images: (B, C, H, W).
        labels: (B,).
    """

    number: int
    rung: int
    images: Tensor
    labels: Tensor


class PrefixCache:
    """Keeps what enters a block when no block before it prunes; bit by bit what it would be.

    Attributes:
        bytes: Size of what is kept.
    """

    def __init__(self, model: Backbone, limit: int):
        """Args:
        model: Has `resumes`; its weights do not change.
        limit: Most bytes kept. What is asked for first stays, so the images that every
            candidate sees are kept before those that few do.
        """
        self._model, self._limit = model, limit
        self._device = next(model.parameters()).device
        self._streams: dict[tuple[int, int], Tensor] = {}
        self.bytes = 0

    def enter(self, pieces: Iterable[Piece], block: int) -> Iterator[Batch]:
        """What enters `block`, (B, L, D), with the labels, piece by piece.

        Blocks run when a batch is taken, so it has to be taken as the model is run: in inference
        mode, and under autocast if the model is.

        Raises:
            RuntimeError: Gradients are recorded, which would be kept, too.
        """
        for number, _, images, labels in pieces:
            yield self._stream(number, images, block), labels

    def _stream(self, number: int, images: Tensor, block: int) -> Tensor:
        if not torch.is_inference_mode_enabled():
            raise RuntimeError("a prefix must be taken in inference mode, or it keeps its graph")
        kept = [deep for deep in range(block + 1) if (number, deep) in self._streams]
        deepest = kept[-1] if kept else 0
        if kept:
            stream = self._streams[number, deepest]
        else:
            stream = self._model.embed(images.to(self._device, non_blocking=True))
        if deepest < block:
            stream = self._model.run_dense(stream, deepest, block)
        size = stream.numel() * stream.element_size()
        if (number, block) not in self._streams and self.bytes + size <= self._limit:
            self._streams[number, block] = stream
            self.bytes += size
        return stream


class FromBlock(nn.Module):
    """A backbone that begins with what enters one of its blocks."""

    def __init__(self, model: Backbone, block: int):
        super().__init__()
        self.model, self.block = model, block

    def forward(self, entering: Tensor) -> Tensor:
        """Logits (B, num_classes) from the stream (B, L, D) that enters the block."""
        return self.model.forward_from(entering, self.block)
