"""What a batch is trained on: cross entropy, the dense model's judgement, an auxiliary head."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn

from ssmprune.models.backbone import Backbone
from ssmprune.training.settings import TrainSettings


class Objective(nn.Module):
    """A model with its loss, as one module that can be wrapped for many devices.

    Args:
        model: With the policy applied if there is one.
        settings: Weights of the parts of the loss.
    """

    def __init__(self, model: Backbone, settings: TrainSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        if settings.aux_weight:
            self.aux_head = nn.Linear(model.config.embed_dim, model.config.num_classes)

    def forward(
        self, images: Tensor, targets: Tensor, taught: Tensor | None, aux_weight: float
    ) -> tuple[Tensor, Tensor]:
        """The sum over the images of what is minimised, and of its part without the auxiliary head.

        Args:
            images: Batch of shape (B, channels, H, W).
            targets: Labels (B,), or probabilities (B, K) after mixup.
            taught: The dense model's logits (B, K), for distillation.
            aux_weight: Present weight of the auxiliary cross entropy.
        """
        stream = self.model.forward_features(images)
        logits = self.model.forward_head(stream)
        loss = self._cross_entropy(logits, targets)
        if taught is not None:
            weight = self.settings.distill
            loss = (1 - weight) * loss + weight * self._divergence(logits, taught)
        objective = loss
        if self.settings.aux_weight:
            aux_logits = self.aux_head(stream.hidden.mean(1))
            objective = loss + aux_weight * self._cross_entropy(aux_logits, targets)
        return objective, loss.detach()

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = 0.0 if targets.dim() == 2 else self.settings.label_smoothing
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)

    def _divergence(self, logits: Tensor, taught: Tensor) -> Tensor:
        """Kullback-Leibler divergence at the temperature, on the scale of the cross entropy.

        Hinton et al., arXiv 1503.02531.
        """
        T = self.settings.temperature
        ours, dense = ((x.float() / T).log_softmax(-1) for x in (logits, taught))
        return T * T * F.kl_div(ours, dense, reduction="sum", log_target=True)


class Mixing:
    """timm's mixup and cutmix, drawn from the seed, the step and the worker alone."""

    def __init__(self, settings: TrainSettings, classes: int) -> None:
        self._seed = settings.seed
        self._mixup = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            label_smoothing=settings.label_smoothing,
            num_classes=classes,
        )

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, rank: int
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch of even size; labels (B,) become probabilities (B, K)."""
        seed = np.random.SeedSequence([self._seed, step, rank]).generate_state(1)
        np.random.seed(seed)  # timm draws from numpy's global generator
        mixed: tuple[Tensor, Tensor] = self._mixup(images.clone(), labels)
        return mixed
