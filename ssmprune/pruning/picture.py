"""Kept patches drawn on their images, for papers and slides.

The patches of one token have one outline and the mean of their pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssmprune.errors import FileError, UsageError
from ssmprune.pruning.kept import KeptPatches

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
_PANEL = 1.7  # inches
_VEIL = 0.86  # opacity of what covers a patch that has left
_LINE, _EDGE = 0.12, 0.18  # widths of an outline, and with its dark edges, in patches
_DARK = "#111111"

GROUP_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
"""Of outlines; told apart whatever colours one sees (Okabe and Ito)."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One image on its way through a policy.

    Attributes:
        pixels: The image, (H, W, C).
        caption: What stands beside it.
        image: Its place in the batch of the masks.
    """

    pixels: NDArray[np.uint8]
    caption: str
    image: int = 0


def draw_kept(
    rows: Sequence[Row],
    stages: Sequence[KeptPatches],
    *,
    verb: str = "kept",
    title: str = "",
    format: str = "png",
) -> bytes:
    """Draw each image, then what each stage keeps of it, as a file of the given format.

    Args:
        rows: The images.
        stages: What each stage keeps, in one batch for all rows.
        verb: What happens to the patches that are shown: kept, or scanned.
        title: Stands above the picture.
        format: png, svg or pdf.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 1 + len(stages)
    heights = _PANEL * len(rows) + 0.5 + (0.4 if title else 0)
    figure = Figure(figsize=(_PANEL * columns + 0.3, heights), dpi=200)
    figure.set_layout_engine("constrained", h_pad=0.1)  # inches; titles are not cut off
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(panels, rows, strict=True):
        for axes, stage in zip(line, (None, *stages), strict=True):
            _draw_panel(axes, row, stage)
        line[0].set_ylabel(row.caption, fontsize=9, rotation=0, ha="right", va="center")
    panels[0][0].set_title("image", fontsize=9)
    for axes, stage in zip(panels[0][1:], stages, strict=True):
        where = "after block" if verb == "kept" else "in block"
        axes.set_title(f"{where} {stage.layer}\n{_told(stage, verb)}", fontsize=9)
    return save(figure, format)


def _told(stage: KeptPatches, verb: str) -> str:
    if not stage.shares:
        return f"{stage.count} of {stage.patches} {verb}"
    tokens = f"{stage.count} of {stage.patches} tokens"
    return f"{tokens}\n{stage.merged} merged" if stage.merged else f"{tokens} {verb}"


