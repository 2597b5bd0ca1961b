"""The command line: `search`, `front`, `export` and `report`, and the commands of `ssmprune.cli`.

Modules that take long to import are imported by the command that needs them, so that `--help`
and a wrong call answer at once.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

FAILED, WRONG_CALL, INTERRUPTED = 1, 2, 130
_REFUSED = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EFBIG,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}
"""What an operating system says of files that cannot be read or written."""

_ERROR = typer.style("Error:", fg="red", bold=True)

LIBRARY_COMMANDS = {
    "models": "The model zoo: name, parameters, FLOPs on both rules.",
    "train": "Trains a model, or fine-tunes it with --init; dense, or under a policy.",
    "eval": "Top-1 and top-5 accuracy with the 95 % interval.",
    "profile": "FLOPs per operator on both rules, tokens per layer, latency of policy and dense.",
    "tokens": "Which patches of an image each stage of a policy keeps, drawn on the image.",
    "data": "Data sets as folders of images.",
}


class _Commands(TyperGroup):
    """Turns what went wrong into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        from ssmprune.caches import prepare_matplotlib
        from ssmprune.cpus import cpu_count

        # Before torch is loaded, which would take all CPUs of a machine that a container shares.
        os.environ.setdefault("OMP_NUM_THREADS", str(cpu_count()))
        prepare_matplotlib()
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Exception as fault:
            told, status = _told(fault)
            if told is None:
                raise
            label = "Error:" if os.environ.get("NO_COLOR") else _ERROR
            typer.echo(f"{label} {told}", err=True)
            raise typer.Exit(status) from None


def _told(fault: Exception) -> tuple[str | None, int]:
    """What to say of a fault, and the exit status; nothing of one that nobody can put right."""
    errors = sys.modules.get("ssmprune.errors")  # not loaded: the fault is none of ours
    if errors is not None and isinstance(fault, errors.SsmpruneError):
        return str(fault), WRONG_CALL if isinstance(fault, errors.UsageError) else FAILED
    if isinstance(fault, OSError) and fault.errno in _REFUSED:
        rule = f"files must be readable and writable, but {fault.filename or 'one'} is not"
        remedy = "check the path, its permissions and the room on its disk"
        return f"{rule}: {fault.strerror}; {remedy}.", FAILED
    torch = sys.modules.get("torch")
    is_torchs = torch is not None and isinstance(fault, torch.OutOfMemoryError)
    if is_torchs or isinstance(fault, MemoryError) or "can't allocate memory" in str(fault):
        rule = "what is computed must fit into the memory that is free, but does not"
        return f"{rule}; give a smaller --batch-size, or free some.", FAILED
    return None, FAILED


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


class _Notes(logging.Handler):
    """Says on standard error what the library logs: every note once in a command."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        note = record.getMessage()
        if note not in self._said:
            self._said.add(note)
            typer.echo(note, err=True)


@contextmanager
def _notes_shown() -> Iterator[None]:
    logger, notes = logging.getLogger("ssmprune"), _Notes()
    level = logger.level
    logger.addHandler(notes)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(notes)
        logger.setLevel(level)


Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, runs/NAME.")]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="Import a module of your own first, or a .py file, for the names that it registers; "
        "may be given more than once.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CheckpointKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which weights of a --checkpoint that holds several, such as model_ema.",
        show_default="model or state_dict, or the run's",
    ),
]


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
    ctx.with_resource(_notes_shown())


def _call_library(ctx: typer.Context) -> None:
    from ssmprune.cli import app as library

    library([str(ctx.info_name), *ctx.args], prog_name="ssmprune")


for _name, _summary in LIBRARY_COMMANDS.items():
    app.command(
        _name,
        help=_summary,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )(_call_library)


@app.command()
def search(
    space: Annotated[Path, typer.Argument(metavar="SPACE", help="A search space file.")],
    out: Annotated[Path, typer.Option(help="Directory of the run, runs/NAME; must be new.")],
    trials: Annotated[
        int, typer.Option(min=1, help="Candidates to finish, those of earlier calls included.")
    ] = 150,
    workers: Annotated[int, typer.Option(min=1, help="Workers that evaluate side by side.")] = 2,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A file with the weights.", show_default="the model's own"),
    ] = None,
    checkpoint_key: CheckpointKey = None,
    data: Annotated[
        str,
        typer.Option(help="[bold]digits[/], or a folder of images, a sub-folder per class."),
    ] = "digits",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="auto, ehvi, tpe, nsga2, random, qmc or gp.", show_default="tpe, or the run's"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the sampler.", show_default="0, or the run's"),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for every worker.")] = "cpu",
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            min=0, help="Part of a GPU, or GPUs, for each worker.", show_default="an equal part"
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images per batch, for accuracy and latency.")
    ] = 128,
    warm_start: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN|POLICY",
            help="Try the front of an earlier run first, of another model too, or a policy by file "
            "or name; may be given more than once.",
        ),
    ] = None,
    early_stopping: Annotated[
        bool,
        typer.Option(
            "--early-stopping/--no-early-stopping",
            help="Stop candidates that are dominated beyond doubt before they see all images.",
        ),
    ] = True,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run under bfloat16 autocast.")] = False,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster, as `ray start` tells it, or auto.", show_default="this machine"
        ),
    ] = None,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait",
            help="Let workers that the cluster has no room for start when nodes join, or fail.",
        ),
    ] = True,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A database for the study, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or "
            "any that Optuna takes, or [bold]journal[/], a file in --out. With --resume another "
            "one moves the study.",
            show_default="journal, or the run's",
        ),
    ] = None,
    recover: Annotated[
        float | None,
        typer.Option(
            metavar="EPOCHS",
            help="Fine-tune each member of the front afterwards for that long, and compare.",
        ),
    ] = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Searches the policies of a space with workers on Ray; every candidate is kept in --out.

    Ctrl-C ends the search after the candidates under way, a second one at once; --resume goes on
    with it.

    Example: [bold]ssmprune search spaces/vim_nano.yaml --trials 150 --workers 2
    --out runs/first[/]
    """
    from ssmprune_search.run.launch import search as run_search

    if recover is not None:
        from ssmprune_search.results.recovery import check_epochs

        check_epochs(recover)
    result = run_search(
        space,
        out,
        trials=trials,
        workers=workers,
        seed=seed,
        sampler=sampler,
        checkpoint=checkpoint,
        checkpoint_key=checkpoint_key,
        data=data,
        device=device,
        batch_size=batch_size,
        amp=bf16,
        early_stopping=early_stopping,
        warm_start=warm_start or (),
        gpus_per_worker=gpus_per_worker,
        address=address,
        wait=wait,
        storage=storage,
        imports=imports or (),
        resume=resume,
    )
    counts = result.counts
    summary = (
        f"{counts.finished} of {trials} candidates finished, {counts.stopped} of them stopped "
        f"early, {counts.failed} failed; "
        f"{result.seconds:.0f} s"
    )
    if result.interrupted:
        if result.front:
            _present(out, as_json, as_csv=False, storage=storage)
        typer.echo(f"Interrupted: {summary}. Go on with --resume.", err=True)
        raise typer.Exit(INTERRUPTED)
    if result.exhausted:
        typer.echo("The space holds no candidates that the sampler has not proposed.", err=True)
    _present(out, as_json, as_csv=False, storage=storage)
    typer.echo(summary, err=True)
    if recover is not None:
        on_cluster = {"workers": workers, "gpus_per_worker": gpus_per_worker, "address": address}
        there = on_cluster if address else {}
        _recover(out, recover, checkpoint, device, {**there, "storage": storage}, as_json)


