"""The command `train`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ssmprune.bounds import MOST_IMAGES, MOST_SEED, MOST_STEPS, MOST_WORKERS
from ssmprune.errors import Faults
from ssmprune.extensions import import_modules
from ssmprune.machine import find_device
from ssmprune.models.zoo import find_config
from ssmprune.output import print_json, show
from ssmprune.tasks import task_of
from ssmprune.training import TrainResult, TrainSettings, load_recipe, shipped_recipes
from ssmprune.training import train as run_training
from ssmprune_search.cli.options import (
    Bf16,
    CheckpointKey,
    Data,
    Device,
    Imports,
    Json,
    Model,
    PolicyFile,
    checkpoint_file,
)

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Out = Annotated[
    Path, typer.Option(help="Directory of the run; where it is an interrupted one, it goes on.")
]
Init = Annotated[
    str | None,
    typer.Option(help="Weights to fine-tune: a file, or [bold]shipped[/] for the model's own."),
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Size of the classifier; where that of --init differs, it begins anew.",
        show_default="the data's classes",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        help=f"A recipe file, or a shipped one: {', '.join(shipped_recipes())}.",
        show_default="scratch, or with --init fine_tune",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, max=MOST_STEPS, help="Batches to train on.", show_default="the recipe's"),
]
Epochs = Annotated[float | None, typer.Option(help="Passes over the images, in place of --steps.")]
LearningRate = Annotated[
    float | None, typer.Option(help="Highest learning rate.", show_default="the recipe's")
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MOST_IMAGES,
        help="Images per step, of all workers.",
        show_default="the recipe's",
    ),
]
Distill = Annotated[
    float | None,
    typer.Option(
        metavar="WEIGHT",
        help="Learn from the dense model with the --init weights, to this share of the loss.",
        show_default="the recipe's",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0, max=MOST_SEED, help="Seed of weights and batches.", show_default="the recipe's"
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        min=1, max=MOST_WORKERS, help="Processes that share each batch, through Ray Train."
    ),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs of each worker.", show_default="1 with --device cuda"),
]
Address = Annotated[str | None, typer.Option(help="A Ray cluster.", show_default="this machine")]


@app.command()
def train(
    model: Model,
    data: Data,
    out: Out,
    policy: PolicyFile = None,
    init: Init = None,
    checkpoint_key: CheckpointKey = None,
    num_classes: NumClasses = None,
    recipe: Recipe = None,
    steps: Steps = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    distill: Distill = None,
    seed: Seed = None,
    device: Device = "cpu",
    bf16: Bf16 = False,
    workers: Workers = 1,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Trains a model, or fine-tunes it with --init; dense, or under a policy.

    An interrupted run goes on when the same call is given again.

    Example: [bold]ssmprune train --model vim_nano --data digits --policy policy.yaml
    --init shipped --distill 0.5 --out runs/finetuned[/]
    """
    import_modules(imports or ())
    given = {
        "steps": steps,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "distill": distill,
        "seed": seed,
        "amp": bf16 or None,
    }
    settings, weights, place = _prepared(recipe, given, init, model, device, address)
    result = run_training(
        model,
        data,
        out,
        settings,
        policy=policy,
        init=weights,
        checkpoint_key=checkpoint_key,
        num_classes=num_classes,
        device=place,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        address=address,
        command=shlex.join(["ssmprune", *sys.argv[1:]]),
        imports=imports or (),
    )
    _tell(model, result, as_json)


def _prepared(
    recipe: str | None,
    given: Mapping[str, Any],
    init: str | None,
    model: str,
    device: str,
    address: str | None,
) -> tuple[TrainSettings | None, Path | None, torch.device]:
    """Settings, weights to start from, and device; what is wrong with them is told at once."""
    faults = Faults()
    settings: TrainSettings | None = None
    with faults.gathered():
        settings = load_recipe(recipe or ("fine_tune" if init else "scratch"))
        settings = settings.changed(**{k: v for k, v in given.items() if v is not None})
    weights: Path | None = None
    with faults.gathered():
        weights = checkpoint_file(init, model) if init else None
    place = torch.device("cpu")
    with faults.gathered():
        place = torch.device(device) if address else find_device(device)
    faults.tell()
    return settings, weights, place


def _tell(model: str, result: TrainResult, as_json: bool) -> None:
    if as_json:
        before, after = result.before and result.before.to_dict(), result.accuracy.to_dict()
        print_json({"checkpoint": str(result.checkpoint), **after, "before": before})
        return
    accuracy, metric = result.accuracy, task_of(find_config(model)).metric
    began = f"{result.before.score:.2f} % before, " if result.before else ""
    show(
        f"{began}"
        f"{accuracy.score:.2f} % {metric.title.lower()} on the holdout "
        f"(95 % interval {accuracy.low:.2f} to {accuracy.high:.2f}, {accuracy.images:,} images)",
        f"weights: {result.checkpoint}",
    )
