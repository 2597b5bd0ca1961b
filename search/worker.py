"""The loop of one worker: ask, evaluate, tell, until the search is done."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from search.evaluator import Evaluator, Evaluators
from search.rundir import RunDirectory
from search.study import Owner, Study, Suggestion

REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """What all workers of a session share.

    Attributes:
        run_dir: The run's directory, reachable under this path from every worker.
        session: Name of the session.
        trials: Candidates that the search is to finish.
        evaluators: Model and data.
        threads: CPU threads of one worker.
    """

    run_dir: Path
    session: str
    trials: int
    evaluators: Evaluators
    threads: int


def work(job: Job, worker: int, report: Callable[[dict[str, int]], None]) -> None:
    """Evaluate candidates until there are no more to take.

    What this worker left open when it died before is queued again first.

    Args:
        job: The search.
        worker: This worker's number.
        report: Takes the number of candidates told so far, every few seconds and at the end.
    """
    run = RunDirectory.open(job.run_dir)
    owner = Owner(job.session, worker, uuid.uuid4().hex)
    study = Study(run, owner)
    study.close_lost(lambda other: (other.session, other.worker) == (job.session, worker))
    evaluate = job.evaluators.open("search", job.threads, run.dense("search"))
    told, reported = 0, time.monotonic()
    while (suggestion := study.ask(job.trials)) is not None:
        _settle(study, suggestion, evaluate)
        told += 1
        if time.monotonic() - reported >= REPORT_SECONDS:
            report({"told": told})
            reported = time.monotonic()
    report({"told": told})


def _settle(study: Study, suggestion: Suggestion, evaluate: Evaluator) -> None:
    """Evaluate a candidate and tell the study; whatever goes wrong with it ends only it."""
    try:
        measurement = evaluate(suggestion.policy)
    except Exception as fault:  # noqa: BLE001 - recorded with its reason; the search goes on
        study.fail(suggestion.trial, f"{type(fault).__name__}: {fault}")
    else:
        study.tell(suggestion.trial, measurement)
