"""The command `tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ssmprune.data.single import open_image, to_pixels
from ssmprune.extensions import import_modules
from ssmprune.files import write_bytes_atomically
from ssmprune.models.factory import create_model
from ssmprune.output import print_json, show
from ssmprune.policy import Policy
from ssmprune.pruning.kept import KeptPatches, kept_patches
from ssmprune.pruning.picture import Row, check_output, draw_kept
from ssmprune_search.cli.options import Checkpoint, CheckpointKey, Imports, Json, checkpoint_file

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

TokensPolicy = Annotated[
    Path, typer.Option("--policy", help="A policy file, or the name of a shipped policy.")
]
Images = Annotated[
    list[str],
    typer.Option(
        "--image",
        help="An image file, or [bold]digits:N[/] for image N of the embedded digits' holdout; "
        "given again, one more row of the picture.",
    ),
]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="The picture: a .png, .svg or .pdf file.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")]


@app.command()
def tokens(
    policy: TokensPolicy,
    image: Images,
    output: Output,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    force: Force = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Which patches of an image each stage of a policy keeps, drawn on the image.

    The patches of a merged token have one outline and the mean of their pixels.

    Example: [bold]ssmprune tokens --policy uniform_vim_nano --image digits:7 -o kept.png[/]
    """
    kind = check_output(output, force)
    import_modules(imports or ())
    chosen = Policy.load(policy)
    weights = checkpoint_file(checkpoint, chosen.model)
    network = create_model(chosen.model, weights, chosen, checkpoint_key=checkpoint_key)
    images = torch.cat([open_image(name, network.config) for name in image])
    logits, stages = kept_patches(network, images)
    verb = chosen.reducer.verb
    pixels = to_pixels(images, network.config.preprocessing)
    captions = [Path(name).name for name in image] if len(image) > 1 else [""]
    rows = [Row(*shown, n) for n, shown in enumerate(zip(pixels, captions, strict=True))]
    write_bytes_atomically(output, draw_kept(rows, stages, verb=verb, format=kind))
    predicted = logits.argmax(1).tolist()
    if as_json:
        call = {"file": str(output), "checkpoint_key": network.checkpoint_key}
        print_json({**call, **_passage_data(image, predicted, stages)})
        return
    classes = ", ".join(map(str, predicted))
    show(
        *(_stage_text(stage, verb) for stage in stages),
        f"predicted class {classes}",
        f"written: {output}",
    )


def _passage_data(
    names: Sequence[str], predicted: Sequence[int], stages: Sequence[KeptPatches]
) -> dict[str, Any]:
    return {
        "predicted": predicted[0],
        "stages": [
            {
                "layer": stage.layer,
                "kept": stage.count,
                "patches": stage.patches,
                "merged": stage.merged,
                "similarity": stage.mean_similarity,
            }
            for stage in stages
        ],
        "images": [
            {"image": name, "predicted": label, "groups": [stage.shared(n) for stage in stages]}
            for n, (name, label) in enumerate(zip(names, predicted, strict=True))
        ],
    }


def _stage_text(stage: KeptPatches, verb: str) -> str:
    if not stage.shares:
        return f"block {stage.layer}: {stage.count} of {stage.patches} patches {verb}"
    text = f"block {stage.layer}: {stage.count} of {stage.patches} tokens {verb}"
    if stage.mean_similarity is not None:
        text += f", {stage.merged} merged, mean similarity {stage.mean_similarity:.3f}"
    groups = sorted({len(stage.shared(image)) for image in range(len(stage.groups))})
    return f"{text}; {' to '.join(map(str, groups[:: len(groups) - 1 or 1]))} of several patches"
