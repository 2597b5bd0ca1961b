"""Files are written whole or not at all, with the permissions of any new file."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ssmprune.files import replacing, write_atomically, write_bytes_atomically


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    write_atomically(path, "the first")
    with pytest.raises(OSError, match="full"), replacing(path) as temporary:
        temporary.write_text("the sec")
        raise OSError("full")
    assert path.read_text() == "the first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_that_the_umask_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", None)  # it is that of all threads: nobody may touch it
        write_bytes_atomically(tmp_path / "deep" / "front.png", b"picture")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "deep" / "front.png").stat().st_mode & 0o777 == 0o640


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    path, ended = tmp_path / "front.csv", threading.Event()
    write_atomically(path, "0" * 100_000)

    def write() -> None:
        for digit in "123456789":
            write_atomically(path, digit * 100_000)
        ended.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not ended.is_set():
        text = path.read_text()
        assert len(text) == 100_000 and len(set(text)) == 1
    thread.join()


def test_a_name_of_any_length_that_fits_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".yaml")
    write_atomically(path, "text")
    assert path.read_text() == "text"
