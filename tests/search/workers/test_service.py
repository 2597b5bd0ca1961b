"""A study that is lent loses nothing: not with its workers, not with its storage."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from ssmprune import Policy
from ssmprune.errors import RunError
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.study import storage
from ssmprune_search.study.proposals import Proposals, Suggestion
from ssmprune_search.study.records import Owner
from ssmprune_search.study.study import Study
from ssmprune_search.workers.loop import SearchJob, work
from ssmprune_search.workers.service import StudyClosed, StudyService

SPACE = """
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [1, 3, 5], low: 0.5, step: 0.05}
scorer: [l1, l2]
"""

SCHEDULES = 4  # three equal stages with 0.9, 0.8, 0.7, 0.6

evaluate = SyntheticEvaluator("vim_nano", "search")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.freeze_space(SPACE)
    Study.create(run.journal_path, run.space)
    run.write_info({"call": {"sampler": "nsga2", "seed": 0}})
    run.study().begin_session("s")
    return run


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def service(run: RunDirectory, said: list[str]) -> Iterator[StudyService]:
    with StudyService(run.study(), "127.0.0.1", said.append) as service:
        yield service


def worker(service: StudyService, number: int, process: str = "p") -> Study:
    return service.address.open(Owner("s", number, process))


def tell(study: Study, suggestion: Suggestion | None) -> None:
    assert suggestion is not None
    study.tell(suggestion.trial, evaluate(suggestion.policy))


def test_workers_search_and_measure_the_holdout_over_their_connections(
    run: RunDirectory, service: StudyService
) -> None:
    dense = evaluate(Policy(model="vim_nano", stages=()))
    job = SearchJob(
        service.address.open,
        "s",
        40,
        SyntheticEvaluators("vim_nano"),
        {"search": dense, "holdout": dense},
        workers=4,
        threads=1,
    )
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda number: work(job, number, lambda _: None), range(4)))
    study = run.study()
    assert study.counts().evaluated == 40
    members = pareto_front(study.candidates(), study.space.objectives)
    assert sum(m.holdout is not None for m in members) >= len(members) // 4


def test_candidate_of_a_connection_that_ended_goes_to_a_worker_that_waits(
    service: StudyService,
) -> None:
    first, second = worker(service, 0, "first"), worker(service, 1, "second")
    for _ in range(SCHEDULES):
        tell(first, first.ask(SCHEDULES))
    lost = first.ask(SCHEDULES + 1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(second.ask, SCHEDULES + 1)
        wait_until(lambda: is_waiting(service))
        del first
        found = waiting.result(timeout=30)
    assert lost is not None and found is not None
    assert found.policy == lost.policy and found.trial != lost.trial
    tell(second, found)
    assert service.use(Study.counts).lost == 1
    assert service.use(Study.counts).evaluated == SCHEDULES + 1


def test_nothing_is_leased_to_a_worker_that_died_while_it_waited(service: StudyService) -> None:
    first = worker(service, 0, "first")
    held = first.ask(1)
    with ThreadPoolExecutor() as pool:
        for number in (1, 2, 3):
            second = worker(service, number, "waits")
            waiting = pool.submit(second.ask, 1)
            wait_until(lambda: is_waiting(service))
            shut_down(second)
            with pytest.raises((EOFError, OSError)):
                waiting.result(timeout=30)
        again = worker(service, 0, "again")
        assert again.release() == 1  # wakes those that wait
        wait_until(lambda: not is_waiting(service))
    assert held is not None
    tell(again, again.ask(1))
    counts = service.use(Study.counts)
    assert (counts.evaluated, counts.lost, counts.failed) == (1, 1, 0)


def test_only_evaluations_that_began_count_as_attempts(service: StudyService) -> None:
    for number in range(6):
        dies = worker(service, number)
        assert dies.ask(1) is not None
        del dies
        wait_until(lambda number=number: service.use(Study.counts).lost == number + 1)
    for number in range(6, 6 + SCHEDULES + 1):
        dies = worker(service, number)
        suggestion = dies.ask(1)
        assert suggestion is not None
        dies.begin(suggestion.trial)
        assert dies.counts().running == 1  # what was said before has been heard
        del dies
        wait_until(lambda: service.use(Study.counts).running == 0)
    reasons = [reason for _, reason in service.use(Study.failures)]
    assert reasons == ["its worker died in 2 evaluations"]


def test_database_that_is_away_while_a_candidate_is_leased_costs_no_attempt(
    service: StudyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, failures = worker(service, 0), iter([True] * 5)
    lease = Proposals._lease

    def flaky(self: Proposals, *arguments: Any) -> Suggestion | None:
        suggestion = lease(self, *arguments)
        if next(failures, False):
            raise OperationalError("UPDATE", {}, Exception("server closed the connection"))
        return suggestion

    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    monkeypatch.setattr(Proposals, "_lease", flaky)
    tell(study, study.ask(1))
    counts = service.use(Study.counts)
    assert (counts.evaluated, counts.failed, counts.lost) == (1, 0, 5)


def test_client_that_says_nothing_is_left_and_the_others_are_served(
    service: StudyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssmprune_search.workers.service._HANDSHAKE_SECONDS", 1)
    address = service.address
    with socket.create_connection((address.host, address.port), timeout=30) as silent:
        assert worker(service, 0).ask(1) is not None
        while silent.recv(1024):  # the challenge, then the end
            pass


def test_restarted_worker_takes_over_what_its_silent_predecessor_held(
    service: StudyService,
) -> None:
    predecessor, again = worker(service, 0, "first"), worker(service, 0, "second")
    lost = predecessor.ask(1)
    assert again.release() == 1
    tell(again, again.ask(1))
    tell(predecessor, lost)  # too late
    assert service.use(Study.counts).evaluated == 1


@pytest.mark.parametrize("end", ["told", "session"])
def test_worker_that_waits_is_told_when_nothing_more_can_come(
    service: StudyService, end: str
) -> None:
    first, second = worker(service, 0, "first"), worker(service, 1, "second")
    last = first.ask(1)
    with ThreadPoolExecutor() as pool:
        waiting: Future[Suggestion | None] = pool.submit(second.ask, 1)
        wait_until(lambda: is_waiting(service))
        if end == "told":
            tell(first, last)
        else:
            service.end_session()
        assert waiting.result(timeout=30) is None


def test_properties_and_faults_come_over_the_connection(
    run: RunDirectory, service: StudyService
) -> None:
    study = worker(service, 0)
    assert study.space == run.space
    assert study.in_session is True
    with pytest.raises(KeyError):
        study.tell(999, evaluate(Policy(model="vim_nano", stages=())))
    assert study.counts().evaluated == 0


def test_message_after_one_without_an_answer_is_not_held_back(
    service: StudyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def remember(*arguments: Any, **settings: Any) -> Any:
        opened.append(Client(*arguments, **settings))
        return opened[-1]

    monkeypatch.setattr("ssmprune_search.workers.service.Client", remember)
    worker(service, 0)
    with socket.socket(fileno=os.dup(opened[0].fileno())) as same:
        assert same.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_stranger_is_refused_and_the_others_are_served(service: StudyService) -> None:
    address = service.address
    with pytest.raises((AuthenticationError, EOFError, ConnectionError)):
        Client((address.host, address.port), authkey=b"guessed").recv()
    assert worker(service, 0).ask(1) is not None
    assert "key" not in repr(address)


def test_full_disk_ends_the_search_and_loses_nothing_that_was_told(
    run: RunDirectory, service: StudyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = worker(service, 0)
    for _ in range(6):
        tell(study, study.ask(20))
    last = study.ask(20)
    with monkeypatch.context() as patch:
        patch.setattr("ssmprune_search.study.journal.os.write", refuse)
        with pytest.raises(StudyClosed):
            tell(study, last)
    assert "No space left on device; make room, and go on with --resume" in str(service.fault)
    with pytest.raises(StudyClosed):
        study.ask(20)
    with pytest.raises(RunError, match="No space left"):
        service.use(Study.counts)
    again = run.study(Owner("again", 0, "p"))
    assert again.counts().evaluated == 6
    assert again.begin_session("again") == 1
    while suggestion := again.ask(20):
        tell(again, suggestion)
    assert (again.counts().evaluated, again.counts().lost) == (20, 1)


def test_what_was_told_goes_to_the_disk_while_the_study_is_used(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, synced = threading.Event(), []

    def sync(handle: int) -> None:
        assert slow.wait(timeout=30)
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr("ssmprune_search.study.journal.os.fsync", sync)
    run.study().begin_session("s")
    with StudyService(run.study(), "127.0.0.1", print) as service:
        study = worker(service, 0)
        for _ in range(5):  # none of which waits for the disk
            tell(study, study.ask(20))
        slow.set()
    assert synced[-1] == run.journal_path.stat().st_size


def test_disk_that_fails_afterwards_ends_the_search(
    service: StudyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssmprune_search.study.journal.os.fsync", refuse)
    study = worker(service, 0)
    tell(study, study.ask(20))
    wait_until(lambda: service.fault is not None)
    assert "No space left on device; make room" in str(service.fault)
    with pytest.raises(StudyClosed):
        study.ask(20)


def refuse(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_closed_service_writes_nothing_more(run: RunDirectory) -> None:
    with StudyService(run.study(), "127.0.0.1", print) as service:
        study = worker(service, 0)
        open_trial = study.ask(5)
    journal = run.journal_path.read_bytes()
    with pytest.raises((StudyClosed, EOFError, ConnectionError)):
        tell(study, open_trial)
    del study
    assert run.journal_path.read_bytes() == journal


def test_database_that_comes_back_costs_a_message(
    service: StudyService, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([True, True])

    def flaky(study: Study) -> int:
        if next(failures, False):
            raise OperationalError("SELECT", {}, Exception("server closed the connection"))
        return study.counts().waiting

    waiting = service.use(Study.counts).waiting
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    assert service.use(flaky) == waiting
    assert [line.split(":")[1].split(",")[0].strip() for line in said] == [
        "the study's database is away",
        "the study's database is back",
    ]
    assert service.fault is None


def test_database_that_stays_away_ends_the_search(
    service: StudyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_SECONDS", 0.0)

    def away(study: Study) -> None:
        raise OperationalError("SELECT", {}, Exception("no route to host"))

    with pytest.raises(RunError, match="no route to host; put it right, and go on with --resume"):
        service.use(away)
    with pytest.raises(StudyClosed):
        worker(service, 0).ask(1)


def shut_down(study: Study) -> None:
    """Cut a worker's connection, as its death does."""
    connection = study._connection  # type: ignore[attr-defined]
    with socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)


def is_waiting(service: StudyService) -> bool:
    """Whether a worker is held back until a candidate comes."""
    return service.waiting > 0


def wait_until(condition: Callable[[], bool]) -> None:
    event = threading.Event()
    while not condition():
        event.wait(0.001)
