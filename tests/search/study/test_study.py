"""A study hands out each candidate once, forgets none and takes each result once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ssmprune import Policy
from ssmprune.errors import RunError, UsageError
from ssmprune.policy import Alignment, Stage
from ssmprune_search.candidate.pareto import hypervolume, pareto_front, pruning_key
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator
from ssmprune_search.run.directory import RunDirectory, candidates
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.portfolio import ARMS
from ssmprune_search.study.proposals import Suggestion
from ssmprune_search.study.records import Counts, Owner
from ssmprune_search.study.samplers import SAMPLERS, make_sampler
from ssmprune_search.study.screening import LEARNT, SCREENED
from ssmprune_search.study.study import Study

SPACE: dict[str, Any] = {
    "schema": "ssmprune.space/1",
    "model": "vim_nano",
    "ratios": {"per": "layer", "layers": [1, 3, 5], "low": 0.5, "step": 0.05},
    "scorer": ["l1", "l2"],
}
SCHEDULES = 4  # three equal stages with 0.9, 0.8, 0.7, 0.6

PLAIN: tuple[str, ...] = ("top1", "flops")
DENSE = Policy(model="vim_nano", stages=())

evaluate = SyntheticEvaluator("vim_nano", "search")

MakeRun = Callable[..., RunDirectory]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(name: str = "run", sampler: str = "nsga2", seed: int = 0, **changes: Any):
        run = RunDirectory(tmp_path / name)
        run.freeze_space(yaml.safe_dump({**SPACE, **changes}))
        Study.create(run.journal_path, run.space)
        run.write_info({"call": {"sampler": sampler, "seed": seed}})
        return run

    return make


def worker(run: RunDirectory, number: int = 0, process: str = "p", session: str = "s") -> Study:
    return run.study(Owner(session, number, process))


def begin(run: RunDirectory, session: str = "s") -> Study:
    driver = run.study()
    driver.begin_session(session)
    return driver


def run_to(study: Study, trials: int) -> list[Suggestion]:
    done = []
    while (suggestion := study.ask(trials)) is not None:
        study.tell(suggestion.trial, evaluate(suggestion.policy))
        done.append(suggestion)
    return done


def keys(done: list[Suggestion]) -> list[Any]:
    return [pruning_key(suggestion.policy) for suggestion in done]


def test_ask_gives_the_known_schedules_first(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    done = run_to(worker(run), SCHEDULES)
    known = [policy for _, policy in SearchSpace.load(run.space_path).known_schedules()]
    assert [suggestion.policy for suggestion in done] == known
    assert [c.source for c in candidates(run.path)] == [
        "schedule:uniform@0.9",
        "schedule:uniform@0.8",
        "schedule:uniform@0.7",
        "schedule:uniform@0.6",
    ]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ask_goes_on_with_the_sampler_until_enough_are_finished(
    make_run: MakeRun, sampler: str
) -> None:
    run = make_run(sampler=sampler)
    driver = begin(run)
    done = run_to(worker(run), 11)
    assert len(done) == 11
    assert driver.counts().evaluated == 11
    sources = Counter(c.source for c in driver.candidates())
    assert sum(sources[arm] for arm in (ARMS if sampler == "auto" else (sampler,))) == 7


def test_unknown_sampler_is_refused_with_near_names() -> None:
    with pytest.raises(UsageError, match=r"unknown sampler 'nsga3'; did you mean nsga2"):
        make_sampler("nsga3", 0, 0, {}, lambda proposals: None)


def test_ask_never_gives_equal_candidates(make_run: MakeRun) -> None:
    run = make_run(
        scorer=["l1"], ratios={"per": "layer", "layers": [1, 3], "low": 0.8, "step": 0.1}
    )
    driver = begin(run)
    done = run_to(worker(run), 1000)
    assert len(keys(done)) == len(set(keys(done))) == 9  # the whole space, then it ends
    assert driver.counts().duplicate > 0


def test_duplicate_of_a_finished_candidate_is_answered_from_the_record(make_run: MakeRun) -> None:
    run = make_run(
        schedules=[
            {"name": "once", "layers": [1], "keep_ratio": [0.5]},
            {"name": "again", "stages": [{"layer": 1, "keep_ratio": 0.5}]},
        ]
    )
    driver = begin(run)
    done = run_to(worker(run), SCHEDULES + 2)
    assert driver.counts() == Counts(evaluated=SCHEDULES + 2, duplicate=1)
    assert len(set(keys(done))) == SCHEDULES + 2


def test_ask_passes_over_infeasible_proposals(make_run: MakeRun) -> None:
    run = make_run(sampler="random", limits={"flops_ratio": {"min": 0.6, "max": 0.7}})
    driver = begin(run)
    run_to(worker(run), 20)
    assert driver.counts().infeasible > 0
    assert all(0.6 <= c.search.flops_ratio <= 0.7 for c in driver.candidates())


def test_ask_ends_where_nothing_is_feasible(make_run: MakeRun) -> None:
    run = make_run(limits={"flops_ratio": {"min": 0.0, "max": 0.01}})
    driver = begin(run)
    assert worker(run).ask(10) is None
    assert driver.counts().finished == 0


def test_ask_hands_out_no_more_than_are_wanted(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    first, second = worker(run, 0), worker(run, 1)
    open_trials = [first.ask(3), second.ask(3), first.ask(3)]
    assert all(open_trials)
    assert second.ask(3) is None
    assert len({s.trial for s in open_trials if s}) == 3


def test_ask_gives_nothing_to_workers_of_another_session(make_run: MakeRun) -> None:
    run = make_run()
    begin(run, "old")
    old = worker(run, session="old")
    assert old.ask(10) is not None
    driver = begin(run, "new")
    assert old.ask(10) is None
    assert worker(run, session="new").ask(10) is not None
    driver.end_session()
    assert worker(run, session="new").ask(10) is None


def test_same_seed_gives_the_same_candidates(make_run: MakeRun) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = make_run(name, seed=seed)
        begin(run)
        found.append(keys(run_to(worker(run), 40)))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("sampler", ["nsga2", "tpe", "qmc"])
def test_resumed_search_goes_on_as_if_it_had_not_ended(make_run: MakeRun, sampler: str) -> None:
    whole, parts = make_run("whole", sampler), make_run("parts", sampler)
    begin(whole)
    expected = keys(run_to(worker(whole), 40))
    found = []
    for session, trials in (("a", 17), ("b", 40)):
        begin(parts, session)
        found += keys(run_to(worker(parts, session=session), trials))
    assert found == expected


def test_tell_counts_a_candidate_once(make_run: MakeRun) -> None:
    run = make_run()
    driver = begin(run)
    study = worker(run)
    suggestion = study.ask(1)
    assert suggestion is not None
    measurement = evaluate(suggestion.policy)
    assert study.tell(suggestion.trial, measurement)
    assert not study.tell(suggestion.trial, replace(measurement, top1=1.0))
    assert not study.fail(suggestion.trial, "too late")
    assert [c.search for c in driver.candidates()] == [measurement]


def test_figure_that_is_not_finite_is_a_failure_with_its_reason(make_run: MakeRun) -> None:
    run = make_run()
    driver = begin(run)
    study = worker(run)
    suggestion = study.ask(5)
    assert suggestion is not None
    study.tell(suggestion.trial, replace(evaluate(suggestion.policy), top1=math.nan))
    assert driver.failures() == [(suggestion.trial, "top1 must be finite, got nan")]
    assert len(run_to(study, 5)) == 4
    assert driver.counts() == Counts(evaluated=4, failed=1)


def test_measurement_comes_back_as_it_was_told(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    study = worker(run)
    suggestion = study.ask(1)
    assert suggestion is not None
    told = replace(evaluate(suggestion.policy), latency_ms=math.nan)
    study.tell(suggestion.trial, told)
    [found] = candidates(run.path)
    assert math.isnan(found.search.latency_ms)
    assert replace(found.search, latency_ms=0.0) == replace(told, latency_ms=0.0)
    assert found.policy == suggestion.policy


def test_candidates_leave_out_those_below_the_accuracy_limit(make_run: MakeRun) -> None:
    run = make_run(limits={"top1": {"min": 80.0}})
    driver = begin(run)
    run_to(worker(run), 30)
    found = candidates(run.path)
    assert 0 < len(found) < driver.counts().evaluated
    assert all(c.search.top1 >= 80.0 for c in found)


def test_candidate_of_a_dead_worker_is_queued_again_once(make_run: MakeRun) -> None:
    run = make_run()
    driver = begin(run)
    lost = worker(run, process="first").ask(1)
    assert lost is not None
    again = worker(run, process="second")
    assert again.close_lost(lambda owner: owner.process == "first") == 1
    assert driver.counts() == Counts(lost=1, waiting=SCHEDULES)
    suggestions = run_to(again, SCHEDULES)
    assert lost.policy in [suggestion.policy for suggestion in suggestions]
    assert driver.counts() == Counts(evaluated=SCHEDULES, lost=1)
    assert len(set(keys(suggestions))) == SCHEDULES


def test_candidate_keeps_its_source_when_it_is_queued_again(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    run_to(worker(run), SCHEDULES)
    assert worker(run, process="first").ask(SCHEDULES + 1) is not None
    again = worker(run, process="second")
    again.close_lost(lambda owner: owner.process == "first")
    run_to(again, SCHEDULES + 1)
    assert candidates(run.path)[-1].source == "nsga2"


def test_live_workers_keep_their_candidates(make_run: MakeRun) -> None:
    run = make_run()
    driver = begin(run)
    suggestion = worker(run, 0).ask(1)
    assert suggestion is not None
    other = worker(run, 1)
    assert other.close_lost(lambda owner: owner.worker == 1) == 0
    assert driver.counts().running == 1


def test_late_result_of_a_worker_taken_for_dead_does_not_count(make_run: MakeRun) -> None:
    run = make_run()
    driver = begin(run)
    slow = worker(run, process="slow")
    suggestion = slow.ask(1)
    assert suggestion is not None
    driver.close_lost(lambda owner: True)
    assert not slow.tell(suggestion.trial, evaluate(suggestion.policy))
    assert driver.counts().evaluated == 0
    assert [s.policy for s in run_to(worker(run), 4)].count(suggestion.policy) == 1


def test_candidate_that_kills_its_workers_fails_with_its_reason(make_run: MakeRun) -> None:
    run = make_run(scorer=["l1"], ratios={"per": "layer", "layers": [1], "low": 0.9, "step": 0.1})
    driver = begin(run)
    policies = []
    for process in ("first", "second"):
        suggestion = worker(run, process=process).ask(1)
        assert suggestion is not None
        policies.append(suggestion.policy)
        driver.begin(suggestion.trial)
        driver.close_lost(lambda owner: True)
    assert policies[0] == policies[1]
    assert driver.counts() == Counts(failed=1, lost=1)
    assert driver.failures()[0][1] == "its worker died in 2 evaluations"
    assert worker(run).ask(2).policy != policies[0]  # type: ignore[union-attr]


def test_begin_session_queues_what_a_dead_driver_left(make_run: MakeRun) -> None:
    run = make_run()
    begin(run, "old")
    for number in range(2):
        assert worker(run, number, session="old").ask(10) is not None
    assert run.study().begin_session("new") == 2
    done = run_to(worker(run, session="new"), 10)
    assert len(done) == len(set(keys(done))) == 10
    assert run.study().counts() == Counts(evaluated=10, lost=2, duplicate=0)


def test_worker_that_died_while_it_asked_loses_no_schedule(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    driver = begin(run)
    study = worker(run)

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(SearchSpace, "infeasible", die)
        study.ask(SCHEDULES)
    driver.close_lost(lambda owner: False)
    done = run_to(worker(run), SCHEDULES)
    assert len(set(keys(done))) == SCHEDULES
    assert driver.counts() == Counts(evaluated=SCHEDULES, lost=1)


def test_holdout_figures_are_kept_with_their_candidate(make_run: MakeRun) -> None:
    run = make_run()
    driver = begin(run)
    run_to(worker(run), 3)
    figures = replace(evaluate(driver.candidates()[1].policy), split="holdout")
    driver.set_holdout(driver.candidates()[1].trial, figures)
    assert [c.holdout for c in candidates(run.path)] == [None, figures, None]


def test_reading_candidates_changes_no_file(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    run_to(worker(run), 3)
    times = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    assert len(candidates(run.path)) == 3
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == times


def test_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no directory"):
        candidates(tmp_path / "none")
    with pytest.raises(RunError, match=r"no space\.yaml and no run\.json and no study\.journal"):
        candidates(tmp_path)


@pytest.mark.parametrize("text", ["", "nonsense\n{}\n", "{}\n{}\n"])
def test_journal_that_holds_no_study_is_refused(make_run: MakeRun, text: str) -> None:
    run = make_run()
    run.journal_path.write_text(text)
    with pytest.raises(RunError, match=r"study\.journal"):
        candidates(run.path)


def finish(study: Study, lost: bool, images: int = 8) -> int:
    """Evaluate the next candidate; it gets every image right, or none and stops after four."""
    suggestion = study.ask(1000)
    assert suggestion is not None
    race = study.race(DENSE)
    race.scores, race.is_lost = np.full(4 if lost else images, not lost), lost
    figures = replace(evaluate(suggestion.policy), images=len(race.scores))
    assert study.tell(suggestion.trial, figures, race)
    return suggestion.trial


def test_stopped_candidate_counts_but_is_none_of_the_candidates(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    study = worker(run)
    assert study.race(DENSE).incumbent is None
    full = finish(study, lost=False)
    stopped = finish(study, lost=True)
    assert study.counts() == Counts(evaluated=1, stopped=1, waiting=SCHEDULES - 2)
    assert study.counts().finished == 2
    assert [candidate.trial for candidate in study.candidates()] == [full]
    incumbent = worker(run, 1).race(DENSE).incumbent
    assert incumbent is not None and incumbent.trial == full != stopped
    assert incumbent.scores.tolist() == [True] * 8
    assert incumbent.search == study.candidates()[0].search


def pause(study: Study, images: int = 4) -> int:
    """Let the next candidate pause; it gets every image right."""
    suggestion = study.ask(1000)
    assert suggestion is not None
    race = study.race(suggestion.policy)
    race.scores, race.is_paused = np.full(images, True), True
    assert study.tell(suggestion.trial, evaluate(suggestion.policy), race)
    return suggestion.trial


def test_candidates_that_pause_go_on_before_the_search_ends(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    study = worker(run)
    full = finish(study, lost=False)
    waiting = [pause(study) for _ in range(SCHEDULES - 1)]
    assert study.counts() == Counts(evaluated=1, paused=len(waiting))
    assert [candidate.trial for candidate in study.candidates()] == [full]
    policies = {repr(study.trials()[n].user_attrs["candidate"]["policy"]) for n in waiting}
    for left in range(len(waiting) - 1, -1, -1):
        suggestion = study.ask(SCHEDULES)
        assert suggestion is not None
        trial = study.trials()[suggestion.trial]
        assert repr(trial.user_attrs["candidate"]["policy"]) in policies
        assert trial.user_attrs["source"].startswith("schedule:")
        race = worker(run, 1).race(suggestion.policy)
        assert race.known.tolist() == [True] * 4
        assert study.counts() == Counts(evaluated=SCHEDULES - 1 - left, paused=left, running=1)
        race.scores = np.full(8, True)
        assert study.tell(suggestion.trial, evaluate(suggestion.policy), race)
    assert study.ask(SCHEDULES) is None
    assert study.counts() == Counts(evaluated=SCHEDULES)
    assert len({repr(candidate.policy) for candidate in study.candidates()}) == SCHEDULES


def test_one_in_so_many_that_pause_goes_on_at_once(make_run: MakeRun) -> None:
    run = make_run()
    begin(run)
    study = worker(run)
    finish(study, lost=False)
    for _ in range(SCREENED):
        pause(study)
    suggestion = study.ask(1000)
    assert suggestion is not None
    assert "resumes" in study.trials()[suggestion.trial].user_attrs
    pause(study)
    assert study.counts().paused == SCREENED  # one of SCREENED + 1 is running


def test_candidates_that_pause_go_before_a_queue_for_which_no_trials_are_left(
    make_run: MakeRun,
) -> None:
    run = make_run()
    begin(run)
    study = worker(run)
    finish(study, lost=False)
    for _ in range(2):
        pause(study)
    for _ in range(2):
        suggestion = study.ask(SCHEDULES - 1)
        assert suggestion is not None
        assert len(study.race(suggestion.policy).known) == 4
        assert study.tell(suggestion.trial, evaluate(suggestion.policy))
    assert study.ask(SCHEDULES - 1) is None
    assert study.counts() == Counts(evaluated=SCHEDULES - 1, waiting=1)


def test_candidate_goes_on_again_after_its_worker_died(make_run: MakeRun) -> None:
    run = make_run()
    driver = begin(run)
    study = worker(run)
    finish(study, lost=False)
    for _ in range(SCHEDULES - 1):
        pause(study)
    lost = study.ask(SCHEDULES)
    assert lost is not None
    assert driver.close_lost(lambda owner: True) == 1
    paused = SCHEDULES - 2
    assert study.counts() == Counts(evaluated=1, paused=paused, waiting=1, lost=1)
    again = study.ask(SCHEDULES)
    assert again is not None and again.policy == lost.policy
    assert study.race(again.policy).known.tolist() == [True] * 4
    assert study.counts() == Counts(evaluated=1, paused=paused, running=1, lost=1)


def test_candidate_that_went_on_keeps_its_images_when_its_worker_dies(make_run: MakeRun) -> None:
    run = make_run(sampler="random")
    driver = begin(run)
    study = worker(run)
    for _ in range(LEARNT):
        finish(study, lost=False)
    suggestion = study.ask(LEARNT + SCREENED, True)
    assert suggestion is not None
    suggestion.race.scores, suggestion.race.is_paused = np.full(4, True), True
    assert study.tell(suggestion.trial, evaluate(suggestion.policy), suggestion.race)
    lost = study.ask(LEARNT + SCREENED, True)
    while lost is not None and not len(lost.race.known):
        lost.race.scores = np.full(8, True)
        assert study.tell(lost.trial, evaluate(lost.policy), lost.race)
        lost = study.ask(LEARNT + SCREENED, True)
    assert lost is not None and lost.policy == suggestion.policy
    assert driver.close_lost(lambda owner: True) == 1
    again = study.ask(LEARNT + SCREENED, True)
    assert again is not None and again.policy == suggestion.policy
    assert again.race.known.tolist() == [True] * 4


def test_incumbent_keeps_to_the_accuracy_limit(make_run: MakeRun) -> None:
    run = make_run(limits={"top1": {"min": 99.9}})
    begin(run)
    study = worker(run)
    finish(study, lost=False)
    assert study.race(DENSE).incumbent is None


def test_duplicate_of_a_stopped_candidate_is_answered_from_the_record(make_run: MakeRun) -> None:
    run = make_run(
        schedules=[
            {"name": "once", "layers": [1], "keep_ratio": [0.5]},
            {"name": "again", "stages": [{"layer": 1, "keep_ratio": 0.5}]},
        ]
    )
    begin(run)
    study = worker(run)
    for _ in range(SCHEDULES):
        finish(study, lost=False)
    finish(study, lost=True)
    finish(study, lost=False)
    assert study.counts() == Counts(evaluated=SCHEDULES + 1, stopped=1, duplicate=1)


def test_warm_policies_come_after_the_schedules(make_run: MakeRun) -> None:
    run = make_run()
    policy = run.space.normalise([Stage(layer=3, keep_ratio=0.55)], "l2", Alignment())
    run.journal_path.unlink()
    Study.create(run.journal_path, run.space, [("other@3", policy)])
    begin(run)
    done = run_to(worker(run), SCHEDULES + 1)
    assert done[-1].policy == policy
    assert candidates(run.path)[-1].source == "warm:other@3"


def test_ehvi_finds_a_better_front_than_random_proposals(make_run: MakeRun) -> None:
    """Every proposal is new and feasible, and far more hypervolume is found than by chance."""
    found = {}
    for sampler in ("ehvi", "random"):
        run = make_run(sampler, sampler, scorer=["l1", "l2", "sum"])
        driver = begin(run)
        run_to(worker(run), 60)
        assert driver.counts().evaluated == 60
        if sampler == "ehvi":
            assert not driver.counts().duplicate
        members = pareto_front(driver.candidates(), PLAIN)
        reference = {"top1": 0.0, "flops": float(run.space.dense_flops)}
        found[sampler] = hypervolume(members, PLAIN, reference)
    assert found["ehvi"] > 1.02 * found["random"]


def test_candidates_wait_for_their_first_image_once_enough_is_known(make_run: MakeRun) -> None:
    """For every `SCREENED` that wait the most promising goes on, and at last they all do."""
    run = make_run(sampler="random")
    begin(run)
    study = worker(run)
    for _ in range(LEARNT):
        finish(study, lost=False)
    suggestion = study.ask(30, True)
    assert suggestion is not None
    assert study.counts() == Counts(evaluated=LEARNT, paused=SCREENED - 1, running=1)
    race = suggestion.race
    assert race.pauses and not len(race.known)
    trials = study.trials()
    resumed = trials[trials[suggestion.trial].user_attrs["resumes"]]
    incumbent = race.incumbent
    assert incumbent is not None and resumed.values[0] <= incumbent.search.top1
    while suggestion is not None:
        suggestion.race.scores = np.full(8, True)
        assert study.tell(suggestion.trial, evaluate(suggestion.policy), suggestion.race)
        suggestion = study.ask(30, True)
    assert study.counts().finished == 30 and not study.counts().paused


def test_search_without_early_stopping_screens_nothing(make_run: MakeRun) -> None:
    run = make_run(sampler="random")
    begin(run)
    study = worker(run)
    run_to(study, LEARNT + 2 * SCREENED)
    assert study.counts() == Counts(evaluated=LEARNT + 2 * SCREENED)
