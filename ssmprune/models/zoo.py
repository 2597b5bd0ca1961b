"""The models by name: their configurations, as data that needs no torch."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass

from ssmprune.errors import UsageError, unknown_name


@dataclass(frozen=True, kw_only=True)
class VimConfig:
    """A Vim (Zhu et al., arXiv 2401.09417): bidirectional Mamba blocks, class token in the middle.

    Attributes:
        image_size: Height and width of the input in pixels.
        window_size: Side of the patch embedding's kernel in pixels.
        stride: Distance of two patches in pixels.
        padding: Zero padding of the image in pixels.
        d_state: N, states per channel.
        d_conv: Taps of the causal convolution.
        expand: E / D.
    """

    name: str
    image_size: int = 224
    channels: int = 3
    num_classes: int = 1000
    window_size: int = 16
    stride: int = 16
    padding: int = 0
    embed_dim: int = 192
    depth: int = 24
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    family: str = "vim"

    @property
    def grid_size(self) -> int:
        return (self.image_size + 2 * self.padding - self.window_size) // self.stride + 1

    @property
    def num_patches(self) -> int:
        return self.grid_size**2

    @property
    def prefix_positions(self) -> tuple[int, ...]:
        """Positions of the tokens that no policy may remove: the class token's."""
        return (self.num_patches // 2,)

    @property
    def num_tokens(self) -> int:
        return self.num_patches + len(self.prefix_positions)

    @property
    def inner_dim(self) -> int:
        return self.expand * self.embed_dim

    @property
    def dt_rank(self) -> int:
        return -(-self.embed_dim // 16)


ModelConfig = VimConfig

_configs: dict[str, ModelConfig] = {}


def register_config(config: ModelConfig) -> None:
    """Make a model known under its name, to policies and to `create_model`.

    Raises:
        UsageError: Another configuration has this name.
    """
    if _configs.setdefault(config.name, config) != config:
        raise UsageError(f"a model's name must be new, got {config.name!r}; choose another name.")


def find_config(name: str) -> ModelConfig:
    """The configuration of the model called `name`.

    Raises:
        UsageError: There is no such model; near names are suggested.
    """
    if name not in _configs:
        raise UsageError(unknown_name("model", name, _configs))
    return _configs[name]


def model_names(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(_configs, pattern))


for _config in (
    VimConfig(
        name="vim_nano",
        image_size=48,
        channels=1,
        num_classes=10,
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
):
    register_config(_config)
