"""*Cluttered digits*: find the one whole handwritten digit on a canvas full of fragments.

Scikit-learn's 1,797 real digits of 8 x 8 pixels are divided into train, search and holdout
sources first; every image is then composed from the sources of one split. An image shows one
whole digit of 16 to 22 pixels, scaled, rotated and sheared a little, at a random place of a
48 x 48 canvas, among six rotated fragments of other digits, under uneven light and noise. The
label is the digit. It covers about a fifth of the canvas, so most patches can be pruned and
some must not be.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssmprune.compiled import cached_njit
from ssmprune.data.base import (
    SPLITS,
    Batch,
    HeldBatches,
    ImageSet,
    fingerprint,
    stratified_order,
)
from ssmprune.errors import UsageError

NAME = "digits"
SIZE = 48
CHANNELS = 1
CLASSES = tuple("0123456789")

IMAGES_PER_SOURCE = 4
"""Images of an evaluation set made from each of its sources."""
SEARCH_SOURCES, HOLDOUT_SOURCES = 182, 364

_RECIPE = "cluttered-digits/1"
_SOURCE_SIZE = 8
_FRAGMENTS = 6
_SCALE = (2.0, 2.8)  # canvas pixels per source pixel
_NOISE = 0.14  # amplitude
_LIGHT = 0.3
MEAN, STD = np.float32(0.3), np.float32(0.35)
_CLEARED = np.float32(0.85)  # share of the clutter's brightness removed beneath the target

_STROKE = np.dtype(
    [
        ("source", np.int32),
        ("top", np.int32),  # rectangle of the source that is painted
        ("left", np.int32),
        ("height", np.int32),
        ("width", np.int32),
        ("x", np.float32),  # its centre on the canvas
        ("y", np.float32),
        ("scale", np.float32),
        ("cos", np.float32),
        ("sin", np.float32),
        ("shear", np.float32),
        ("strength", np.float32),
    ],
    align=True,
)
Floats = NDArray[np.float32]
Bound = float | NDArray[np.float64]

_STREAM = len(SPLITS)  # random domain of the training stream, beside those of the three splits


@functools.cache
def sources(split: str) -> tuple[Floats, NDArray[np.int64]]:
    """The original digits of a split; no digit is in two splits, whatever the seed.

    Returns:
        Images `(N, 8, 8)` in 0..1 and labels `(N,)`, in stratified order.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    order = stratified_order(labels, np.random.default_rng(0))
    bounds = np.cumsum([0, SEARCH_SOURCES, HOLDOUT_SOURCES, len(labels)])
    part = ("search", "holdout", "train").index(split)
    chosen = order[bounds[part] : bounds[part + 1]]
    return (digits.images[chosen] / 16).astype(np.float32), labels[chosen]


def open_digits(split: str, *, batch_size: int, limit: int | None, seed: int) -> ImageSet:
    """Compose an evaluation set: four images of each source, one round of all after another.

    Image i depends on the seed, the split and i alone.

    Args:
        split: Whose sources are used: `train`, `search` (728 images) or `holdout` (1,456).
        batch_size: Images per batch; the last batch may be smaller.
        limit: Only that many images, the first ones.
        seed: Another seed composes other images from the same sources.
    """
    pixels, source_labels = sources(split)
    count = IMAGES_PER_SOURCE * len(pixels)
    count = count if limit is None else min(count, limit)
    targets = np.arange(count) % len(pixels)
    images = torch.from_numpy(
        _compose(pixels, targets, np.random.SeedSequence([seed, SPLITS.index(split)]))
    )
    labels = torch.from_numpy(source_labels[targets])
    return ImageSet(
        name=NAME,
        split=split,
        classes=CLASSES,
        fingerprint=fingerprint(
            {"recipe": _RECIPE, "split": split, "seed": seed, "images": count}, pixels.tobytes()
        ),
        loader=HeldBatches(
            list(zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True))
        ),
    )


