"""Token pruning for vision state-space models, by policies that a search has found.

Policies, their FLOPs and search spaces need no torch, so it is loaded with what needs it.
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from ssmprune import timm_registry as _timm_registry
from ssmprune.errors import SsmpruneError
from ssmprune.policy import Policy
from ssmprune.pruning.apply import apply_policy, remove_policy

if TYPE_CHECKING:
    from ssmprune.export import export_onnx
    from ssmprune.measure.accuracy import Accuracy, evaluate
    from ssmprune.measure.profile import Profile, profile
    from ssmprune.models.factory import create_model

__all__ = [
    "Accuracy",
    "Policy",
    "Profile",
    "SsmpruneError",
    "apply_policy",
    "create_model",
    "evaluate",
    "export_onnx",
    "profile",
    "remove_policy",
]
__version__ = _version("ssmprune")

_WITH_TORCH = {
    "Accuracy": "ssmprune.measure.accuracy",
    "Profile": "ssmprune.measure.profile",
    "create_model": "ssmprune.models.factory",
    "evaluate": "ssmprune.measure.accuracy",
    "export_onnx": "ssmprune.export",
    "profile": "ssmprune.measure.profile",
    "search": "ssmprune_search.run.launch",
}

_timm_registry.file_models()


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(_WITH_TORCH[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
