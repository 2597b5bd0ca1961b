"""The command `export`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from ssmprune.extensions import import_modules
from ssmprune_search.candidate.objective import COSTS, SCORES
from ssmprune_search.cli.options import Imports, Json, Run

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Output = Annotated[
    Path, typer.Option("-o", "--output", help="The policy's file; with --all a directory.")
]
Everything = Annotated[
    bool, typer.Option("--all", help="Every policy of the front instead of the best.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


def _with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for the limit of each objective, in place of its `limits`."""
    own = inspect.signature(command, eval_str=True)
    parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    limits = [
        inspect.Parameter(
            objective.option,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[float | None, typer.Option(help=objective.limit_meaning)],
        )
        for objective in (*COSTS, *SCORES)
    ]
    signature = own.replace(parameters=[*parameters[:2], *limits, *parameters[2:]])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return command


@app.command()
@_with_limits
def export(
    run: Run,
    output: Output,
    everything: Everything = False,
    force: Force = False,
    imports: Imports = None,
    as_json: Json = False,
    **limits: float | None,
) -> None:
    """The policy of the front with the highest top-1 within the limits, as a policy file.

    The limits are held against the search split. The file carries its figures on both splits.

    Example: [bold]ssmprune export runs/first --max-flops-ratio 0.6 -o policy.yaml[/]
    """
    from ssmprune.output import print_json, show
    from ssmprune_search.candidate.pareto import select
    from ssmprune_search.results.export import annotate, file_name, write_policies
    from ssmprune_search.results.outcome import Outcome
    from ssmprune_search.results.table import row, to_table

    _check_limits(limits, everything)
    import_modules(imports or ())
    outcome = Outcome.read(run)
    if everything:
        chosen = {output / file_name(member): member for member in outcome.members}
    else:
        chosen = {output: select(outcome.members, **limits)}
    write_policies({path: annotate(c, outcome) for path, c in chosen.items()}, force=force)
    if as_json:
        print_json([{"file": str(path), **row(member)} for path, member in chosen.items()])
    else:
        show(to_table(list(chosen.values()), outcome.dense, outcome.dense_holdout))
    for path in chosen:
        typer.echo(f"written: {path}", err=True)


def _check_limits(limits: Mapping[str, float | None], everything: bool) -> None:
    """Refuse limits that are out of range, or have no place in the call."""
    for objective in (*COSTS, *SCORES):
        limit, option = limits[objective.option], f"--{objective.option.replace('_', '-')}"
        if limit is None:
            continue
        if everything:
            raise typer.BadParameter(f"--all exports the whole front; leave {option} out.")
        if objective.maximise and not 1 < limit <= 100:
            raise typer.BadParameter(f"{option} must be in (1, 100] per cent, got {limit:g}.")
        if not objective.maximise and not 0 < limit <= 2:
            raise typer.BadParameter(f"{option} must be in (0, 2], 1 being dense, got {limit:g}.")
