"""A search from start to end: prepare, begin or go on, let workers run, tell what was found."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssmprune.data import absolute_name
from ssmprune.errors import RunError, UsageError
from ssmprune.extensions import absolute, import_modules
from ssmprune.machine import find_device
from ssmprune.policy import Policy
from ssmprune.ray_session import check_ray, running_ray
from ssmprune_search.candidate.measurement import Candidate
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.evaluation.evaluator import Evaluators, ModelEvaluators
from ssmprune_search.run.begin import begin
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.run.progress import SearchProgress
from ssmprune_search.run.resume import resume as go_on
from ssmprune_search.run.session import measure_dense, run_sessions
from ssmprune_search.run.settings import SearchSettings, find_checkpoint
from ssmprune_search.run.warm_start import warm_start
from ssmprune_search.space.file import SpaceFile
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.records import Counts
from ssmprune_search.study.storage import JOURNAL, Database, Store, absolute_url
from ssmprune_search.workers.cluster import Pool, live_nodes, own_address, share_out
from ssmprune_search.workers.service import StudyService


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    Attributes:
        counts: The run's trials, over all calls on its directory.
        front: The front's members with their figures on the search split and the holdout.
        seconds: Duration of this call.
        interrupted: Whether Ctrl-C ended the search before all trials were done.
    """

    run_dir: Path
    trials: int
    counts: Counts
    front: list[Candidate]
    seconds: float
    interrupted: bool

    @property
    def exhausted(self) -> bool:
        """Whether the search ended early because the sampler found nothing new any more."""
        return self.counts.finished < self.trials and not self.interrupted


def search(
    space: str | Path,
    run_dir: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    evaluators: Evaluators | None = None,
    **settings: Any,
) -> SearchResult:
    """Search `space` until enough candidates are finished; results go to `run_dir`.

    Ctrl-C ends the search after the candidates under way; a second one at once.

    Args:
        space: A search space file.
        run_dir: The run directory; must be new unless `resume` is given.
        resume: Go on with the run in `run_dir`.
        progress: Show live progress on standard error.
        evaluators: What measures policies, in place of a model with checkpoint and data.
        settings: Those of `SearchSettings`, of which `trials` must be given.

    Raises:
        UsageError: An argument is out of range or unknown.
        SpaceError, CheckpointError, DataError: A file is not what it has to be.
        RunError: The directory exists without `resume`, is in use, or belongs to another search.
    """
    start = time.monotonic()
    wanted = _prepare(space, run_dir, SearchSettings(**settings), resume, evaluators)
    run, asked = wanted.run, wanted.settings
    check_ray(asked.address)
    with run.lock(), _told_with_remedy(run), SearchProgress(progress) as shown:
        if resume:
            call, storage = wanted.call, asked.storage
            go_on(run, wanted.space, wanted.identity, call, storage, shown.say)
        else:
            run.refuse_existing()
        with running_ray(asked.address, asked.workers):
            pool = _share_out(asked, shown)
            if not resume:
                warm, call, identity = wanted.warm, wanted.call, wanted.identity
                begin(run, wanted.text, wanted.space, warm, identity, call, wanted.database)
            here = asked.address is None and not pool.gpus
            imports = tuple(asked.imports)
            measure_dense(run, wanted.evaluators, pool, imports, here, shown.say)
            with StudyService(run.study(), own_address(asked.address), shown.say) as service:
                interrupted = run_sessions(run, service, wanted.evaluators, pool, asked, shown)
        study = run.study()
        return SearchResult(
            run_dir=run.path,
            trials=asked.trials,
            counts=study.counts(),
            front=pareto_front(study.candidates(), wanted.space.objectives),
            seconds=time.monotonic() - start,
            interrupted=interrupted,
        )


