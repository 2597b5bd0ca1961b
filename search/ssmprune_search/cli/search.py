"""The command `search`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssmprune_search.cli.faults import INTERRUPTED
from ssmprune_search.cli.front import present
from ssmprune_search.cli.options import Bf16, Imports, Json, SearchCheckpointKey

if TYPE_CHECKING:
    from ssmprune_search.run.launch import SearchResult

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Space = Annotated[Path, typer.Argument(metavar="SPACE", help="A search space file.")]
Out = Annotated[Path, typer.Option(help="Directory of the run, runs/NAME; must be new.")]
Trials = Annotated[
    int, typer.Option(min=1, help="Candidates to finish, those of earlier calls included.")
]
Workers = Annotated[int, typer.Option(min=1, help="Workers that evaluate side by side.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="A file with the weights.", show_default="the model's own")
]
Data = Annotated[
    str, typer.Option(help="[bold]digits[/], or a folder of images, a sub-folder per class.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Sampler = Annotated[
    str | None,
    typer.Option(
        help="auto, ehvi, tpe, nsga2, random, qmc or gp.", show_default="tpe, or the run's"
    ),
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Seed of the sampler.", show_default="0, or the run's")
]
Device = Annotated[str, typer.Option(help="cpu or cuda, for every worker.")]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(
        min=0, help="Part of a GPU, or GPUs, for each worker.", show_default="an equal part"
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch, for accuracy and latency.")]
WarmStart = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RUN|POLICY",
        help="Try the front of an earlier run first, of another model too, or a policy by file "
        "or name; may be given more than once.",
    ),
]
EarlyStopping = Annotated[
    bool,
    typer.Option(
        "--early-stopping/--no-early-stopping",
        help="Stop candidates that are dominated beyond doubt before they see all images.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="A Ray cluster, as `ray start` tells it, or auto.", show_default="this machine"
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Let workers that the cluster has no room for start when nodes join, or fail.",
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A database for the study, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE or "
        "any that Optuna takes, or [bold]journal[/], a file in --out. With --resume another "
        "one moves the study.",
        show_default="journal, or the run's",
    ),
]
Recover = Annotated[
    float | None,
    typer.Option(
        metavar="EPOCHS",
        help="Fine-tune each member of the front afterwards for that long, and compare.",
    ),
]


@app.command()
def search(
    space: Space,
    out: Out,
    trials: Trials = 150,
    workers: Workers = 2,
    checkpoint: Checkpoint = None,
    checkpoint_key: SearchCheckpointKey = None,
    data: Data = "digits",
    resume: Resume = False,
    sampler: Sampler = None,
    seed: Seed = None,
    device: Device = "cpu",
    gpus_per_worker: GpusPerWorker = None,
    batch_size: BatchSize = 128,
    warm_start: WarmStart = None,
    early_stopping: EarlyStopping = True,
    bf16: Bf16 = False,
    address: Address = None,
    wait: Wait = True,
    storage: Storage = None,
    recover: Recover = None,
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

    _check_epochs(recover)
    cluster = dict[str, Any](workers=workers, gpus_per_worker=gpus_per_worker, address=address)
    result = run_search(
        space,
        out,
        trials=trials,
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
        wait=wait,
        storage=storage,
        imports=imports or (),
        resume=resume,
        **cluster,
    )
    _tell(out, result, storage, as_json)
    there = cluster if address else {}
    _recover(out, recover, checkpoint, device, {**there, "storage": storage}, as_json)


def _check_epochs(recover: float | None) -> None:
    """Refuse a length of the fine-tuning that is out of range."""
    if recover is not None:
        from ssmprune_search.results.recovery import check_epochs

        check_epochs(recover)


def _tell(run: Path, result: SearchResult, storage: str | None, as_json: bool) -> None:
    """Print what the search found, and end the command where it was interrupted."""
    counts = result.counts
    summary = (
        f"{counts.finished} of {result.trials} candidates finished, {counts.stopped} of them "
        f"stopped early, {counts.failed} failed; "
        f"{result.seconds:.0f} s"
    )
    if result.interrupted:
        if result.front:
            present(run, as_json, as_csv=False, storage=storage)
        typer.echo(f"Interrupted: {summary}. Go on with --resume.", err=True)
        raise typer.Exit(INTERRUPTED)
    if result.exhausted:
        typer.echo("The space holds no candidates that the sampler has not proposed.", err=True)
    present(run, as_json, as_csv=False, storage=storage)
    typer.echo(summary, err=True)


def _recover(
    run: Path,
    epochs: float | None,
    checkpoint: Path | None,
    device: str,
    settings: dict[str, Any],
    as_json: bool,
) -> None:
    """Fine-tune the front's members, for epochs if any; on a cluster all workers share each batch.

    Args:
        settings: Of `recover`: the study's storage and the cluster.
    """
    if epochs is None:
        return
    from ssmprune.output import show
    from ssmprune_search.results.recovery import recover
    from ssmprune_search.run.directory import RunDirectory
    from ssmprune_search.run.settings import find_checkpoint

    weights = find_checkpoint(checkpoint, RunDirectory.open(run).space.model)
    found = recover(run, epochs, checkpoint=weights, device=device, **settings)
    if not as_json:
        show("", found.to_table(), "", found.summary())
    typer.echo(f"written: {run / 'recovery.json'}, {run / 'recovery.csv'}", err=True)
