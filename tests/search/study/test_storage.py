"""A study in a database is as good as one in a journal, and moves between them whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage

from ssmprune.errors import RunError, UsageError
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator
from ssmprune_search.run.directory import RunDirectory, candidates
from ssmprune_search.study.records import Counts, Owner
from ssmprune_search.study.storage import Database, Place, Store, move, without_password
from ssmprune_search.study.study import Study

SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [1, 3, 5], low: 0.5, step: 0.05}
scorer: [l1, l2]
"""

evaluate = SyntheticEvaluator("vim_nano", "search")

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def begin(folder: Path, database: bool) -> RunDirectory:
    run = RunDirectory(folder)
    run.path.mkdir()
    run.freeze_space(SPACE)
    place: Place = run.journal_path
    if database:
        place = Database(f"sqlite:///{folder}/study.db", "some-name")
    record(run, place)
    Study.create(place, run.space)
    return RunDirectory.open(folder)


def record(run: RunDirectory, place: Place) -> None:
    storage = vars(place) if isinstance(place, Database) else None
    run.write_info({"call": {"sampler": "nsga2", "seed": 0}, "storage": storage})


def session(run: RunDirectory, name: str, process: str = "p") -> Study:
    study = run.study(Owner(name, 0, process))
    study.begin_session(name)
    return study


def run_to(study: Study, trials: int) -> None:
    while (suggestion := study.ask(trials)) is not None:
        study.tell(suggestion.trial, evaluate(suggestion.policy))


@pytest.fixture(params=["journal", "database"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[RunDirectory]:
    yield begin(tmp_path / "run", request.param == "database")


def test_search_goes_the_same_way_in_a_database_also_when_resumed(tmp_path: Path) -> None:
    journal, database = begin(tmp_path / "j", False), begin(tmp_path / "d", True)
    run_to(session(journal, "a"), 34)
    run_to(session(database, "a"), 28)
    run_to(session(database, "b"), 34)
    assert candidates(database.path) == candidates(journal.path)
    assert database.study().counts() == journal.study().counts()


def test_lost_candidate_is_queued_again_and_told_once(run: RunDirectory) -> None:
    study = session(run, "a", "first")
    lost = study.ask(5)
    assert lost is not None
    again = run.study(Owner("a", 0, "second"))
    assert again.release() == 1
    run_to(again, 5)
    assert not study.tell(lost.trial, replace(evaluate(lost.policy), top1=1.0))
    assert run.study().counts() == Counts(evaluated=5, lost=1)
    assert lost.policy in [candidate.policy for candidate in candidates(run.path)]


def test_holdout_and_failures_are_kept(run: RunDirectory) -> None:
    study = session(run, "a")
    run_to(study, 4)
    figures = replace(evaluate(study.candidates()[2].policy), split="holdout")
    study.set_holdout(study.candidates()[2].trial, figures)
    suggestion = study.ask(5)
    assert suggestion is not None
    study.fail(suggestion.trial, "no reason")
    assert [c.holdout for c in candidates(run.path)] == [None, None, figures, None]
    assert run.study().failures() == [(suggestion.trial, "no reason")]


def test_study_that_moves_there_and_back_goes_on_as_if_it_had_stayed(tmp_path: Path) -> None:
    stays, moves = begin(tmp_path / "stays", False), begin(tmp_path / "moves", False)
    run_to(session(stays, "a"), 30)
    study = session(moves, "a")
    run_to(study, 20)
    study.set_holdout(study.candidates()[0].trial, evaluate(study.candidates()[0].policy))
    before = candidates(moves.path)
    database = Database(f"sqlite:///{tmp_path}/study.db", "other-name")
    move(moves.place, database)
    record(moves, database)
    assert candidates(moves.path) == before
    run_to(session(moves, "b"), 25)
    moves.journal_path.unlink()
    move(database, moves.journal_path)
    record(moves, moves.journal_path)
    run_to(session(moves, "c"), 30)
    expected, found = candidates(stays.path), candidates(moves.path)
    assert [replace(c, holdout=None) for c in found] == expected
    assert found[0].holdout == before[0].holdout


def test_journal_is_a_study_that_optuna_loads(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", False)
    run_to(session(run, "a"), 12)
    journal = JournalStorage(optuna.storages.journal.JournalFileBackend(str(run.journal_path)))
    study = optuna.load_study(study_name="search", storage=journal)
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    found = {trial.number: trial.values for trial in complete}
    expected = {c.trial: [c.search.top1, float(c.search.flops)] for c in candidates(run.path)}
    assert {number: found[number] for number in expected} == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://me@host:5432/db"),
        ("postgresql+psycopg://me:s%40cret@host/db?x=1", "postgresql+psycopg://me@host/db?x=1"),
        ("postgresql+psycopg://host/db?password=secret", "postgresql+psycopg://host/db"),
        ("postgresql+psycopg://host/db", "postgresql+psycopg://host/db"),
        ("sqlite:////tmp/study.db", "sqlite:////tmp/study.db"),
        ("journal", "journal"),
    ],
)
def test_password_is_left_out(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("url", ["somewhere", "nosuchdb://me:secret@host/db", "http://x"])
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="--storage must be journal, or a database's URL") as fault:
        Store(Database(url, "s"))
    assert "secret" not in str(fault.value)


def test_database_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a study's database must answer, but sqlite.* does not"):
        Store(Database(f"sqlite:///{tmp_path}/no/such/folder/study.db", "s"))


def test_study_that_the_database_lacks_is_told(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", True)
    record(run, Database(f"sqlite:///{tmp_path}/run/study.db", "another"))
    with pytest.raises(RunError, match="another in sqlite"):
        run.study()
