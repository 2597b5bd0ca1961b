"""Searches on real clusters and real databases that lose nodes and servers on the way."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ssmprune import Policy
from ssmprune.errors import UsageError
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune_search.run.directory import RunDirectory, candidates
from ssmprune_search.study.race import Race
from tests.ray_nodes import Nodes, wait_for

import ray  # isort: skip
from ssmprune_search.workers.cluster import Pool, share_out  # isort: skip
from ssmprune_search.run.launch import SearchResult, search  # isort: skip

SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 1, 2, 3, 4, 5, 6], low: 0.5, step: 0.05}
scorer: [l1, l2]
"""
DEADLINE = 600.0  # as long as a busy machine may take

# Ray leaves sockets and processes to the garbage collector.
pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20:ray"),
]

FOUR_GPUS = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}]


@pytest.mark.parametrize(
    ("nodes", "workers", "device", "gpus", "expected"),
    [
        ([{"CPU": 8.0}], 2, "cpu", None, Pool(2, 4, 0.0, 2)),
        ([{"CPU": 4.0}] * 3, 4, "cpu", None, Pool(4, 2, 0.0, 4)),  # 3 would leave one out
        ([{"CPU": 2.0}] * 2, 9, "cpu", None, Pool(9, 1, 0.0, 4)),
        (FOUR_GPUS, 4, "cuda", None, Pool(4, 4, 1.0, 4)),
        (FOUR_GPUS, 3, "cuda", None, Pool(3, 8, 1.0, 3)),
        (FOUR_GPUS, 6, "cuda", None, Pool(6, 4, 0.5, 6)),  # not 2/3, of which a GPU holds one
        (FOUR_GPUS, 9, "cuda", None, Pool(9, 2, 1 / 3, 9)),
        (FOUR_GPUS, 9, "cuda", 0.5, Pool(9, 2, 0.5, 8)),
        (FOUR_GPUS, 3, "cuda", 2, Pool(3, 8, 2, 2)),
        ([{"CPU": 2.0}], 2, "cuda", None, Pool(2, 1, 1.0, 0)),
        ([], 2, "cpu", None, Pool(2, 1, 0.0, 0)),
    ],
)
def test_all_workers_get_as_much_as_lets_most_of_them_run(
    nodes: list[dict[str, float]], workers: int, device: str, gpus: float | None, expected: Pool
) -> None:
    assert share_out(nodes, workers, device, gpus, wait=True) == expected