class DigitStream:
    """Endless training images, composed on the fly from the training sources.

    An epoch counts as many images of each source as an evaluation set has.

    Args:
        batch_size: Images per batch.
        seed: The batch of a step depends on the seed and the step alone.
        curriculum_steps: Steps over which clutter and noise grow from none to full.
    """

    classes = CLASSES

    def __init__(self, *, batch_size: int, seed: int = 0, curriculum_steps: int = 0) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.curriculum_steps = curriculum_steps
        self._pixels, self._labels = sources("train")
        self.images = IMAGES_PER_SOURCE * len(self._pixels)
        self.fingerprint = fingerprint(
            {"recipe": _RECIPE, "split": "train", "stream": True}, self._pixels.tobytes()
        )

    def difficulty(self, step: int) -> float:
        """Share of the full clutter and noise that the images of a step have, in [0, 1]."""
        return min(1.0, step / self.curriculum_steps) if self.curriculum_steps else 1.0

    def batch(self, step: int) -> Batch:
        """Compose the images of one step."""
        choice, scenery = np.random.SeedSequence([self.seed, _STREAM, step]).spawn(2)
        targets = np.random.default_rng(choice).integers(len(self._pixels), size=self.batch_size)
        images = _compose(self._pixels, targets, scenery, self.difficulty(step))
        return torch.from_numpy(images), torch.from_numpy(self._labels[targets])

    def batches(self, start: int = 0, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yield the batch of step `start`, then of the steps after it; or a share of each."""
        size = self.batch_size // parts
        share = slice(part * size, (part + 1) * size)
        while True:
            images, labels = self.batch(start)
            yield images[share], labels[share]
            start += 1


def check_shape(image_size: tuple[int, int], channels: int) -> None:
    """Refuse a model that does not take images of 48 x 48 pixels and one channel.

    Raises:
        UsageError: The size or the number of channels differs.
    """
    height, width = image_size
    if (image_size, channels) != ((SIZE, SIZE), CHANNELS):
        raise UsageError(
            f"data set {NAME!r} has images of {SIZE} x {SIZE} pixels with {CHANNELS} channel, but "
            f"the model takes {height} x {width} with {channels}; use a model made for "
            "it, such as vim_nano, or name a folder of images as the data."
        )


def _compose(
    pixels: Floats,
    targets: NDArray[np.int64],
    seeds: np.random.SeedSequence,
    difficulty: float = 1.0,
) -> Floats:
    """Compose one normalised image `(1, 48, 48)` around each target source.

    Both generators are read image by image, so an image does not depend on those after it.
    """
    scenery, noise = (np.random.default_rng(child) for child in seeds.spawn(2))
    strokes, light = _draw_scenes(len(pixels), targets, scenery)
    images = noise.random((len(targets), SIZE, SIZE), dtype=np.float32)
    fragments = round(_FRAGMENTS * difficulty)
    _render(pixels, strokes, fragments, light, np.float32(_NOISE * difficulty), images)
    return images[:, None]


def _draw_scenes(
    source_count: int, targets: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.void], Floats]:
    """Draw where everything goes.

    Returns:
        Strokes `(N, 7)`, the last of each row being the target, and the light `(N, 3)` as
        brightness and its slopes along x and y over the whole canvas.
    """
    uniform = rng.random((len(targets), 9 + 10 * _FRAGMENTS))
    light = (_LIGHT * (uniform[:, :3] - (0, 0.5, 0.5))).astype(np.float32)
    strokes = np.zeros((len(targets), _FRAGMENTS + 1), _STROKE)

    target = strokes[:, -1]
    u_x, u_y, u_scale, u_angle, u_shear, u_strength = uniform[:, 3:9].T
    target["source"] = targets
    target["height"] = target["width"] = _SOURCE_SIZE
    target["scale"] = _between(*_SCALE, u_scale)
    half = target["scale"] * (_SOURCE_SIZE / 2)
    target["x"] = _between(half, SIZE - 1 - half, u_x)
    target["y"] = _between(half, SIZE - 1 - half, u_y)
    _turn(target, _between(-0.25, 0.25, u_angle))
    target["shear"] = _between(-0.2, 0.2, u_shear)
    target["strength"] = _between(0.75, 1.0, u_strength)

    fragment = strokes[:, :-1]
    (u_source, u_height, u_width, u_top, u_left, u_x, u_y, u_scale, u_angle, u_strength) = (
        np.moveaxis(uniform[:, 9:].reshape(-1, _FRAGMENTS, 10), 2, 0)
    )
    fragment["source"] = u_source * source_count
    fragment["height"] = 3 + (u_height < 0.5)
    fragment["width"] = 3 + (u_width < 0.5)
    fragment["top"] = u_top * (_SOURCE_SIZE + 1 - fragment["height"])
    fragment["left"] = u_left * (_SOURCE_SIZE + 1 - fragment["width"])
    fragment["x"] = u_x * SIZE
    fragment["y"] = u_y * SIZE
    fragment["scale"] = _between(*_SCALE, u_scale)
    _turn(fragment, 2 * np.pi * u_angle)
    fragment["strength"] = _between(0.5, 1.0, u_strength)
    return strokes, light


def _between(low: Bound, high: Bound, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (high - low) * uniform


def _turn(strokes: NDArray[np.void], angle: NDArray[np.float64]) -> None:
    strokes["cos"] = np.cos(angle)
    strokes["sin"] = np.sin(angle)


@cached_njit(nogil=True)
def _render(
    pixels: Floats,
    strokes: NDArray[np.void],
    fragments: int,
    light: Floats,
    noise_amplitude: np.float32,
    images: Floats,
) -> None:
    """Turn noise, uniform over [0, 1) in `images` `(N, 48, 48)`, into the composed images."""
    canvas = np.empty((SIZE, SIZE), np.float32)
    for i in range(len(images)):
        canvas[:] = 0
        for k in range(fragments):
            _paint(canvas, pixels, strokes[i, k])
        _clear(canvas, strokes[i, -1])
        _paint(canvas, pixels, strokes[i, -1])
        for y in range(SIZE):
            row_light = light[i, 0] + light[i, 2] * np.float32(y / SIZE - 0.5)
            for x in range(SIZE):
                shade = row_light + light[i, 1] * np.float32(x / SIZE - 0.5)
                noise = noise_amplitude * (2 * images[i, y, x] - 1)
                images[i, y, x] = (canvas[y, x] + shade + noise - MEAN) / STD


@cached_njit(nogil=True)
def _clear(canvas: Floats, stroke: Any) -> None:
    """Dim what lies beneath the target, fading out at its border."""
    half = stroke.scale * np.float32(_SOURCE_SIZE / 2)
    reach = np.float32(1.1) * half
    for y in range(max(0, math.ceil(stroke.y - reach)), min(SIZE, int(stroke.y + reach) + 1)):
        for x in range(max(0, math.ceil(stroke.x - reach)), min(SIZE, int(stroke.x + reach) + 1)):
            distance = max(abs(np.float32(x) - stroke.x), abs(np.float32(y) - stroke.y))
            weight = min(np.float32(1), 4 * (reach - distance) / half)
            canvas[y, x] *= 1 - _CLEARED * weight


@cached_njit(nogil=True)
def _paint(canvas: Floats, pixels: Floats, stroke: Any) -> None:
    """Lay a rectangle of a source over the canvas, bilinear; the brighter value stays."""
    source = pixels[stroke.source]
    bottom, right = stroke.top + stroke.height, stroke.left + stroke.width
    middle_row = np.float32(stroke.top + bottom - 1) / 2
    middle_column = np.float32(stroke.left + right - 1) / 2

    # A canvas offset (dx, dy) maps to the source offset (cos dx + slant dy, cos dy - sin dx);
    # the inverse of that map bounds the canvas pixels that the rectangle can reach.
    slant = stroke.sin + stroke.shear
    unit = stroke.scale / (stroke.cos * stroke.cos + stroke.sin * slant)
    half_height, half_width = unit * (stroke.height + 1) / 2, unit * (stroke.width + 1) / 2
    reach_x = abs(stroke.cos) * half_width + abs(slant) * half_height
    reach_y = abs(stroke.sin) * half_width + abs(stroke.cos) * half_height
    first_y, end_y = max(0, math.ceil(stroke.y - reach_y)), min(SIZE, int(stroke.y + reach_y) + 1)
    first_x, end_x = max(0, math.ceil(stroke.x - reach_x)), min(SIZE, int(stroke.x + reach_x) + 1)

    for y in range(first_y, end_y):
        dy = (np.float32(y) - stroke.y) / stroke.scale
        for x in range(first_x, end_x):
            dx = (np.float32(x) - stroke.x) / stroke.scale
            row = stroke.cos * dy - stroke.sin * dx + middle_row
            column = stroke.cos * dx + slant * dy + middle_column
            if row <= stroke.top - 1 or row >= bottom:
                continue
            if column <= stroke.left - 1 or column >= right:
                continue
            above, before = math.floor(row), math.floor(column)
            down, across = row - np.float32(above), column - np.float32(before)
            value = np.float32(0)
            for r, share in ((above, 1 - down), (above + 1, down)):
                if stroke.top <= r < bottom:
                    if stroke.left <= before:
                        value += source[r, before] * share * (1 - across)
                    if before + 1 < right:
                        value += source[r, before + 1] * share * across
            canvas[y, x] = max(canvas[y, x], stroke.strength * value)
