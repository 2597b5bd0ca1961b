"""The command `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssmprune.extensions import import_modules
from ssmprune_search.cli.options import Device, Imports, Run, SearchCheckpointKey

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Measure = Annotated[
    bool, typer.Option("--measure", help="Evaluate known schedules, too, as the front was.")
]
Checkpoint = Annotated[
    Path | None, typer.Option(help="The weights of the search.", show_default="the run's")
]
Data = Annotated[
    str | None, typer.Option(help="The images of the search.", show_default="the run's")
]


@app.command()
def report(
    run: Run,
    measure: Measure = False,
    checkpoint: Checkpoint = None,
    checkpoint_key: SearchCheckpointKey = None,
    data: Data = None,
    device: Device = "cpu",
    imports: Imports = None,
) -> None:
    """One HTML page with the front, how it was found, and the tokens that its policies keep.

    Writes RUN/report.html, which needs no other file and no network, and the same figures as PNG
    and SVG into RUN/report. Works while the search runs, too.

    Example: [bold]ssmprune report runs/first[/]
    """
    from ssmprune.machine import find_device
    from ssmprune_search.report import write_report
    from ssmprune_search.results.outcome import Outcome

    import_modules(imports or ())
    written = write_report(
        Outcome.read(run),
        checkpoint=checkpoint,
        checkpoint_key=checkpoint_key,
        data=data,
        measure=measure,
        device=str(find_device(device)),
    )
    if written.missing:
        typer.echo(f"without kept tokens: {written.missing}.", err=True)
    typer.echo(f"written: {written.page}, and {len(written.figures)} figures beside it", err=True)
