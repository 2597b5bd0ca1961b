"""The families of models: what each is called, how it is built and counted, and its models.

A new one is a model, its configuration, its FLOPs, and an entry here. No torch is needed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from ssmprune.measure import flops_plain_mamba, flops_vim, flops_vmamba
from ssmprune.measure.rows import FlopRow
from ssmprune.models import plain_mamba_config, vim_config, vmamba_config
from ssmprune.models.configs import ModelConfig
from ssmprune.registry import Registry

if TYPE_CHECKING:  # to know a family is not to build its models
    from ssmprune.models.backbone import Backbone
    from ssmprune.scan import Backend

Build = Callable[[Any, "Backend"], "Backbone"]


class FamilyFlops(Protocol):
    """How a family is counted: a module `ssmprune.measure.flops_<family>`.

    Attributes:
        NAMES: Operator of the table by the last module on the path, numbers aside, and fvcore's
            operator.
    """

    NAMES: dict[tuple[str, str], str]

    def rows(self, config: Any, steps: Mapping[int, Any]) -> Iterator[FlopRow]:
        """The closed form, for what a policy's plan does, by block."""

    def paper_flops(self, config: Any, operator: str, flops: int, in_proj: int) -> int:
        """The charge for a traced operator, in a block whose `in_proj` costs as much."""


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        build: Its class, called with a configuration and the scan's backend.
        flops: How it is counted.
        models: Configurations of the models that ship.
    """

    build: Build
    flops: FamilyFlops
    models: Sequence[ModelConfig] = ()


def _class(module: str, name: str) -> Build:
    """The class of this name, whose module is imported when a model is built."""

    def build(config: Any, backend: Backend) -> Backbone:
        model: Backbone = getattr(import_module(f"ssmprune.models.{module}"), name)(config, backend)
        return model

    return build


FAMILIES = {
    "vim": Family(_class("vim", "Vim"), flops_vim, vim_config.MODELS),
    "plain_mamba": Family(
        _class("plain_mamba", "PlainMamba"), flops_plain_mamba, plain_mamba_config.MODELS
    ),
    "vmamba": Family(_class("vmamba", "VMamba"), flops_vmamba, vmamba_config.MODELS),
}
"""Those that ship, by what their configurations have as `family`."""

families: Registry[Family] = Registry("family")
for _name, _family in FAMILIES.items():
    families.add(_name, _family)


def build_model(config: ModelConfig, backend: Backend = "auto") -> Backbone:
    """The model that `config` describes, with random weights.

    Raises:
        UsageError: Its family is unknown.
    """
    return families[config.family].build(config, backend)


def register_family(name: str, model: Build, flops: FamilyFlops) -> None:
    """File a family under the name that its configurations have as `family`.

    Args:
        name: The family.
        model: Its class, called with a configuration and the scan's backend.
        flops: How it is counted, as the modules `ssmprune.measure.flops_*` do it.

    Raises:
        UsageError: The name is taken.
    """
    families.add(name, Family(model, flops))
