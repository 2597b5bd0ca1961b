"""The command `profile`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ssmprune.bounds import MOST_IMAGES
from ssmprune.extensions import import_modules
from ssmprune.machine import find_device
from ssmprune.measure.latency import Latency
from ssmprune.measure.profile import Profile
from ssmprune.measure.profile import profile as measure_profile
from ssmprune.models.backbone import Backbone
from ssmprune.models.factory import create_model
from ssmprune.output import print_json, show
from ssmprune_search.candidate.stages import word
from ssmprune_search.cli.options import (
    Bf16,
    CheckpointKey,
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

Checkpoint = Annotated[
    str | None, typer.Option(help="A file with the weights.", show_default="random weights")
]
BatchSize = Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="Images in the timed batch.")]


@app.command()
def profile(
    model: Model,
    policy: PolicyFile = None,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 32,
    device: Device = "cpu",
    bf16: Bf16 = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """FLOPs per operator on both rules, tokens per layer, latency of policy and dense.

    How alike merged tokens are is told by [bold]ssmprune tokens[/] and [bold]ssmprune report[/].

    Example: [bold]ssmprune profile --model vim_nano --policy policy.yaml[/]
    """
    import_modules(imports or ())
    place = find_device(device)
    given = None if checkpoint is None else checkpoint_file(checkpoint, model)
    network = create_model(
        model, given, policy, checkpoint_key=checkpoint_key, image_size=sides(image_size)
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
    stages = _stages(network)
    if any(stage["match"] for stage in stages):
        show("", "[bold]Patch tokens that each stage leaves[/]", *map(_stage_text, stages))
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
        "stages": _stages(network),
        "latency": costs.latency and asdict(costs.latency),
    }


def _stages(network: Backbone) -> list[dict[str, Any]]:
    """The stages that remove anything: what each does, and the patch tokens that it leaves."""
    if network.plan is None:
        return []
    return [
        {
            "layer": stage.layer,
            "tokens": left,
            "reduce": stage.reduce,
            "match": word(stage) if stage.reduce == "merge" else None,
        }
        for stage, left in network.plan.policy.effective_stages(network.config)
    ]


def _stage_text(stage: dict[str, Any]) -> str:
    return f"block {stage['layer']}: {stage['tokens']}, {stage['match'] or stage['reduce']}"


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
