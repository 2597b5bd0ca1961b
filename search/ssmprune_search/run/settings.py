"""What a search is asked for, beside its space and its directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssmprune.bounds import MOST_IMAGES, MOST_SEED, MOST_TRIALS, MOST_WORKERS
from ssmprune.errors import UsageError, unknown_name
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune_search.study.samplers import SAMPLERS

_NOT_RECORDED = ("gpus_per_worker", "address", "wait", "storage")
"""Where a search runs and keeps its study; another call may choose anew."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Settings of a search.

    Attributes:
        trials: Candidates to finish, those of earlier calls on the directory included.
        workers: Ray Tune workers that evaluate side by side.
        seed: Seed of the sampler; with None 0, or on resume the run's.
        sampler: auto, ehvi, tpe, nsga2, random, qmc or gp; with None tpe, or on resume the run's.
        checkpoint: Weights of the model; with None those that ship with it.
        checkpoint_key: Which weights of a file with several; with None as for `create_model`, or
            on resume the run's.
        data: Name or folder of the data set.
        device: Torch device of the workers, such as cpu or cuda.
        batch_size: Images per batch; latency is that of at most 16.
        amp: Run models under bfloat16 autocast.
        early_stopping: Stop candidates that are dominated beyond doubt, see `study.race`.
        warm_start: Runs whose fronts are tried first, of other models too, and policies by file
            or name; not together with `resume`.
        gpus_per_worker: Share of a GPU that each worker holds, or a whole number of them; with
            None an equal share of one, at most 1, and 0 on the CPU.
        address: A Ray cluster; with None Ray runs on this machine for the time of the search.
        wait: Workers that the cluster has no room for start when nodes join; without it, that is
            an error.
        storage: URL of a database for the study, or `journal` for the file in the run directory;
            with None the file, or on resume where the study is. Another one on resume moves it.
        imports: Modules, or paths of .py files, that this process and every worker import first:
            they register what the space names. With none, on resume the run's.

    Raises:
        UsageError: A value is out of range or unknown.
    """

    trials: int
    workers: int = 2
    seed: int | None = None
    sampler: str | None = None
    checkpoint: str | Path | None = None
    checkpoint_key: str | None = None
    data: str = "digits"
    device: str = "cpu"
    batch_size: int = 128
    amp: bool = False
    early_stopping: bool = True
    warm_start: Sequence[str | Path] = ()
    gpus_per_worker: float | None = None
    address: str | None = None
    wait: bool = True
    storage: str | None = None
    imports: Sequence[str] = ()

    def __post_init__(self) -> None:
        for option, value, low, high in (
            ("--trials", self.trials, 1, MOST_TRIALS),
            ("--workers", self.workers, 1, MOST_WORKERS),
            ("--seed", self.seed or 0, 0, MOST_SEED),
            ("--batch-size", self.batch_size, 1, MOST_IMAGES),
        ):
            if value < low:
                raise UsageError(f"{option} must be at least {low}, got {value}.")
            if value > high:
                raise UsageError(f"{option} must be at most {high}, got {value}.")
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise UsageError(unknown_name("sampler", self.sampler, SAMPLERS))
        gpus = self.gpus_per_worker
        if gpus is not None and not 0 <= gpus < math.inf:
            raise UsageError(f"--gpus-per-worker must not be negative, nor infinite, got {gpus}.")
        if gpus is not None and gpus > 1 and gpus % 1:
            raise UsageError(
                "--gpus-per-worker must be a part of one GPU or a whole number of them, got "
                f"{gpus:g}."
            )

    def record(self) -> dict[str, Any]:
        """What `run.json` keeps of a call, with paths that hold from any directory."""
        call = {key: value for key, value in asdict(self).items() if key not in _NOT_RECORDED}
        checkpoint = None if self.checkpoint is None else str(Path(self.checkpoint).absolute())
        warm = [_from_anywhere(origin) for origin in self.warm_start] or None
        return {
            **call,
            "checkpoint": checkpoint,
            "warm_start": warm,
            "imports": list(self.imports) or None,
        }


def find_checkpoint(path: str | Path | None, model: str) -> Path:
    """The weights to prune: those given, or those that ship with the model.

    Raises:
        UsageError: None are given and none ship.
    """
    checkpoint = shipped_checkpoint(model) if path is None else Path(path)
    if checkpoint is None:
        raise UsageError(
            f"a search needs trained weights, but none ship with {model}; give --checkpoint."
        )
    return checkpoint.absolute()


def _from_anywhere(origin: str | Path) -> str:
    """A warm start's origin: an absolute path, or a shipped policy's name."""
    path = Path(origin)
    return str(path.absolute() if path.exists() else origin)
