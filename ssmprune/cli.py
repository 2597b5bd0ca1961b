"""The commands `models`, `train`, `eval`, `profile`, `tokens` and `data`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape
from rich.table import Table

from ssmprune.bounds import MOST_IMAGES, MOST_SEED, MOST_STEPS, MOST_WORKERS
from ssmprune.data import SPLITS, open_images_for
from ssmprune.data.cli import app as data_app
from ssmprune.devices import find_device
from ssmprune.errors import Faults, UsageError
from ssmprune.extensions import import_modules
from ssmprune.files import write_bytes_atomically
from ssmprune.measure.accuracy import evaluate
from ssmprune.measure.flops import count_flops
from ssmprune.measure.latency import Latency
from ssmprune.measure.profile import Profile
from ssmprune.measure.profile import profile as measure_profile
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.models.factory import create_model
from ssmprune.models.zoo import configs, find_config, model_names
from ssmprune.output import print_json, show
from ssmprune.policy import Policy, shipped_policies
from ssmprune.scan import available_backends
from ssmprune.training import TrainSettings, load_recipe, shipped_recipes
from ssmprune.training import train as run_training

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)

app.add_typer(data_app, name="data")

Model = Annotated[str, typer.Option("--model", help="A name of [bold]ssmprune models[/].")]
Data = Annotated[
    str, typer.Option(help="[bold]digits[/], or a folder of images with a sub-folder per class.")
]
_SHIPPED = ", ".join(name for name in shipped_policies() if not name.startswith("uniform_"))
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help=f"A policy file, or the name of a shipped policy: {_SHIPPED}, uniform_MODEL; "
        "without one the model is dense.",
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option(help="A file with the weights.", show_default="the model's own")
]
CheckpointKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which weights of a file that holds several, such as model_ema.",
        show_default="model or state_dict",
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS", help="224, or 224x160 (height x width).", show_default="the model's own"
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Run under bfloat16 autocast.")]
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


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="A shell pattern of names.")] = "*",
    backends: Annotated[
        bool,
        typer.Option(
            "--backends", help="List the backends of the scan instead: where each runs, or why not."
        ),
    ] = False,
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


@app.command()
def train(
    model: Model,
    data: Data,
    out: Annotated[
        Path,
        typer.Option(help="Directory of the run; where it is an interrupted one, it goes on."),
    ],
    policy: PolicyFile = None,
    init: Annotated[
        str | None,
        typer.Option(help="Weights to fine-tune: a file, or [bold]shipped[/] for the model's own."),
    ] = None,
    checkpoint_key: CheckpointKey = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Size of the classifier; where that of --init differs, it begins anew.",
            show_default="the data's classes",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help=f"A recipe file, or a shipped one: {', '.join(shipped_recipes())}.",
            show_default="scratch, or with --init fine_tune",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_STEPS, help="Batches to train on.", show_default="the recipe's"
        ),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the images, in place of --steps.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate.", show_default="the recipe's")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_IMAGES,
            help="Images per step, of all workers.",
            show_default="the recipe's",
        ),
    ] = None,
    distill: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            help="Learn from the dense model with the --init weights, to this share of the loss.",
            show_default="the recipe's",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, max=MOST_SEED, help="Seed of weights and batches.", show_default="the recipe's"
        ),
    ] = None,
    device: Device = "cpu",
    bf16: Bf16 = False,
    workers: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_WORKERS, help="Processes that share each batch, through Ray Train."
        ),
    ] = 1,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of each worker.", show_default="1 with --device cuda"),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster.", show_default="this machine")
    ] = None,
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
    faults = Faults()
    settings: TrainSettings | None = None
    with faults.gathered():
        settings = load_recipe(recipe or ("fine_tune" if init else "scratch"))
        settings = settings.changed(**{k: v for k, v in given.items() if v is not None})
    weights: Path | None = None
    with faults.gathered():
        weights = _checkpoint(init, model) if init else None
    place = torch.device("cpu")
    with faults.gathered():
        place = torch.device(device) if address else find_device(device)
    faults.tell()
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
    if as_json:
        before = result.before and asdict(result.before)
        print_json(
            {"checkpoint": str(result.checkpoint), **asdict(result.accuracy), "before": before}
        )
        return
    accuracy = result.accuracy
    began = f"{result.before.top1:.2f} % before, " if result.before else ""
    show(
        f"{began}"
        f"{accuracy.top1:.2f} % top-1 on the holdout "
        f"(95 % interval {accuracy.low:.2f} to {accuracy.high:.2f}, {accuracy.images:,} images)",
        f"weights: {result.checkpoint}",
    )


@app.command("eval")
def evaluate_model(
    model: Model,
    data: Data,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    policy: PolicyFile = None,
    split: Annotated[str, typer.Option(help=f"{', '.join(SPLITS)}.")] = "holdout",
    image_size: ImageSize = None,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="Images per batch.")] = 64,
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
    weights = _checkpoint(checkpoint, model)
    sides = _sides(image_size)
    network = create_model(
        model, weights, policy, checkpoint_key=checkpoint_key, image_size=sides
    ).to(place)
    config = network.config
    images = open_images_for(config, data, split, batch_size=batch_size)
    accuracy = evaluate(network, images.loader, amp=bf16, progress=True)
    chance = 100 / config.num_classes
    if policy is None and accuracy.top1 <= chance:
        typer.echo(
            f"top-1 is not above chance, {chance:g} %: classes, weights or preprocessing may not "
            "match.",
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
        print_json({**call, **asdict(accuracy)})
        return
    show(
        f"top-1  {accuracy.top1:.2f} %, 95 % interval {accuracy.low:.2f} to {accuracy.high:.2f}",
        f"top-5  {accuracy.top5:.2f} %",
        f"images {accuracy.images:,} of the {split} split",
    )


@app.command()
def profile(
    model: Model,
    policy: PolicyFile = None,
    checkpoint: Annotated[
        str | None, typer.Option(help="A file with the weights.", show_default="random weights")
    ] = None,
    checkpoint_key: CheckpointKey = None,
    image_size: ImageSize = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=MOST_IMAGES, help="Images in the timed batch.")
    ] = 32,
    device: Device = "cpu",
    bf16: Bf16 = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """FLOPs per operator on both rules, tokens per layer, latency of policy and dense.

    Example: [bold]ssmprune profile --model vim_nano --policy policy.yaml[/]
    """
    import_modules(imports or ())
    place = find_device(device)
    given = None if checkpoint is None else _checkpoint(checkpoint, model)
    network = create_model(
        model, given, policy, checkpoint_key=checkpoint_key, image_size=_sides(image_size)
    ).to(place)
    costs = measure_profile(network, batch_size=batch_size, amp=bf16)
    if as_json:
        print_json(_profile_data(network, given, costs))
        return
    tokens = " ".join(map(str, costs.tokens[:-1]))
    show(
        _flops_table(costs),
        "",
        f"[bold]Tokens that each layer scans[/]\n{tokens}; leaving the model {costs.tokens[-1]}",
    )
    if costs.latency is not None:
        show("", _latency_text(costs.latency))


def _profile_data(network: Backbone, checkpoint: Path | None, costs: Profile) -> dict[str, Any]:
    return {
        "model": network.config.name,
        "checkpoint": checkpoint and str(checkpoint),
        "checkpoint_key": network.checkpoint_key,
        "num_classes": network.config.num_classes,
        "flops": costs.flops.flops,
        "paper_flops": costs.flops.paper_flops,
        "dense_flops": costs.dense_flops.flops,
        "dense_paper_flops": costs.dense_flops.paper_flops,
        "flops_ratio": costs.flops_ratio,
        "operators": _operator_rows(costs),
        "tokens": costs.tokens,
        "latency": costs.latency and asdict(costs.latency),
    }


def _operator_rows(costs: Profile) -> list[dict[str, Any]]:
    """FLOPs of each operator, with the policy and dense; 0 where an operator does not run."""
    pruned, dense = costs.flops.by_operator(), costs.dense_flops.by_operator()
    keys = ("flops", "paper_flops", "dense_flops", "dense_paper_flops")
    return [
        {
            "operator": name,
            **dict(zip(keys, (*pruned.get(name, (0, 0)), *dense.get(name, (0, 0))), strict=True)),
        }
        for name in dict.fromkeys([*dense, *pruned])
    ]


def _flops_table(costs: Profile) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("MFLOPs of one image")
    for column in ("Dense", "Policy", "Ratio", "Dense, paper's", "Policy, paper's", "Ratio"):
        table.add_column(column, justify="right")
    rows = _operator_rows(costs)
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in list(rows[0])[1:]}
    for row in [*rows, {"operator": "[bold]all", **total}]:
        cells = [row["operator"]]
        for rule in ("flops", "paper_flops"):
            dense, pruned = row[f"dense_{rule}"], row[rule]
            ratio = f"{pruned / dense:.3f}" if dense else ""
            cells += [f"{dense / 1e6:,.3f}", f"{pruned / 1e6:,.3f}", ratio]
        table.add_row(*cells)
    return table


def _latency_text(latency: Latency) -> str:
    protocol = ", ".join(
        [
            f"{latency.device} ({latency.device_name})",
            f"batch {latency.batch_size}",
            latency.precision,
            f"{latency.threads} threads",
            f"scan {latency.backend}",
            f"{latency.repeats} pairs in turn",
        ]
    )
    return (
        f"[bold]Latency of a batch[/]\n"
        f"dense {latency.dense_ms:.3f} ms, policy {latency.latency_ms:.3f} ms, "
        f"ratio {latency.ratio:.4f} (95 % interval {latency.ratio_low:.4f} to "
        f"{latency.ratio_high:.4f})\n[dim]{escape(protocol)}[/]"
    )


@app.command()
def tokens(
    policy: Annotated[
        Path, typer.Option("--policy", help="A policy file, or the name of a shipped policy.")
    ],
    image: Annotated[
        str,
        typer.Option(
            help="An image file, or [bold]digits:N[/] for image N of the embedded digits' holdout."
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The picture: a .png, .svg or .pdf file.")
    ],
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Which patches of an image each stage of a policy keeps, drawn on the image.

    Example: [bold]ssmprune tokens --policy uniform_vim_nano --image digits:7 -o kept.png[/]
    """
    from ssmprune.data.single import open_image, to_pixels
    from ssmprune.picture import Row, check_output, draw_kept
    from ssmprune.pruning.kept import kept_patches

    kind = check_output(output, force)
    import_modules(imports or ())
    chosen = Policy.load(policy)
    weights = _checkpoint(checkpoint, chosen.model)
    network = create_model(chosen.model, weights, chosen, checkpoint_key=checkpoint_key)
    pixels = open_image(image, network.config)
    logits, stages = kept_patches(network, pixels)
    verb = chosen.reducer.verb
    row = Row(to_pixels(pixels, network.config.preprocessing)[0], "")
    write_bytes_atomically(output, draw_kept([row], stages, verb=verb, format=kind))
    predicted = int(logits.argmax())
    if as_json:
        kept = [{"layer": s.layer, "kept": s.count, "patches": s.mask[0].numel()} for s in stages]
        print_json(
            {
                "file": str(output),
                "checkpoint_key": network.checkpoint_key,
                "predicted": predicted,
                "stages": kept,
            }
        )
        return
    lines = [f"block {s.layer}: {s.count} of {s.mask[0].numel()} patches {verb}" for s in stages]
    show(*lines, f"predicted class {predicted}", f"written: {output}")


def _sides(image_size: str | None) -> tuple[int, int] | None:
    """Height and width, from one number or HEIGHTxWIDTH."""
    if image_size is None:
        return None
    sides = image_size.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise UsageError(
            f"--image-size must be pixels, as 224 or 224x160 (height x width), got {image_size!r}."
        )
    return int(sides[0]), int(sides[-1])


def _checkpoint(given: str | None, model: str) -> Path:
    """The file that an option names; by default, and with `shipped`, the model's own.

    Raises:
        UsageError: The model is unknown, or no weights ship with it.
    """
    if given not in (None, "shipped"):
        return Path(str(given))
    find_config(model)
    shipped = shipped_checkpoint(model)
    if shipped is None:
        raise UsageError(f"weights must be given for {model}, as none ship with it; name a file.")
    return shipped
