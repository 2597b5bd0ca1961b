"""What describes a Vim, and the Vims by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ssmprune.models.configs import ModelConfig, Preprocessing


@dataclass(frozen=True, kw_only=True)
class VimConfig(ModelConfig):
    """A Vim (Zhu et al., arXiv 2401.09417): bidirectional Mamba blocks, class token in the middle.

    Attributes:
        window_size: Side of the patch embedding's kernel in pixels.
        stride: Distance of two patches in pixels.
        padding: Zero padding of the image in pixels.
        d_state: N, states per channel.
        d_conv: Taps of the causal convolution.
        expand: E / D.
    """

    family: ClassVar[str] = "vim"

    window_size: int = 16
    stride: int = 16
    padding: int = 0
    embed_dim: int = 192
    depth: int = 24
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2

    def fits(self, side: int) -> bool:
        rest = side + 2 * self.padding - self.window_size
        return rest >= 0 and rest % self.stride == 0

    @property
    def grid(self) -> tuple[int, int]:
        height, width = (
            (side + 2 * self.padding - self.window_size) // self.stride + 1
            for side in self.image_size
        )
        return height, width

    @property
    def prefix_positions(self) -> tuple[int, ...]:
        """The class token's position."""
        return (self.num_patches // 2,)

    @property
    def inner_dim(self) -> int:
        return self.expand * self.embed_dim

    @property
    def dt_rank(self) -> int:
        return -(-self.embed_dim // 16)


# Light and noise take the embedded digits' pixels from -0.29 to 1.59: the black and the white of
# their 8-bit files, in which their mean is 0.3 and their deviation 0.35.
_DIGITS = Preprocessing(mean=((0.3 + 0.29) / 1.88,), std=(0.35 / 1.88,), crop_share=1.0)

MODELS = (
    VimConfig(
        name="vim_nano",
        image_size=(48, 48),
        channels=1,
        num_classes=10,
        preprocessing=_DIGITS,
        window_size=10,
        stride=6,
        padding=2,
        embed_dim=64,
        depth=8,
        d_state=8,
    ),
    VimConfig(name="vim_tiny_patch16_224"),
    VimConfig(name="vim_tiny_patch16_stride8_224", stride=8),
    VimConfig(name="vim_small_patch16_224", embed_dim=384),
    VimConfig(name="vim_small_patch16_stride8_224", embed_dim=384, stride=8),
    VimConfig(name="vim_base_patch16_224", embed_dim=768),
)
