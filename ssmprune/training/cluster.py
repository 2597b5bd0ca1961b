"""Training by several processes through Ray Train."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from ssmprune.errors import RunError, SsmpruneError, UsageError
from ssmprune.extensions import import_modules
from ssmprune.ray_session import last_line, running_ray
from ssmprune.training.directory import TrainDirectory
from ssmprune.training.loop import TrainingData, TrainJob, run
from ssmprune.training.progress import Progress

_MOST_RESTARTS = 3  # of all workers together, each time from the last checkpoint
_POLL_SECONDS = 1.0


def run_on_ray(job: TrainJob, steps: int, workers: int, gpus: float, address: str | None) -> None:
    """Let `workers` processes make the run; one that dies is replaced, from the last checkpoint.

    Args:
        job: The run, whose directory has its record and lies where all machines see it.
        steps: Its steps, for the display.
        workers: Processes that share each batch.
        gpus: GPUs of each.
        address: A Ray cluster; with None Ray runs on this machine for the time of the run.

    Raises:
        UsageError: There is no cluster at the address, or it lacks what the workers need.
        SsmpruneError: As `run` raises it, or the workers cannot run.
    """
    with running_ray(address, workers):
        threads = _share_out(workers, gpus)
        files = job.out / ".ray"
        trainer = TorchTrainer(
            _work,
            train_loop_config={"job": job, "threads": threads},
            torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": threads, **({"GPU": gpus} if gpus else {})},
            ),
            run_config=RunConfig(
                name=uuid.uuid4().hex,
                storage_path=str(files),
                failure_config=FailureConfig(max_failures=_MOST_RESTARTS),
            ),
        )
        try:
            with _shown(job, steps):
                trainer.fit()
        except TrainingFailedError as fault:
            raise _cause(fault) from None
        finally:
            shutil.rmtree(files, ignore_errors=True)


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    torch.set_num_threads(config["threads"])
    job: TrainJob = config["job"]
    import_modules(job.imports)
    run(job, TrainingData.open(job), get_device())


def _share_out(workers: int, gpus: float) -> int:
    """CPUs for each worker."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    there = resources.get("GPU", 0.0)
    if gpus * workers > there:
        raise UsageError(
            f"{workers} workers with {gpus:g} GPUs each must find {gpus * workers:g} GPUs, but Ray "
            f"has {there:g}; take fewer workers, or train on the CPU."
        )
    return max(1, int(resources.get("CPU", 1) // workers))


@contextmanager
def _shown(job: TrainJob, steps: int) -> Iterator[None]:
    """Show the rows that the first worker logs, as they come."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(job, steps, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(job: TrainJob, steps: int, ended: threading.Event) -> None:
    directory = TrainDirectory(job.out)
    seen = [int(row["step"]) for row in directory.read_log()]
    first = max(seen, default=0)
    with Progress(first, steps, job.progress, job.task.metric) as shown:
        is_last = False
        while not is_last:
            is_last = ended.wait(_POLL_SECONDS)
            for row in directory.read_log():
                if int(row["step"]) > first:
                    shown.advance(int(row["step"]) - first)
                    first = int(row["step"])
                    shown.row(row)


def _cause(fault: TrainingFailedError) -> SsmpruneError:
    """What the user can put right, of what Ray Train raised."""
    failures = getattr(fault, "worker_failures", {})
    for failure in failures.values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, SsmpruneError):
            return cause
    return RunError(f"the workers of a run must work, but {last_line(fault)}.")
