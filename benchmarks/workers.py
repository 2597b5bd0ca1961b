"""Many workers on a cluster of several nodes: candidates per second against the ideal.

The cluster is real but on one machine; the evaluation sleeps, so that it needs no core. The ideal
is the number of workers over the time of an evaluation. The rate is taken from the moment at which
every worker has told a candidate until there is nothing left to ask for.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.storages import JournalStorage
from ray.cluster_utils import Cluster

from search.journal import JournalFile
from search.launch import search
from search.measurement import Measurement
from search.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune.policy import Policy

TITLE = "Workers on a cluster of four nodes on this machine, evaluations that sleep"
NODES = 4
CASES = ((2, 1.0, 60), (64, 2.0, 1280))
SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 1, 2, 3, 4, 5, 6], low: 0.5, step: 0.05}
scorer: [l1, l2]
"""


@dataclass(frozen=True)
class SleepingEvaluators(SyntheticEvaluators):
    """The synthetic problem at a price."""

    seconds: float = 0.0

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> Any:
        free = SyntheticEvaluator(self.model, split)

        def evaluate(policy: Policy) -> Measurement:
            if policy.stages and split == "search":
                time.sleep(self.seconds)
            return free(policy)

        return evaluate


def steady_rate(journal: Path, workers: int) -> float:
    """Candidates per second while all workers were at work."""
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFile(journal)))
    trials = [t for t in study.trials if "measurement" in t.user_attrs]
    first: dict[str, float] = {}
    for trial in sorted(trials, key=lambda t: t.datetime_complete):
        owner = trial.user_attrs["candidate"]["owner"]["process"]
        first.setdefault(owner, trial.datetime_complete.timestamp())
    assert len(first) == workers
    begin = max(first.values())
    end = max(trial.datetime_start.timestamp() for trial in trials)
    told = sum(begin < trial.datetime_complete.timestamp() <= end for trial in trials)
    return told / (end - begin)


def measure(workers: int, seconds: float, trials: int) -> dict[str, Any]:
    evaluators = SleepingEvaluators("vim_nano", seconds)
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "space.yaml"
        space.write_text(SPACE)
        start = time.monotonic()
        search(
            space,
            Path(folder) / "run",
            trials=trials,
            workers=workers,
            sampler="nsga2",
            address=ray.get_runtime_context().gcs_address,
            evaluators=evaluators,
            progress=False,
        )
        took = time.monotonic() - start
        rate = steady_rate(Path(folder) / "run" / "study.journal", workers)
    ideal = workers / seconds
    return {
        "workers": workers,
        "evaluation": f"{seconds:g} s",
        "candidates": trials,
        "candidates/s": rate,
        "of ideal": f"{100 * rate / ideal:.1f} %",
        "whole search": f"{took:.0f} s",
    }


def run() -> list[dict[str, Any]]:
    most = max(workers for workers, _, _ in CASES)
    cluster = Cluster()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=most // NODES, object_store_memory=80 * 2**20)
        cluster.connect()
        return [measure(*case) for case in CASES]
    finally:
        ray.shutdown()
        cluster.shutdown()
