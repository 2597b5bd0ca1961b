"""What a metric is: how well a model does its task, as one score in per cent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray
from torch import Tensor, nn

from ssmprune.data.base import Batch
from ssmprune.models.configs import ModelConfig


class Figures(Protocol):
    """What a metric says of a model."""

    @property
    def images(self) -> int: ...

    @property
    def score(self) -> float:
        """In per cent."""
        ...

    @property
    def low(self) -> float:
        """Lower end of the score's 95 % interval."""
        ...

    @property
    def high(self) -> float: ...

    def to_dict(self) -> dict[str, Any]:
        """The figures for files."""
        ...

    def told(self) -> list[str]:
        """The figures for people, a line each."""
        ...


class Metric(ABC):
    """One score of a model on images.

    Attributes:
        name: As files call it: `top1`.
        title: For people: `Top-1`.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    @abstractmethod
    def evaluate(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        *,
        amp: bool = False,
        progress: bool = False,
    ) -> Figures:
        """Measure a model on images.

        Args:
            model: Takes the images of a batch; put into eval mode for the duration.
            loader: Batches of images and targets.
            amp: Run under bfloat16 autocast.
            progress: Show a progress bar on stderr.

        Raises:
            SsmpruneError: An output is NaN.
            DataError: There are no images.
        """

    @abstractmethod
    def from_dict(self, figures: Mapping[str, Any]) -> Figures:
        """The figures that `Figures.to_dict` gave."""

    @abstractmethod
    def observe(self, model: nn.Module, loader: Iterable[Batch], *, amp: bool = False) -> Tensor:
        """What `summary` needs of each image, (N, ...) on the CPU, in the loader's order.

        Where the metric is the mean of one score per image, it is that score, (N,): whether the
        image is right, or a number in [0, 1]. Else a row has more dimensions, and a candidate of a
        search sees all images, as few of them tell nothing of the rest.
        """

    @abstractmethod
    def summary(self, observed: NDArray[Any]) -> tuple[float, float, float]:
        """The score of observed images in per cent, and the ends of its 95 % interval."""

    @abstractmethod
    def chance(self, config: ModelConfig) -> float:
        """The score of a model that knows nothing, in per cent."""
