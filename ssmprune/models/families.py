"""Each family's class."""

from collections.abc import Callable
from typing import Any

from ssmprune.measure.flops import FamilyFlops, register_family_flops
from ssmprune.models.backbone import Backbone
from ssmprune.models.configs import ModelConfig
from ssmprune.models.plain_mamba import PlainMamba
from ssmprune.models.vim import Vim
from ssmprune.models.vmamba import VMamba
from ssmprune.registry import Registry
from ssmprune.scan import Backend

families: Registry[Callable[[Any, Backend], Backbone]] = Registry("family")
families.add("vim", Vim)
families.add("plain_mamba", PlainMamba)
families.add("vmamba", VMamba)


def build_model(config: ModelConfig, backend: Backend = "auto") -> Backbone:
    """The model that `config` describes, with random weights.

    Raises:
        UsageError: Its family is unknown.
    """
    return families[config.family](config, backend)


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
    families.add(name, model)
    register_family_flops(name, flops)
