"""What a short fine-tuning has brought back, if the run has tried: `RUN/recovery.csv`."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RecoveryTable:
    """The table of `recovery.csv`.

    Attributes:
        columns: Their names.
        rows: Cells, as text.
    """

    columns: list[str]
    rows: list[list[str]]


def read_recovery(run: Path) -> RecoveryTable | None:
    """The table; None for a run that has not fine-tuned its front."""
    path = run / "recovery.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    names = [column.replace("_", " ") for column in columns]
    return RecoveryTable(names, [[_cell(value) for value in row] for row in rows])


def _cell(value: str) -> str:
    try:
        return f"{float(value):.2f}" if "." in value else value
    except ValueError:
        return value
