"""What describes a model, family by family, as data that needs no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import count
from typing import ClassVar, TypeVar

from ssmprune.bounds import MOST_PIXELS
from ssmprune.errors import UsageError

Config = TypeVar("Config", bound="ModelConfig")


@dataclass(frozen=True)
class Preprocessing:
    """How the pixels of an image file become a model's input; the defaults are timm's.

    Attributes:
        mean: Is subtracted from pixels in 0..1; one value for all channels, or one for each.
        std: Divides the difference.
        crop_share: Side of the central crop as a share of the resized image's shorter side.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_share: float = 0.875


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ABC):
    """What the configurations of all families hold.

    Attributes:
        family: Name of the architecture.
        task: What the model is for, by its name in `ssmprune.tasks`.
        prunable: Whether tokens can leave between the blocks.
        convolves_grid: Whether the blocks convolve the H x W grid, not the sequence.
        image_size: Height and width of the input in pixels.
        channels: 1 for images in grey, 3 in colour.
        num_classes: Logits of the classifier; 0 for pooled features without one.
        preprocessing: How image files are cropped and normalised.
    """

    family: ClassVar[str]
    task: ClassVar[str] = "classification"
    prunable: ClassVar[bool] = True
    convolves_grid: ClassVar[bool] = False

    name: str
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    num_classes: int = 1000
    preprocessing: Preprocessing = Preprocessing()

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """D, width of the tokens that leave the last block."""

    @property
    @abstractmethod
    def depth(self) -> int:
        """Blocks of the model."""

    @abstractmethod
    def fits(self, side: int) -> bool:
        """Whether patches cover a side of `side` pixels without a rest."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """H and W, the rows and columns of patch tokens."""

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def prefix_positions(self) -> tuple[int, ...]:
        """Positions of the tokens that no policy may remove, such as the class token's."""
        return ()

    @property
    def num_tokens(self) -> int:
        return self.num_patches + len(self.prefix_positions)

    @property
    def block_grids(self) -> tuple[tuple[int, int], ...]:
        """H and W of the patch tokens that enter each block of the dense model."""
        return (self.grid,) * self.depth

    @property
    def block_tokens(self) -> tuple[int, ...]:
        """Tokens that enter each block of the dense model; last, those that leave it."""
        prefix = len(self.prefix_positions)
        grids = (*self.block_grids, self.block_grids[-1])
        return tuple(height * width + prefix for height, width in grids)


def with_classes(config: Config, num_classes: int) -> Config:
    """The same model with a classifier of another size; with 0 classes it has none.

    Raises:
        UsageError: `num_classes` is negative.
    """
    if num_classes < 0:
        raise UsageError(
            f"num_classes must be at least 0, got {num_classes} for {config.name}; 0 leaves the "
            "classifier away."
        )
    return replace(config, num_classes=num_classes)


def with_image_size(config: Config, image_size: int | tuple[int, int]) -> Config:
    """The same model for images of another size.

    Args:
        image_size: Height and width in pixels, or both in one number.

    Raises:
        UsageError: Patches do not cover such an image; sizes near it are named.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    for side in (height, width):
        if side > MOST_PIXELS:
            raise UsageError(
                f"image_size must be from 1 to {MOST_PIXELS} pixels, got {side} in "
                f"{height} x {width}."
            )
        if not config.fits(side):
            below = next((n for n in range(side - 1, 0, -1) if config.fits(n)), None)
            above = next(n for n in count(max(side, 1)) if config.fits(n))
            near = f"{above}" if below is None else f"{below} or {above}"
            raise UsageError(
                f"image_size must be whole patches of {config.name}, got {side} in "
                f"{height} x {width}; use {near}."
            )
    return replace(config, image_size=(height, width))
