"""Each family's class."""

from collections.abc import Callable
from typing import Any

from ssmprune.errors import UsageError
from ssmprune.measure.flops import FamilyFlops, register_family_flops
from ssmprune.models.backbone import Backbone
from ssmprune.models.configs import ModelConfig
from ssmprune.models.plain_mamba import PlainMamba
from ssmprune.models.vim import Vim
from ssmprune.models.vmamba import VMamba
from ssmprune.scan import Backend

_FAMILIES: dict[str, Callable[[Any, Backend], Backbone]] = {
    "vim": Vim,
    "plain_mamba": PlainMamba,
    "vmamba": VMamba,
}


def build_model(config: ModelConfig, backend: Backend = "auto") -> Backbone:
    """The model that `config` describes, with random weights."""
    return _FAMILIES[config.family](config, backend)


def register_family(
    name: str, model: Callable[[Any, Backend], Backbone], flops: FamilyFlops
) -> None:
    """File a family under the name that its configurations have as `family`.

    Args:
        name: The family.
        model: Its class, called with a configuration and the scan's backend.
        flops: How it is counted, as the modules `ssmprune.measure.flops_*` do it.

    Raises:
        UsageError: The name is taken.
    """
    if name in _FAMILIES:
        raise UsageError(f"a family's name must be new, got {name!r}; choose another name.")
    _FAMILIES[name] = model
    register_family_flops(name, flops)
