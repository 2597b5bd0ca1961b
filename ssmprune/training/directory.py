"""The output directory of a training run.

`train.json` says what was trained and how it went, `log.csv` how it proceeded, `last.ckpt` is
what a resumed run goes on from, and `model.safetensors` is the model.
"""

from __future__ import annotations

import csv
import json
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ssmprune.errors import RunError
from ssmprune.files import LOCK, holding, replacing, write_atomically, write_bytes_atomically

SCHEMA = "ssmprune.train/1"


class TrainDirectory:
    """The files of one run; every one of them is replaced whole or not at all."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model_path = self.path / "model.safetensors"
        self._record_path = self.path / "train.json"
        self._log_path = self.path / "log.csv"
        self._state_path = self.path / "last.ckpt"

    @contextmanager
    def claim(self, config: dict[str, Any]) -> Iterator[None]:
        """Hold the directory for a run of `config`; it is made if there is none.

        Raises:
            RunError: It cannot be made, another process holds it, or it holds something else than
                an earlier part of the same run.
        """
        with holding(self.path, "training run"):
            self._check(config)
            yield

    def check_free(self) -> None:
        """Refuse a directory that holds something else than a run.

        Raises:
            RunError: It does, or is no directory.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(
                f"the output must be a directory, but {self.path} is a file; name another."
            )
        if self.path.exists() and not self._record_path.exists() and self._holds_files():
            raise RunError(
                f"the output must be a new directory or one with a train.json, but {self.path} "
                "holds other files; name another."
            )

    def _holds_files(self) -> bool:
        return any(entry.name != LOCK for entry in self.path.iterdir())

    def _check(self, config: dict[str, Any]) -> None:
        self.check_free()
        if not self._record_path.exists():
            return
        held = self.read_record()["config"]
        changed = [
            f"{key} is {held.get(key)} there and {config.get(key)} here"
            for key in sorted(held.keys() | config.keys())
            if held.get(key) != config.get(key)
        ]
        if changed:
            raise RunError(
                f"a run goes on only with what it began with, but {self.path} holds another: "
                f"{'; '.join(changed)}. Name another directory, or repeat its settings."
            )

    def read_record(self) -> dict[str, Any]:
        """What `train.json` says; empty if there is none.

        Raises:
            RunError: It is damaged or of another format.
        """
        if not self._record_path.exists():
            return {}
        try:
            record = json.loads(self._record_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = None
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise RunError(
                f"train.json must be of schema {SCHEMA}, but {self._record_path} is not; "
                "name another directory."
            )
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Write `train.json`."""
        write_atomically(
            self._record_path, json.dumps({"schema": SCHEMA, **record}, indent=2) + "\n"
        )

    def read_state(self) -> dict[str, Any] | None:
        """The state to go on from, if there is one.

        Raises:
            RunError: `last.ckpt` is damaged.
        """
        if not self._state_path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(
                self._state_path, map_location="cpu", weights_only=True
            )
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):
            raise RunError(
                f"a run goes on from its last checkpoint, but {self._state_path} is damaged; "
                "remove it to begin anew."
            ) from None
        return state

    def write_state(self, state: dict[str, Any]) -> None:
        """Write `last.ckpt`."""
        with replacing(self._state_path) as path:
            torch.save(state, path)

    def write_model(self, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Write `model.safetensors`: the weights, and what they are, in its header."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
        write_bytes_atomically(self.model_path, save(tensors, metadata))

    def read_log(self, until: float = math.inf) -> list[dict[str, Any]]:
        """The rows of `log.csv` up to and with step `until`."""
        if not self._log_path.exists():
            return []
        with self._log_path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if int(row["step"]) <= until]

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Write `log.csv`."""
        with (
            replacing(self._log_path) as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
