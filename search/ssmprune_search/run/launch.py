"""A search from start to end: what is asked for, the run directory, sessions of workers."""

from __future__ import annotations

import math
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from ssmprune.bounds import MOST_IMAGES, MOST_SEED, MOST_TRIALS, MOST_WORKERS
from ssmprune.data import absolute_name
from ssmprune.devices import find_device
from ssmprune.errors import RunError, UsageError, unknown_name
from ssmprune.extensions import absolute, import_modules, installed_versions
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.policy import Policy
from ssmprune.ray_session import check_ray, log_directory, running_ray
from ssmprune_search.candidate.measurement import Candidate
from ssmprune_search.candidate.pareto import front
from ssmprune_search.evaluation.evaluator import Evaluators, ModelEvaluators
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.run.progress import SearchProgress
from ssmprune_search.run.status import Observer
from ssmprune_search.run.tensorboard import Board
from ssmprune_search.run.warm_start import warm_start as find_warm_start
from ssmprune_search.space.file import SpaceFile
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study import surrogate
from ssmprune_search.study.journal import recover
from ssmprune_search.study.records import Counts
from ssmprune_search.study.samplers import SAMPLERS
from ssmprune_search.study.storage import (
    JOURNAL,
    Database,
    Place,
    Store,
    absolute_url,
    move,
    without_password,
)
from ssmprune_search.study.study import Study
from ssmprune_search.workers.cluster import (
    Pool,
    Workers,
    is_cut_off,
    live_nodes,
    measure_remotely,
    own_address,
    share_out,
)
from ssmprune_search.workers.loop import Job
from ssmprune_search.workers.service import StudyService

