"""What Ray has, what the workers hold of it, and the workers as Tune trials."""

from __future__ import annotations

import logging
import math
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# A Tune thread that outlives its Ray, after Ctrl-C, must not start or join another one.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

import ray
from ray import tune

from ssmprune.errors import SsmpruneError, UsageError
from ssmprune.extensions import import_modules
from ssmprune.policy import Policy
from ssmprune.ray_session import last_line
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.study.records import Owner
from ssmprune_search.workers.loop import SearchJob, work
from ssmprune_search.workers.service import StudyClosed

if TYPE_CHECKING:  # brings torch, which an evaluator may do without
    from ssmprune_search.evaluation.evaluator import Evaluators

_MOST_RESTARTS = 3  # of one worker in one session; the next one begins if this one got on


LOOPBACK = "127.0.0.1"

Resources = Mapping[str, float]
"""What a node of the cluster has, by Ray's names."""


@dataclass(frozen=True)
class Pool:
    """The workers and what each of them holds.

    Attributes:
        fitting: Workers that Ray has room for now; the others wait for nodes to join.
    """

    workers: int
    threads: int
    gpus: float
    fitting: int

    def resources(self) -> dict[str, float]:
        return {"cpu": self.threads, "gpu": self.gpus}


def own_address(address: str | None) -> str:
    """Where workers reach this process."""
    if address is None:
        return LOOPBACK
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def live_nodes() -> list[Resources]:
    """What each node of the cluster has, whoever uses it."""
    return [node["Resources"] for node in _alive()]


def is_cut_off() -> bool:
    """Whether Ray's node that this process belongs to has died, and no worker can ever start."""
    own = ray.get_runtime_context().get_node_id()
    return all(node["NodeID"] != own for node in _alive())


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def share_out(
    nodes: Sequence[Resources],
    workers: int,
    device: str,
    gpus_per_worker: float | None,
    *,
    wait: bool,
) -> Pool:
    """Share out what Ray has: all workers get the same, and as much as lets most of them run.

    Args:
        gpus_per_worker: With None each worker on a GPU has one, or an equal part of one.
        wait: Whether workers may wait for nodes to join.

    Raises:
        UsageError: The workers can never run, or not at once and `wait` is false.
    """
    on_gpu = device.startswith("cuda")
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if on_gpu and not gpus and not wait:
        raise UsageError(f"--device {device} must be there, but Ray has no GPU; give cpu.")
    if on_gpu and gpus_per_worker == 0:
        raise UsageError(f"--gpus-per-worker must be above 0 for --device {device}; leave it out.")
    if gpus_per_worker is None:
        gpus_per_worker = 1 / math.ceil(workers / gpus) if on_gpu and gpus else float(on_gpu)
    fitting = min(workers, _places(nodes, 1, gpus_per_worker))
    most = int(max((node.get("CPU", 0.0) for node in nodes), default=1))
    choices = (n for n in range(most, 1, -1) if _places(nodes, n, gpus_per_worker) >= fitting)
    threads = next(choices, 1) if fitting else 1
    if fitting < workers and not wait:
        raise UsageError(
            f"--workers must fit into what Ray has, got {workers} with {gpus_per_worker:g} GPUs "
            f"each where {fitting} fit; ask for fewer or for smaller ones, or start nodes."
        )
    return Pool(workers, threads, gpus_per_worker, fitting)


def _places(nodes: Sequence[Resources], threads: int, gpus: float) -> int:
    """Workers of this size that fit; a part of a GPU is a part of one."""
    places = 0
    for node in nodes:
        on_cpu, there = int(node.get("CPU", 0.0) // threads), node.get("GPU", 0.0)
        if gpus > 1:
            on_gpu = int(there // gpus)
        else:
            on_gpu = int(there) * int(1 / gpus + 1e-6) if gpus else on_cpu
        places += min(on_cpu, on_gpu)
    return places


def measure_remotely(
    evaluators: Evaluators, split: str, pool: Pool, policy: Policy, imports: Sequence[str] = ()
) -> Measurement:
    """Measure a policy on a machine of the cluster, which imports `imports` first.

    Raises:
        SsmpruneError: As the evaluator raises it.
    """

    def measure() -> Measurement:
        import_modules(imports)
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

    def __init__(self, job: SearchJob, pool: Pool, directory: Path):
        """Args:
        directory: For what Tune writes; removed at the end.
        """
        super().__init__(name="workers", daemon=True)
        self.fault = "they ended without a result"
        self._job, self._pool, self._directory = job, pool, directory

    def run(self) -> None:
        # A dead worker is no error of the search.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        try:
            tuner = tune.Tuner(
                tune.with_resources(_trainable(self._job), self._pool.resources()),
                param_space={"worker": tune.grid_search(list(range(self._pool.workers)))},
                run_config=tune.RunConfig(
                    name=self._job.session,
                    storage_path=str(self._directory),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=_MOST_RESTARTS),
                    callbacks=[_GivesUp(self._job)],
                ),
            )
            results = tuner.fit()
            if results.errors:
                self.fault = last_line(results.errors[0])
        except Exception as fault:  # noqa: BLE001 - handed to the driver's thread
            self.fault = last_line(fault)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)


class _GivesUp(tune.Callback):
    """Leaves the open candidate of a worker that Tune does not restart any more to the others."""

    def __init__(self, job: SearchJob):
        self._job = job

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        with suppress(StudyClosed, OSError, EOFError):
            self._job.open_study(Owner(self._job.session, trial.config["worker"], "")).release()


def _trainable(job: SearchJob) -> Callable[[dict[str, Any]], None]:
    """What Tune runs for each worker."""

    def trainable(config: dict[str, Any]) -> None:
        import_modules(job.imports)
        with suppress(StudyClosed):
            work(job, config["worker"], tune.report)

    return trainable
