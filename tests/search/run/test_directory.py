"""One search holds a run directory at a time, whoever comes and goes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ssmprune.errors import RunError
from ssmprune.training.directory import TrainDirectory
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.run.directory import RunDirectory

COME_AND_GO = """
import sys
from pathlib import Path
from ssmprune_search.run.directory import RunDirectory
from ssmprune.errors import RunError

held = 0
while held < 300:
    try:
        with RunDirectory(sys.argv[1]).lock():
            mine = Path(sys.argv[1], "mine")
            mine.touch(exist_ok=False)  # nobody else is in it
            mine.unlink()
            held += 1
    except RunError:
        pass
"""


@pytest.mark.slow
def test_processes_that_come_and_go_never_hold_a_directory_together(tmp_path: Path) -> None:
    calls = [[sys.executable, "-c", COME_AND_GO, str(tmp_path / "run")]] * 3
    with ThreadPoolExecutor() as pool:
        done = list(pool.map(lambda call: subprocess.run(call, capture_output=True), calls))
    assert [process.stderr.decode() for process in done] == ["", "", ""]


def test_lock_of_a_file_that_was_removed_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    opened, os_open = [], os.open

    def open_late(path: Path, *arguments: int) -> int:
        handle = os_open(path, *arguments)
        if path == tmp_path / "run" / ".lock" and not opened:
            (tmp_path / "run" / ".lock").unlink()  # by the process that held the directory
            (tmp_path / "run").rmdir()
        opened.append(path)
        return handle

    monkeypatch.setattr(os, "open", open_late)
    with run.lock():
        assert (tmp_path / "run" / ".lock").exists()
        with pytest.raises(RunError, match="one search at a time"), RunDirectory(run.path).lock():
            pass
    assert not (tmp_path / "run").exists()


def test_directory_that_another_process_has_written_into_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        (tmp_path / "run" / "theirs").touch()
    assert (tmp_path / "run" / "theirs").exists()


def test_who_asks_for_a_front_too_early_is_told_to_wait_while_a_search_is_at_work(
    finished_run: Path,
) -> None:
    run = RunDirectory.open(finished_run)
    run.write_info({**run.info, "dense": {}})
    with pytest.raises(RunError, match="no such figures yet; finish the search with --resume"):
        Outcome.read(finished_run)
    with (
        run.lock(),
        pytest.raises(RunError, match="a search is at work there: wait for it") as told,
    ):
        Outcome.read(finished_run)
    assert "--resume" not in str(told.value)
    starting = RunDirectory(finished_run.with_name("starting"))
    with starting.lock(), pytest.raises(RunError, match="at work there: wait for it"):
        RunDirectory.open(starting.path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_file_system_without_locks_is_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    message = f"file system with locks, but that of {tmp_path}/run has none .*; give a directory on"
    with pytest.raises(RunError, match=message), RunDirectory(tmp_path / "run").lock():
        pass
    with pytest.raises(RunError, match=message), TrainDirectory(tmp_path / "run").claim({}):
        pass
    assert list(tmp_path.iterdir()) == []


def test_place_where_nothing_can_be_made_is_refused_at_once() -> None:
    run = RunDirectory("/proc/run")
    with pytest.raises(RunError, match="must be writable, but /proc/run is not"), run.lock():
        pass


def test_full_disk_is_not_taken_for_one_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    message = f"must be writable, but {tmp_path}/run is not: No space left on device"
    with pytest.raises(RunError, match=message), RunDirectory(tmp_path / "run").lock():
        pass
    assert list(tmp_path.iterdir()) == []
