"""What describes a PlainMamba, and the PlainMambas by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ssmprune.models.configs import ModelConfig


@dataclass(frozen=True, kw_only=True)
class PlainMambaConfig(ModelConfig):
    """A PlainMamba (Yang et al., arXiv 2403.17695): four zigzag scans, no class token.

    Attributes:
        patch_size: Side of a patch in pixels.
        num_convs: Convolutions of the patch embedding beside its first and its last.
        dw_layers: Layers that end with a depth-wise convolution over the grid.
        d_state: N, states per channel.
        conv_size: Side of the mixer's convolution over the grid, in patches.
        expand: E / D.
    """

    family: ClassVar[str] = "plain_mamba"
    convolves_grid: ClassVar[bool] = True

    patch_size: int = 16
    num_convs: int = 2
    dw_layers: tuple[int, ...] = ()
    embed_dim: int = 384
    depth: int = 24
    d_state: int = 16
    conv_size: int = 7
    expand: int = 2

    def fits(self, side: int) -> bool:
        return side > 0 and side % self.patch_size == 0

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def inner_dim(self) -> int:
        return self.expand * self.embed_dim

    @property
    def dt_rank(self) -> int:
        return -(-self.embed_dim // 16)


MODELS = (
    PlainMambaConfig(name="plainmamba_l1", embed_dim=192, num_convs=1, dw_layers=(0,)),
    PlainMambaConfig(name="plainmamba_l2"),
    PlainMambaConfig(name="plainmamba_l3", embed_dim=448, depth=36),
)
