"""Labels beside what they name, where they cover least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

_FONT_SIZE = 11
_ANGLES = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_DISTANCES = np.array([8.0, 13.0, 20.0, 32.0, 48.0, 70.0])  # typographic points
_LEADER_FROM = 16.0
_CELL = 2  # pixels
_LEADER, _FORBIDDEN = 4.0, 1e6


@dataclass(frozen=True)
class Label:
    """A text and the points `(n, 2)`, in data coordinates, any of which it may stand beside."""

    text: str
    color: str
    anchors: Array


@dataclass(frozen=True)
class _Places:
    """Where a label may stand; one row each.

    Attributes:
        anchors: The points, in data coordinates.
        distances: From the point to the text, in typographic points.
        offsets: From the point to the text's centre, in typographic points.
        boxes: Left, bottom, right and top in pixels.
    """

    anchors: Array
    distances: Array
    offsets: Array
    boxes: Array


def place_labels(
    axes: Axes, labels: Sequence[Label], obstacles: Sequence[tuple[Array, float]]
) -> None:
    """Draw the labels, so that they cover no other label and as few obstacles as possible.

    The axes must have their final limits and size. A label far from its point gets a leader.

    Args:
        obstacles: Points `(m, 2)` in data coordinates, and the price of covering one of them.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None  # axes are made by a figure
    pixels = figure.dpi / 72
    prices = _PriceMap(axes, obstacles)
    taken = np.empty((0, 4))
    for label in labels:
        places = _places(axes, label, pixels)
        cost = (
            prices.of(places.boxes, margin=3 * pixels)
            + _FORBIDDEN * _overlaps(places.boxes, taken, margin=4 * pixels)
            + _FORBIDDEN * _leaves(places.boxes, np.array(axes.bbox.extents))
            + places.distances / 20
            + _LEADER * (places.distances >= _LEADER_FROM)
        )
        best = int(cost.argmin())
        taken = np.vstack([taken, places.boxes[best]])
        _draw(axes, label, places, best)


class _PriceMap:
    """What it costs to cover any part of the axes, by a table of sums over square cells."""

    def __init__(self, axes: Axes, obstacles: Sequence[tuple[Array, float]]):
        self._low = np.array(axes.bbox.min)
        self._shape = np.ceil(np.array(axes.bbox.size) / _CELL).astype(int)
        cells = np.zeros(self._shape)
        for points, price in obstacles:
            at = (axes.transData.transform(points) - self._low) // _CELL
            inside = ((at >= 0) & (at < self._shape)).all(axis=1)
            np.add.at(cells, tuple(at[inside].astype(int).T), price)
        self._sums = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def of(self, boxes: Array, margin: float) -> Array:
        """The price of each box with a margin around it, `(n,)`."""
        low = (boxes[:, :2] - margin - self._low) // _CELL
        high = (boxes[:, 2:] + margin - self._low) // _CELL + 1
        left, bottom = np.clip(low, 0, self._shape).astype(int).T
        right, top = np.clip(high, 0, self._shape).astype(int).T
        sums = self._sums
        found: Array = sums[right, top] - sums[left, top] - sums[right, bottom] + sums[left, bottom]
        return found


def _places(axes: Axes, label: Label, pixels: float) -> _Places:
    probe = axes.text(0, 0, label.text, fontsize=_FONT_SIZE)
    half = np.array(probe.get_window_extent().size) / 2
    probe.remove()
    distances = np.repeat(_DISTANCES, len(_DIRECTIONS))
    directions = np.tile(_DIRECTIONS, (len(_DISTANCES), 1))
    gaps = directions * (distances[:, None] * pixels + half)
    copies = len(label.anchors)
    anchors, gaps = np.repeat(label.anchors, len(gaps), axis=0), np.tile(gaps, (copies, 1))
    centres = axes.transData.transform(anchors) + gaps
    return _Places(
        anchors=anchors,
        distances=np.tile(distances, copies),
        offsets=gaps / pixels,
        boxes=np.hstack([centres - half, centres + half]),
    )


def _overlaps(boxes: Array, others: Array, margin: float) -> Mask:
    """Which boxes overlap any of the others."""
    apart = (boxes[:, None, 2:] + margin < others[:, :2]) | (
        boxes[:, None, :2] - margin > others[:, 2:]
    )
    touching: Mask = np.any(~np.any(apart, axis=2), axis=1)
    return touching


def _leaves(boxes: Array, frame: Array) -> Mask:
    """Which boxes are not wholly inside the frame."""
    outside: Mask = np.any((boxes[:, :2] < frame[:2]) | (boxes[:, 2:] > frame[2:]), axis=1)
    return outside


def _draw(axes: Axes, label: Label, places: _Places, best: int) -> None:
    from matplotlib.patheffects import withStroke

    leader = {"arrowstyle": "-", "color": label.color, "linewidth": 0.8, "shrinkB": 4}
    axes.annotate(
        label.text,
        xy=tuple(places.anchors[best]),
        xytext=tuple(places.offsets[best]),
        textcoords="offset points",
        color=label.color,
        fontsize=_FONT_SIZE,
        ha="center",
        va="center",
        zorder=9,
        path_effects=[withStroke(linewidth=3, foreground="white")],
        arrowprops=leader if places.distances[best] >= _LEADER_FROM else None,
    )
