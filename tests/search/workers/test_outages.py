"""Workers that die while they wait, and a database that stops: nothing fails or is told twice.

`pytest tests/search/test_outages.py --outages 20 --outage-seconds 20 -s` asks for more of both.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.study.storage import Database
from ssmprune_search.study.study import Study
from ssmprune_search.workers.service import StudyService

SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 1, 2, 3, 4, 5, 6], low: 0.5, step: 0.05}
scorer: [l1, l2]
"""
WORKERS = 4
TRIALS = 12  # more in each session
KILLS = 3  # in each session

# A worker that marks when it waits for a candidate, and leaves a line for each evaluation.
WORKER = """
import os, sys, time
from contextlib import suppress
from pathlib import Path

from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.workers.service import StudyAddress, StudyClosed
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune_search.workers.loop import SearchJob, work
from ssmprune import Policy

host, port, key, session, number, trials, folder = sys.argv[1:]
waits = Path(folder, f"waits-{os.getpid()}")


class Marked:
    def __init__(self, study):
        self._study = study

    def ask(self, *arguments):
        waits.touch()
        try:
            return self._study.ask(*arguments)
        finally:
            waits.unlink()

    def __getattr__(self, name):
        return getattr(self._study, name)


class Slow(SyntheticEvaluators):
    def open(self, split, threads, dense=None):
        free = SyntheticEvaluator(self.model, split)

        def evaluate(policy, race=None):
            time.sleep(0.3)
            return free(policy)

        return evaluate


address = StudyAddress(host, int(port), bytes.fromhex(key))
dense = SyntheticEvaluator("vim_nano", "search")(Policy(model="vim_nano", stages=()))
job = SearchJob(
    lambda owner: Marked(address.open(owner)), session, int(trials), Slow("vim_nano"),
    {"search": dense, "holdout": dense}, 4, 1,
)
with suppress(StudyClosed):
    work(job, int(number), lambda told: None)
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_candidate_fails_or_is_told_twice(
    postgres: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    outages: int = request.config.getoption("--outages")
    seconds: float = request.config.getoption("--outage-seconds")
    run, chance = RunDirectory(tmp_path / "run"), random.Random(0)
    (tmp_path / "run").mkdir()
    run.freeze_space(SPACE)
    place = Database(postgres.url, "study")
    Study.create(place, run.space)
    storage = {"url": place.url, "study": place.study}
    run.write_info({"call": {"sampler": "random", "seed": 0}, "storage": storage})
    killed = 0
    with StudyService(run.study(), "127.0.0.1", print) as service:
        for session in range(outages):
            service.use(lambda study, name=f"s{session}": study.begin_session(name))
            stop = threading.Timer(chance.uniform(0.2, 2), outage, (postgres, seconds))
            stop.start()
            trials = TRIALS * (session + 1)
            killed += see_through(service, f"s{session}", trials, tmp_path, chance)
            stop.join()
            assert service.fault is None
            service.end_session()
            assert service.use(Study.counts).finished == trials
        study = service.use(lambda study: study)
        counts, found = study.counts(), study.candidates()
    told = Counter(pruning_key(candidate.policy) for candidate in found)
    sys.stdout.write(f"{outages} outages of {seconds:g} s, {killed} workers killed: {counts}\n")
    assert killed >= outages
    assert counts.failed == 0 and counts.running == 0
    assert len(told) == counts.evaluated == TRIALS * outages


def outage(postgres: Any, seconds: float) -> None:
    """Stop the database for a while."""
    postgres.stop()
    threading.Event().wait(seconds)
    postgres.start()


def see_through(
    service: StudyService, session: str, trials: int, folder: Path, chance: random.Random
) -> int:
    """Let workers search until all are done; of those that wait, kill some and start others."""

    def start(number: int) -> subprocess.Popen[bytes]:
        address = service.address
        words = (address.host, address.port, address.key.hex(), session, number, trials, folder)
        return subprocess.Popen([sys.executable, "-c", WORKER, *map(str, words)])

    workers, killed = [start(number) for number in range(WORKERS)], 0
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.02)
        number = chance.randrange(WORKERS)
        if killed < KILLS and service.waiting and was_killed(workers[number], folder):
            killed += 1
            workers[number] = start(number)
    assert [worker.returncode for worker in workers] == [0] * WORKERS
    return killed


def was_killed(worker: subprocess.Popen[bytes], folder: Path) -> bool:
    """Kill a worker if it waits for a candidate."""
    mark = folder / f"waits-{worker.pid}"
    if worker.poll() is not None or not mark.exists():
        return False
    os.kill(worker.pid, signal.SIGSTOP)
    waits = mark.exists()
    os.kill(worker.pid, signal.SIGKILL if waits else signal.SIGCONT)
    if waits:
        worker.wait()
    return waits
