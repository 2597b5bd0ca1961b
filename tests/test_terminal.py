"""What is printed reaches any terminal: those of few characters, those without colour, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EVERY_HELP = """
import sys
from ssmprune_search.cli import main
from ssmprune_search.cli.group import COMMANDS

for name in COMMANDS:
    sys.argv = ["ssmprune", name, "--help"]
    try:
        main()
    except SystemExit as end:
        assert end.code == 0, name
        print("help of", name)
"""


def run(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A new process of Python, in a terminal of 80 columns."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environment},
        capture_output=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_help_of_every_command_can_be_read_in_few_characters(encoding: str) -> None:
    done = run("-c", EVERY_HELP, PYTHONIOENCODING=encoding, LC_ALL="C", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode(encoding)
    for name in ("search", "front", "export", "report", "eval", "train", "profile", "tokens"):
        assert f"Usage: ssmprune {name}" in text and f"help of {name}" in text


def test_names_that_a_terminal_cannot_show_end_in_the_message_all_the_same() -> None:
    done = run("-m", "ssmprune_search", "front", "l\u00e4ufe", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Error: a run directory must hold a search, but there is no")


@pytest.mark.parametrize("no_color", ["", "1"])
def test_errors_have_a_colour_where_it_is_wanted(no_color: str) -> None:
    script = "from ssmprune_search.cli import app; from typer.testing import CliRunner;"
    script += "print(CliRunner().invoke(app, ['front', 'none'], color=True).stderr)"
    told = run("-c", script, NO_COLOR=no_color).stdout.decode()
    assert "a run directory must hold a search" in told
    assert ("\x1b[" in told) == (not no_color)


@pytest.mark.slow
def test_reader_that_has_gone_ends_a_command_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    call = [sys.executable, "-m", "ssmprune_search", "models"]
    done = subprocess.run(call, cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.stderr == b""


@pytest.mark.slow
def test_batch_that_no_memory_holds_is_told_in_one_line() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33)); "
    batch = ("--model", "vim_nano", "--batch-size", str(2**20))  # 9 GiB
    done = run("-c", limit + "from ssmprune_search.cli import main; main()", "profile", *batch)
    assert done.returncode == 1
    told = b"Error: what is computed must fit into the memory that is free, but does not; give a "
    assert done.stderr.splitlines()[-1].startswith(told) and b"Traceback" not in done.stderr
