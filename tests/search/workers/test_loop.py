"""The loop of one worker, without Ray."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssmprune import Policy
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.evaluation.evaluator import Evaluator
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune_search.run.directory import RunDirectory, candidates
from ssmprune_search.study.race import Race
from ssmprune_search.study.records import Counts
from ssmprune_search.study.study import Study
from ssmprune_search.workers import loop as worker
from ssmprune_search.workers.loop import SearchJob, work

SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [1, 3, 5], low: 0.5, step: 0.05}
scorer: [l1, l2]
"""


class Evaluators(SyntheticEvaluators):
    """Measure by `evaluate` in place of the formula."""

    def __init__(self, evaluate: Evaluator):
        super().__init__("vim_nano")
        object.__setattr__(self, "evaluate", evaluate)

    def open(self, split, threads, dense=None):
        return self.evaluate  # type: ignore[attr-defined]


free = SyntheticEvaluator("vim_nano", "search")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.freeze_space(SPACE)
    Study.create(run.journal_path, run.space)
    dense = free(Policy(model="vim_nano", stages=())).to_dict()
    run.write_info(
        {
            "call": {"sampler": "nsga2", "seed": 0, "data": "synthetic"},
            "dense": {"search": dense, "holdout": dense},
        }
    )
    run.study().begin_session("s")
    return run


def job(run: RunDirectory, evaluate: Evaluator = free) -> SearchJob:
    dense = {split: run.dense(split) for split in ("search", "holdout")}
    open_study = run.study
    return SearchJob(open_study, "s", 12, Evaluators(evaluate), dense, workers=2, threads=1)


def test_work_ends_when_enough_are_finished(run: RunDirectory) -> None:
    reports: list[dict[str, int]] = []
    work(job(run), 0, reports.append)
    assert run.study().counts().finished == 12
    assert reports == [{"told": 12}]


def test_work_reports_at_intervals(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "REPORT_SECONDS", 0.0)
    reports: list[dict[str, int]] = []
    work(job(run), 0, reports.append)
    assert [r["told"] for r in reports] == [*range(1, 13), 12]


def test_failing_evaluation_is_recorded_and_the_search_goes_on(run: RunDirectory) -> None:
    def evaluate(policy: Policy, race: Race | None = None) -> Measurement:
        if policy.scorer.name == "l2":
            raise ValueError("no l2 today")
        return free(policy)

    work(job(run, evaluate), 0, lambda _: None)
    counts = run.study().counts()
    assert counts.finished == 12
    assert counts.failed > 0
    assert {reason for _, reason in run.study().failures()} == {"ValueError: no l2 today"}


def test_nan_is_recorded_and_the_search_goes_on(run: RunDirectory) -> None:
    def evaluate(policy: Policy, race: Race | None = None) -> Measurement:
        return replace(free(policy), top1=math.nan if policy.stages[0].layer == 1 else 50.0)

    work(job(run, evaluate), 0, lambda _: None)
    counts = run.study().counts()
    assert (counts.finished, counts.failed > 0) == (12, True)


def test_restarted_worker_does_what_it_left_open(run: RunDirectory) -> None:
    def die(policy: Policy, race: Race | None = None) -> Measurement:
        raise SystemExit

    with pytest.raises(SystemExit):
        work(job(run, die), 0, lambda _: None)
    assert run.study().counts().running == 1
    work(job(run), 0, lambda _: None)
    assert run.study().counts() == replace(Counts(evaluated=12, lost=1), **_proposals(run))


def test_worker_leaves_alone_what_another_one_evaluates(run: RunDirectory) -> None:
    def die(policy: Policy, race: Race | None = None) -> Measurement:
        raise SystemExit

    with pytest.raises(SystemExit):
        work(job(run, die), 0, lambda _: None)
    other = threading.Thread(target=work, args=(job(run), 1, lambda _: None))
    other.start()
    while (counts := run.study().counts()).evaluated < 11:
        assert other.is_alive()
    assert counts.running == 1  # the other one waits for it, and takes it once it is lost
    run.study().close_lost(lambda owner: owner.worker == 0)
    other.join()
    assert run.study().counts().evaluated == 12


def test_workers_share_the_front_for_the_holdout(run: RunDirectory) -> None:
    work(job(run), 0, lambda _: None)
    members = pareto_front(candidates(run.path), ("top1", "flops"))
    assert [m.holdout is not None for m in members] == [n % 2 == 0 for n in range(len(members))]
    work(job(run), 1, lambda _: None)
    members = pareto_front(candidates(run.path), ("top1", "flops"))
    assert all(m.holdout is not None for m in members)


def racing(policy: Policy, race: Race | None = None) -> Measurement:
    """The formula on 100 images: so many right as it says, the first ones."""
    found = free(policy)
    right = np.arange(100) < round(found.top1)
    race = race or Race()
    for images in race.rungs(100):
        if race.show(
            right[:images][::-1] if policy.scorer.name == "l1" else right[:images] & False
        ):
            break
    return replace(found, top1=100.0 * race.scores.mean(), images=len(race.scores))


@pytest.mark.parametrize("early_stopping", [True, False])
def test_dominated_candidates_stop_only_where_they_race(
    run: RunDirectory, early_stopping: bool
) -> None:
    work(replace(job(run, racing), early_stopping=early_stopping), 0, lambda _: None)
    counts = run.study().counts()
    assert counts.finished == 12
    assert (counts.stopped > 0) == early_stopping
    images = {candidate.search.images for candidate in run.study().candidates()}
    assert images == {100}


def _proposals(run: RunDirectory) -> dict[str, int]:
    counts = run.study().counts()
    return {"duplicate": counts.duplicate, "infeasible": counts.infeasible}
