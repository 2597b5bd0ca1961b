"""Models built by name, here and through timm's registry."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from timm.models import register_model
from torch import nn

from ssmprune.errors import UsageError
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoints import load_checkpoint
from ssmprune.models.configs import with_image_size
from ssmprune.models.families import build_model
from ssmprune.models.zoo import find_config, model_names
from ssmprune.policy import Policy, load_for
from ssmprune.pruning.apply import apply_policy
from ssmprune.scan import Backend


def create_model(
    name: str,
    checkpoint: str | Path | None = None,
    policy: Policy | str | Path | None = None,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    backend: Backend = "auto",
) -> Backbone:
    """Build a model of the zoo.

    Args:
        name: A name of `ssmprune models`.
        checkpoint: File with its weights; without one the weights are random.
        policy: A policy, the path of a policy file, or the name of a shipped policy.
        num_classes: Size of the classifier, where it differs from the model's own.
        image_size: Height and width of the images in pixels, or both in one number, where they
            differ from the model's own.
        backend: The scan's backend.

    Raises:
        UsageError: The model or the backend is unknown, or patches do not cover the image size.
        CheckpointError: The checkpoint cannot be read or does not fit.
        PolicyError: The policy cannot be read or is for another model.
    """
    config = find_config(name)
    if num_classes is not None:
        config = replace(config, num_classes=num_classes)
    if image_size is not None:
        config = with_image_size(config, image_size)
    model = build_model(config, backend)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    if policy is not None:
        apply_policy(model, policy if isinstance(policy, Policy) else load_for(policy, name))
    return model


def _timm_entry(name: str) -> Callable[..., nn.Module]:
    def entry(
        pretrained: bool = False,
        policy: Policy | str | None = None,
        num_classes: int | None = None,
        img_size: int | tuple[int, int] | None = None,
        backend: Backend = "auto",
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
    ) -> nn.Module:
        if pretrained:
            raise UsageError(
                f"weights must come from a file, got pretrained=True for {name}; "
                "use checkpoint_path=."
            )
        return create_model(
            name, policy=policy, num_classes=num_classes, image_size=img_size, backend=backend
        )

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"The model {name}, dense or with `policy`."
    return entry


for _name in model_names():
    setattr(sys.modules[__name__], _name, register_model(_timm_entry(_name)))
