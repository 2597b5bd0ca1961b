"""Ray: where it runs, what the workers hold of it, and the workers as Tune trials."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")

import ray
from ray import tune

from search.evaluator import Evaluators
from search.measurement import Measurement
from search.rundir import RunDirectory
from search.study import Study
from search.worker import Job, work
from ssmprune.errors import SsmpruneError, UsageError
from ssmprune.policy import Policy

_MOST_RESTARTS = 3  # of one worker in one session; the next one begins if this one got on


@dataclass(frozen=True)
class Pool:
    """The workers and what each of them holds."""

    workers: int
    threads: int
    gpus: float

    def resources(self) -> dict[str, float]:
        return {"cpu": self.threads, "gpu": self.gpus}


@contextmanager
def running_ray(address: str | None, workers: int) -> Iterator[None]:
    """Ray for the time of a search; one that runs in this process already is used and stays.

    What Ray says goes to standard error; standard output belongs to the caller. A dead worker is
    no error of the search, so Tune's accounts of it are left out.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with redirect_stdout(sys.stderr):
        if ray.is_initialized():
            yield
            return
        _start_ray(address, workers)
        try:
            yield
        finally:
            ray.shutdown()


def _start_ray(address: str | None, workers: int) -> None:
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        cpus = max(_cpu_count(), workers)
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
        return
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as fault:
        raise UsageError(
            f"--address must be that of a running Ray cluster, got {address!r}: "
            f"{_last_line(fault)}; start one with `ray start --head`, or leave it out."
        ) from None


def _cpu_count() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(workers: int, device: str, gpus_per_worker: float | None) -> Pool:
    """Share out what Ray has.

    Raises:
        UsageError: The workers need GPUs that Ray does not have.
    """
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    gpus, on_gpu = resources.get("GPU", 0.0), device.startswith("cuda")
    if on_gpu and not gpus:
        raise UsageError(f"--device {device} must be there, but Ray has no GPU; give cpu.")
    if gpus_per_worker is None:
        gpus_per_worker = min(1.0, gpus / workers) if on_gpu else 0.0
    if gpus_per_worker > gpus or (on_gpu and not gpus_per_worker):
        raise UsageError(
            f"--gpus-per-worker must be {'above 0' if on_gpu else '0 or more'} and at most "
            f"{gpus:g}, the GPUs that Ray has, got {gpus_per_worker:g}; change it or leave it out."
        )
    threads = max(1, int(resources.get("CPU", 1) // workers))
    return Pool(workers, threads, gpus_per_worker)


def measure_remotely(evaluators: Evaluators, split: str, pool: Pool, policy: Policy) -> Measurement:
    """Measure a policy on a machine of the cluster.

    Raises:
        SsmpruneError: As the evaluator raises it.
    """

    def measure() -> Measurement:
        return evaluators.open(split, pool.threads)(policy)

    task = ray.remote(num_cpus=pool.threads, num_gpus=pool.gpus)(measure)
    try:
        return ray.get(task.remote())
    except ray.exceptions.RayTaskError as fault:
        if isinstance(fault.cause, SsmpruneError):
            raise fault.cause from None
        raise


class Workers(threading.Thread):
    """A session's Ray Tune trials; in a thread, so that Ctrl-C reaches the driver, not Tune.

    Attributes:
        fault: Why a worker ended for good before its time, if one did.
    """

    def __init__(self, job: Job, pool: Pool):
        super().__init__(name="workers", daemon=True)
        self.fault = "they ended without a result"
        self._job, self._pool = job, pool

    def run(self) -> None:
        directory = self._job.run_dir / ".tune"
        try:
            tuner = tune.Tuner(
                tune.with_resources(_trainable(self._job), self._pool.resources()),
                param_space={"worker": tune.grid_search(list(range(self._pool.workers)))},
                run_config=tune.RunConfig(
                    name=self._job.session,
                    storage_path=str(directory),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=_MOST_RESTARTS),
                    callbacks=[_GivesUp(self._job)],
                ),
            )
            results = tuner.fit()
            if results.errors:
                self.fault = _last_line(results.errors[0])
        except Exception as fault:  # noqa: BLE001 - handed to the driver's thread
            self.fault = _last_line(fault)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


class _GivesUp(tune.Callback):
    """Leaves the open candidate of a worker that Tune does not restart any more to the others."""

    def __init__(self, job: Job):
        self._job = job

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        mine = (self._job.session, trial.config["worker"])
        study = Study(RunDirectory.open(self._job.run_dir))
        study.close_lost(lambda owner: (owner.session, owner.worker) == mine)


def _trainable(job: Job) -> Callable[[dict[str, Any]], None]:
    """What Tune runs for each worker."""

    def trainable(config: dict[str, Any]) -> None:
        work(job, config["worker"], tune.report)

    return trainable


def _last_line(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[-1].rstrip(".")
