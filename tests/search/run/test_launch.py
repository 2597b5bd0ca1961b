"""Whole searches on a real Ray: complete, repeatable, and complete again after any kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ssmprune import Policy
from ssmprune.errors import RunError, SpaceError, SsmpruneError, UsageError
from ssmprune.ray_session import running_ray
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.pareto import pareto_front, pruning_key
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, SyntheticEvaluators, best_top1
from ssmprune_search.run import watch
from ssmprune_search.run.directory import RunDirectory, candidates
from ssmprune_search.study.race import Race

import ray  # isort: skip
from ssmprune_search.run.launch import SearchResult, search  # isort: skip

SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 1, 2, 3, 4, 5, 6], low: 0.5, step: 0.05}
scorer: [l1, l2]
limits: {flops_ratio: {min: 0.4, max: 0.95}}
"""
DEADLINE = 300.0

# Ray leaves sockets and processes to the garbage collector.
pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20:ray"),
]


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """One Ray for all searches of this file; each start of its own would take seconds."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with running_ray(None, workers=2):
        yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


def go(space: Path, run_dir: Path, trials: int, **changes: Any) -> SearchResult:
    settings: dict[str, Any] = {"workers": 2, "progress": False, **changes}
    settings.setdefault("evaluators", SyntheticEvaluators("vim_nano"))
    return search(space, run_dir, trials=trials, **settings)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert process is None or process.poll() is None, "the search ended too early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def assert_complete(run_dir: Path, trials: int) -> None:
    """Exactly `trials` candidates are finished, all of them different, and nothing is open."""
    found = candidates(run_dir)
    counts = RunDirectory.open(run_dir).study().counts()
    assert len(found) == counts.evaluated == trials
    assert len({pruning_key(c.policy) for c in found}) == trials
    assert counts.running == counts.waiting == counts.failed == 0


@dataclass(frozen=True)
class DeadlyEvaluators(SyntheticEvaluators):
    """Evaluators whose process is killed in the midst of an evaluation, `deaths` times.

    No candidate kills twice, or it would rightly be given up.
    """

    folder: Path = Path()
    deaths: int = 1

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> Any:
        free, calls = SyntheticEvaluator(self.model, split), Counter[str]()

        def evaluate(policy: Policy, race: Race | None = None) -> Measurement:
            calls["n"] += 1
            graves = [path.read_text() for path in self.folder.glob("grave-*")]
            is_due = calls["n"] >= 5 and len(graves) < self.deaths and repr(policy) not in graves
            if split == "search" and policy.stages and is_due:
                (self.folder / f"grave-{len(graves)}").write_text(repr(policy))
                os.kill(os.getpid(), signal.SIGKILL)
            return free(policy)

        return evaluate


@pytest.fixture(scope="module")
def finished(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search that has come to its end; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "space.yaml").write_text(SPACE)
    return go(folder / "space.yaml", folder / "run", 250)


def test_search_finishes_exactly_what_was_asked_for(finished: SearchResult) -> None:
    assert finished.counts.finished == 250
    assert not finished.interrupted and not finished.exhausted
    assert_complete(finished.run_dir, 250)
    assert finished.front == pareto_front(candidates(finished.run_dir), ("top1", "flops"))


def test_run_directory_holds_its_three_files_and_the_figures_of_dense(
    finished: SearchResult,
) -> None:
    run = RunDirectory.open(finished.run_dir)
    names = sorted(path.name for path in run.path.iterdir())
    assert names == ["run.json", "space.yaml", "study.journal", "tensorboard"]
    assert run.space_path.read_text() == SPACE
    assert run.info["call"]["seed"] == 0
    assert run.info["identity"]["model"] == "vim_nano"
    assert {"python", "torch", "optuna", "ray"} <= run.info["versions"].keys()
    assert (run.dense("search").split, run.dense("search").top1) == ("search", 100.0)
    assert run.dense("holdout").split == "holdout"


def test_every_front_member_is_measured_on_the_holdout(finished: SearchResult) -> None:
    expected = [SyntheticEvaluator("vim_nano", "holdout")(m.policy) for m in finished.front]
    assert [member.holdout for member in finished.front] == expected


def test_search_approaches_the_best_front(finished: SearchResult) -> None:
    losses = [best_top1(m.search.flops_ratio) - m.search.top1 for m in finished.front]
    assert all(loss > -1e-9 for loss in losses)
    assert sorted(losses)[len(losses) // 2] < 4


@pytest.mark.slow
def test_same_seed_with_one_worker_gives_the_same_candidates_also_when_resumed(
    ray_here: None, space: Path, tmp_path: Path
) -> None:
    whole = go(space, tmp_path / "whole", 45, workers=1, seed=3)
    go(space, tmp_path / "parts", 25, workers=1, seed=3)
    parts = go(space, tmp_path / "parts", 45, workers=1, resume=True)
    first, second = (
        [replace(c, holdout=None) for c in candidates(run.run_dir)] for run in (whole, parts)
    )
    assert first == second
    assert whole.front == parts.front


@pytest.mark.slow
def test_killed_worker_is_restarted_and_nothing_is_lost_or_counted_twice(
    ray_here: None, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluators = DeadlyEvaluators("vim_nano", tmp_path, deaths=2)
    result = go(space, tmp_path / "run", 40, evaluators=evaluators)
    assert len(list(tmp_path.glob("grave-*"))) == 2
    assert result.counts.lost == 2
    assert capsys.readouterr().out == ""
    assert_complete(tmp_path / "run", 40)


@pytest.mark.slow
def test_search_ends_when_its_node_has_died_though_workers_live_on(
    ray_here: None, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setattr(watch, "is_cut_off", lambda: evaluated(run_dir) > 0)
    with pytest.raises(RunError, match="its node on this machine has died; go on with --resume"):
        go(space, run_dir, 3000)
    monkeypatch.undo()
    done = evaluated(run_dir)
    assert 0 < done < 3000
    go(space, run_dir, done + 10, resume=True)
    assert_complete(run_dir, done + 10)


@pytest.mark.slow
def test_killed_driver_resumes_and_nothing_is_lost_or_counted_twice(
    ray_here: None, space: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(space, run_dir, 1000)
    wait_for(lambda: evaluated(run_dir) >= 30, process)
    process.kill()
    process.wait()
    before = {c.trial: c for c in candidates(run_dir)}
    assert len(before) < 200
    result = go(space, run_dir, 200, resume=True)
    assert result.counts.finished == 200
    assert_complete(run_dir, 200)
    after = {c.trial: c for c in candidates(run_dir)}
    assert {n: after[n].search for n in before} == {n: c.search for n, c in before.items()}


@pytest.mark.slow
def test_interrupt_ends_after_the_candidates_under_way(
    ray_here: None, space: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = start(space, run_dir, 5000)
    wait_for(lambda: evaluated(run_dir) >= 30, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to Ray's processes, too
    assert process.wait(DEADLINE) == 0
    counts = RunDirectory.open(run_dir).study().counts()
    assert (counts.running, counts.lost, counts.failed) == (0, 0, 0)
    done = counts.finished
    go(space, run_dir, done + 10, resume=True)
    assert_complete(run_dir, done + 10)


def start(space: Path, run_dir: Path, trials: int) -> subprocess.Popen[bytes]:
    """A search in a process of its own, with a Ray of its own."""
    script = (
        "import sys; from ssmprune_search.run.launch import search;"
        "from ssmprune_search.evaluation.synthetic import SyntheticEvaluators as S;"
        "result = search(*sys.argv[1:3], trials=int(sys.argv[3]), evaluators=S('vim_nano'),"
        " progress=False); sys.exit(not result.interrupted)"
    )
    call = [sys.executable, "-c", script, str(space), str(run_dir), str(trials)]
    return subprocess.Popen(call, start_new_session=True)


def evaluated(run_dir: Path) -> int:
    try:
        return RunDirectory.open(run_dir).study().counts().evaluated
    except RunError:  # it has not begun yet
        return 0


@pytest.mark.slow
def test_resume_recovers_a_journal_with_a_broken_last_line(
    finished: SearchResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(finished.run_dir, run_dir)
    with (run_dir / "study.journal").open("a") as journal:
        journal.write('{"op_code":6,"worker')
    space = finished.run_dir / "space.yaml"
    go(space, run_dir, 260, workers=1, resume=True, progress=True)
    assert "ended in a half-written record" in capsys.readouterr().err
    assert_complete(run_dir, 260)


def test_resume_refuses_another_search_and_names_what_changed(
    finished: SearchResult, space: Path, tmp_path: Path
) -> None:
    run_dir = finished.run_dir
    files = {p: p.read_bytes() for p in run_dir.iterdir() if p.is_file()}
    other = tmp_path / "other.yaml"
    other.write_text(SPACE.replace("[l1, l2]", "[l1]"))
    with pytest.raises(RunError, match="space changed"):
        go(other, run_dir, 300, resume=True)
    with pytest.raises(RunError, match="sampler and seed changed"):
        go(space, run_dir, 300, resume=True, sampler="random", seed=1)
    with pytest.raises(RunError, match="model changed"):
        go(space, run_dir, 300, resume=True, evaluators=SyntheticEvaluators("vim_tiny_patch16_224"))
    with pytest.raises(UsageError, match="--trials must be at least 250"):
        go(space, run_dir, 4, resume=True)
    assert {p: p.read_bytes() for p in files if p.name != ".lock"} == {
        p: content for p, content in files.items() if p.name != ".lock"
    }


@pytest.mark.slow
def test_relative_paths_hold_from_any_directory(
    ray_here: None, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Policy(model="vim_nano", stages=({"layer": 2, "keep_ratio": 0.8},)).save(tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    changes = {"storage": "sqlite:///study.db", "warm_start": ["mine.yaml", "uniform_vim_nano"]}
    go(Path("space.yaml"), Path("run"), 4, **changes)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(candidates("../run")) == 4
    call = RunDirectory.open("../run").info["call"]
    assert call["space"] == str(tmp_path / "space.yaml")
    assert call["warm_start"] == [str(tmp_path / "mine.yaml"), "uniform_vim_nano"]
    go(Path("../space.yaml"), Path("../run"), 6, resume=True, storage="sqlite:///../study.db")
    assert len(candidates("../run")) == 6
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.slow
def test_a_module_of_the_users_that_is_called_search_is_left_alone(
    space: Path, tmp_path: Path
) -> None:
    (tmp_path / "search.py").write_text("raise SystemExit('a script of the user was run')\n")
    call = [sys.executable, "-m", "ssmprune_search", "search"]
    words = [space.name, "--out", "run", "--trials", "2", "--workers", "1", "--no-early-stopping"]
    done = subprocess.run([*call, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(candidates(tmp_path / "run")) == 2


def test_existing_directory_is_not_overwritten(space: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    with pytest.raises(RunError, match="must be new"):
        go(space, tmp_path / "run", 5)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_directory_in_use_is_refused_with_its_process(space: Path, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.lock(), pytest.raises(RunError, match=f"process {os.getpid()} uses"):
        go(space, tmp_path / "run", 5)


def test_directory_that_cannot_be_made_is_refused(space: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="must be writable"):
        go(space, tmp_path / "file" / "run", 5)


def test_gpus_that_are_not_there_are_refused_and_nothing_is_written(
    ray_here: None, space: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--device cuda must be there, but Ray has no GPU"):
        go(space, tmp_path / "run", 5, device="cuda")
    with pytest.raises(UsageError, match="--workers must fit into what Ray has, got 2 with 1 GPUs"):
        go(space, tmp_path / "run", 5, gpus_per_worker=1.0)
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_run(space: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must hold a search"):
        go(space, tmp_path / "none", 5, resume=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "--trials must be at least 1, got 0"),
        ({"workers": 0}, "--workers must be at least 1, got 0"),
        ({"trials": 10**7}, "--trials must be at most 1000000, got 10000000"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"sampler": "qmc", "seed": 99_999_999_999}, "--seed must be at most 4294967295, got"),
        ({"batch_size": 10**14}, "--batch-size must be at most 1048576, got 100000000000000"),
        ({"gpus_per_worker": float("inf")}, "--gpus-per-worker must not be negative, nor infinite"),
        ({"gpus_per_worker": float("nan")}, "--gpus-per-worker must not be negative, nor infinite"),
        ({"sampler": "nsga3"}, "unknown sampler 'nsga3'; did you mean nsga2"),
        ({"gpus_per_worker": -1.0}, "--gpus-per-worker must not be negative"),
        ({"gpus_per_worker": 1.5}, "--gpus-per-worker must be a part of one GPU or a whole number"),
        ({"storage": "mysql"}, "--storage must be journal, or a database's URL"),
        ({"storage": "sqlite://"}, "--storage must outlive the search, but sqlite:// is in memory"),
        ({"storage": "sqlite:////no/such/folder/x.db"}, "a study's database must answer"),
        ({"evaluators": None, "device": "tpu"}, "got 'tpu'"),
        ({"evaluators": None, "data": "digitz"}, "digits"),
        ({"evaluators": None, "checkpoint": "none.pth"}, "none.pth"),
    ],
)
def test_wrong_call_writes_nothing(
    space: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SsmpruneError, match=message):
        go(space, tmp_path / "run", **{"trials": 5, **changes})
    assert not (tmp_path / "run").exists()


def test_faulty_space_writes_nothing(space: Path, tmp_path: Path) -> None:
    space.write_text(SPACE.replace("low: 0.5", "low: 1.5"))
    with pytest.raises(SpaceError, match="low must be"):
        go(space, tmp_path / "run", 5)
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class GuessingEvaluators(SyntheticEvaluators):
    """A model that guesses."""

    def open(
        self, split: str, threads: int, dense: Measurement | None = None
    ) -> Callable[..., Measurement]:
        evaluate = SyntheticEvaluator(self.model, split)
        return lambda policy, race=None: replace(evaluate(policy), top1=9.5)


@pytest.mark.parametrize("evaluators", [GuessingEvaluators, SyntheticEvaluators])
def test_dense_model_at_chance_is_told(
    ray_here: None,
    space: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    evaluators: type[SyntheticEvaluators],
) -> None:
    measured = evaluators("vim_nano")
    go(space, tmp_path / "run", 2, workers=1, evaluators=measured, progress=True)
    is_told = "top-1, 9.5 %, is not above chance" in " ".join(capsys.readouterr().err.split())
    assert is_told == (evaluators is GuessingEvaluators)


@dataclass(frozen=True)
class FailingEvaluators(SyntheticEvaluators):
    """Evaluators that measure the dense model and nothing else."""

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> Any:
        free = SyntheticEvaluator(self.model, split)

        def evaluate(policy: Policy, race: Race | None = None) -> Measurement:
            if policy.stages:
                raise ArithmeticError("logits are NaN")
            return free(policy)

        return evaluate


def test_search_in_which_everything_fails_says_why(
    ray_here: None, space: Path, tmp_path: Path
) -> None:
    evaluators = FailingEvaluators("vim_nano")
    with pytest.raises(RunError, match="all 6 failed, the first with: ArithmeticError: logits are"):
        go(space, tmp_path / "run", 6, workers=1, evaluators=evaluators)
    assert RunDirectory.open(tmp_path / "run").study().counts().failed == 6


@pytest.mark.slow
def test_search_of_a_small_space_ends_when_it_is_exhausted(
    ray_here: None, space: Path, tmp_path: Path
) -> None:
    space.write_text(
        "schema: ssmprune.space/1\nmodel: vim_nano\nscorer: [l1]\n"
        "ratios: {per: layer, layers: [1, 3], low: 0.8, step: 0.1}\n"
    )
    result = go(space, tmp_path / "run", 50, workers=1, sampler="random")
    assert result.exhausted
    assert result.counts.finished == 9
