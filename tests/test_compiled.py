"""Compiled code where neither the package nor the home can be written to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ssmprune

MODULE = """
from ssmprune.compiled import cached_njit

@cached_njit(nogil=True)
def double(x):
    return 2 * x

print(double(21), double.stats.cache_hits.total())
"""


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    (tmp_path / "temporary").mkdir()
    return tmp_path / "temporary"


@pytest.fixture
def environment(temporary: Path) -> dict[str, str]:
    """That of a container without a home; a file cannot become a directory, for root neither."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    return kept | {
        "HOME": "/dev/null",
        "TMPDIR": str(temporary),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(Path(ssmprune.__file__).parents[1]),
    }


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    (tmp_path / "__pycache__").touch()
    return path


def output(environment: dict[str, str], *arguments: str | Path) -> str:
    call = [sys.executable, *map(str, arguments)]
    place = environment["TMPDIR"]  # lest the package here is found before the copy
    done = subprocess.run(call, env=environment, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_without_a_place_of_its_own_code_is_cached_among_temporary_files(
    module: Path, temporary: Path, environment: dict[str, str]
) -> None:
    assert output(environment, module) == "42 0"
    assert output(environment, module) == "42 1"
    [cache] = temporary.glob("ssmprune-*")
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["open to all", "file", "link"])
def test_a_cache_that_others_could_have_written_is_not_used(
    kind: str, module: Path, temporary: Path, environment: dict[str, str]
) -> None:
    cache, elsewhere = temporary / f"ssmprune-{os.getuid()}", temporary / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if kind == "open to all":
        cache.mkdir()
        cache.chmod(0o777)
    elif kind == "file":
        cache.touch()
    else:
        cache.symlink_to(elsewhere)
    assert output(environment, module) == "42 0"
    assert list(elsewhere.iterdir()) == []
    assert not cache.is_dir() or list(cache.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_package_that_cannot_be_written_to_gives_the_same_top1(
    tmp_path: Path, temporary: Path, environment: dict[str, str]
) -> None:
    root = Path(ssmprune.__file__).parents[1]
    for package in ("ssmprune", "search"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / package, tmp_path / package, ignore=ignored)
    for folder in (tmp_path / "ssmprune").rglob("*/"):
        if any(folder.glob("*.py")):
            (folder / "__pycache__").touch()
    call = ("-m", "ssmprune_search", "eval", "--model", "vim_nano", "--data", "digits")
    places = os.pathsep.join([str(tmp_path), str(tmp_path / "search")])
    found = output({**environment, "PYTHONPATH": places}, *call)
    assert list(temporary.glob("ssmprune-*/*/*.nbi"))
    assert re.search(r"top-1 +97\.12 %", found)


def test_a_cache_with_types_that_an_update_has_moved_is_forgotten(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    pair = "from typing import NamedTuple\n\n\nclass Pair(NamedTuple):\n    x: int\n    y: int\n"
    (tmp_path / "before.py").write_text(pair)
    code = MODULE.replace(
        "def double(x):\n    return 2 * x", "def double(x):\n    return x.x * x.y"
    )
    code = code.replace("double(21)", "double(Pair(6, 7))")
    module = tmp_path / "module.py"
    for place in ("before", "after"):
        module.write_text(f"from {place} import Pair{code}")
        assert output(environment, module).startswith("42 ")
        (tmp_path / "before.py").rename(tmp_path / "after.py")
        (tmp_path / "before.py").touch()
