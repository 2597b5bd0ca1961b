"""Many workers: candidates per second against the ideal.

The evaluation sleeps, so that it needs no core. The ideal is the number of workers over the time of
an evaluation; starting processes does not count. With Ray, the workers are on a real cluster of
four nodes, but on one machine, where each takes half a gigabyte; without, they are bare processes
on connections.
"""

from __future__ import annotations

import multiprocessing
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
from search.rundir import RunDirectory
from search.service import StudyAddress, StudyService
from search.study import Owner, Study
from search.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune.policy import Policy

TITLE = "Workers on this machine, evaluations that sleep"
NODES = 4
CASES = (("nsga2", 2, 1.0, 120), ("tpe", 2, 1.0, 120), ("nsga2", 16, 0.5, 960))
BARE_CASE = ("nsga2", 64, 2.0, 960)
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


def case(
    kind: str, sampler: str, workers: int, seconds: float, trials: int, journal: Path
) -> dict[str, Any]:
    rate, ideal = steady_rate(journal, workers), workers / seconds
    return {
        "workers": workers,
        "on": kind,
        "sampler": sampler,
        "evaluation": f"{seconds:g} s",
        "candidates": trials,
        "candidates/s": rate,
        "of ideal": f"{100 * rate / ideal:.1f} %",
    }


def on_ray(sampler: str, workers: int, seconds: float, trials: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        space = Path(folder) / "space.yaml"
        space.write_text(SPACE)
        search(
            space,
            Path(folder) / "run",
            trials=trials,
            workers=workers,
            sampler=sampler,
            address="auto",
            evaluators=SleepingEvaluators("vim_nano", seconds),
            progress=False,
        )
        journal = Path(folder) / "run" / "study.journal"
        return case("Ray, 4 nodes", sampler, workers, seconds, trials, journal)


def bare(sampler: str, workers: int, seconds: float, trials: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")
        run.freeze_space(SPACE)
        Study.create(run.journal_path, run.space)
        run.write_info({"call": {"sampler": sampler, "seed": 0}})
        study = Study(run)
        study.begin_session("s")
        forks = multiprocessing.get_context("fork")
        service = StudyService(study, "127.0.0.1", print)
        processes = [
            forks.Process(target=_bare_worker, args=(service.address, number, seconds, trials))
            for number in range(workers)
        ]
        for process in processes:
            process.start()
        with service:
            for process in processes:
                process.join()
        return case("connections alone", sampler, workers, seconds, trials, run.journal_path)


def _bare_worker(address: StudyAddress, number: int, seconds: float, trials: int) -> None:
    evaluate = SleepingEvaluators("vim_nano", seconds).open("search", 1)
    study = address.open(Owner("s", number, str(number)))
    while (suggestion := study.ask(trials)) is not None:
        race = study.race(suggestion.policy)
        study.tell(suggestion.trial, evaluate(suggestion.policy, race), race)


def run() -> list[dict[str, Any]]:
    rows = [bare(*BARE_CASE)]
    most = max(workers for _, workers, _, _ in CASES)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster = Cluster()
    try:
        for _ in range(NODES):
            cluster.add_node(num_cpus=most // NODES, object_store_memory=80 * 2**20)
        cluster.connect()
        return [*rows, *(on_ray(*settings) for settings in CASES)]
    finally:
        ray.shutdown()
        cluster.shutdown()
