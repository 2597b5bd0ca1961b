"""The front as a picture: score against cost, with everything it has to be compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssmprune.pruning.picture import save
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import COSTS, Objective

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

# From Okabe and Ito's palette, which the colour-blind can tell apart; darkened for thin lines.
_FRONT, _DENSE, _FAINT = "#0072B2", "#222222", "#6E6E6E"
_SCHEDULES = (("#C04F00", "s"), ("#007A59", "^"), ("#A8467F", "D"), ("#8A6000", "v"))

_DEEPEST = 40.0  # points below the dense model


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes:
        candidates: All that were fully evaluated; known schedules are told by their source.
        members: The front.
        dense: The dense model on the search split.
        dense_holdout: The dense model on the holdout, if that was measured.
        score: What stands upright.
    """

    title: str
    candidates: Sequence[Candidate]
    members: Sequence[Candidate]
    dense: Measurement
    dense_holdout: Measurement | None
    score: Objective


def draw_figure(picture: Picture) -> bytes:
    """The figure as a PNG."""
    return save(make_figure(picture), "png")


def make_figure(picture: Picture) -> Figure:
    """The score against FLOPs, and beside it against each other cost that was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    every = [candidate.search for candidate in picture.candidates]
    costs = [cost for cost in COSTS if all(cost.is_measured(figures) for figures in every)]
    figure = Figure(figsize=(6.6 * len(costs) + 0.6, 5.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(picture.title, x=0.01, ha="left", fontsize=15, fontweight="bold")
    figure.supxlabel(_note(picture), x=0.01, ha="left", fontsize=10.5, color="#444444")
    panels = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
    for axes, cost in zip(panels, costs, strict=True):
        _draw_panel(axes, picture, cost)
    panels[0].set_ylabel(f"{picture.score.title}, %", fontsize=13)
    panels[-1].legend(loc="lower right", fontsize=10.5, frameon=False)
    return figure


@dataclass(frozen=True)
class _Series:
    """Points of one kind.

    Attributes:
        points: Cost and score, `(n, 2)`.
        intervals: Lower and upper end of the score, then of the cost, `(n, 4)`.
        line: Points to connect, `(m, 2)`.
    """

    name: str
    color: str
    marker: str
    points: Array
    intervals: Array
    line: Array
    hollow: bool = False


def _series(picture: Picture, cost: Objective) -> Iterator[_Series]:
    """Everything that stands out, from the back to the front."""
    for (name, family), (color, marker) in zip(
        _families(picture.candidates).items(), itertools.cycle(_SCHEDULES), strict=False
    ):
        points, intervals = _figures(family, cost)
        yield _Series(f"schedule {name}", color, marker, points, intervals, points)
    for figures in filter(None, (picture.dense, picture.dense_holdout)):
        hollow = figures is picture.dense_holdout
        points = np.array([[1.0, figures.score]])
        intervals = np.array([[figures.score_low, figures.score_high, 1.0, 1.0]])
        name = "dense, on the holdout" if hollow else "dense"
        yield _Series(name, _DENSE, "*", points, intervals, points, hollow)
    points, intervals = _figures(picture.members, cost)
    name = f"front ({len(points)} {'policy' if len(points) == 1 else 'policies'})"
    yield _Series(name, _FRONT, "o", points, intervals, _frontier(points))
    measured = [c for c in picture.members if c.holdout]
    if measured:
        points, intervals = _figures(measured, cost, holdout=True)
        name = "front, on the holdout"
        yield _Series(name, _FRONT, "o", points, intervals, points[:0], hollow=True)


def _families(candidates: Sequence[Candidate]) -> dict[str, list[Candidate]]:
    """Known schedules by family, cheapest first: `schedule:uniform@0.8` is of `uniform`."""
    families: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda c: c.search.flops):
        kind, _, name = candidate.source.partition(":")
        if kind == "schedule":
            families.setdefault(name.partition("@")[0], []).append(candidate)
    return families


def _figures(
    candidates: Sequence[Candidate], cost: Objective, holdout: bool = False
) -> tuple[Array, Array]:
    """Points `(n, 2)`, cost and score, and intervals `(n, 4)`, of score and of the cost."""
    rows = []
    for c in candidates:
        figures = c.holdout if holdout else c.search
        if figures:
            at, low, high = cost.interval(c.search)
            rows.append((at, figures.score, figures.score_low, figures.score_high, low, high))
    table = np.array(rows, dtype=float).reshape(-1, 6)
    return table[:, :2], table[:, 2:]


def _frontier(points: Array) -> Array:
    """The points that no other one beats in this panel, cheapest first."""
    points = points[np.lexsort((-points[:, 1], points[:, 0]))]
    best = np.maximum.accumulate(points[:, 1])
    return points[np.diff(best, prepend=-np.inf) > 0]


def _draw_panel(axes: Axes, picture: Picture, cost: Objective) -> None:
    every, _ = _figures(picture.candidates, cost)
    name = f"all {len(every)} candidates"
    axes.plot(*every.T, "o", c=_FAINT, ms=4, alpha=0.35, mew=0, label=name)
    for series in _series(picture, cost):
        x, y = series.points.T
        width, alpha = (1.2, 1.0) if series.hollow else (4.5, 0.2)
        low, high, left, right = series.intervals.T
        axes.vlines(x, low, high, colors=series.color, linewidth=width, alpha=alpha)
        if not series.hollow:  # the cost is that of the filled point
            axes.hlines(y, left, right, colors=series.color, linewidth=width, alpha=alpha)
        axes.plot(*series.line.T, "-", c=series.color, lw=1.3, zorder=4)
        size = 12 if series.marker == "*" else 6.5
        fill = "white" if series.hollow else series.color
        style: dict[str, Any] = {"c": series.color, "mfc": fill, "ms": size, "zorder": 5}
        axes.plot(x, y, series.marker, label=series.name, **style)
    axes.set_ylim(*_accuracies(picture))
    axes.set_xlabel(f"{cost.title} relative to dense", fontsize=13)
    axes.grid(color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=12, length=0)
    axes.spines[:].set_visible(False)


def _accuracies(picture: Picture) -> tuple[float, float]:
    """Bounds of the axis: front, known schedules and their intervals, down to what is of use."""
    shown = [*picture.members, *itertools.chain(*_families(picture.candidates).values())]
    figures = [f for c in shown for f in (c.search, c.holdout) if f] + [picture.dense]
    low, high = min(f.score_low for f in figures), max(f.score_high for f in figures)
    low = max(low, picture.dense.score - _DEEPEST)
    margin = 0.03 * (high - low)
    return low - margin, high + margin


def _note(picture: Picture) -> str:
    parts = [f"Bars: 95 % intervals. Filled, broad: search split, {picture.dense.images:,} images."]
    if picture.dense_holdout and any(c.holdout for c in picture.members):
        parts.append(f"Hollow, thin: holdout, {picture.dense_holdout.images:,} images.")
    low, _ = _accuracies(picture)
    hidden = sum(c.search.score < low for c in picture.candidates)
    if hidden:
        parts.append(f"Below the axis: {hidden} of the candidates.")
    return f"{parts[0]}\n{' '.join(parts[1:])}"
