"""The loop of one worker: ask, evaluate, tell, until the search is done."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.evaluation.out_of_memory import Sparing
from ssmprune_search.study.proposals import Suggestion
from ssmprune_search.study.records import Owner
from ssmprune_search.study.study import Study

if TYPE_CHECKING:  # brings torch, which an evaluator may do without
    from ssmprune_search.evaluation.evaluator import Evaluator, Evaluators

REPORT_SECONDS = 60.0  # a worker waits for Tune each time, some 20 ms
WAIT_SECONDS = 0.05


@dataclass(frozen=True)
class SearchJob:
    """What all workers of a session share.

    Attributes:
        open_study: Gives a worker its view of the study.
        session: Name of the session.
        trials: Candidates that the search is to finish.
        evaluators: Model and data.
        dense: The dense model's figures by split.
        workers: Number of workers.
        threads: CPU threads of one worker.
        early_stopping: Whether candidates race, see `study.race`.
        imports: What each worker imports first, for its names.
    """

    open_study: Callable[[Owner], Study]
    session: str
    trials: int
    evaluators: Evaluators
    dense: Mapping[str, Measurement]
    workers: int
    threads: int
    early_stopping: bool = True
    imports: tuple[str, ...] = ()


def work(job: SearchJob, worker: int, report: Callable[[dict[str, int]], None]) -> None:
    """Evaluate candidates until there are no more, then this worker's share of the holdout.

    What this worker left open when it died before is queued again first.

    Args:
        job: The search.
        worker: This worker's number.
        report: Takes the number of candidates told so far, every minute and at the end.

    Raises:
        UsageError: This process does not know what the space names.
    """
    study = job.open_study(Owner(job.session, worker, uuid.uuid4().hex))
    study.space.require_names()
    study.release()
    told = _search(job, study, report)
    _measure_holdout(job, study, worker)
    report({"told": told})


def _search(job: SearchJob, study: Study, report: Callable[[dict[str, int]], None]) -> int:
    """Ask, evaluate, tell.

    Returns:
        The number of candidates told.
    """
    evaluate = Sparing(job.evaluators, "search", job.threads, job.dense["search"])
    told, reported = 0, time.monotonic()
    while (suggestion := _next(study, job)) is not None:
        _settle(study, suggestion, evaluate)
        told += 1
        if time.monotonic() - reported >= REPORT_SECONDS:
            report({"told": told})
            reported = time.monotonic()
    return told


def _next(study: Study, job: SearchJob) -> Suggestion | None:
    """The next candidate; waits for those of others, which come back if their worker dies."""
    ask = partial(study.ask, job.trials, job.early_stopping)
    while (suggestion := ask()) is None:
        if not study.in_session or not study.counts().running:
            return ask()  # one may have come into the queue since
        time.sleep(WAIT_SECONDS)
    return suggestion


def _measure_holdout(job: SearchJob, study: Study, worker: int) -> None:
    """Measure members of the front once more, on images that no decision saw."""
    members = pareto_front(study.candidates(), study.space.objectives)[worker :: job.workers]
    members = [member for member in members if member.holdout is None]
    if members and study.in_session:
        evaluate = Sparing(job.evaluators, "holdout", job.threads, job.dense["holdout"])
        for member in members:
            if study.in_session:
                study.set_holdout(member.trial, evaluate(member.policy))


def _settle(study: Study, suggestion: Suggestion, evaluate: Evaluator) -> None:
    """Evaluate a candidate and tell the study; whatever goes wrong with it ends only it."""
    study.begin(suggestion.trial)
    try:
        measurement = evaluate(suggestion.policy, suggestion.race)
    except Exception as fault:  # noqa: BLE001 - recorded with its reason; the search goes on
        study.fail(suggestion.trial, f"{type(fault).__name__}: {fault}")
    else:
        study.tell(suggestion.trial, measurement, suggestion.race)
