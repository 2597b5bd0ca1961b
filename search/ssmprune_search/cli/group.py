"""The command `ssmprune`: its commands by name, and what goes on around each of them.

A command's module is imported when it is called, so that `--help` and a wrong call answer at once.
"""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from ssmprune_search.cli.faults import INTERRUPTED, told
from ssmprune_search.cli.notes import notes_shown

COMMANDS = {
    "models": "The model zoo: name, parameters, FLOPs on both rules.",
    "train": "Trains a model, or fine-tunes it with --init; dense, or under a policy.",
    "eval": "Top-1 and top-5 accuracy with the 95 % interval.",
    "profile": "FLOPs per operator on both rules, tokens per layer, latency of policy and dense.",
    "tokens": "Which patches of an image each stage of a policy keeps, drawn on the image.",
    "data": "Data sets as folders of images.",
    "search": "Searches the policies of a space with workers on Ray; every candidate is kept in "
    "--out.",
    "front": "The Pareto front as a table, CSV or JSON; also written to RUN/front.csv and "
    "RUN/front.png.",
    "export": "The policy of the front with the highest top-1 within the limits, as a policy file.",
    "report": "One HTML page with the front, how it was found, and the tokens that its "
    "policies keep.",
}
"""Each command with the first line of its help, in the order of the list."""

_MODULES = {"eval": "evaluate"}
"""Modules that are not named as their command."""

_ERROR = typer.style("Error:", fg="red", bold=True)


def load(name: str) -> Any:
    """A command with its options, from its module."""
    module = import_module(f"ssmprune_search.cli.{_MODULES.get(name, name)}")
    return get_command(module.app)


class _Commands(TyperGroup):
    """Lists summaries, loads the command that is called, and tells what went wrong in it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, summary, rest = super().resolve_command(ctx, args)
        return name, summary and load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        from ssmprune.caches import prepare_matplotlib
        from ssmprune.machine import cpu_count

        # Before torch is loaded, which would take all CPUs of a machine that a container shares.
        os.environ.setdefault("OMP_NUM_THREADS", str(cpu_count()))
        prepare_matplotlib()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            typer.echo(f"Interrupted{f'; {interrupt}' if interrupt.args else ''}.", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as fault:
            message, status = told(fault)
            if message is None:
                raise
            label = "Error:" if os.environ.get("NO_COLOR") else _ERROR
            typer.echo(f"{label} {message}", err=True)
            raise typer.Exit(status) from None


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

for _name, _summary in COMMANDS.items():
    app.command(_name, help=_summary)(lambda: None)


def main() -> None:
    """Entry point of the command `ssmprune`.

    torch's idle OpenMP threads wait in busy loops for the cores that the scan's threads need,
    unless they are told not to before torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is written out
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="ssmprune")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"ssmprune {version('ssmprune')}")
        raise typer.Exit


@app.callback()
def _ssmprune(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Searches token-pruning policies for vision state-space models and keeps their Pareto front.

    A run from start to end, with the model and the data that ship with the project:

      ssmprune search spaces/vim_nano.yaml --trials 150 --out runs/first
      ssmprune front runs/first
      ssmprune export runs/first --max-flops-ratio 0.6 -o policy.yaml
      ssmprune eval --model vim_nano --data digits --policy policy.yaml
    """
    ctx.with_resource(notes_shown())
