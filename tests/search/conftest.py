"""Candidates and a finished run, at no cost; a database server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssmprune import Policy, create_model
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.evaluation.synthetic import SyntheticEvaluators
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.study.records import Owner
from ssmprune_search.study.study import Study

SPACE = """\
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 2, 4], low: 0.5, step: 0.1}
scorer: [l1, clipped_sum]
objectives: [top1, flops, latency_ms]
schedules:
  - {name: equal, layers: [0, 2], keep_ratio: [0.8, 0.6]}
"""


@pytest.fixture(scope="session")
def make_candidate() -> Callable[..., Candidate]:
    """Makes a candidate of given figures, with a policy of its own for trials below 900."""

    def make(
        trial: int,
        top1: float,
        flops_ratio: float,
        latency_ratio: float = float("nan"),
        *,
        source: str = "nsga2",
        holdout: float | None = None,
    ) -> Candidate:
        policy = Policy.model_validate(
            {
                "model": "vim_nano",
                "stages": [
                    {"layer": 1, "keep_count": 63 - trial // 30},
                    {"layer": 5, "keep_count": 31 - trial % 30},
                ],
            }
        )
        return Candidate(
            trial,
            policy,
            source,
            search=figures("search", top1, flops_ratio, latency_ratio),
            holdout=None
            if holdout is None
            else figures("holdout", holdout, flops_ratio, latency_ratio),
        )

    return make


def figures(split: str, top1: float, flops_ratio: float, latency_ratio: float) -> Measurement:
    return Measurement(
        split=split,
        top1=top1,
        top1_low=top1 - 2,
        top1_high=top1 + 1,
        images=362 if split == "search" else 1456,
        flops=round(40e6 * flops_ratio),
        flops_ratio=flops_ratio,
        paper_flops=round(30e6 * flops_ratio),
        latency_ms=20 * latency_ratio,
        latency_ratio=latency_ratio,
        latency_ratio_low=latency_ratio - 0.02,
        latency_ratio_high=latency_ratio + 0.02,
    )


@pytest.fixture(scope="session")
def dense() -> Measurement:
    """Figures of a dense model for `make_candidate`'s candidates."""
    return figures("search", 97.0, 1.0, 1.0)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained `vim_nano`."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vim_nano.safetensors"
    save_file(create_model("vim_nano").state_dict(), path)
    return path


@pytest.fixture(scope="session")
def _finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "synthetic")
    evaluators = SyntheticEvaluators("vim_nano")
    unpruned = Policy(model="vim_nano", stages=())
    with run.lock():
        run.freeze_space(SPACE)
        Study.create(run.journal_path, run.space)
        run.write_info(
            {
                "call": {
                    "space": "/somewhere/spaces/small.yaml",
                    "trials": 30,
                    "workers": 1,
                    "seed": 7,
                    "sampler": "random",
                    "data": "digits",
                    "device": "cpu",
                    "batch_size": 128,
                    "amp": False,
                },
                "identity": evaluators.identity(),
                "versions": {"ssmprune": "0.1.0"},
                "machine": "a machine",
                "begun": "2026-01-01T00:00:00+00:00",
                "dense": {
                    split: evaluators.open(split, 1)(unpruned).to_dict()
                    for split in ("search", "holdout")
                },
            }
        )
        study = run.study(Owner("session", 0, "process"))
        study.begin_session("session")
        while suggestion := study.ask(30):
            study.tell(suggestion.trial, evaluators.open("search", 1)(suggestion.policy))
        study.end_session()
        for member in pareto_front(study.candidates(), run.space.objectives):
            study.set_holdout(member.trial, evaluators.open("holdout", 1)(member.policy))
    return run.path


@pytest.fixture
def finished_run(_finished_run: Path, tmp_path: Path) -> Path:
    """A run of 30 candidates on the synthetic problem, with known schedules; the test's own."""
    return Path(shutil.copytree(_finished_run, tmp_path / "runs" / "synthetic"))


class Postgres:
    """A PostgreSQL server of its own, with a password."""

    password = "s3cret"

    def __init__(self, programs: Path, folder: Path, port: int):
        self._programs, self._folder, self._port = programs, folder, port
        self.url = f"postgresql+psycopg://postgres:{self.password}@127.0.0.1:{port}/postgres"
        (folder / "password").write_text(self.password)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody", "nogroup")
        self._call("initdb", "-U", "postgres", "-A", "md5", f"--pwfile={folder}/password")
        self.start()

    def start(self) -> None:
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._call("pg_ctl", "-w", "-l", f"{self._folder}/log", "-o", options, "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def restart(self) -> None:
        """Kill the server and all its processes, and start it again."""
        lock = self._folder / "data" / "postmaster.pid"
        server = lock.read_text().split()[0]
        os.kill(int(server), signal.SIGSTOP)  # lest it begins a process that is not in the list
        children = subprocess.run(["pgrep", "-P", server], capture_output=True, text=True)
        processes = [int(pid) for pid in (server, *children.stdout.split())]
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        while any(_is_running(pid) for pid in processes):
            time.sleep(0.01)
        # they name a process that may not be reaped yet, which counts as running
        lock.unlink()
        (self._folder / f".s.PGSQL.{self._port}.lock").unlink(missing_ok=True)
        self.start()

    def _call(self, program: str, *arguments: str) -> None:
        user = []
        if os.geteuid() == 0:
            user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        call = [*user, str(self._programs / program), "-D", f"{self._folder}/data", *arguments]
        done = subprocess.run(call, cwd=self._folder, stdout=subprocess.DEVNULL)
        log = self._folder / "log"
        assert done.returncode == 0, log.read_text()[-2000:] if log.exists() else program


def _is_running(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg", reason="no psycopg: pip install ssmprune[postgresql]")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found and shutil.which("initdb") is None:
        pytest.skip("no PostgreSQL server: apt-get install postgresql")
    programs = found[-1] if found else Path(str(shutil.which("initdb")))
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        server = Postgres(programs.parent, Path(folder), port)
        yield server
        server.stop()
