"""The study's file survives what kills its writers."""

from __future__ import annotations

import json
import os
import resource
import signal
from pathlib import Path

import pytest

from ssmprune.errors import RunError
from ssmprune_search.study.journal import JournalFile, recover


def records(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_append_is_read_back_by_another_object(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "j")
    journal.append_logs([{"n": 1}, {"n": 2}])
    journal.append_logs([{"n": 3}])
    journal.sync()
    assert list(JournalFile(tmp_path / "j").read_logs(1)) == [{"n": 2}, {"n": 3}]


def test_append_after_a_half_line_keeps_the_new_record_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "j", '{"n": 1}\n{"n": 2')
    JournalFile(path).append_logs([{"n": 3}])
    assert records(path) == [1, 3]
    assert (tmp_path / "j.broken-1").read_text() == '{"n": 2'


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = JournalFile(path)
    child = os.fork()
    if child == 0:
        with JournalFile(path).exclusive():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    journal.append_logs([{"n": 1}])
    assert records(path) == [1]


def test_appends_inside_exclusive_do_not_wait_for_themselves(tmp_path: Path) -> None:
    journal = JournalFile(tmp_path / "j")
    with journal.exclusive(), journal.exclusive():
        journal.append_logs([{"n": 1}])
    journal.append_logs([{"n": 2}])
    assert records(tmp_path / "j") == [1, 2]


@pytest.mark.parametrize("tail", ['{"n": 2', '{"n": 2\n', "\0\0\0\n", "2\n", '{"n": 2}'])
def test_recover_cuts_a_broken_last_line_and_keeps_it(tmp_path: Path, tail: str) -> None:
    path = write(tmp_path / "j", '{"n": 1}\n' + tail)
    message = recover(path)
    assert message is not None and "line 2" in message and "j.broken-1" in message
    assert records(path) == [1]
    assert (tmp_path / "j.broken-1").read_text() == tail


def test_recover_leaves_a_whole_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "j", '{"n": 1}\n{"n": 2}\n')
    assert recover(path) is None
    assert records(path) == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["j"]


def test_recover_refuses_a_file_that_is_broken_before_its_end(tmp_path: Path) -> None:
    path = write(tmp_path / "j", '{"n": 1}\nnonsense\n{"n": 2}\n')
    with pytest.raises(RunError, match=r"line 2"):
        recover(path)
    assert path.read_text().count("\n") == 3


def test_recover_numbers_its_backups(tmp_path: Path) -> None:
    for _ in range(2):
        recover(write(tmp_path / "j", '{"n": 1}\nhalf'))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["j", "j.broken-1", "j.broken-2"]


def test_block_that_the_disk_refuses_leaves_no_trace(tmp_path: Path) -> None:
    path = write(tmp_path / "j", '{"n": 1}\n')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 12, limits[1]))
    try:
        with pytest.raises(OSError):
            JournalFile(path).append_logs([{"n": 2}, {"n": 3}])  # the first one would fit
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert records(path) == [1]
    JournalFile(path).append_logs([{"n": 4}])
    assert records(path) == [1, 4]
