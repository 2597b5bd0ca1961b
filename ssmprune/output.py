"""What commands print: tables for people, JSON for programs, both on stdout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console, RenderableType

_WIDTH_OF_FILES = 120


def print_json(data: Any) -> None:
    """Print `data` as JSON, which has no NaN: null stands for it."""
    typer.echo(json.dumps(_without_nan(data), indent=2, allow_nan=False, default=str))


def show(*parts: RenderableType) -> None:
    """Print for a person; as wide as the terminal, or 120 columns where there is none."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_FILES)
    for part in parts:
        console.print(part)


def _without_nan(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_without_nan(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data
