"""Labels beside what they name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from search.labels import Array, Label, place_labels


@pytest.fixture
def axes() -> Axes:
    figure = Figure(figsize=(7, 5), dpi=100)
    FigureCanvasAgg(figure)
    made: Axes = figure.subplots()
    made.set_xlim(0, 1)
    made.set_ylim(0, 1)
    figure.draw_without_rendering()
    return made


def boxes(axes: Axes) -> list[Array]:
    return [np.array(text.get_window_extent().extents) for text in axes.texts]


def overlap(a: Array, b: Array) -> bool:
    return bool((a[:2] < b[2:]).all() and (b[:2] < a[2:]).all())


def label(name: str, *anchors: tuple[float, float]) -> Label:
    return Label(name, "black", np.array(anchors))


@pytest.mark.parametrize("seed", range(5))
def test_labels_neither_overlap_nor_leave_the_axes(axes: Axes, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.random((200, 2))
    labels = [label(f"label number {i}", *points[10 * i : 10 * i + 10]) for i in range(8)]
    place_labels(axes, labels, [(points, 1.0)])
    found = boxes(axes)
    assert len(found) == 8
    assert not any(overlap(a, b) for a, b in itertools.combinations(found, 2))
    frame = np.array(axes.bbox.extents)
    assert all((b[:2] >= frame[:2] - 1).all() and (b[2:] <= frame[2:] + 1).all() for b in found)


def test_label_stands_clear_of_obstacles_where_there_is_room(axes: Axes) -> None:
    crowd = np.random.default_rng(0).uniform((0, 0), (1, 0.6), (300, 2))
    place_labels(axes, [label("the crowd", *crowd)], [(crowd, 1.0)])
    [box] = boxes(axes)
    points = axes.transData.transform(crowd)
    assert not ((points > box[:2]) & (points < box[2:])).all(1).any()


def test_label_in_the_open_stands_close_and_without_a_leader(axes: Axes) -> None:
    place_labels(axes, [label("alone", (0.5, 0.5))], [(np.array([[0.5, 0.5]]), 1.0)])
    [text] = axes.texts
    [box] = boxes(axes)
    point = axes.transData.transform((0.5, 0.5))
    assert np.maximum(box[:2] - point, point - box[2:]).max() < 20
    assert text.arrow_patch is None  # type: ignore[attr-defined]
