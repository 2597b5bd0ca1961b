"""The models by name."""

from __future__ import annotations

import fnmatch

from ssmprune.models.configs import ModelConfig
from ssmprune.models.families import FAMILIES
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


for _family in FAMILIES.values():
    for _config in _family.models:
        register_config(_config)
