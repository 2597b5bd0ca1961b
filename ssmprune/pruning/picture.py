"""Kept patches drawn on their images, for papers and slides."""

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
_VEIL = 0.86  # opacity of what covers a pruned patch


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
        patches = stage.mask[0].numel()
        axes.set_title(f"{where} {stage.layer}\n{stage.count} of {patches} {verb}", fontsize=9)
    return save(figure, format)


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
    if channels == 1:
        axes.imshow(row.pixels[..., 0], cmap="gray", vmin=0, vmax=255, extent=extent)
    else:
        axes.imshow(row.pixels, extent=extent)
    if stage is not None:
        mask = stage.mask[row.image].numpy()
        veil = np.ones((*mask.shape, 4), dtype=np.float32)
        veil[..., 3] = np.where(mask, 0, _VEIL)
        axes.imshow(veil, extent=extent, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#BBBBBB")


def save(figure: Any, format: str) -> bytes:
    """A matplotlib figure as a file; the same figure gives the same bytes."""
    import matplotlib

    stamp = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ssmprune"}):
        figure.savefig(file, format=format, metadata=stamp)
    return file.getvalue()