POLL_SECONDS = 0.5
CHECK_SECONDS = 5.0
STARTING_SECONDS = 90.0
LOOKING_SHARE = 0.01  # of the time; nobody else uses the study meanwhile
_PACKAGES = ("ssmprune", "torch", "optuna", "ray", "numpy")


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
    trials: int,
    workers: int = 2,
    seed: int | None = None,
    sampler: str | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    data: str = "digits",
    device: str = "cpu",
    batch_size: int = 128,
    amp: bool = False,
    early_stopping: bool = True,
    warm_start: Sequence[str | Path] = (),
    gpus_per_worker: float | None = None,
    address: str | None = None,
    wait: bool = True,
    storage: str | None = None,
    imports: Sequence[str] = (),
    resume: bool = False,
    progress: bool = True,
    evaluators: Evaluators | None = None,
) -> SearchResult:
    """Search `space` until `trials` candidates are finished; results go to `run_dir`.

    Ctrl-C ends the search after the candidates under way; a second one at once.

    Args:
        space: A search space file.
        run_dir: The run directory; must be new unless `resume` is given.
        trials: Candidates to finish, those of earlier calls on this directory included.
        workers: Ray Tune workers that evaluate side by side.
        seed: Seed of the sampler; with None 0, or on resume the run's.
        sampler: auto, ehvi, tpe, nsga2, random, qmc or gp; with None tpe, or on resume the run's.
        checkpoint: Weights of the model; with None those that ship with it.
        checkpoint_key: Which weights of a file with several; with None as for `create_model`, or
            on resume the run's.
        data: Name or folder of the data set.
        device: Torch device of the workers, such as cpu or cuda.
        batch_size: Images per batch; latency is that of at most 16.
        amp: Run models under bfloat16 autocast.
        early_stopping: Stop candidates that are dominated beyond doubt, see `study.race`.
        warm_start: Runs whose fronts are tried first, of other models too, and policies by file
            or name; not together with `resume`.
        gpus_per_worker: Share of a GPU that each worker holds, or a whole number of them; with
            None an equal share of one, at most 1, and 0 on the CPU.
        address: A Ray cluster; with None Ray runs on this machine for the time of the search.
        wait: Workers that the cluster has no room for start when nodes join; without it, that is
            an error.
        storage: URL of a database for the study, or `journal` for the file in the run directory;
            with None the file, or on resume where the study is. Another one on resume moves it.
        imports: Modules, or paths of .py files, that this process and every worker import first:
            they register what the space names. With none, on resume the run's.
        resume: Go on with the run in `run_dir`.
        progress: Show live progress on standard error.
        evaluators: What measures policies, in place of a model with checkpoint and data.

    Raises:
        UsageError: An argument is out of range or unknown.
        SpaceError, CheckpointError, DataError: A file is not what it has to be.
        RunError: The directory exists without `resume`, is in use, or belongs to another search.
    """
    start = time.monotonic()
    _check_call(trials, workers, seed, batch_size, sampler, gpus_per_worker)
    if resume and warm_start:
        raise UsageError("--warm-start must be given when a run begins, not with --resume.")
    if storage is not None and storage != JOURNAL:
        storage = absolute_url(storage)
    database = None if storage == JOURNAL else storage
    run = RunDirectory.open(run_dir, database) if resume else RunDirectory(run_dir, database)
    if not resume:
        run.refuse_existing()
    imports = absolute(imports)
    import_modules(imports)
    if resume and not imports:
        imports = run.import_own()
    file = SpaceFile.open(space)
    frozen, imports = file.space, absolute([*imports, *file.imports])
    if evaluators is None:
        if address is None:  # on a cluster, Ray's resources tell later
            find_device(device)
        data = absolute_name(data)
        evaluators = ModelEvaluators(
            model=frozen.model,
            checkpoint=find_checkpoint(checkpoint, frozen.model),
            data=data,
            device=device,
            objectives=frozen.objectives,
            batch_size=batch_size,
            amp=amp,
            checkpoint_key=checkpoint_key or (_recorded_key(run) if resume else None),
        )
    call = {
        "space": str(Path(space).absolute()),
        "trials": trials,
        "workers": workers,
        "seed": seed,
        "sampler": sampler,
        "checkpoint": None if checkpoint is None else str(Path(checkpoint).absolute()),
        "data": data,
        "device": device,
        "batch_size": batch_size,
        "amp": amp,
        "early_stopping": early_stopping,
        "warm_start": [_anywhere(origin) for origin in warm_start] or None,
        "imports": list(imports) or None,
    }
    identity = evaluators.identity()
    call["checkpoint_key"] = identity.get("checkpoint_key")
    frozen = frozen.with_classes(identity.get("num_classes"))
    warm = find_warm_start(warm_start, frozen)
    if database is not None:
        Store(Database(database, study=""))  # whether it answers
    check_ray(address)
    with run.lock(), _told_if_unwritable(run), SearchProgress(progress) as shown:
        if resume:
            _resume(run, frozen, identity, call, storage, shown)
        else:
            run.refuse_existing()
        with running_ray(address, workers):
            joining = address is not None and wait
            pool = share_out(live_nodes(), workers, device, gpus_per_worker, wait=joining)
            if pool.fitting < workers:
                shown.say(
                    f"search: the cluster has room for {pool.fitting} of {workers} workers; the "
                    "others start when nodes join"
                )
            if not resume:
                _begin(run, file.text, frozen, warm, identity, call, database)
            here = address is None and not pool.gpus
            _measure_dense(run, evaluators, pool, imports, here=here)
            with StudyService(run.study(), own_address(address), shown.say) as service:
                interrupted = _search(
                    run, service, evaluators, imports, pool, trials, early_stopping, shown
                )
        study = run.study()
        return SearchResult(
            run_dir=run.path,
            trials=trials,
            counts=study.counts(),
            front=front(study.candidates(), frozen.objectives),
            seconds=time.monotonic() - start,
            interrupted=interrupted,
        )


@contextmanager
def _told_if_unwritable(run: RunDirectory) -> Iterator[None]:
    """Turn what the disk has refused into a message."""
    try:
        yield
    except OSError as fault:
        raise RunError(
            f"a search must be able to write {run.path}, but cannot: {fault.strerror or fault}; "
            "make room, and go on with --resume."
        ) from None


