"""The command `tokens`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssmprune.data.single import open_image, to_pixels
from ssmprune.extensions import import_modules
from ssmprune.files import write_bytes_atomically
from ssmprune.models.factory import create_model
from ssmprune.output import print_json, show
from ssmprune.policy import Policy
from ssmprune.pruning.kept import kept_patches
from ssmprune.pruning.picture import Row, check_output, draw_kept
from ssmprune_search.cli.options import Checkpoint, CheckpointKey, Imports, Json, checkpoint_file

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

TokensPolicy = Annotated[
    Path, typer.Option("--policy", help="A policy file, or the name of a shipped policy.")
]
Image = Annotated[
    str,
    typer.Option(
        help="An image file, or [bold]digits:N[/] for image N of the embedded digits' holdout."
    ),
]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="The picture: a .png, .svg or .pdf file.")
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")]


@app.command()
def tokens(
    policy: TokensPolicy,
    image: Image,
    output: Output,
    checkpoint: Checkpoint = None,
    checkpoint_key: CheckpointKey = None,
    force: Force = False,
    imports: Imports = None,
    as_json: Json = False,
) -> None:
    """Which patches of an image each stage of a policy keeps, drawn on the image.

    Example: [bold]ssmprune tokens --policy uniform_vim_nano --image digits:7 -o kept.png[/]
    """
    kind = check_output(output, force)
    import_modules(imports or ())
    chosen = Policy.load(policy)
    weights = checkpoint_file(checkpoint, chosen.model)
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
