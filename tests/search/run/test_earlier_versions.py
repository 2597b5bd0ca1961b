"""A run and a policy of version 0.1.0 as of November 2026 load, resume and report as they did."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssmprune.measure.flops import count_flops
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.results.table import to_csv
from ssmprune_search.run.directory import candidates

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORDED / "run", tmp_path / "run"))


def ssmprune(folder: Path, *words: str) -> str:
    call = [sys.executable, "-m", "ssmprune_search", *words]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_front_is_the_one_that_was_written(run: Path) -> None:
    outcome = Outcome.read(run)
    written, found = (
        list(csv.DictReader(io.StringIO(text)))
        for text in ((RECORDED / "run" / "front.csv").read_text(), to_csv(outcome.members))
    )
    assert [{key: row[key] for key in written[0]} for row in found] == written
    assert outcome.dense_holdout is not None and outcome.dense_holdout.images == 1456


def test_exported_policy_costs_what_it_did() -> None:
    policy = Policy.load(RECORDED / "policy.yaml")
    assert policy.measured is not None
    count = count_flops(find_config(policy.model), policy)
    assert count.flops == policy.measured["flops"]["policy"]
    assert count.paper_flops == policy.measured["paper_flops"]["policy"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_search_goes_on_and_is_reported(run: Path) -> None:
    before = {c.trial: c.search for c in candidates(run)}
    words = ("search", "run/space.yaml", "--out", "run", "--trials", "8", "--workers", "1")
    ssmprune(run.parent, *words, "--resume")
    after = {c.trial: c.search for c in candidates(run)}
    assert len(after) == 8 and {n: after[n] for n in before} == before
    told = ssmprune(run.parent, "report", "run")
    assert "without kept tokens" not in told
