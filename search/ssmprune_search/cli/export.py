"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssmprune.extensions import import_modules
from ssmprune_search.cli.options import Imports, Json, Run

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Output = Annotated[
    Path, typer.Option("-o", "--output", help="The policy's file; with --all a directory.")
]
MaxFlopsRatio = Annotated[
    float | None, typer.Option(help="Highest FLOPs over the dense model's, such as 0.6.")
]
MaxLatencyRatio = Annotated[
    float | None, typer.Option(help="Highest latency over the dense model's, such as 0.7.")
]
MaxMemoryRatio = Annotated[
    float | None, typer.Option(help="Highest peak memory over the dense model's, such as 0.8.")
]
MinTop1 = Annotated[
    float | None, typer.Option(help="Lowest top-1 on the search split, in per cent.")
]
Everything = Annotated[
    bool, typer.Option("--all", help="Every policy of the front instead of the best.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]


@app.command()
def export(
    run: Run,
    output: Output,
    max_flops_ratio: MaxFlopsRatio = None,
    max_latency_ratio: MaxLatencyRatio = None,
    max_memory_ratio: MaxMemoryRatio = None,
    min_top1: MinTop1 = None,
    everything: Everything = False,
    force: Force = False,
    imports: Imports = None,
    as_json: Json = False,
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

    limits = {
        "max_flops_ratio": max_flops_ratio,
        "max_latency_ratio": max_latency_ratio,
        "max_memory_ratio": max_memory_ratio,
        "min_top1": min_top1,
    }
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


def _check_limits(limits: dict[str, float | None], everything: bool) -> None:
    """Refuse limits that are out of range, or have no place in the call."""
    for name, limit in limits.items():
        option = f"--{name.replace('_', '-')}"
        if limit is None:
            continue
        if everything:
            raise typer.BadParameter(f"--all exports the whole front; leave {option} out.")
        if name == "min_top1" and not 1 < limit <= 100:
            raise typer.BadParameter(f"{option} must be in (1, 100] per cent, got {limit:g}.")
        if name != "min_top1" and not 0 < limit <= 2:
            raise typer.BadParameter(f"{option} must be in (0, 2], 1 being dense, got {limit:g}.")
