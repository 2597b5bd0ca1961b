"""The models by name."""

from __future__ import annotations

import fnmatch
from typing import Any

from ssmprune.models.configs import (
    ModelConfig,
    PlainMambaConfig,
    Preprocessing,
    VimConfig,
    VMambaConfig,
)
from ssmprune.registry import Registry

configs: Registry[ModelConfig] = Registry("model")


def register_config(config: ModelConfig) -> None:
    """Make a model known under its name, to policies and to `create_model`.

    Raises:
        UsageError: Another configuration has this name.
    """
    configs.add(config.name, config)


def find_config(name: str) -> ModelConfig:
    """The configuration of the model called `name`.

    Raises:
        UsageError: There is no such model; near names are suggested.
    """
    return configs[name]


def model_names(pattern: str = "*") -> list[str]:
    """Names of the models that match a shell pattern, sorted."""
    return sorted(fnmatch.filter(configs.names(), pattern))


_BASE = (128, 256, 512, 1024)
_VANILLA: dict[str, Any] = {"vanilla": True, "d_state": 16, "expand": 2}

# Light and noise take the embedded digits' pixels from -0.29 to 1.59: the black and the white of
# their 8-bit files, in which their mean is 0.3 and their deviation 0.35.
_DIGITS = Preprocessing(mean=((0.3 + 0.29) / 1.88,), std=(0.35 / 1.88,), crop_share=1.0)

for _config in (
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
    PlainMambaConfig(name="plainmamba_l1", embed_dim=192, num_convs=1, dw_layers=(0,)),
    PlainMambaConfig(name="plainmamba_l2"),
    PlainMambaConfig(name="plainmamba_l3", embed_dim=448, depth=36),
    VMambaConfig(name="vmamba_tiny_s1l8"),
    VMambaConfig(name="vmamba_tiny_s2l5", depths=(2, 2, 5, 2), expand=2),
    VMambaConfig(name="vmamba_small_s2l15", depths=(2, 2, 15, 2), expand=2),
    VMambaConfig(name="vmamba_small_s1l20", depths=(2, 2, 20, 2)),
    VMambaConfig(name="vmamba_base_s2l15", depths=(2, 2, 15, 2), expand=2, widths=_BASE),
    VMambaConfig(name="vmamba_base_s1l20", depths=(2, 2, 20, 2), widths=_BASE),
    VMambaConfig(name="vanilla_vmamba_tiny", depths=(2, 2, 9, 2), **_VANILLA),
    VMambaConfig(name="vanilla_vmamba_small", depths=(2, 2, 27, 2), **_VANILLA),
    VMambaConfig(name="vanilla_vmamba_base", depths=(2, 2, 27, 2), widths=_BASE, **_VANILLA),
):
    register_config(_config)
