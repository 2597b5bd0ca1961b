"""Image classification: a label for each image, cross entropy, top-1."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from ssmprune.data import open_images, open_stream
from ssmprune.data.base import ImageSet, TrainingStream
from ssmprune.measure.accuracy import Top1
from ssmprune.measure.metric import Metric
from ssmprune.models.configs import ModelConfig
from ssmprune.task import Task


class Classification(Task):
    """Which of some classes an image shows."""

    name = "classification"
    metric: ClassVar[Metric] = Top1()
    labels_images = True

    def open_images(self, config: ModelConfig, name: str, split: str, **settings: Any) -> ImageSet:
        return open_images(name, split, **{**_shape(config), **settings})

    def open_stream(self, config: ModelConfig, name: str, **settings: Any) -> TrainingStream:
        return open_stream(name, **{**_shape(config), **settings})

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """Cross entropy of logits (B, K) with labels (B,), or with probabilities (B, K)."""
        smoothing = 0.0 if targets.dim() == 2 else smoothing
        return F.cross_entropy(outputs, targets, reduction="sum", label_smoothing=smoothing)

    def divergence(self, outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """Kullback-Leibler divergence of logits (B, K) at the temperature.

        Hinton et al., arXiv 1503.02531.
        """
        T = temperature
        ours, theirs = ((x.float() / T).log_softmax(-1) for x in (outputs, taught))
        return T * T * F.kl_div(ours, theirs, reduction="sum", log_target=True)


def _shape(config: ModelConfig) -> dict[str, Any]:
    return {
        "image_size": config.image_size,
        "channels": config.channels,
        "preprocessing": config.preprocessing,
        "num_classes": config.num_classes,
    }
