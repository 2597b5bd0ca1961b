"""Peak memory of tiny modules is the one counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssmprune import Policy, create_model
from ssmprune.measure.memory import Forward, peak_memory
from ssmprune.policy import Scorer, Stage

IMAGES = torch.zeros(2, 1, 8, 8)
SIZE = IMAGES.nbytes


def chain(images: Tensor) -> Tensor:
    for _ in range(5):
        images = images + 1
    return images


def branches(images: Tensor) -> Tensor:
    kept = [images + n for n in range(3)]
    return torch.cat(kept)


def freed(images: Tensor) -> Tensor:
    wide = images.repeat(10, 1, 1, 1)
    narrow = wide[0].clone()
    del wide
    return narrow + 1


@pytest.mark.parametrize(
    ("forward", "images"),
    [
        (lambda x: x, 0),
        (lambda x: x.flatten().view(-1, 2).transpose(0, 1), 0),
        (lambda x: x + 1, 1),
        (lambda x: (x + 1).add_(1).mul_(2), 1),
        (lambda x: (x + 1)[:1].unflatten(0, (1, 1)), 1),
        (chain, 2),
        (branches, 6),
        (freed, 10.5),
        (lambda x: x.double(), 2),
        (lambda x: torch.topk(x, 4).values, 1.5),  # half as many, with indices of 8 bytes
    ],
)
def test_peak_is_that_of_the_storages_alive_at_one_time(forward: Forward, images: float) -> None:
    assert peak_memory(forward, IMAGES) == images * SIZE


def test_weights_and_images_do_not_count_and_a_residual_does() -> None:
    layer = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    assert peak_memory(layer, IMAGES) == 2 * SIZE
    assert peak_memory(lambda x: x + layer(x), IMAGES) == 2 * SIZE
    hidden = nn.Sequential(nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Linear(32, 8))
    assert peak_memory(hidden, IMAGES) == 5 * SIZE


def test_what_a_first_pass_keeps_does_not_count() -> None:
    cache: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        cache[:] = cache or [images + 1]
        return cache[0] + images

    assert peak_memory(forward, IMAGES) == SIZE


def test_autocast_halves_what_a_layer_gives() -> None:
    layer = nn.Linear(64, 64, bias=False)
    images = torch.zeros(1, 1, 64, 64)
    cast = layer.weight.nbytes + images.nbytes  # both in bfloat16, and what comes of them
    assert peak_memory(layer, images, amp=True) == (cast + images.nbytes) / 2


def test_pruning_the_first_block_of_a_vim_lowers_the_peak_the_same_in_every_run() -> None:
    policy = Policy(
        model="vim_nano", stages=(Stage(layer=0, keep_ratio=0.5),), scorer=Scorer(name="l1")
    )
    images = torch.randn(4, 1, 48, 48)
    dense, pruned = create_model("vim_nano").eval(), create_model("vim_nano", policy=policy).eval()
    found = peak_memory(pruned, images)
    assert 0 < found < peak_memory(dense, images)
    assert found == peak_memory(pruned, images)
    assert peak_memory(pruned, images[:2]) == pytest.approx(found / 2, rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_on_cuda_is_that_of_the_allocator() -> None:
    images = torch.zeros(2, 1, 512, 512, device="cuda")
    assert peak_memory(chain, images) == 2 * images.nbytes
    assert peak_memory(branches, images) == 6 * images.nbytes
