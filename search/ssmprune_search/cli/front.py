"""The command `front`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssmprune.extensions import import_modules
from ssmprune_search.cli.options import Imports, Json, Run

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Csv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


@app.command()
def front(
    run: Run,
    as_csv: Csv = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """The Pareto front as a table, CSV or JSON; also written to RUN/front.csv and RUN/front.png.

    Works while the search runs, too.

    Example: [bold]ssmprune front runs/first --csv[/]
    """
    if as_csv and as_json:
        raise typer.BadParameter("give one of --csv and --json.")
    import_modules(imports or ())
    present(run, as_json, as_csv)


def present(run: Path, as_json: bool, as_csv: bool, storage: str | None = None) -> None:
    """Print the front of a run, and bring its files up to date."""
    from ssmprune.output import print_json, show
    from ssmprune_search.results.outcome import Outcome
    from ssmprune_search.results.table import to_csv, to_table

    outcome = Outcome.read(run, storage)
    try:
        written = f"written: {', '.join(map(str, outcome.write()))}"
    except OSError as fault:  # someone else's run can be looked at, too
        written = f"front.csv and front.png cannot be renewed in {run}: {fault.strerror}"
    if as_json:
        print_json(outcome.to_dict())
    elif as_csv:
        typer.echo(to_csv(outcome.members), nl=False)
    else:
        show(
            to_table(outcome.members, outcome.dense, outcome.dense_holdout),
            "",
            f"{len(outcome.members)} of {len(outcome.candidates)} candidates make the front, "
            f"hypervolume {outcome.hypervolume():.4f} of 1 against the dense model's costs",
        )
    typer.echo(written, err=True)
