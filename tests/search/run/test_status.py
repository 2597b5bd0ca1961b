"""What people see of a search while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import TOP1
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.run import progress
from ssmprune_search.run import status as status
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.run.progress import SearchProgress
from ssmprune_search.run.status import Observer, Status, best_by_flops
from ssmprune_search.run.tensorboard import Board
from ssmprune_search.study.records import Counts
from ssmprune_search.study.study import Study

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")

STATUS = Status(
    trials=300,
    counts=Counts(evaluated=113, stopped=5, failed=2, running=2, duplicate=7, lost=1),
    workers=2,
    workers_wanted=8,
    per_second=1.5,
    hypervolume=0.61234,
    members=11,
    best=((0.5, 88.1), (0.7, 92.04)),
    score=TOP1,
)


def test_observer_sees_what_the_outcome_tells(finished_run: Path) -> None:
    outcome = Outcome.read(finished_run)
    found = Observer(outcome.dense, 40, 2).look(RunDirectory.open(finished_run).study(), 1)
    assert found.hypervolume == outcome.hypervolume()
    assert found.members == len(outcome.members)
    assert (found.counts.evaluated, found.trials) == (30, 40)
    assert math.isnan(found.per_second) and math.isnan(found.seconds_left)


def test_rate_is_that_of_the_last_minute(
    finished_run: Path, dense: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, now = RunDirectory.open(finished_run).study(), [0.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    observer = Observer(dense, 100, 2)
    found = []
    for now[0], finished in ((0, 0), (50, 10), (100, 40), (170, 40)):
        monkeypatch.setattr(Study, "counts", lambda _, n=finished: Counts(evaluated=n))
        found.append(observer.look(study, 2))
    assert math.isnan(found[0].per_second)
    assert [s.per_second for s in found[1:3]] == [10 / 50, 30 / 50]
    assert [s.seconds_left for s in found[1:3]] == [90 / 0.2, 60 / 0.6]
    assert math.isnan(found[3].seconds_left)  # it stands still


def test_best_by_flops_names_the_bands_that_do_better(
    make_candidate: Callable[..., Candidate],
) -> None:
    figures = [(0.45, 80.0), (0.5, 82.0), (0.55, 81.0), (0.95, 90.0), (1.05, 99.0)]
    found = best_by_flops(make_candidate(n, top1, flops) for n, (flops, top1) in enumerate(figures))
    assert found == ((0.5, 82.0), (1.0, 90.0))
    assert best_by_flops([]) == ()


def test_piped_progress_is_a_line_in_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with SearchProgress(True) as shown:
        for now[0] in (100.0, 109.9, 110.0, 119.9, 120.0):
            shown.show(STATUS)
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines
        == [
            "search: candidates 120/300, per second 1.50, workers 2/8, running 2, stopped early 5, "
            "cached 7, failed 2, lost and queued again 1, on the front 11, hypervolume 0.6123, "
            "best top-1 by FLOPs 88.1 at 50 %; 92.0 at 70 %, time left 2 min"
        ]
        * 2
    )


def test_a_terminal_shows_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with SearchProgress(True) as shown:
        shown.show(STATUS)
        shown.say("search: a message")
    text = capsys.readouterr().err
    for part in ("120/300", "88.1 at 50 %; 92.0 at 70 %", "0.6123", "2 min", "search: a message"):
        assert part in text


def test_nothing_is_shown_unless_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    with SearchProgress(False) as shown:
        shown.say("a message")
    assert capsys.readouterr().err == ""


def test_tensorboard_reads_the_course_of_a_search(tmp_path: Path) -> None:
    later = replace(STATUS, counts=Counts(evaluated=200), hypervolume=0.7, per_second=math.nan)
    with Board(tmp_path) as board:
        board.add(STATUS)
        board.add(replace(STATUS, hypervolume=0.1))  # nothing finished since
        board.add(later)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = [(event.step, event.value) for event in events.Scalars("front/hypervolume")]
    assert found == [(120, pytest.approx(0.61234)), (200, pytest.approx(0.7))]
    assert [e.value for e in events.Scalars("top1/flops_50_percent")] == pytest.approx([88.1] * 2)
    assert [e.step for e in events.Scalars("candidates/per_second")] == [120]
