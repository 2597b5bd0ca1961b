from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import ssmprune_search.results.recovery
from ssmprune.errors import RunError, UsageError
from ssmprune.measure.accuracy import Accuracy
from ssmprune.training import TrainResult
from ssmprune_search.candidate.objective import TOP1
from ssmprune_search.cli import app
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.results.recovery import Recovered, Recovery, recover
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.study.storage import Database, move, without_password

MEMBER = Recovered(
    trial=3,
    tokens="1:32",
    flops_ratio=0.6,
    before=(80.0, 78.0, 82.0),
    after=(90.0, 88.0, 92.0),
    images=1456,
    checkpoint="recovery/trial-3/model.safetensors",
)


def members(*pairs: tuple[float, float]) -> list[Recovered]:
    return [
        replace(MEMBER, trial=trial, before=(before, 0.0, 100.0), after=(after, 0.0, 100.0))
        for trial, (before, after) in enumerate(pairs)
    ]


def test_rank_correlation_is_kendalls() -> None:
    # of the six pairs five keep their order and one turns round
    found = Recovery.of(TOP1, 1.0, members((70, 80), (75, 79), (80, 90), (90, 95)))
    assert found.kendall == pytest.approx((5 - 1) / 6)
    assert 0 < (found.p_value or 0) < 1


@pytest.mark.parametrize("pairs", [[(70, 80)], [(70, 80), (70, 90)], [(60, 80), (70, 80)]])
def test_there_is_no_rank_correlation_of_equals(pairs: list[tuple[float, float]]) -> None:
    found = Recovery.of(TOP1, 1.0, members(*pairs))
    assert found.kendall is None
    assert "no rank correlation" in found.summary()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the training loop, which returns at once: member n gains n points."""
    calls: list[dict[str, Any]] = []

    def train(model: str, data: str, out: Path, settings: Any, **more: Any) -> TrainResult:
        calls.append({"model": model, "data": data, "out": out, "settings": settings, **more})
        before = Accuracy(60.0 + len(calls), 90.0, 1456, 58.0, 63.0)
        after = Accuracy(before.top1 + len(calls), 99.0, 1456, 85.0, 95.0)
        return TrainResult(out / "model.safetensors", after, before, 1.0)

    monkeypatch.setattr(ssmprune_search.results.recovery, "train", train)
    return calls


def test_every_member_is_tuned_under_its_policy_and_written_down(
    finished_run: Path, trained: list[dict[str, Any]], weights: Path
) -> None:
    found = recover(finished_run, 0.5, checkpoint=weights)
    front = Outcome.read(finished_run).members
    assert [c["policy"] for c in trained] == [member.policy for member in front]
    assert {c["init"] for c in trained} == {weights}
    assert {(c["checkpoint_key"], c["num_classes"]) for c in trained} == {(None, 10)}
    assert {(c["settings"].epochs, c["settings"].distill) for c in trained} == {(0.5, 0.5)}
    assert len({c["out"] for c in trained}) == len(front)
    data = json.loads((finished_run / "recovery.json").read_text())
    with (finished_run / "recovery.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert data["schema"] == "ssmprune.recovery/1"
    assert data["kendall"] == found.kendall == pytest.approx(1.0)
    assert [member["trial"] for member in data["members"]] == [m.trial for m in front]
    assert [float(r["after_top1"]) - float(r["before_top1"]) for r in rows] == pytest.approx(
        range(1, len(front) + 1)
    )


@pytest.mark.slow
def test_recovery_reaches_a_database_with_its_password(
    finished_run: Path, trained: list[dict[str, Any]], weights: Path, postgres: Any
) -> None:
    run = RunDirectory.open(finished_run)
    place = Database(postgres.url, "study")
    move(run.place, place)
    storage = {"url": without_password(place.url), "study": place.study}
    run.write_info({**run.info, "storage": storage})
    with pytest.raises(RunError, match="give the password"):
        recover(finished_run, 0.5, checkpoint=weights)
    assert len(recover(finished_run, 0.5, checkpoint=weights, storage=postgres.url).members) > 1


EPOCHS_THAT_ARE_NONE = pytest.mark.parametrize("epochs", [-1.0, 0.0, 1e300, math.inf, math.nan])


@EPOCHS_THAT_ARE_NONE
def test_recovery_needs_epochs(epochs: float, finished_run: Path, weights: Path) -> None:
    with pytest.raises(UsageError, match="epochs above 0 and up to 1000000, got"):
        recover(finished_run, epochs, checkpoint=weights)


@EPOCHS_THAT_ARE_NONE
def test_search_refuses_to_recover_for_no_epochs(epochs: float, tmp_path: Path) -> None:
    space = Path(__file__).parents[3] / "spaces" / "vim_nano.yaml"
    call = ["search", str(space), "--out", str(tmp_path / "run"), "--recover", str(epochs)]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 2
    assert "--recover must be epochs above 0" in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_and_recover_from_start_to_end(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "schema: ssmprune.space/1\nmodel: vim_nano\n"
        "ratios: {per: layer, layers: [1], low: 0.5, step: 0.25}\nscorer: [l1]\n"
        "objectives: [top1, flops]\n"
    )
    threads = torch.get_num_threads()
    call = ["search", str(space), "--out", str(tmp_path / "run"), "--trials", "2"]
    result = CliRunner().invoke(app, [*call, "--workers", "1", "--recover", "0.1"])
    assert result.exit_code == 0, result.output
    assert "rank correlation" in result.stdout
    data = json.loads((tmp_path / "run" / "recovery.json").read_text())
    assert all((tmp_path / "run" / m["checkpoint"]).is_file() for m in data["members"])
    assert torch.get_num_threads() == threads