def check_output(path: Path, force: bool) -> str:
    """The format of a picture that is to be written to `path`.

    Raises:
        UsageError: The ending names no format, or the path is a directory.
        FileError: The file exists and `force` is not given.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in FORMATS or path.is_dir():
        raise UsageError(
            f"-o must name a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file, got {path}; "
            "the ending tells the format."
        )
    if path.exists() and not force:
        raise FileError(
            f"a picture must not overwrite, but {path} exists; give --force or another path."
        )
    return kind


def _draw_panel(axes: Axes, row: Row, stage: KeptPatches | None) -> None:
    height, width, channels = row.pixels.shape
    extent = (0, width, height, 0)
    pixels = row.pixels if stage is None else _as_tokens(row.pixels, stage, row.image)
    if channels == 1:
        axes.imshow(pixels[..., 0], cmap="gray", vmin=0, vmax=255, extent=extent)
    else:
        axes.imshow(pixels, extent=extent)
    if stage is not None:
        mask = stage.mask[row.image].numpy()
        veil = np.ones((*mask.shape, 4), dtype=np.float32)
        veil[..., 3] = np.where(mask, 0, _VEIL)
        axes.imshow(veil, extent=extent, interpolation="nearest")
        _draw_outlines(axes, stage, row)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#BBBBBB")


def patch_means(pixels: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.float64]:
    """The mean pixel of each patch of an image that a grid lies on, (patches, C)."""
    patch, count = _patch_of_pixels(pixels, grid).ravel(), grid[0] * grid[1]
    sums = [np.bincount(patch, channel.ravel(), count) for channel in np.moveaxis(pixels, 2, 0)]
    pixels_in = np.bincount(patch, minlength=count)
    return np.stack([total / pixels_in for total in sums], axis=1)


def _patch_of_pixels(pixels: NDArray[np.uint8], grid: tuple[int, int]) -> NDArray[np.int64]:
    """The patch that each pixel is in, (H, W)."""
    (height, width, _), (rows, columns) = pixels.shape, grid
    lines, places = np.arange(height) * rows // height, np.arange(width) * columns // width
    patch: NDArray[np.int64] = lines[:, None] * columns + places
    return patch


def _as_tokens(pixels: NDArray[np.uint8], stage: KeptPatches, image: int) -> NDArray[np.uint8]:
    """An image with the patches of each token that stands for several as their mean."""
    shared, grid = stage.shared(image), stage.grid
    if not shared:
        return pixels
    patch, means = _patch_of_pixels(pixels, grid), patch_means(pixels, grid)
    shown: NDArray[np.uint8] = pixels.copy()
    for group in shared:
        shown[np.isin(patch, group)] = means[group].mean(0).round()
    return shown


def _draw_outlines(axes: Axes, stage: KeptPatches, row: Row) -> None:
    from matplotlib.collections import LineCollection

    shared, (rows, columns) = stage.shared(row.image), stage.grid
    scale = np.array([row.pixels.shape[1] / columns, row.pixels.shape[0] / rows])
    patch = _PANEL * 72 / max(rows, columns)  # points
    for group, color in zip(shared, group_colors(shared, columns), strict=True):
        lines = [np.array(line) * scale for line in outline(group, columns, _EDGE / 2)]
        for shade, width in ((_DARK, _EDGE), (GROUP_COLORS[color], _LINE)):
            drawn = LineCollection(lines, colors=shade, linewidths=width * patch)
            drawn.set_capstyle("projecting")
            axes.add_collection(drawn)


def group_colors(groups: Sequence[Sequence[int]], columns: int) -> list[int]:
    """Which of `GROUP_COLORS` outlines each group of patches of a grid.

    Groups that touch differ, as long as there are colours; of those left, the least used is taken.
    """
    at = {divmod(patch, columns): index for index, group in enumerate(groups) for patch in group}
    near = (-1, 0, 1)
    colors: list[int] = []
    for group in groups:
        places = [divmod(patch, columns) for patch in group]
        around = {at.get((y + dy, x + dx)) for y, x in places for dy in near for dx in near}
        beside = [colors[other] for other in around if other is not None and other < len(colors)]
        ranks = [(beside.count(c), colors.count(c), c) for c in range(len(GROUP_COLORS))]
        colors.append(min(ranks)[-1])
    return colors


def outline(patches: Sequence[int], columns: int, inset: float) -> list[tuple[Point, Point]]:
    """Lines around patches of a grid, as (x, y) in patches, `inset` inside of their border."""
    cells = {divmod(patch, columns) for patch in patches}
    out = 0.5 - inset
    lines = []
    for y, x in sorted(cells):
        for dy, dx in ((-1, 0), (0, 1), (1, 0), (0, -1)):
            if (y + dy, x + dx) in cells:
                continue
            ends = []
            for way in (-1, 1):  # a line goes on, turns away from a corner, or around one
                beside = (y + way * dx, x + way * dy)
                reach = 0.5 if beside in cells else out
                if beside in cells and (beside[0] + dy, beside[1] + dx) in cells:
                    reach = 0.5 + inset
                end = (x + 0.5 + out * dx + way * reach * dy, y + 0.5 + out * dy + way * reach * dx)
                ends.append(end)
            lines.append((ends[0], ends[1]))
    return lines


def save(figure: Any, format: str) -> bytes:
    """A matplotlib figure as a file; the same figure gives the same bytes."""
    import matplotlib

    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ssmprune"}):
        figure.savefig(file, format=format, metadata=stamp)
    return file.getvalue()