def _recover(
    run: Path,
    epochs: float,
    checkpoint: Path | None,
    device: str,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Fine-tune the front's members; on a cluster all workers share each batch.

    Args:
        settings: Of `recover`: the study's storage and the cluster.
    """
    from ssmprune.output import show
    from ssmprune_search.results.recovery import recover
    from ssmprune_search.run.directory import RunDirectory
    from ssmprune_search.run.settings import find_checkpoint

    weights = find_checkpoint(checkpoint, RunDirectory.open(run).space.model)
    found = recover(run, epochs, checkpoint=weights, device=device, **settings)
    if not as_json:
        show("", found.to_table(), "", found.summary())
    typer.echo(f"written: {run / 'recovery.json'}, {run / 'recovery.csv'}", err=True)


@app.command()
def front(
    run: Run,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """The Pareto front as a table, CSV or JSON; also written to RUN/front.csv and RUN/front.png.

    Works while the search runs, too.

    Example: [bold]ssmprune front runs/first --csv[/]
    """
    if as_csv and as_json:
        raise typer.BadParameter("give one of --csv and --json.")
    _import(imports)
    _present(run, as_json, as_csv)


def _import(imports: list[str] | None) -> None:
    from ssmprune.extensions import import_modules

    import_modules(imports or ())


def _present(run: Path, as_json: bool, as_csv: bool, storage: str | None = None) -> None:
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


@app.command()
def export(
    run: Run,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The policy's file; with --all a directory.")
    ],
    max_flops_ratio: Annotated[
        float | None, typer.Option(help="Highest FLOPs over the dense model's, such as 0.6.")
    ] = None,
    max_latency_ratio: Annotated[
        float | None, typer.Option(help="Highest latency over the dense model's, such as 0.7.")
    ] = None,
    max_memory_ratio: Annotated[
        float | None, typer.Option(help="Highest peak memory over the dense model's, such as 0.8.")
    ] = None,
    min_top1: Annotated[
        float | None, typer.Option(help="Lowest top-1 on the search split, in per cent.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every policy of the front instead of the best.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")] = False,
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
    _import(imports)
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


@app.command()
def report(
    run: Run,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Evaluate known schedules, too, as the front was."),
    ] = False,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The weights of the search.", show_default="the run's")
    ] = None,
    checkpoint_key: CheckpointKey = None,
    data: Annotated[
        str | None, typer.Option(help="The images of the search.", show_default="the run's")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    imports: Imports = None,
) -> None:
    """One HTML page with the front, how it was found, and the tokens that its policies keep.

    Writes RUN/report.html, which needs no other file and no network, and the same figures as PNG
    and SVG into RUN/report. Works while the search runs, too.

    Example: [bold]ssmprune report runs/first[/]
    """
    from ssmprune.devices import find_device
    from ssmprune_search.report import write_report
    from ssmprune_search.results.outcome import Outcome

    _import(imports)
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
