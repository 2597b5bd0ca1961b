"""Each family's class."""

from collections.abc import Callable
from typing import Any

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
