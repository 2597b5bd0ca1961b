"""Searches whose spaces name a user's own scorers, decays and models."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssmprune.errors import SpaceError
from ssmprune_search.run.directory import RunDirectory
from tests.extension_code import MODELS, SCORERS, install, write_module
from tests.test_extensions import COMMAND, python, refused, told

SPACE = """\
schema: ssmprune.space/1
model: vim_nano
imports: [my_scorers.py]  # peak, fading
ratios: {per: layer, layers: [1, 3], low: 5e-1, step: 1e-1}
scorer: [peak]
alignment: {decay: [fading]}
"""


@pytest.fixture
def named(finished_run: Path) -> Path:
    """A finished run whose space and record name a scorer of `my_scorers.py` beside it."""
    module = write_module(finished_run.parent / "my_scorers.py", SCORERS)
    run = RunDirectory(finished_run)
    space = yaml.safe_load(run.space_path.read_text())
    run.freeze_space(yaml.safe_dump({**space, "scorer": [*space["scorer"], "peak"]}))
    info = run.info
    run.write_info({**info, "call": {**info["call"], "imports": [str(module)]}})
    return finished_run


def test_own_run_imports_what_it_was_searched_with(named: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from ssmprune_search.run.directory import RunDirectory\n"
        "print(RunDirectory(sys.argv[1]).space.scorer)"
    )
    assert "peak" in told("-c", code, named, folder=tmp_path)


@pytest.mark.slow
def test_own_run_says_where_its_module_was(named: Path, tmp_path: Path) -> None:
    module = named.parent / "my_scorers.py"
    moved = module.rename(tmp_path / "moved.py")
    call = ("front", named, "--csv")
    refused(python(*COMMAND, *call, folder=tmp_path), 1, f"no file {module}", "where it is now")
    assert "trial" in told(*COMMAND, *call, "--import", moved, folder=tmp_path)


def test_run_of_somebody_else_imports_nothing_and_says_what_it_needs(
    named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(SpaceError) as caught:
        _ = RunDirectory.open(named).space
    module = named.parent / "my_scorers.py"
    assert "unknown scorer 'peak' at scorer[2]" in str(caught.value)
    assert f"it was made with `--import {module}`: give that" in str(caught.value)


def searched(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())["call"]
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_scorer_and_decay_of_a_space_go_from_the_search_to_the_exported_policy(
    tmp_path: Path,
) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    away.mkdir()
    module = write_module(home / "my_scorers.py", SCORERS)
    write_module(home / "space.yaml", SPACE)
    search = ("search", "space.yaml", "--workers", 2, "--out", "run")
    told(*COMMAND, *search, "--trials", 4, folder=home)
    told(*COMMAND, *search, "--trials", 5, "--resume", folder=home)
    run = home / "run"
    assert searched(run)["imports"] == [str(module)]
    assert str(module) in (run / "space.yaml").read_text()
    assert "peak" in told(*COMMAND, "front", "../home/run", "--csv", folder=away)
    told(*COMMAND, "export", "../home/run", "-o", "policy.yaml", folder=away)
    policy = yaml.safe_load((away / "policy.yaml").read_text())
    assert policy["provenance"]["imports"] == [str(module)]
    assert policy["scorer"]["name"] == "peak"
    measure = ("eval", "--model", "vim_nano", "--data", "digits", "--policy", "policy.yaml")
    needs = f"it was made with `--import {module}`"
    refused(python(*COMMAND, *measure, folder=away), 1, "unknown scorer 'peak'", needs)
    shown = told(*COMMAND, *measure, "--json", "--import", "../home/my_scorers.py", folder=away)
    assert json.loads(shown)["top1"] == pytest.approx(
        policy["measured"]["holdout"]["top1"], abs=0.01
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_family_of_an_installed_package_is_searched_and_trained_by_all_workers(
    tmp_path: Path,
) -> None:
    site = install(tmp_path / "site", models=MODELS)
    module = write_module(tmp_path / "my_scorers.py", SCORERS)
    code = (
        "import torch; from ssmprune import create_model\n"
        "from safetensors.torch import save_file\n"
        "torch.manual_seed(0)\n"
        "save_file(create_model('front_vim_nano').state_dict(), 'weights.safetensors')"
    )
    told("-c", code, folder=tmp_path, path=site)
    space = SPACE.replace("vim_nano", "front_vim_nano").replace("imports:", "# imports:")
    write_module(tmp_path / "space.yaml", space.replace("[1, 3]", "[1, 2]"))
    search = ("search", "space.yaml", "--trials", 3, "--checkpoint", "weights.safetensors")
    imports = ("--import", "my_scorers.py")
    told(*COMMAND, *search, *imports, "--out", "run", folder=tmp_path, path=site)
    assert searched(tmp_path / "run")["imports"] == [str(module)]
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["versions"]["my-package"] == "1.0"
    resume = (*search[:3], 4, *search[4:], "--out", "run", "--resume")
    told(*COMMAND, *resume, folder=tmp_path, path=site)
    told(*COMMAND, "export", "run", "-o", "policy.yaml", folder=tmp_path, path=site)
    train = ("train", "--model", "front_vim_nano", "--data", "digits", "--policy", "policy.yaml")
    brief = ("--steps", 2, "--batch-size", 8, "--workers", 2, "--out", "trained", "--json")
    told(*COMMAND, *train, *brief, *imports, folder=tmp_path, path=site)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_search_whose_workers_do_not_know_a_name_says_what_they_need(tmp_path: Path) -> None:
    write_module(tmp_path / "space.yaml", SPACE.replace("imports:", "# imports:"))
    code = (
        "from ssmprune_search.run.launch import search\n"
        "from ssmprune_search.evaluation.synthetic import SyntheticEvaluators\n"
        "from ssmprune.errors import RunError\n"
        f"{SCORERS}\n"
        "try: search('space.yaml', 'run', trials=2, workers=1, progress=False,\n"
        "            evaluators=SyntheticEvaluators('vim_nano'))\n"
        "except RunError as fault: print(fault)"
    )
    shown = told("-c", code, folder=tmp_path)
    assert "the workers of a search must run, but" in shown
    assert "unknown scorer 'peak'" in shown
    assert "a scorer of your own needs `--import MODULE`" in shown
