"""Rules that give each token its importance; higher is kept.

A scorer is a function of the block's `Features`, in natural token order, that returns scores of
shape (B, L). `y` is the output of the SSM before the gate, summed over the scan directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssmprune.registry import Registry

if TYPE_CHECKING:  # a policy's FLOPs need the prices alone
    from torch import Tensor


@dataclass(frozen=True)
class Features:
    """What a block computed for its tokens.

    Attributes:
        y: SSM output before the gate, all directions together, (B, L, E).
        steps: Raw step (B, L, E) and its bias (E,) of each scan direction, before the softplus;
            one pair where the directions share it.
        positions: Positions in the unpruned sequence, (B, L).
        prefix: True at prefix tokens, (B, L).
        layer: Index of the block.
        seed: Seed of scorers that draw numbers.
    """

    y: Tensor
    steps: tuple[tuple[Tensor, Tensor], ...]
    positions: Tensor
    prefix: Tensor
    layer: int
    seed: int = 0


ScoreFunction = Callable[[Features], "Tensor"]
CostFunction = Callable[[int, int, int], int]


@dataclass(frozen=True)
class RegisteredScorer:
    """A scorer and its price.

    Attributes:
        score: The rule.
        flops: Price for one image of L tokens, E channels and K directions.
        class_token: Whether it only serves models with a class token.
    """

    score: ScoreFunction
    flops: CostFunction
    class_token: bool


scorers: Registry[RegisteredScorer] = Registry("scorer")


def register_scorer(
    name: str, flops: CostFunction, *, class_token: bool = False
) -> Callable[[ScoreFunction], ScoreFunction]:
    """File a scorer under a name that policies can use.

    Args:
        name: The name.
        flops: FLOPs for one image as a function of L, E and K: one for each element that enters a
            reduction, one for each element gathered; element-wise work is free.
        class_token: Whether it only serves models with a class token.

    Raises:
        UsageError: The name is taken.
    """

    def register(score: ScoreFunction) -> ScoreFunction:
        scorers.add(name, RegisteredScorer(score, flops, class_token))
        return score

    return register


def find_scorer(name: str) -> RegisteredScorer:
    """The scorer called `name`.

    Raises:
        UsageError: There is no such scorer; near names are suggested.
    """
    return scorers[name]


def sort_flops(length: int) -> int:
    """Price of sorting `length` numbers: length * ceil(log2 length)."""
    return length * math.ceil(math.log2(length)) if length > 1 else 0


@register_scorer("clipped_sum", flops=lambda L, E, K: L * E)
def clipped_sum(features: Features) -> Tensor:
    """Sum over channels of max(0, y) (Zhan et al., arXiv 2409.18962)."""
    return features.y.clamp(min=0).sum(-1)


@register_scorer("sum", flops=lambda L, E, K: L * E)
def plain_sum(features: Features) -> Tensor:
    """Sum over channels of y."""
    return features.y.sum(-1)


@register_scorer("l1", flops=lambda L, E, K: L * E)
def l1(features: Features) -> Tensor:
    """Sum over channels of |y|."""
    return features.y.abs().sum(-1)


@register_scorer("l2", flops=lambda L, E, K: L * E)
def l2(features: Features) -> Tensor:
    """Euclidean norm of y."""
    return features.y.square().sum(-1).sqrt()


@register_scorer("delta", flops=lambda L, E, K: L * E)
def delta(features: Features) -> Tensor:
    """Mean over channels of the step, summed over directions (MTR, arXiv 2507.14042)."""
    import torch.nn.functional as F

    steps = [F.softplus(raw + bias) for raw, bias in features.steps]
    total = steps[0]
    for step in steps[1:]:
        total = total + step
    return total.mean(-1)


@register_scorer("cls_similarity", flops=lambda L, E, K: 3 * L * E, class_token=True)
def cls_similarity(features: Features) -> Tensor:
    """Cosine similarity of y with the class token's y."""
    norm = features.y.square().sum(-1, keepdim=True).sqrt()
    direction = features.y / norm.clamp(min=1e-12)
    cls = (direction * features.prefix[..., None]).sum(1, keepdim=True)  # (B, 1, E)
    return (direction * cls).sum(-1)


@register_scorer("random", flops=lambda L, E, K: L)
def random(features: Features) -> Tensor:
    """A number drawn for each position, the same for every image, from the policy's seed."""
    import torch

    generator = torch.Generator().manual_seed(features.seed * 1000 + features.layer)
    length = 1 << 16  # above any sequence length, so that a position's number never depends on it
    noise = torch.rand(length, generator=generator).to(features.y.device)
    return noise[features.positions].to(features.y.dtype)
