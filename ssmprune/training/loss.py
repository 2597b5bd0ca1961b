"""What a batch is trained on: the task's loss, the dense model's judgement, an auxiliary head."""

from __future__ import annotations

import numpy as np
from timm.data.mixup import Mixup
from torch import Tensor, nn

from ssmprune.models.backbone import Backbone
from ssmprune.tasks import task_of
from ssmprune.training.settings import TrainSettings


class TrainingLoss(nn.Module):
    """A model with its loss, as one module that can be wrapped for many devices.

    Args:
        model: With the policy applied if there is one.
        settings: Weights of the parts of the loss.
    """

    def __init__(self, model: Backbone, settings: TrainSettings) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self._task = task_of(model.config)
        if settings.aux_weight:
            self.aux_head = nn.Linear(model.config.embed_dim, model.config.num_classes)

    def forward(
        self, images: Tensor, targets: Tensor, taught: Tensor | None, aux_weight: float
    ) -> tuple[Tensor, Tensor]:
        """The sum over the images of what is minimised, and of its part without the auxiliary head.

        Args:
            images: Batch of shape (B, channels, H, W).
            targets: Those of the task; probabilities (B, K) after mixup.
            taught: The dense model's outputs, for distillation.
            aux_weight: Present weight of the auxiliary head's loss.
        """
        task, settings = self._task, self.settings
        stream = self.model.encode(images, restore=self.model.restores)
        outputs = self.model.forward_head(stream)
        loss = task.loss(outputs, targets, settings.label_smoothing)
        if taught is not None:
            weight = settings.distill
            divergence = task.divergence(outputs, taught, settings.temperature)
            loss = (1 - weight) * loss + weight * divergence
        objective = loss
        if settings.aux_weight:
            aux_logits = self.aux_head(stream.hidden.mean(1))
            aux_loss = task.loss(aux_logits, targets, settings.label_smoothing)
            objective = loss + aux_weight * aux_loss
        return objective, loss.detach()


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
