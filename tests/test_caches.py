"""Commands in an installation that their user cannot write, and without a home directory."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [2, 4], low: 0.5, step: 0.1}
scorer: [l1]
"""
EVAL = ("eval", "--model", "vim_nano", "--data", "digits")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def nobody() -> list[str]:
    """What makes a command that of a user who owns nothing; root would write anywhere.

    This user may read everything, so that it does not matter where Python is installed.
    """
    if os.geteuid():
        return []
    read = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *read]


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A copy of the package that cannot be written, and has nothing compiled beside it."""
    copy = tmp_path / "installed"
    for package in ("ssmprune", "search"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for path in (copy, *copy.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    return copy


def test_commands_work_without_a_place_to_keep_what_is_compiled(
    installation: Path, tmp_path: Path
) -> None:
    work, temporary = tmp_path / "work", Path("/tmp", f"ssmprune-test-{os.getpid()}")
    for directory in (work, temporary):
        directory.mkdir()
        directory.chmod(0o777)
    (work / "space.yaml").write_text(SPACE)
    places = os.pathsep.join([str(installation), str(installation / "search")])
    here = {"PATH": os.environ["PATH"], "PYTHONPATH": places}
    guest = {**here, "HOME": "/nonexistent", "TMPDIR": str(temporary)}

    def told(*call: str, prefix: list[str], environment: dict[str, str]) -> str:
        command = [sys.executable, "-m", "ssmprune_search", *call]
        done = subprocess.run(
            [*prefix, *command], cwd=work, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        for alarm in ("Traceback", "Warning", "WARNING", "writable", "ermission", "temporary"):
            assert alarm not in done.stderr
        return done.stdout

    try:
        for call in (
            ("search", "space.yaml", "--out", "run", "--trials", "3", "--sampler", "random"),
            ("report", "run"),
            ("tokens", "--policy", "uniform_vim_nano", "--image", "digits:7", "-o", "kept.png"),
        ):
            told(*call, prefix=nobody(), environment=guest)
        assert (work / "run" / "report.html").exists() and (work / "kept.png").exists()
        found = told(*EVAL, prefix=nobody(), environment=guest)
        assert found == told(*EVAL, prefix=[], environment={**here, "PYTHONPATH": str(ROOT)})
        assert len(list(temporary.glob("ssmprune-*"))) == 1
    finally:
        shutil.rmtree(temporary)
