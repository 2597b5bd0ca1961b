"""Modules of a user's own: found by every process, and imported only where the user says so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ssmprune import Policy
from ssmprune.errors import PolicyError, UsageError
from ssmprune.extensions import absolute, import_modules
from ssmprune.registry import Registry
from ssmprune_search.cli import app
from tests.conftest import ROOT
from tests.extension_code import MODELS, POLICY, SCORERS, install, write_module

COMMAND = ("-m", "ssmprune_search")


def python(*call: object, folder: Path, path: Path | None = None) -> Any:
    """A new Python in `folder`, with `path` among the places of its modules."""
    places = [str(ROOT), *([str(path)] if path else [])]
    return subprocess.run(
        [sys.executable, *map(str, call)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
    )


def told(*call: object, folder: Path, path: Path | None = None) -> str:
    done = python(*call, folder=folder, path=path)
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def refused(done: Any, status: int, *parts: str) -> None:
    """One message on stderr, without a traceback."""
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return write_module(tmp_path / "policy.yaml", POLICY)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return install(tmp_path / "site", scorers=SCORERS, models=MODELS)


def test_an_installed_package_is_imported_when_a_name_is_unknown_and_not_before(
    tmp_path: Path, package: Path, policy: Path
) -> None:
    code = (
        "import sys, ssmprune\n"
        "from ssmprune.models.zoo import find_config\n"
        "def here(): return {'my_package', 'torch'} & sys.modules.keys()\n"
        "ssmprune.Policy(model='vim_nano', stages=())\n"
        "assert not here(), here()\n"
        "found = ssmprune.Policy.load(sys.argv[1])\n"
        "print(found.scorer.name, found.alignment.decay, find_config('front_vim_nano').depth)"
    )
    assert told("-c", code, policy, folder=tmp_path, path=package) == "peak fading 4"


def test_help_imports_no_installed_package(tmp_path: Path, package: Path) -> None:
    code = (
        "import sys\n"
        "from ssmprune_search.cli import app\n"
        "for argument in ('--help', 'search'):\n"
        "    try: app([argument])\n"
        "    except SystemExit: pass\n"
        "print('loaded:', 'my_package' in sys.modules, 'torch' in sys.modules)"
    )
    assert told("-c", code, folder=tmp_path, path=package).endswith("loaded: False False")


@pytest.mark.slow
def test_models_of_an_installed_package_are_listed_profiled_and_recorded(
    tmp_path: Path, package: Path
) -> None:
    code = (
        "from ssmprune_search.cli import app\n"
        "for call in (['models', 'front*'],\n"
        "             ['profile', '--model', 'front_vim_nano', '--batch-size', '1']):\n"
        "    try: app(call)\n"
        "    except SystemExit as end: assert not end.code\n"
        "from ssmprune.extensions import installed_versions\n"
        "print(installed_versions())"
    )
    shown = told("-c", code, folder=tmp_path, path=package)
    assert "front_vim_nano" in shown
    assert "leaving the model 65" in shown
    assert shown.endswith("{'my-package': '1.0'}")


@pytest.mark.slow
def test_a_broken_package_is_told_with_its_entry_point_and_cause(
    tmp_path: Path, policy: Path
) -> None:
    site = install(
        tmp_path / "site", scorers="import nothing_like_this", models="def oops(:\n    pass\n"
    )
    done = python(
        "-m", "ssmprune_search", "profile", "--model", "vim_none", folder=tmp_path, path=site
    )
    refused(
        done,
        1,
        "my_package.scorers, the entry point 'scorers' of the package my-package, ends with "
        "ModuleNotFoundError: No module named 'nothing_like_this' "
        f"({site}/my_package/scorers.py, line 1); mend or uninstall the package.",
        "my_package.models, the entry point 'models'",
        "SyntaxError",
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", ["mine/my_scorers.py", "my_scorers"])
def test_import_makes_names_known_to_a_command(tmp_path: Path, policy: Path, module: str) -> None:
    write_module(tmp_path / "mine" / "my_scorers.py", SCORERS)
    for command in (
        ("profile", "--model", "vim_nano", "--batch-size", 1),
        ("eval", "--model", "vim_nano", "--data", "digits", "--split", "search"),
    ):
        call = (*command, "--policy", policy)
        refused(
            python("-m", "ssmprune_search", *call, folder=tmp_path),
            1,
            "unknown scorer 'peak' at scorer.name",
        )
        shown = told(
            "-m",
            "ssmprune_search",
            *call,
            "--import",
            module,
            folder=tmp_path,
            path=tmp_path / "mine",
        )
        assert shown


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        ("no_such_module", ("Python finds no no_such_module; give the path of its .py file",)),
        ("ssmprune.nothing", ("Python finds no ssmprune.nothing",)),
        ("my module", ("must be the name of a module or the path of a .py file, got 'my module'",)),
        ("mine/none.py", ("there is no file ", "mine/none.py; check the path")),
        ("broken.py", ("broken.py ends with ZeroDivisionError: division by zero", ", line 2)")),
        ("exits.py", ("exits.py ends with SystemExit: 3",)),
        ("asks.py", ("ends with ModuleNotFoundError: No module named 'nothing_like_this'",)),
        ("taken.py", ("a scorer's name must be new, got 'l1'; choose another name (", "line 3)")),
    ],
)
def test_an_import_that_fails_is_a_wrong_call(
    module: str, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_module(tmp_path / "broken.py", "one = 1\none / 0\n")
    write_module(tmp_path / "exits.py", "raise SystemExit(3)\n")
    write_module(tmp_path / "asks.py", "import nothing_like_this\n")
    write_module(
        tmp_path / "taken.py",
        "from ssmprune.pruning.scorers import register_scorer\n"
        "def l1(features): ...\n"
        "register_scorer('l1', flops=lambda L, E, K: 0)(l1)\n",
    )
    result = call("models", "vim_nano", "--import", module)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in " ".join(result.stderr.split())


def test_all_imports_that_fail_are_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        import_modules(["no_such_module", "nor this"])
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_is_imported_once_however_it_is_named(tmp_path: Path) -> None:
    module = write_module(tmp_path / "counted.py", "from pathlib import Path\n"
        "with (Path(__file__).parent / 'runs').open('a') as runs: runs.write('.')\n")  # fmt: skip
    import_modules(["counted.py", "./counted.py"], tmp_path)
    import_modules([str(module)])
    assert (tmp_path / "runs").read_text() == "."
    assert absolute(["counted.py", str(module), "json"], tmp_path) == (str(module), "json")


def test_a_file_that_has_failed_is_run_again_once_it_is_mended(tmp_path: Path) -> None:
    module = write_module(tmp_path / "mended.py", "1 / 0\n")
    with pytest.raises(UsageError, match="division by zero"):
        import_modules([str(module)])
    module.write_text("")
    import_modules([str(module)])


@pytest.mark.parametrize("command", ["search", "front", "export", "report", "models", "train",
                                     "eval", "profile", "tokens"])  # fmt: skip
def test_every_command_that_meets_names_takes_imports(command: str) -> None:
    assert "--import" in call(command, "--help").stdout


def test_loading_a_policy_imports_nothing_that_it_names_and_says_what_it_needs(
    tmp_path: Path,
) -> None:
    mark = tmp_path / "mark"
    module = write_module(tmp_path / "my_scorers.py", f"open({str(mark)!r}, 'w')\n")
    imports = ["nothing_like_this", str(module), "json", 3, "bad\x1b[31m"]
    text = POLICY.replace("fading", "none") + f"provenance: {{imports: {json.dumps(imports)}}}\n"
    with pytest.raises(PolicyError) as caught:
        Policy.from_yaml(text)
    assert str(caught.value) == (
        "unknown scorer 'peak' at scorer.name (policy, line 5); it was made with "
        f"`--import nothing_like_this --import {module}`: give that, or install the package."
    )
    assert not mark.exists()


def test_an_unknown_name_says_how_one_of_your_own_is_found() -> None:
    with pytest.raises(PolicyError, match=r"known: .*; a decay of your own needs `--import "):
        Policy.from_yaml("model: vim_nano\nstages: []\nalignment: {decay: qqqq}\n")
    with pytest.raises(PolicyError, match=r"did you mean l2 or l1\? A scorer of your own needs"):
        Policy.from_yaml("model: vim_nano\nstages: []\nscorer: {name: l9}\n")
    result = call("models", "nothing*")
    assert result.exit_code == 2
    assert "a model of your own needs `--import MODULE`" in " ".join(result.stderr.split())


def test_a_registry_refuses_a_taken_name_and_quotes_odd_ones() -> None:
    registry: Registry[int] = Registry("thing")
    registry.add("a; b", 1)
    registry.add("a; b", 1)
    with pytest.raises(UsageError, match="a thing's name must be new, got 'a; b'"):
        registry.add("a; b", 2)
    with pytest.raises(UsageError, match=r"unknown thing 'qqqqq'; known: 'a; b'; a thing of your"):
        registry["qqqqq"]


def test_a_scorer_with_an_odd_name_does_not_garble_its_message(tmp_path: Path) -> None:
    code = (
        "from ssmprune import Policy\n"
        "from ssmprune.errors import PolicyError\n"
        "from ssmprune.pruning.scorers import register_scorer\n"
        "register_scorer('a; b', flops=lambda L, E, K: 0, class_token=True)(lambda features: 0)\n"
        "text = '''model: plainmamba_l1\nstages: [{layer: 1, keep_ratio: 5e-1}]\n"
        "scorer: {name: \"a; b\"}\nalignment: {conv: position}\n'''\n"
        "try: Policy.from_yaml(text)\n"
        "except PolicyError as fault: print(fault)"
    )
    assert told("-c", code, folder=tmp_path).startswith(
        "scorer must do without a class token on plainmamba_l1, got 'a; b' at scorer.name "
        "(policy, line 3); use clipped_sum, "
    )
