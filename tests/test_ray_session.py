"""How Ray is started and joined: what is refused before, and whose Ray it is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssmprune.errors import RunError, UsageError
from ssmprune_search.evaluation.synthetic import SyntheticEvaluators

import ray  # isort: skip
from ssmprune_search.run.launch import search  # isort: skip
from ssmprune.ray_session import running_ray  # isort: skip
from ssmprune.training import TrainSettings, train  # isort: skip
from tests.ray_nodes import free_address, ray_start  # isort: skip

SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [2, 4], low: 0.5, step: 0.1}
scorer: [l1]
"""
SETTINGS = TrainSettings(steps=1, batch_size=8, lr=1e-4)
NODE = ("--num-cpus=2", "--object-store-memory=80000000")
NODE_HOST = "127.0.0.21"

# Ray leaves sockets and processes to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
]


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(ray, "init", init)


def time_out(**_: Any) -> None:
    raise Exception("The current node timed out during startup.")


def test_ray_that_does_not_start_is_told_in_one_message(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", time_out)
    with pytest.raises(RunError, match="does not: The current node timed out during startup; try"):
        search(space, tmp_path / "run", trials=5, evaluators=SyntheticEvaluators("vim_nano"))
    assert not (tmp_path / "run").exists()


def test_ray_that_starts_too_slowly_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[dict[str, Any]] = []

    def start(**settings: Any) -> None:
        attempts.append(settings)
        if len(attempts) == 1:
            time_out()

    monkeypatch.setattr(ray, "init", start)
    with running_ray(None, workers=3):
        pass
    assert len(attempts) == 2
    assert attempts[0] == attempts[1] and attempts[1]["num_cpus"] >= 3


def test_a_fault_that_time_does_not_mend_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts = []

    def start(**_: Any) -> None:
        attempts.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ray, "init", start)
    with (
        pytest.raises(RunError, match=r"No space left on device; its logs are in \S+/session_lat"),
        running_ray(None, workers=1),
    ):
        pass
    assert len(attempts) == 1


@pytest.fixture(params=["long", "umlaut", "relative", "file", "absent"])
def temporary(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A directory that does not do for Ray, and what is to be said about it."""
    (tmp_path / "file").touch()
    yield {
        "long": (str(tmp_path / ("x" * 60)), r"TMPDIR must be at most \d\d bytes long, as .* has "),
        "umlaut": ("/tmp/ümläut", "TMPDIR must have a name of ASCII characters, .* got '/tmp/ü"),
        "relative": ("tmp", "TMPDIR must be an absolute path, as Ray keeps its sockets there"),
        "file": ("/dev/null", r"TMPDIR must be a directory that can be written, .* \(Not a dir"),
        "absent": ("/proc/absent", "TMPDIR must be a directory that can be written, .*`TMPDIR=/t"),
    }[request.param]


@pytest.mark.usefixtures("no_start")
def test_a_temporary_directory_without_room_for_sockets_is_told_before_all_else(
    temporary: tuple[str, str], space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, message = temporary
    monkeypatch.setenv("TMPDIR", path)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    out = tmp_path / "run"
    with pytest.raises(UsageError, match=message):
        search(space, out, trials=5, evaluators=SyntheticEvaluators("vim_nano"))
    with pytest.raises(UsageError, match=message):
        train("vim_nano", "digits", out, SETTINGS, workers=2)
    assert not out.exists()


@pytest.mark.usefixtures("no_start")
def test_rays_own_variable_goes_before_tmpdir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/ä")
    with pytest.raises(UsageError, match="RAY_TMPDIR must have a name of ASCII"):
        running_ray(None, workers=1).__enter__()


@pytest.mark.usefixtures("no_start")
def test_a_run_is_not_begun_where_no_cluster_answers(space: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    message = r"that of a running Ray cluster, got '127\.0\.0\.1:1': nothing answers there"
    with pytest.raises(UsageError, match=message):
        search(
            space,
            out,
            trials=5,
            address="127.0.0.1:1",
            evaluators=SyntheticEvaluators("vim_nano"),
        )
    with pytest.raises(UsageError, match=message):
        train("vim_nano", "digits", out, SETTINGS, address="127.0.0.1:1")
    assert not out.exists()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a user with a home of their own, who has set nothing of Ray."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    (tmp_path / "home").mkdir()
    return {**own, "HOME": str(tmp_path / "home"), "RAY_USAGE_STATS_ENABLED": "0"}


def ssmprune(environment: dict[str, str], *call: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ssmprune_search", *map(str, call)],
        env={"PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )


def head_options(address: str) -> tuple[str, ...]:
    host, port = address.split(":")
    own = (f"--node-ip-address={host}", f"--port={port}")
    return ("--head", "--include-dashboard=false", *own)


def search_call(space: Path, out: Path, *more: str) -> tuple[str | Path, ...]:
    return ("search", space, "--out", out, "--trials", "3", "--sampler", "random", *more)


def train_call(out: Path, *more: str) -> tuple[str | Path, ...]:
    short = ("--steps", "2", "--batch-size", "8", "--workers", "2")
    return ("train", "--model", "vim_nano", "--data", "digits", "--out", out, *short, *more)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ray_on_this_machine_is_our_own_whatever_runs_there(
    environment: dict[str, str], space: Path, tmp_path: Path
) -> None:
    address = free_address(NODE_HOST)
    head = head_options(address)
    with ray_start(environment, *head, "--num-cpus=0"):  # where nothing could run
        user = {**environment, "RAY_ADDRESS": address}
        for call in (search_call(space, tmp_path / "run"), train_call(tmp_path / "trained")):
            done = ssmprune(user, *call)
            assert done.returncode == 0, done.stderr
    user = {**environment, "RAY_ADDRESS": "127.0.0.1:1"}  # of a cluster that is no more
    done = ssmprune(user, *search_call(space, tmp_path / "run", "--resume", "--trials", "5"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "home" / ".ray").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_search_and_training_join_a_cluster_that_wants_its_token(
    environment: dict[str, str], space: Path, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"],
        env=environment,
        check=True,
        capture_output=True,
    )
    address = free_address(NODE_HOST)
    head = head_options(address)
    other = (f"--address={address}", "--node-ip-address=127.0.0.22")
    nodes = {**environment, "RAY_AUTH_MODE": "token"}
    with ray_start(nodes, *head, *NODE), ray_start(nodes, *other, *NODE):
        (tmp_path / "guest").mkdir()
        without = {**environment, "HOME": str(tmp_path / "guest")}
        for user, found in (
            (without, "none is found here"),
            ({**without, "RAY_AUTH_TOKEN": "guessed" * 9}, "the one that is found here is another"),
            ({**environment, "RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE=disabled forbids it"),
        ):
            refused = ssmprune(user, *search_call(space, tmp_path / "run", "--address", address))
            assert refused.returncode == 2
            told = f"Error: the cluster at --address {address} must be shown its token, but {found}"
            assert refused.stderr.startswith(told) and "copy ~/.ray/auth_token" in refused.stderr
            assert "Traceback" not in refused.stderr
        refused = ssmprune(without, *train_call(tmp_path / "trained", "--address", address))
        assert refused.returncode == 2 and "must be shown its token" in refused.stderr
        assert not (tmp_path / "run").exists() and not (tmp_path / "trained").exists()
        joined = ssmprune(environment, *search_call(space, tmp_path / "run", "--address", address))
        assert joined.returncode == 0, joined.stderr
        trained = ssmprune(environment, *train_call(tmp_path / "trained", "--address", address))
        assert trained.returncode == 0, trained.stderr