@dataclass(frozen=True)
class _Wanted:
    """A search that has been checked, before anything is written.

    Attributes:
        run: Its directory.
        settings: What is asked for, imports by absolute paths and those of the space included.
        space: The search space, of the model with the checkpoint's classifier.
        text: The space's file.
        warm: Names and policies that are tried first.
        evaluators: What measures policies.
        identity: What the figures are of.
        call: What `run.json` keeps of the call.
        database: URL of the study's database; None for a file.
    """

    run: RunDirectory
    settings: SearchSettings
    space: SearchSpace
    text: str
    warm: list[tuple[str, Policy]]
    evaluators: Evaluators
    identity: dict[str, Any]
    call: dict[str, Any]
    database: str | None


def _prepare(
    space: str | Path,
    run_dir: str | Path,
    settings: SearchSettings,
    resume: bool,
    evaluators: Evaluators | None,
) -> _Wanted:
    """Check everything that can be checked before Ray runs; writes nothing."""
    if resume and settings.warm_start:
        raise UsageError("--warm-start must be given when a run begins, not with --resume.")
    storage = settings.storage
    if storage is not None and storage != JOURNAL:
        storage = absolute_url(storage)
    database = None if storage == JOURNAL else storage
    run = RunDirectory.open(run_dir, database) if resume else RunDirectory(run_dir, database)
    if not resume:
        run.refuse_existing()
    imports = absolute(settings.imports)
    import_modules(imports)
    if resume and not imports:
        imports = run.import_own()
    file = SpaceFile.open(space)
    imports = absolute([*imports, *file.imports])
    settings = replace(settings, storage=storage, imports=imports)
    if evaluators is None:
        if settings.address is None:  # on a cluster, Ray's resources tell later
            find_device(settings.device)
        settings = replace(settings, data=absolute_name(settings.data))
        evaluators = _evaluators(file.space, settings, run if resume else None)
    identity = evaluators.identity()
    frozen = file.space.with_classes(identity.get("num_classes"))
    warm = warm_start(settings.warm_start, frozen)
    if database is not None:
        Store(Database(database, study=""))  # whether it answers
    key = identity.get("checkpoint_key")
    call = {
        "space": str(Path(space).absolute()),
        **settings.record(),
        "checkpoint_key": key,
    }
    return _Wanted(run, settings, frozen, file.text, warm, evaluators, identity, call, database)


def _evaluators(
    space: SearchSpace, settings: SearchSettings, earlier: RunDirectory | None
) -> ModelEvaluators:
    """The model with its weights and images; weights of the key of an `earlier` call on the run."""
    key = settings.checkpoint_key
    if key is None and earlier is not None:
        key = earlier.info["identity"].get("checkpoint_key")
    return ModelEvaluators(
        model=space.model,
        checkpoint=find_checkpoint(settings.checkpoint, space.model),
        data=settings.data,
        device=settings.device,
        objectives=space.objectives,
        batch_size=settings.batch_size,
        amp=settings.amp,
        checkpoint_key=key,
    )


def _share_out(settings: SearchSettings, shown: SearchProgress) -> Pool:
    """The nodes' room for the workers."""
    workers, joining = settings.workers, settings.address is not None and settings.wait
    device, gpus = settings.device, settings.gpus_per_worker
    pool = share_out(live_nodes(), workers, device, gpus, wait=joining)
    if pool.fitting < workers:
        shown.say(
            f"search: the cluster has room for {pool.fitting} of {workers} workers; the others "
            "start when nodes join"
        )
    return pool


@contextmanager
def _told_with_remedy(run: RunDirectory) -> Iterator[None]:
    """Tell how to go on after an interrupt, and after what the disk has refused."""
    try:
        yield
    except KeyboardInterrupt:
        if run.info_path.is_file():
            raise KeyboardInterrupt("go on with --resume") from None
        raise
    except OSError as fault:
        raise RunError(
            f"a search must be able to write {run.path}, but cannot: {fault.strerror or fault}; "
            "make room, and go on with --resume."
        ) from None
