"""Options that several commands have, and what their values stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssmprune.errors import UsageError
from ssmprune.models.zoo import find_config
from ssmprune.policy import shipped_policies

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's directory, runs/NAME.")]
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
SearchCheckpointKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which weights of a --checkpoint that holds several, such as model_ema.",
        show_default="model or state_dict, or the run's",
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


def sides(image_size: str | None) -> tuple[int, int] | None:
    """Height and width, from one number or HEIGHTxWIDTH."""
    if image_size is None:
        return None
    parts = image_size.lower().split("x")
    if len(parts) > 2 or not all(side.isdecimal() and int(side) for side in parts):
        raise UsageError(
            f"--image-size must be pixels, as 224 or 224x160 (height x width), got {image_size!r}."
        )
    return int(parts[0]), int(parts[-1])


def checkpoint_file(given: str | None, model: str) -> Path:
    """The file that an option names; by default, and with `shipped`, the model's own.

    Raises:
        UsageError: The model is unknown, or no weights ship with it.
    """
    from ssmprune.models.checkpoints import shipped_checkpoint

    if given not in (None, "shipped"):
        return Path(str(given))
    find_config(model)
    shipped = shipped_checkpoint(model)
    if shipped is None:
        raise UsageError(f"weights must be given for {model}, as none ship with it; name a file.")
    return shipped