def _search(
    run: RunDirectory,
    service: StudyService,
    evaluators: Evaluators,
    imports: tuple[str, ...],
    pool: Pool,
    trials: int,
    early_stopping: bool,
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
    while service.use(lambda study: _unfinished(study, trials)):
        before = service.use(_done)
        session = uuid.uuid4().hex
        job = Job(
            service.address.open,
            session,
            trials,
            evaluators,
            dense,
            pool.workers,
            pool.threads,
            early_stopping,
            imports,
        )
        service.use(partial(Study.begin_session, session=session))
        workers = Workers(job, pool, run.path / ".tune")
        observer = Observer(dense["search"], trials, pool.workers)
        with Board(run.path / "tensorboard") as board:
            interrupted = _watch(service, workers, observer, shown, board)
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


def _unfinished(study: Study, trials: int) -> bool:
    """Whether candidates are to be evaluated, or members of the front to be measured once more."""
    members = front(study.candidates(), study.space.objectives)
    return study.counts().finished < trials or any(m.holdout is None for m in members)


def _done(study: Study) -> int:
    """What has been done so far: candidates finished, and candidates measured once more."""
    measured = sum(candidate.holdout is not None for candidate in study.candidates())
    return study.counts().finished + measured


def _watch(
    service: StudyService,
    workers: Workers,
    observer: Observer,
    shown: SearchProgress,
    board: Board,
) -> bool:
    """Show how the search stands until the workers have ended.

    Returns:
        Whether Ctrl-C was pressed, which makes them end soon; a second one is raised.

    Raises:
        RunError: The study's storage has failed, or Ray has.
    """

    def look() -> None:
        standing = service.use(lambda study: observer.look(study, service.connected))
        shown.show(standing)
        board.add(standing)

    told, next_look, next_check = False, 0.0, 0.0
    patience = time.monotonic() + STARTING_SECONDS
    with _first_interrupt() as interrupted:
        workers.start()
        surrogate.load()  # while they start
        while workers.is_alive():
            workers.join(POLL_SECONDS)
            if interrupted() and not told:
                service.end_session()
                shown.say("search: ending after the candidates under way; Ctrl-C ends it at once")
                told = True
            begin = time.monotonic()
            if begin >= patience and not service.connected:
                patience = math.inf
                shown.say(
                    f"search: no worker has begun for {STARTING_SECONDS:g} s; Ray tells why in "
                    f"{log_directory()}"
                )
            if begin >= next_look:
                look()
                end = time.monotonic()
                next_look = end + (end - begin) / LOOKING_SHARE
            if begin >= next_check:
                next_check = begin + CHECK_SECONDS
                if is_cut_off():  # its workers may live on, and wait for Tune for ever
                    raise RunError(
                        "Ray must run for the time of a search, but its node on this machine has "
                        "died; go on with --resume."
                    )
    look()
    return told


@contextmanager
def _first_interrupt() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C instead of raising it.

    Raised, it could leave the study's view of the journal half read, at any instruction.
    """
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread is told of signals
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


def _measure_dense(
    run: RunDirectory, evaluators: Evaluators, pool: Pool, imports: tuple[str, ...], here: bool
) -> None:
    """Measure the dense model on both splits, unless the run has its figures.

    Args:
        imports: What makes the model known, elsewhere than here.
        here: In this process, which has everything loaded; else on Ray, in a process that leaves
            the memory of its GPU to the workers.
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


def _begin(
    run: RunDirectory,
    text: str,
    space: SearchSpace,
    warm: Sequence[tuple[str, Policy]],
    identity: dict[str, Any],
    call: dict[str, Any],
    database: str | None,
) -> None:
    """Write a new run; `run.json` comes last and makes it one."""
    run.freeze_space(text)
    place = _place(run, database)
    Study.create(place, space, warm)
    call = {**call, "sampler": call["sampler"] or "tpe", "seed": call["seed"] or 0}
    run.write_info(
        {
            "call": call,
            "identity": identity,
            "versions": _versions(),
            "machine": platform.platform(),
            "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "storage": _recorded(place),
            "dense": {},
        }
    )


def _recorded_key(run: RunDirectory) -> str | None:
    """Which weights of its checkpoint a run has searched with, as far as it is recorded."""
    key: str | None = run.info["identity"].get("checkpoint_key")
    return key


def _place(run: RunDirectory, database: str | None) -> Place:
    """Where a study that begins there is kept."""
    if database is None:
        return run.journal_path
    return Database(database, study=f"{run.path.name}-{uuid.uuid4().hex[:8]}")


def _recorded(place: Place) -> dict[str, str] | None:
    """The place for `run.json`; None for the journal."""
    if isinstance(place, Path):
        return None
    return {"url": without_password(place.url), "study": place.study}


def _resume(
    run: RunDirectory,
    space: SearchSpace,
    identity: dict[str, Any],
    call: dict[str, Any],
    storage: str | None,
    shown: SearchProgress,
) -> None:
    """Make an earlier run ready to go on.

    Raises:
        RunError: The call is for another search than the run's.
        UsageError: The run has more trials already.
    """
    info = run.info
    before, now = info["call"], {k: v for k, v in call.items() if v is not None}
    changed = [key for key in info["identity"] if info["identity"][key] != identity.get(key)]
    changed += [key for key in ("sampler", "seed") if key in now and now[key] != before[key]]
    if _without_imports(space) != _without_imports(run.space):
        changed.append("space")
    if changed:
        raise RunError(
            f"a run must be resumed with what it was begun with, but {' and '.join(changed)} "
            f"changed since {run.path} was begun; give the same, or begin a run elsewhere."
        )
    message = recover(run.place) if isinstance(run.place, Path) else None
    if message is not None:
        shown.say(message)
    finished = run.study().counts().finished
    if call["trials"] < finished:
        raise UsageError(
            f"--trials must be at least {finished}, the candidates that {run.path} has already, "
            f"got {call['trials']}; it counts those of earlier calls."
        )
    run.write_info({**info, "call": {**before, **now}})
    if storage is not None and _is_elsewhere(run, storage):
        _move(run, None if storage == JOURNAL else storage, shown)


def _without_imports(space: SearchSpace) -> SearchSpace:
    """The space as such; its modules may lie elsewhere by now."""
    return space.model_copy(update={"imports": ()})


def _is_elsewhere(run: RunDirectory, storage: str) -> bool:
    """Whether the run's study is not where `--storage` says."""
    if storage == JOURNAL:
        return isinstance(run.place, Database)
    return run.place == run.journal_path or run.info["storage"]["url"] != without_password(storage)


def _move(run: RunDirectory, database: str | None, shown: SearchProgress) -> None:
    """Copy the study to another storage; `run.json`, written last, makes the copy the study."""
    place = _place(run, database)
    copy = place if isinstance(place, Database) else place.with_suffix(".copy")
    if isinstance(copy, Path):
        copy.unlink(missing_ok=True)
    move(run.place, copy)
    if isinstance(copy, Path):
        copy.replace(run.journal_path)
    run.write_info({**run.info, "storage": _recorded(place)})
    if isinstance(place, Database) and run.journal_path.exists():
        run.journal_path.rename(run.journal_path.with_suffix(".moved"))
    shown.say(f"search: the study has moved to {place}")


def _check_call(
    trials: int,
    workers: int,
    seed: int | None,
    batch_size: int,
    sampler: str | None,
    gpus_per_worker: float | None,
) -> None:
    for option, value, low, high in (
        ("--trials", trials, 1, MOST_TRIALS),
        ("--workers", workers, 1, MOST_WORKERS),
        ("--seed", seed or 0, 0, MOST_SEED),
        ("--batch-size", batch_size, 1, MOST_IMAGES),
    ):
        if value < low:
            raise UsageError(f"{option} must be at least {low}, got {value}.")
        if value > high:
            raise UsageError(f"{option} must be at most {high}, got {value}.")
    if sampler is not None and sampler not in SAMPLERS:
        raise UsageError(unknown_name("sampler", sampler, SAMPLERS))
    if gpus_per_worker is not None and not 0 <= gpus_per_worker < math.inf:
        raise UsageError(
            f"--gpus-per-worker must not be negative, nor infinite, got {gpus_per_worker}."
        )
    if gpus_per_worker is not None and gpus_per_worker > 1 and gpus_per_worker % 1:
        raise UsageError(
            f"--gpus-per-worker must be a part of one GPU or a whole number of them, got "
            f"{gpus_per_worker:g}."
        )


def find_checkpoint(path: str | Path | None, model: str) -> Path:
    """The weights to prune: those given, or those that ship with the model.

    Raises:
        UsageError: None are given and none ship.
    """
    checkpoint = shipped_checkpoint(model) if path is None else Path(path)
    if checkpoint is None:
        raise UsageError(
            f"a search needs trained weights, but none ship with {model}; give --checkpoint."
        )
    return checkpoint.absolute()


def _anywhere(origin: str | Path) -> str:
    """A warm start's origin for `run.json`: an absolute path, or a shipped policy's name."""
    path = Path(origin)
    return str(path.absolute() if path.exists() else origin)


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, **installed_versions()}


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
