"""Many workers: candidates per second against the ideal, on a Ray cluster of four nodes.

All on one machine. The evaluation sleeps, so that it needs no core. The ideal is the number of
workers over the time of an evaluation; what is missing is the share of a worker's time that it
spends outside evaluations. Starting processes does not count: the workers begin together.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import defaultdict
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
from search.racing import Race
from search.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune.policy import Policy

TITLE = "Workers on a Ray cluster of four nodes on this machine, evaluations that sleep"
NODES = 4
CASES = (
    ("nsga2", 2, 1.0, 120),
    ("tpe", 2, 1.0, 120),
    ("auto", 2, 1.0, 120),
    ("nsga2", 64, 2.0, 1920),
)
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
            (self.folder / str(os.getpid())).touch()
            while len(list(self.folder.iterdir())) < self.workers:
                time.sleep(0.2)

        def evaluate(policy: Policy, race: Race | None = None) -> Measurement:
            if policy.stages and split == "search":
                time.sleep(self.seconds)
            return free(policy)

        return evaluate


def steady_rate(journal: Path, workers: int) -> float:
    """Candidates per second, summed over the workers from the first to the last that each told."""
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFile(journal)))
    told = defaultdict[str, list[float]](list)
    for trial in study.trials:
        if "measurement" in trial.user_attrs:
            process = trial.user_attrs["candidate"]["owner"]["process"]
            told[process].append(trial.datetime_complete.timestamp())
    assert len(told) == workers
    return sum((len(times) - 1) / (max(times) - min(times)) for times in told.values())


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
        rate = steady_rate(folder / "run" / "study.journal", workers)
    share = rate * seconds / workers
    return {
        "workers": workers,
        "sampler": sampler,
        "evaluation": f"{seconds:g} s",
        "candidates": trials,
        "candidates/s": rate,
        "of ideal": f"{100 * share:.1f} %",
        "outside evaluations": f"{100 * (1 - share):.1f} %",
    }


def run() -> list[dict[str, Any]]:
    most = max(workers for _, workers, _, _ in CASES)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster()
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=most // NODES, object_store_memory=80 * 2**20)
        cluster.connect()
        return [case(*settings) for settings in CASES]
    finally:
        ray.shutdown()
        cluster.shutdown()
