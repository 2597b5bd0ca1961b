"""What a person is told while workers start, work and end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ssmprune_search.run import watch
from ssmprune_search.run.watch import Watch


class Service:
    """Serves a study to as many workers as are `connected` at each look."""

    def __init__(self, connected: list[int]):
        self._connected = iter(connected)
        self.connected = 0

    def advance(self) -> bool:
        """Go on to the next moment; False when there is none."""
        self.connected = next(self._connected, -1)
        return self.connected >= 0

    def use(self, question: Callable[[Any], Any]) -> Any:
        return question(None)


class Workers:
    """Workers that live for as many moments as the service has."""

    def __init__(self, service: Service):
        self._service = service

    def start(self) -> None: ...

    def is_alive(self) -> bool:
        return self._service.advance()

    def join(self, seconds: float) -> None: ...


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[list[int]], list[str]]]:
    """What is said while as many workers are connected as a list tells, all too late."""
    monkeypatch.setattr(watch, "STARTING_SECONDS", -1.0)
    monkeypatch.setattr(watch, "is_cut_off", lambda: False)
    monkeypatch.setattr(watch, "log_directory", lambda: "the logs")
    monkeypatch.setattr(watch.surrogate, "load", lambda: None)

    def run(connected: list[int]) -> list[str]:
        said: list[str] = []
        service = Service(connected)
        shown = SimpleNamespace(say=said.append, show=lambda status: None)
        observer = SimpleNamespace(look=lambda study, workers: None)
        board = SimpleNamespace(add=lambda status: None)
        parts: tuple[Any, ...] = (service, Workers(service), observer, shown, board)
        assert not Watch(*parts).until_done()
        return said

    yield run


def test_workers_that_never_begin_are_told_once(told: Callable[[list[int]], list[str]]) -> None:
    [said] = told([0, 0, 0])
    assert "no worker has begun" in said and "the logs" in said


def test_workers_that_have_begun_and_ended_are_not_missed(
    told: Callable[[list[int]], list[str]],
) -> None:
    assert told([2, 1, 0, 0]) == []
