"""The commands under `data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from ssmprune.data.export import export_images
from ssmprune.output import print_json, show
from ssmprune_search.cli.options import Json

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich")

Name = Annotated[str, typer.Argument(metavar="NAME", help="[bold]digits[/].")]
Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The folder to write; new, or empty.")
]
TrainImages = Annotated[
    int,
    typer.Option(
        min=0, help="Write FOLDER/train, too, with that many images.", show_default="none"
    ),
]


@app.callback()
def data() -> None:
    """Data sets as folders of images.

    Example: [bold]ssmprune data export digits digits[/]
    """


@app.command()
def export(
    name: Name,
    folder: Folder,
    train_images: TrainImages = 0,
    as_json: Json = False,
) -> None:
    """The embedded digits as 8-bit PNG files in class folders, for any command's --data.

    Writes FOLDER/search and FOLDER/holdout, which search and eval read, and with --train-images
    FOLDER/train. The model vim_nano reads from them what it reads from --data digits.

    Example: [bold]ssmprune data export digits FOLDER --train-images 2000[/]
    """
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("writing", total=None)
        counts = export_images(
            name,
            folder,
            train_images=train_images,
            on_image=lambda done, count: bar.update(task, completed=done, total=count),
        )
    if as_json:
        print_json({"folder": str(folder), "images": counts})
        return
    images = ", ".join(f"{count:,} for {split}" for split, count in counts.items())
    show(f"written: {folder}, {images}")
