"""Token pruning for vision state-space models, by policies that a search has found."""

from importlib.metadata import version as _version

from ssmprune.errors import SsmpruneError
from ssmprune.export import export_onnx
from ssmprune.measure.accuracy import Accuracy, evaluate
from ssmprune.measure.profile import Profile, profile
from ssmprune.models.factory import create_model
from ssmprune.policy import Policy
from ssmprune.pruning.apply import apply_policy, remove_policy

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
