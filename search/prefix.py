"""The dense blocks before the first pruned layer, run once for all candidates of a worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from ssmprune.data import Batch
from ssmprune.models.backbone import Backbone

Piece = tuple[int, Batch]
"""Images and labels, with the rung that they lead to."""


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
        self._streams: dict[tuple[int, int], Tensor] = {}
        self.bytes = 0

    def enter(self, pieces: Iterable[Piece], block: int, after: int = -1) -> Iterator[Piece]:
        """The pieces with what enters `block`, (B, L, D), in place of the images.

        Args:
            pieces: The same ones in each call, or the first of them.
            after: Of them, those that lead to a later rung are wanted.
        """
        for number, (rung, (images, labels)) in enumerate(pieces):
            if rung > after:
                yield rung, (self._stream(number, images, block), labels)

    def _stream(self, number: int, images: Tensor, block: int) -> Tensor:
        kept = [deep for deep in range(block + 1) if (number, deep) in self._streams]
        deepest = kept[-1] if kept else 0
        stream = self._streams[number, deepest] if kept else self._model.embed(images)
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
