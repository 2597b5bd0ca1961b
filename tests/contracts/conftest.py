"""The families that the suites run over, each as a model small enough for many tests."""

from dataclasses import dataclass, replace

import pytest
import torch

from ssmprune.models.configs import ModelConfig
from ssmprune.models.families import build_model
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Policy, Scorer, Stage
from ssmprune.pruning.reduction import Reduction
from ssmprune.stage import scorer_fault


@dataclass(frozen=True)
class Family:
    """A family in small.

    Attributes:
        config: A small model under the name of one in the zoo.
        conv: The convolutions that its policies may choose; none where no token leaves.
        directions: Scan directions of a block.
    """

    config: ModelConfig
    conv: tuple[str, ...]
    directions: int

    def build(self):
        """The model in float64, so that no rounding decides which tokens stay."""
        torch.manual_seed(0)
        return build_model(self.config).double().eval()

    def images(self):
        shape = (4, self.config.channels, *self.config.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def policy(self, *ratios: float, scorer: str = "clipped_sum", **alignment) -> Policy:
        """A stage after each block, from the first, at which tokens leave."""
        return Policy(
            model=self.config.name,
            stages=tuple(Stage(layer=i, keep_ratio=ratio) for i, ratio in enumerate(ratios)),
            scorer=Scorer(name=scorer),
            alignment=Alignment(**{"conv": self.conv[-1], **alignment}),
        )

    def reducing(self, reduction: Reduction, *ratios: float) -> Policy:
        """A stage at each block, from the first, that does what a reduction does."""
        return Policy(
            model=self.config.name,
            reduction=reduction.name,
            stages=tuple(Stage(layer=i, keep_ratio=ratio) for i, ratio in enumerate(ratios)),
            alignment=Alignment(conv=self.conv[-1] if reduction.scores else "compact"),
        )

    def has(self, scorer: str) -> bool:
        """Whether the scorer can work with the family."""
        return scorer_fault(scorer, self.config) is None


FAMILIES = {
    "vim": Family(
        replace(find_config("vim_nano"), image_size=(30, 24), embed_dim=16, depth=3),
        conv=("compact", "position"),
        directions=2,
    ),
    "plain_mamba": Family(
        replace(
            find_config("plainmamba_l1"), image_size=(80, 64), embed_dim=16, depth=3, d_state=4
        ),
        conv=("position",),
        directions=4,
    ),
}


def _hierarchical(name: str) -> Family:
    """A VMamba with grids of 10 x 14, 5 x 7, 3 x 4 and 2 x 2."""
    config = replace(find_config(name), widths=(8, 12, 16, 24), image_size=(40, 56), num_classes=5)
    return Family(config, conv=(), directions=4)


ALL_FAMILIES = {
    **FAMILIES,
    "vmamba": _hierarchical("vmamba_tiny_s1l8"),
    "vanilla_vmamba": _hierarchical("vanilla_vmamba_tiny"),
}
"""With those whose tokens cannot leave."""


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param