@pytest.mark.parametrize(
    ("workers", "device", "gpus", "message"),
    [
        (2, "cuda", None, "--device cuda must be there, but Ray has no GPU; give cpu"),
        (2, "cpu", 1.0, "got 2 with 1 GPUs each where 0 fit"),
        (
            9,
            "cpu",
            None,
            "--workers must fit into what Ray has, got 9 with 0 GPUs each where 8 fit",
        ),
    ],
)
def test_what_does_not_fit_is_refused_where_nobody_waits(
    workers: int, device: str, gpus: float | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        share_out([{"CPU": 8.0}], workers, device, gpus, wait=False)


def test_no_share_of_a_gpu_is_refused_for_workers_on_gpus() -> None:
    with pytest.raises(UsageError, match="--gpus-per-worker must be above 0 for --device cuda"):
        share_out(FOUR_GPUS, 2, "cuda", 0.0, wait=True)


@dataclass(frozen=True)
class SlowEvaluators(SyntheticEvaluators):
    """The synthetic problem, each candidate in its time and with a mark on the floor.

    On the host `stuck_on` the sixth evaluation does not end; it marks that it has begun.
    """

    folder: Path = Path()
    seconds: float = 0.1
    stuck_on: str = ""

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> Any:
        free = SyntheticEvaluator(self.model, split)

        def evaluate(policy: Policy, race: Race | None = None) -> Measurement:
            if policy.stages and split == "search":
                host = ray.util.get_node_ip_address()
                if host == self.stuck_on and len(list(self.folder.glob(f"{host}-*"))) >= 5:
                    (self.folder / "stuck").touch()
                    time.sleep(DEADLINE)
                time.sleep(self.seconds)
                (self.folder / f"{host}-{time.monotonic_ns()}").touch()
            return free(policy)

        return evaluate


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Where evaluations leave their marks, as ADDRESS-TIME."""
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.fixture
def evaluators(marks: Path) -> Iterator[SlowEvaluators]:
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield SlowEvaluators("vim_nano", marks)
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


@contextmanager
def beside(action: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread while a search runs here; its fault is raised at the end."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(action)
        yield
        done.result(DEADLINE)


def assert_complete(result: SearchResult, trials: int, database: str | None = None) -> None:
    """Exactly `trials` candidates are finished, all of them different, and nothing is open."""
    study = RunDirectory.open(result.run_dir, database).study()
    counts, found = study.counts(), study.candidates()
    assert len(found) == counts.evaluated == trials
    assert len({pruning_key(c.policy) for c in found}) == trials
    assert counts.running == counts.waiting == counts.failed == 0
    assert all(member.holdout is not None for member in result.front)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # whatever a user's other clusters want
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    nodes = Nodes()
    yield nodes
    nodes.end()


@pytest.mark.slow
def test_search_survives_a_node_and_uses_one_that_joins(
    nodes: Nodes,
    space: Path,
    tmp_path: Path,
    marks: Path,
    evaluators: SlowEvaluators,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nodes.start()
    mortal = nodes.start()

    def befall() -> None:
        wait_for((marks / "stuck").exists)
        nodes.kill(mortal)
        nodes.start()
        wait_for(lambda: len(list(marks.glob(f"{Nodes.host(3)}-*"))) >= 5)

    with beside(befall):
        result = search(
            space,
            tmp_path / "run",
            trials=600,
            workers=3,
            sampler="random",
            address=nodes.address,
            evaluators=replace(evaluators, stuck_on=Nodes.host(2)),
        )
    assert_complete(result, 600)
    assert result.counts.lost == 1
    said = capsys.readouterr().err
    assert "of 3 workers; the others start when nodes join" in said


@pytest.mark.slow
def test_workers_that_have_no_room_are_refused_with_no_wait(
    nodes: Nodes, space: Path, tmp_path: Path, evaluators: SlowEvaluators
) -> None:
    nodes.start()
    with pytest.raises(UsageError, match="--workers must fit into what Ray has, got 2"):
        search(
            space,
            tmp_path / "run",
            trials=10,
            workers=2,
            address=nodes.address,
            wait=False,
            evaluators=evaluators,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_search_survives_a_restart_of_its_database(
    postgres: Any,
    space: Path,
    tmp_path: Path,
    marks: Path,
    evaluators: SlowEvaluators,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []

    def said() -> str:
        heard.append(capfd.readouterr().err)
        return "".join(heard)

    def befall() -> None:
        wait_for(lambda: len(list(marks.iterdir())) >= 20)
        postgres.stop()
        wait_for(lambda: "the study's database is away" in said())
        postgres.start()

    with beside(befall):
        result = search(
            space,
            tmp_path / "run",
            trials=100,
            workers=2,
            sampler="random",
            storage=postgres.url,
            evaluators=evaluators,
        )
    assert_complete(result, 100, postgres.url)
    assert "the study's database is back" in said()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and all(postgres.password.encode() not in path.read_bytes() for path in files)
    assert postgres.password not in said()
    assert not (tmp_path / "run" / "study.journal").exists()
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    moved = search(
        space,
        tmp_path / "run",
        trials=110,
        workers=1,
        storage="journal",
        resume=True,
        evaluators=evaluators,
        progress=False,
    )
    postgres.stop()
    assert_complete(moved, 110)
    assert len(candidates(moved.run_dir)) == 110
    postgres.start()
