"""A search from start to end: the run directory, Ray, the workers, the holdout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from search.measurement import Candidate


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        finished: Candidates that were evaluated or failed, over all calls on this directory.
        failed: Those of them whose evaluation failed.
        front: The front's members with their figures on the search split and the holdout.
        interrupted: Whether Ctrl-C ended the search before all trials were done.
    """

    run_dir: Path
    trials: int
    finished: int
    failed: int
    front: list[Candidate]
    seconds: float
    interrupted: bool


def search(
    space: str | Path,
    run_dir: str | Path,
    *,
    trials: int,
    workers: int = 2,
    seed: int | None = None,
    sampler: str | None = None,
    checkpoint: str | Path | None = None,
    data: str | None = None,
    device: str = "cpu",
    batch_size: int = 128,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    resume: bool = False,
    progress: bool = True,
) -> SearchResult:
    """Search `space` until `trials` candidates are finished; results go to `run_dir`.

    Args:
        space: A search space file.
        run_dir: The run directory; must not exist unless `resume` is given.
        trials: Candidates to finish, those of earlier calls on this directory included.
        workers: Ray Tune workers that evaluate side by side.
        seed: Seed of the sampler; with None 0, or on resume what the run has.
        sampler: nsga2, tpe, random, qmc or gp; with None nsga2, or on resume what the run has.
        checkpoint: Weights of the model; with None those that ship with it.
        data: Name or folder of the data set; with None the embedded digits.
        gpus_per_worker: Share of a GPU that each worker holds; with None 1 on cuda, 0 on the CPU.
        address: A Ray cluster; with None Ray runs on this machine for the time of the search.
        resume: Go on with the run in `run_dir`.
        progress: Show live progress on standard error.

    Raises:
        UsageError: An argument is out of range or unknown.
        SpaceError, CheckpointError, DataError: A file is not what it has to be.
        RunError: The directory exists without `resume`, is in use, or belongs to another search.
    """
    raise NotImplementedError
