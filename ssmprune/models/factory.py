"""Models built by name, here and through timm's registry."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.models import register_model
from torch import nn

from ssmprune.errors import UsageError
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoint_file import read_weights
from ssmprune.models.checkpoints import count_classes, load_weights
from ssmprune.models.configs import with_classes, with_image_size
from ssmprune.models.families import build_model
from ssmprune.models.zoo import configs, find_config
from ssmprune.policy import Policy, load_for
from ssmprune.pruning.apply import apply_policy
from ssmprune.scan import Backend

_log = logging.getLogger(__name__)


def create_model(
    name: str,
    checkpoint: str | Path | None = None,
    policy: Policy | str | Path | None = None,
    *,
    checkpoint_key: str | None = None,
    num_classes: int | None = None,
    new_head: bool = False,
    image_size: int | tuple[int, int] | None = None,
    backend: Backend = "auto",
) -> Backbone:
    """Build a model of the zoo.

    Args:
        name: A name of `ssmprune models`.
        checkpoint: File with its weights; without one the weights are random.
        policy: A policy, the path of a policy file, or the name of a shipped policy.
        checkpoint_key: Which weights of a file with several, such as `model_ema`; with None those
            of `model` or `state_dict`, or the only ones.
        num_classes: Size of the classifier; 0 for pooled features, (B, D), in place of logits.
            With None as many as the checkpoint's classifier has, or the model's own.
        new_head: Begin with a random classifier where the checkpoint's has another size, or is
            missing, instead of an error.
        image_size: Height and width of the images in pixels, or both in one number, where they
            differ from the model's own.
        backend: The scan's backend.

    Raises:
        UsageError: The model or the backend is unknown, patches do not cover the image size, or
            the checkpoint has no such key.
        CheckpointError: The checkpoint cannot be read or does not fit.
        PolicyError: The policy cannot be read or is for another model.
    """
    config = find_config(name)
    if image_size is not None:
        config = with_image_size(config, image_size)
    if checkpoint is None and checkpoint_key is not None:
        raise UsageError(
            f"a checkpoint key must go with a checkpoint, got '{checkpoint_key}' alone for {name}; "
            "give the file, too."
        )
    stored = None if checkpoint is None else read_weights(checkpoint, checkpoint_key)
    if num_classes is None and stored is not None:
        num_classes = count_classes(config, stored)
        if num_classes not in (None, config.num_classes):
            _log.info("classifier: %s has a %d-class head", checkpoint, num_classes)
    if num_classes is not None:
        config = with_classes(config, num_classes)
    model = build_model(config, backend)
    if stored is not None:
        load_weights(model, stored, new_head=new_head)
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


for _name in configs.filed():
    setattr(sys.modules[__name__], _name, register_model(_timm_entry(_name)))
