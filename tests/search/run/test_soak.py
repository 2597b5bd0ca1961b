"""Searches that are killed at random moments and resumed lose nothing and count nothing twice.

`SSMPRUNE_SOAK=20` makes it twenty of them.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssmprune.errors import RunError
from ssmprune_search.candidate.pareto import pareto_front, pruning_key
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator
from ssmprune_search.run.directory import RunDirectory, candidates

RUNS = int(os.environ.get("SSMPRUNE_SOAK", "6"))
TRIALS = 400
DATABASE_TRIALS = 150  # one takes many times as long as in a journal
DEADLINE = 500.0
SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 1, 2, 3, 4, 5, 6], low: 0.5, step: 0.05}
scorer: [l1, l2]
"""
SEARCH = (
    "import sys; from ssmprune_search.run.launch import search;"
    "from ssmprune_search.evaluation.synthetic import SyntheticEvaluators as S;"
    "result = search(*sys.argv[1:3], trials=int(sys.argv[3]), sampler='nsga2', progress=False,"
    " evaluators=S('vim_nano'), resume='resume' in sys.argv, storage=sys.argv[4]);"
    "sys.exit(130 if result.interrupted else 0)"
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def start(space: Path, run_dir: Path, trials: int, storage: str) -> subprocess.Popen[bytes]:
    resume = ["resume"] if (run_dir / "run.json").exists() else []
    call = [sys.executable, "-c", SEARCH, str(space), str(run_dir), str(trials), storage, *resume]
    return subprocess.Popen(call)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def evaluated(run_dir: Path) -> int:
    try:
        return RunDirectory.open(run_dir).study().counts().evaluated
    except RunError:  # it has not begun yet
        return 0


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)  # each look reads the whole study


def descendants(process: subprocess.Popen[bytes]) -> dict[int, str]:
    """Processes that a search has started, directly or not, with their command lines."""
    listing = subprocess.check_output(["ps", "-wweo", "pid=,ppid=,args="], text=True)
    rows = [line.split(maxsplit=2) for line in listing.splitlines()]
    found = {process.pid: ""}
    for _ in range(4):  # the search, Ray's node, its workers, and what those start
        found |= {int(pid): args for pid, parent, args in rows if int(parent) in found}
    return found


def kill_one(process: subprocess.Popen[bytes], moment: random.Random, pattern: str) -> None:
    matching = [pid for pid, args in descendants(process).items() if pattern in args]
    os.kill(moment.choice(matching), signal.SIGKILL)


def kill_worker(process: subprocess.Popen[bytes], moment: random.Random) -> None:
    kill_one(process, moment, "ray::ImplicitFunc")


def kill_node(process: subprocess.Popen[bytes], moment: random.Random) -> None:
    kill_one(process, moment, "raylet/raylet ")


def kill_driver(process: subprocess.Popen[bytes], moment: random.Random) -> None:
    process.kill()


def interrupt_twice(process: subprocess.Popen[bytes], moment: random.Random) -> None:
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(moment.random() / 4)


def tear_journal(process: subprocess.Popen[bytes], moment: random.Random) -> None:
    """Kill the driver in the midst of a write, as far as its journal can tell."""
    process.kill()
    process.wait()
    journal = Path(process.args[4]) / "study.journal"  # type: ignore[index]
    if journal.exists():
        with journal.open("ab") as file:
            file.write(b'{"op_code":5,"worker_id":"x'[: moment.randrange(1, 27)])


KILLS = {
    "worker": kill_worker,
    "driver": kill_driver,
    "write": tear_journal,
    "node": kill_node,
    "interrupt": interrupt_twice,
    "storage": None,
}
CASES = [(list(KILLS)[seed % len(KILLS)], seed) for seed in range(RUNS)]


@pytest.mark.parametrize(("killed", "seed"), CASES)
def test_killed_search_is_whole_in_the_end(
    tmp_path: Path,
    killed: str,
    seed: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moment = random.Random(seed)
    storage, trials, kill = "journal", TRIALS, KILLS[killed]
    if kill is None:
        server: Any = request.getfixturevalue("postgres")
        monkeypatch.setenv("PGPASSWORD", server.password)
        storage, trials, kill = server.url, DATABASE_TRIALS, lambda *_: server.restart()
    space, run_dir = tmp_path / "space.yaml", tmp_path / "run"
    space.write_text(SPACE)
    process = start(space, run_dir, trials, storage)
    reached = moment.randrange(1, trials // 2)
    try:
        wait_for(lambda: evaluated(run_dir) >= reached, process)
        kill(process, moment)
        before = {c.trial: c.search for c in candidates(run_dir)}
        process.wait(DEADLINE)
    finally:
        end(process)
    resumed = start(space, run_dir, trials, storage)
    try:
        assert resumed.wait(DEADLINE) == 0
    finally:
        end(resumed)
    found = candidates(run_dir)
    counts = RunDirectory.open(run_dir).study().counts()
    assert len(before) >= reached
    assert before.items() <= {c.trial: c.search for c in found}.items()
    assert len(found) == counts.evaluated == trials
    assert len({pruning_key(c.policy) for c in found}) == trials
    assert counts.running == counts.waiting == counts.failed == 0
    exact = SyntheticEvaluator("vim_nano", "search")
    assert all(c.search == exact(c.policy) for c in found)
    members = pareto_front(found, ("top1", "flops"))
    assert all(member.holdout for member in members)
    recorded = set(records(run_dir))
    best = {
        (top1, flops)
        for top1, flops in recorded
        if not any(t >= top1 and f <= flops and (t, f) != (top1, flops) for t, f in recorded)
    }
    assert {(m.search.top1, m.search.flops) for m in members} == best


def records(run_dir: Path) -> list[tuple[float, float]]:
    """The values of all trials that have any, as Optuna has stored them."""
    trials = RunDirectory.open(run_dir).study().trials()
    return [(trial.values[0], trial.values[1]) for trial in trials if trial.values]
