"""Many workers: candidates per second against the ideal, on a Ray cluster of four nodes.

All on one machine. The evaluation sleeps, so that it needs no core. The ideal is the number of
workers over the time of an evaluation; what is missing is the share of a worker's time that it
spends outside evaluations. Starting processes does not count: the workers begin together.

Beside it what Optuna itself offers many nodes: each worker samples, and reaches the study through
the gRPC proxy, which serves no journal. So its study is in memory only, and any candidate is
evaluated as it is proposed, equal and infeasible ones too.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.storages import (
    GrpcStorageProxy,
    InMemoryStorage,
    run_grpc_proxy_server,
)
from optuna.trial import FixedTrial
from ray.cluster_utils import Cluster

from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.run.launch import search
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.race import Race

TITLE = "Workers on a Ray cluster of four nodes on this machine, evaluations that sleep"
NODES = 4
CASES = (
    ("nsga2", 2, 1.0, 120),
    ("tpe", 2, 1.0, 120),
    ("auto", 2, 1.0, 120),
    ("nsga2", 64, 2.0, 1920),
)
PEER = CASES[-1]
SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 1, 2, 3, 4, 5, 6], low: 0.5, step: 0.05}
scorer: [l1, l2]
"""


@dataclass(frozen=True)
class SleepingEvaluators(SyntheticEvaluators):
    """The synthetic problem at a price; `workers` of them begin when the last is there."""

    seconds: float
    workers: int
    folder: Path

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> Any:
        free = SyntheticEvaluator(self.model, split)
        if dense is not None and split == "search":
            begin_together(self.folder, self.workers)

        def evaluate(policy: Policy, race: Race | None = None) -> Measurement:
            if policy.stages and split == "search":
                time.sleep(self.seconds)
            return free(policy)

        return evaluate


def begin_together(folder: Path, workers: int) -> None:
    """Return when the last worker has called this."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < workers:
        time.sleep(0.2)


def steady_rate(told: Iterable[list[float]]) -> float:
    """Candidates per second, summed over the workers from the first to the last that each told."""
    return sum((len(times) - 1) / (max(times) - min(times)) for times in told)


def told_by_worker(run: Path) -> dict[str, list[float]]:
    told = defaultdict[str, list[float]](list)
    for record in RunDirectory.open(run).study().records():
        if record.is_measured:
            told[record.owner.process].append(record.ended.timestamp())
    return told


def case(sampler: str, workers: int, seconds: float, trials: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "space.yaml").write_text(SPACE)
        (folder / "there").mkdir()
        search(
            folder / "space.yaml",
            folder / "run",
            trials=trials,
            workers=workers,
            sampler=sampler,
            address="auto",
            evaluators=SleepingEvaluators("vim_nano", seconds, workers, folder / "there"),
            progress=False,
        )
        told = told_by_worker(folder / "run")
    assert len(told) == workers
    return row("the search", sampler, workers, seconds, trials, steady_rate(told.values()))


def row(
    study: str, sampler: str, workers: int, seconds: float, trials: int, rate: float
) -> dict[str, Any]:
    share = rate * seconds / workers
    return {
        "who owns the study": study,
        "workers": workers,
        "sampler": sampler,
        "evaluation": f"{seconds:g} s",
        "candidates": trials,
        "candidates/s": rate,
        "of ideal": f"{100 * share:.1f} %",
        "outside evaluations": f"{100 * (1 - share):.1f} %",
    }


def peer(sampler: str, workers: int, seconds: float, trials: int) -> dict[str, Any]:
    """Optuna with its gRPC proxy, as its documentation puts them together."""
    space = SearchSpace.from_yaml(SPACE)
    distributions = space.distributions()
    evaluate = SyntheticEvaluator(space.model, "search")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def work(folder: Path) -> list[float]:
        study = optuna.load_study(
            study_name="peer",
            storage=GrpcStorageProxy(host="127.0.0.1", port=port),
            sampler=optuna.samplers.NSGAIISampler(),
        )
        begin_together(folder, workers)
        told = []
        for _ in range(trials // workers):
            trial = study.ask(distributions)
            figures = evaluate(space.suggest(FixedTrial(trial.params)))
            time.sleep(seconds)
            study.tell(trial, [figures.value(objective) for objective in space.objectives])
            told.append(time.time())
        return told

    @ray.remote(num_cpus=0)
    def serve() -> None:
        run_grpc_proxy_server(InMemoryStorage(), host="127.0.0.1", port=port)

    serving = serve.remote()
    storage = GrpcStorageProxy(host="127.0.0.1", port=port)
    storage.wait_server_ready(timeout=60)
    directions = ["maximize" if o == "top1" else "minimize" for o in space.objectives]
    optuna.create_study(storage=storage, study_name="peer", directions=directions)
    with tempfile.TemporaryDirectory() as folder:
        task = ray.remote(num_cpus=1)(work)
        told = ray.get([task.remote(Path(folder)) for _ in range(workers)])
    ray.cancel(serving, force=True)
    return row("Optuna's gRPC proxy", sampler, workers, seconds, trials, steady_rate(told))


def run() -> list[dict[str, Any]]:
    most = max(workers for _, workers, _, _ in CASES)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster()
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=most // NODES, object_store_memory=80 * 2**20)
        cluster.connect()
        return [*(case(*settings) for settings in CASES), peer(*PEER)]
    finally:
        ray.shutdown()
        cluster.shutdown()
