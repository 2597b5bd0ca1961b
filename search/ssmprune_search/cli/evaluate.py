"""The command `eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from ssmprune.bounds import MOST_IMAGES
from ssmprune.data import SPLITS
from ssmprune.extensions import import_modules
from ssmprune.machine import find_device
from ssmprune.models.factory import create_model
from ssmprune.output import print_json, show
from ssmprune.tasks import task_of
from ssmprune_search.cli.options import (
    Bf16,
    Checkpoint,
    CheckpointKey,
    Data,
    Device,
    ImageSize,
    Imports,
    Json,
    Model,
    PolicyFile,
    checkpoint_file,
    sides,
)

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

Split = Annotated[str, typer.Option(help=f"{', '.join(SPLITS)}.")]
BatchSize = Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="Images per batch.")]


@app.command("eval")
def evaluate_model(
    model: Model,
    data: Data,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    policy: PolicyFile = None,
    split: Split = "holdout",
    image_size: ImageSize = None,
    batch_size: BatchSize = 64,
    device: Device = "cpu",
    bf16: Bf16 = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Top-1 and top-5 accuracy with the 95 % interval.

    Example: [bold]ssmprune eval --model vim_nano --data digits --policy policy.yaml[/]
    """
    import_modules(imports or ())
    place = find_device(device)
    weights = checkpoint_file(checkpoint, model)
    network = create_model(
        model, weights, policy, checkpoint_key=checkpoint_key, image_size=sides(image_size)
    ).to(place)
    config = network.config
    task = task_of(config)
    images = task.open_images(config, data, split, batch_size=batch_size)
    figures = task.metric.evaluate(network, images.loader, amp=bf16, progress=True)
    chance = task.metric.chance(config)
    if policy is None and figures.score <= chance:
        typer.echo(
            f"{task.metric.title.lower()} is not above chance, {chance:g} %: classes, weights or "
            "preprocessing may not match.",
            err=True,
        )
    if as_json:
        call = {
            "model": model,
            "checkpoint": str(weights),
            "checkpoint_key": network.checkpoint_key,
            "num_classes": config.num_classes,
            "data": data,
            "split": split,
            "policy": policy and str(policy),
        }
        print_json({**call, **figures.to_dict()})
        return
    show(*figures.told(), f"images {figures.images:,} of the {split} split")
