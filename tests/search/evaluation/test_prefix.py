"""What is kept of the dense blocks changes nothing, and stays within its bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ssmprune import Policy, apply_policy, create_model
from ssmprune.models.backbone import Backbone
from ssmprune.policy import Stage
from ssmprune_search.evaluation.prefix import FromBlock, Piece, PrefixCache

DEPTH = 8
SIZES = (3, 2, 4)


@pytest.fixture(scope="module")
def model() -> Backbone:
    torch.manual_seed(0)
    return create_model("vim_nano").eval()


@pytest.fixture(scope="module")
def pieces() -> list[Piece]:
    generator = torch.Generator().manual_seed(1)
    return [
        Piece(n, n, torch.randn(size, 1, 48, 48, generator=generator), torch.arange(size))
        for n, size in enumerate(SIZES)
    ]


@torch.inference_mode()
def logits(model: Backbone, cache: PrefixCache, pieces: list[Piece], block: int) -> list[Tensor]:
    resumed = FromBlock(model, block)
    return [resumed(entering) for entering, _ in cache.enter(pieces, block)]


@pytest.mark.parametrize("limit", [0, 200_000, 2**30])
def test_logits_are_bit_by_bit_those_without_a_cache(
    model: Backbone, pieces: list[Piece], limit: int
) -> None:
    cache = PrefixCache(model, limit)
    for layer in (3, 0, 5, 3, 7, 1):
        policy = Policy(model="vim_nano", stages=(Stage(layer=layer, keep_ratio=0.6),))
        apply_policy(model, policy)
        found = logits(model, cache, pieces, layer)
        with torch.inference_mode():
            expected = [model(piece.images) for piece in pieces]
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert cache.bytes <= limit


def test_dense_blocks_run_once_for_each_image(
    model: Backbone, pieces: list[Piece], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[int, int, int]] = []
    run_dense = model.run_dense

    def counted(entering: Tensor, first: int, last: int) -> Tensor:
        ran.append((len(entering), first, last))
        return run_dense(entering, first, last)

    monkeypatch.setattr(model, "run_dense", counted)
    cache = PrefixCache(model, 2**30)
    for block in (2, 2, 5, 0, 4):
        logits(model, cache, pieces[:1], block)
    assert ran == [(3, 0, 2), (3, 2, 5), (3, 2, 4)]


def test_labels_and_order_stay(model: Backbone, pieces: list[Piece]) -> None:
    def lazily() -> Iterator[Piece]:
        yield from pieces

    with torch.inference_mode():
        entered = list(PrefixCache(model, 0).enter(lazily(), 2))
    assert [len(stream) for stream, _ in entered] == list(SIZES)
    assert all(torch.equal(a[1], b.labels) for a, b in zip(entered, pieces, strict=True))


def test_dense_model_resumes_after_its_last_block(model: Backbone, pieces: list[Piece]) -> None:
    model.plan = None
    found = logits(model, PrefixCache(model, 2**30), pieces, DEPTH)
    with torch.inference_mode():
        assert torch.equal(found[0], model(pieces[0].images))


def test_prefix_that_would_keep_its_graph_is_refused(model: Backbone, pieces: list[Piece]) -> None:
    cache = PrefixCache(model, 2**30)
    with pytest.raises(RuntimeError, match="must be taken in inference mode"):
        next(cache.enter(pieces, 2))
    assert cache.bytes == 0
