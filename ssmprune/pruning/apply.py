"""A policy on a model: what each block has to do, and how it is put on and taken off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ssmprune.errors import PolicyError
from ssmprune.models.configs import ModelConfig
from ssmprune.policy import Alignment, Policy
from ssmprune.pruning.reduction import Step

if TYPE_CHECKING:  # a policy's FLOPs need the plan alone
    from torch import nn


@dataclass(frozen=True)
class PruningPlan:
    """A policy resolved for one model: exact counts, steps that remove nothing left out.

    Attributes:
        policy: The policy.
        steps: What a block does beyond its dense work, by its index.
    """

    policy: Policy
    steps: Mapping[int, Step]

    @property
    def alignment(self) -> Alignment:
        return self.policy.alignment

    @classmethod
    def of(cls, policy: Policy, config: ModelConfig) -> PruningPlan:
        """Resolve `policy` for the model described by `config`.

        Raises:
            PolicyError: The policy is for another model, or does not fit its image size.
        """
        if policy.model != config.name:
            raise PolicyError(
                "a policy must be for the model it is applied to, "
                f"got one for {policy.model!r} with {config.name!r}; "
                f"search a policy for {config.name}, or use {policy.model}."
            )
        faults = policy.faults(config)
        if faults:
            raise PolicyError(f"{'; '.join(map(str, faults))}.")
        return cls(policy, policy.reducer.steps(policy, config))


class Prunable(Protocol):
    """A backbone whose forward follows `plan`."""

    config: ModelConfig
    plan: PruningPlan | None


def apply_policy(model: nn.Module, policy: Policy) -> None:
    """Make `model` prune by `policy` from its next forward on; weights are not touched.

    Raises:
        PolicyError: The policy is for another model.
    """
    backbone = _prunable(model)
    backbone.plan = PruningPlan.of(policy, backbone.config)


def remove_policy(model: nn.Module) -> None:
    """Make `model` dense again."""
    _prunable(model).plan = None


def _prunable(model: nn.Module) -> Prunable:
    if not hasattr(model, "plan") or not hasattr(model, "config"):
        raise TypeError(
            f"model must be one of ssmprune's backbones, got {type(model).__name__}; "
            "build it with ssmprune.create_model, and unwrap it first if it is wrapped."
        )
    return model  # type: ignore[return-value]
