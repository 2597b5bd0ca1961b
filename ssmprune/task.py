"""What a task is: its images and targets, what a model is trained on, and how it is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from ssmprune.data.base import ImageSet, TrainingStream
from ssmprune.measure.metric import Metric
from ssmprune.models.configs import ModelConfig


class Task(ABC):
    """What models are for. A family's head gives the outputs that it takes.

    Attributes:
        name: As the configurations of its models have it.
        metric: How models are measured.
        labels_images: Whether an image has one label, which mixup, cutmix and the auxiliary head
            need.
    """

    name: ClassVar[str]
    metric: ClassVar[Metric]
    labels_images: ClassVar[bool]

    @abstractmethod
    def open_images(self, config: ModelConfig, name: str, split: str, **settings: Any) -> ImageSet:
        """The split of a data set as a model takes it.

        Args:
            config: The model.
            name, split: As for `ssmprune.data.open_images`.
            settings: Others of its settings, also in place of what the model says.

        Raises:
            UsageError, DataError: The data set does not fit the model, or is not there.
        """

    @abstractmethod
    def open_stream(self, config: ModelConfig, name: str, **settings: Any) -> TrainingStream:
        """The training images of a data set as a model takes them.

        Args:
            config: The model.
            name: As for `ssmprune.data.open_stream`.
            settings: Others of its settings, also in place of what the model says.

        Raises:
            UsageError, DataError: The data set does not fit the model, or is not there.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """The sum over the images of what training minimises.

        Args:
            outputs: Of the model, (B, ...).
            targets: Of the images, (B, ...).
            smoothing: Of labels.
        """

    @abstractmethod
    def divergence(self, outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """The sum over the images of how far outputs are from a teacher's, on the loss's scale."""
