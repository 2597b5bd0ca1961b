"""Sessions of workers: one after the other, until a search and its holdout are complete."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial

from ssmprune.errors import RunError
from ssmprune.policy import Policy
from ssmprune.tasks import task_of
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.evaluation.evaluator import Evaluators
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.run.progress import SearchProgress
from ssmprune_search.run.settings import SearchSettings
from ssmprune_search.run.status import Observer
from ssmprune_search.run.tensorboard import Board
from ssmprune_search.run.watch import Watch
from ssmprune_search.study.study import Study
from ssmprune_search.workers.cluster import Pool, Workers, measure_remotely
from ssmprune_search.workers.loop import SearchJob
from ssmprune_search.workers.service import StudyService


def run_sessions(
    run: RunDirectory,
    service: StudyService,
    evaluators: Evaluators,
    pool: Pool,
    settings: SearchSettings,
    shown: SearchProgress,
) -> bool:
    """Let workers run until the search and its holdout are complete.

    Returns:
        Whether Ctrl-C ended the search.

    Raises:
        RunError: The workers cannot work, no candidate could be evaluated, or the study's storage
            has failed.
    """
    dense = {split: run.dense(split) for split in ("search", "holdout")}
    while service.use(lambda study: _unfinished(study, settings.trials)):
        before = service.use(_done)
        job = SearchJob(
            open_study=service.address.open,
            session=uuid.uuid4().hex,
            trials=settings.trials,
            evaluators=evaluators,
            dense=dense,
            workers=pool.workers,
            threads=pool.threads,
            early_stopping=settings.early_stopping,
            imports=tuple(settings.imports),
        )
        service.use(partial(Study.begin_session, session=job.session))
        workers = Workers(job, pool, run.path / ".tune")
        observer = Observer(dense["search"], settings.trials, pool.workers)
        with Board(run.path / "tensorboard") as board:
            interrupted = Watch(service, workers, observer, shown, board).until_done()
        service.end_session()
        service.close_lost(lambda owner: True)
        if interrupted:
            return True
        if service.use(lambda study: study.exhausted):
            break
        if service.use(_done) == before:
            raise RunError(f"the workers of a search must run, but {workers.fault}.")
    if not service.use(Study.candidates):
        raise RunError(service.use(_no_candidates))
    return False


def measure_dense(
    run: RunDirectory,
    evaluators: Evaluators,
    pool: Pool,
    imports: tuple[str, ...],
    here: bool,
    say: Callable[[str], None],
) -> None:
    """Measure the dense model on both splits, unless the run has its figures.

    Args:
        imports: What makes the model known, elsewhere than here.
        here: In this process, which has everything loaded; else on Ray, in a process that leaves
            the memory of its GPU to the workers.
        say: Tells people of figures that cannot be right.
    """
    info = run.info
    dense = Policy(model=run.space.model, stages=())
    for split in ("search", "holdout"):
        if split in info["dense"]:
            continue
        if here:
            measurement = evaluators.open(split, pool.threads)(dense)
        else:
            measurement = measure_remotely(evaluators, split, pool, dense, imports)
        info["dense"][split] = measurement.to_dict()
        run.write_info(info)
    _tell_of_chance(run, say)


def _tell_of_chance(run: RunDirectory, say: Callable[[str], None]) -> None:
    config, dense = run.space.config, run.dense("search")
    metric = task_of(config).metric
    if dense.score <= metric.chance(config):
        say(
            f"search: the dense model's {metric.title.lower()}, {dense.score:.1f} %, is not above "
            "chance: classes, weights or preprocessing may not match"
        )


def _unfinished(study: Study, trials: int) -> bool:
    """Whether candidates are to be evaluated, or members of the front to be measured once more."""
    members = pareto_front(study.candidates(), study.space.objectives)
    return study.counts().finished < trials or any(m.holdout is None for m in members)


def _done(study: Study) -> int:
    """What has been done so far: candidates finished, and candidates measured once more."""
    measured = sum(candidate.holdout is not None for candidate in study.candidates())
    return study.counts().finished + measured


def _no_candidates(study: Study) -> str:
    failures = study.failures()
    if failures:
        return (
            f"a search must evaluate at least one candidate, but all {len(failures)} failed, the "
            f"first with: {failures[0][1]}."
        )
    return (
        "a search must find at least one candidate within the space's limits, but found none; "
        "widen limits or ratios in the space file."
    )
