"""The command `models`."""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ssmprune.errors import UsageError
from ssmprune.extensions import import_modules
from ssmprune.measure.flops import count_flops
from ssmprune.models.factory import create_model
from ssmprune.models.zoo import configs, find_config, model_names
from ssmprune.output import print_json, show
from ssmprune.scan import available_backends
from ssmprune_search.cli.options import Imports, Json

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Pattern = Annotated[str, typer.Argument(help="A shell pattern of names.")]
Backends = Annotated[
    bool,
    typer.Option(
        "--backends", help="List the backends of the scan instead: where each runs, or why not."
    ),
]


@app.command()
def models(
    pattern: Pattern = "*",
    backends: Backends = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """The model zoo: name, parameters, FLOPs on both rules.

    Example: [bold]ssmprune models 'vim_small*'[/]
    """
    import_modules(imports or ())
    if backends:
        _list_backends(as_json)
        return
    names = model_names(pattern)
    if not names:
        raise UsageError(configs.unknown(pattern).told())
    rows = [_zoo_row(name) for name in names]
    if as_json:
        print_json(rows)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("Model", "Image", "Patches", "Parameters, M", "GFLOPs", "Paper's GFLOPs"):
        table.add_column(column, justify="left" if column == "Model" else "right")
    for row in rows:
        figures = (row["parameters"] / 1e6, row["flops"] / 1e9, row["paper_flops"] / 1e9)
        height, width = row["image_size"]
        places = (f"{height} x {width}", str(row["patches"]))
        table.add_row(row["model"], *places, *(f"{figure:.3f}" for figure in figures))
    show(table)


def _list_backends(as_json: bool) -> None:
    rows = available_backends()
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("Backend", "Available", "Reason"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.backend, "yes" if row.available else "no", escape(row.reason))
    show(table)


def _zoo_row(name: str) -> dict[str, Any]:
    config, count = find_config(name), count_flops(find_config(name))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in create_model(name).parameters())
    return {
        "model": name,
        "image_size": config.image_size,
        "patches": config.num_patches,
        "parameters": parameters,
        "flops": count.flops,
        "paper_flops": count.paper_flops,
    }
