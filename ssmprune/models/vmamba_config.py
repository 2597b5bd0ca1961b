"""What describes a VMamba, and the VMambas by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ssmprune.models.configs import ModelConfig


@dataclass(frozen=True, kw_only=True)
class VMambaConfig(ModelConfig):
    """A VMamba (Liu et al., arXiv 2401.10166): levels of blocks that scan in four ways.

    Attributes:
        widths: D of each level.
        depths: Blocks of each level.
        d_state: N, states per channel.
        expand: E / D.
        mlp_ratio: Width of the MLP over D.
        vanilla: The first release: a gate on the scan's output, a bias in the convolution, no MLP,
            patches that do not overlap.
    """

    family: ClassVar[str] = "vmamba"
    prunable: ClassVar[bool] = False

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 8, 2)
    d_state: int = 1
    expand: int = 1
    mlp_ratio: int = 4
    vanilla: bool = False

    @property
    def embed_dim(self) -> int:
        return self.widths[-1]

    @property
    def depth(self) -> int:
        return sum(self.depths)

    def fits(self, side: int) -> bool:
        return side >= 4 and side % 4 == 0 if self.vanilla else side >= 1

    @property
    def grid(self) -> tuple[int, int]:
        """H and W of the patch tokens that enter the first block."""
        return self.level_grids[0]

    @property
    def level_grids(self) -> tuple[tuple[int, int], ...]:
        """H and W of each level."""
        height, width = (-(-side // 4) for side in self.image_size)
        return tuple(
            (-(-height // 2**level), -(-width // 2**level)) for level in range(len(self.depths))
        )

    @property
    def block_grids(self) -> tuple[tuple[int, int], ...]:
        return tuple(
            grid
            for grid, depth in zip(self.level_grids, self.depths, strict=True)
            for _ in range(depth)
        )


_BASE = (128, 256, 512, 1024)
_VANILLA: dict[str, Any] = {"vanilla": True, "d_state": 16, "expand": 2}

MODELS = (
    VMambaConfig(name="vmamba_tiny_s1l8"),
    VMambaConfig(name="vmamba_tiny_s2l5", depths=(2, 2, 5, 2), expand=2),
    VMambaConfig(name="vmamba_small_s2l15", depths=(2, 2, 15, 2), expand=2),
    VMambaConfig(name="vmamba_small_s1l20", depths=(2, 2, 20, 2)),
    VMambaConfig(name="vmamba_base_s2l15", depths=(2, 2, 15, 2), expand=2, widths=_BASE),
    VMambaConfig(name="vmamba_base_s1l20", depths=(2, 2, 20, 2), widths=_BASE),
    VMambaConfig(name="vanilla_vmamba_tiny", depths=(2, 2, 9, 2), **_VANILLA),
    VMambaConfig(name="vanilla_vmamba_small", depths=(2, 2, 27, 2), **_VANILLA),
    VMambaConfig(name="vanilla_vmamba_base", depths=(2, 2, 27, 2), widths=_BASE, **_VANILLA),
)
