"""A training run from start to end: its checks, its directory, and where it runs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ssmprune.bounds import MOST_WORKERS
from ssmprune.data import absolute_name, check_images
from ssmprune.errors import Faults, UsageError
from ssmprune.extensions import absolute, import_modules, installed_versions
from ssmprune.measure.metric import Figures
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoint_file import checkpoint_sha256
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy, load_for
from ssmprune.training import loop
from ssmprune.training.directory import TrainDirectory
from ssmprune.training.loop import TrainingData, TrainJob
from ssmprune.training.settings import TrainSettings, load_recipe
from ssmprune.training.trainer import has_batch_norm

_PACKAGES = ("ssmprune", "torch", "timm", "numpy", "numba", "scikit-learn")


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    checkpoint: Path
    accuracy: Figures
    """On the holdout, with the policy if there is one."""
    before: Figures | None
    """The same before the first step, for a run that began from a checkpoint."""
    wall_s: float
    """Training time over all sessions of the run, in seconds."""


def train(
    model: str,
    data: str,
    out: str | Path,
    settings: TrainSettings | None = None,
    *,
    policy: Policy | str | Path | None = None,
    init: str | Path | None = None,
    checkpoint_key: str | None = None,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
    workers: int = 1,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    command: str = "",
    imports: Sequence[str] = (),
    progress: bool = True,
) -> TrainResult:
    """Train a model, or go on with a run that was interrupted.

    A run that is finished already is not repeated. On the CPU an interrupted and resumed run
    computes the same as one that was not interrupted. The number of workers may differ then.

    Args:
        model: A name of `ssmprune models`.
        data: `digits`, or a folder of images with a sub-folder `train`.
        out: Directory of the run: new, or that of an interrupted run with the same settings.
        settings: The recipe `scratch` if not given, or with `init` `fine_tune`.
        policy: A policy, or its path or shipped name, under which the model trains and is measured.
        init: Checkpoint to begin from; without one the weights are random.
        checkpoint_key: Which weights of a file with several, as for `create_model`.
        num_classes: Size of the classifier, with None as many as the data have classes. Where that
            of `init` has another size, training begins with a new, random one.
        device: Where to train; with more workers only whether on the CPU or on GPUs.
        workers: Processes that share each batch, on Ray if there are several.
        gpus_per_worker: GPUs of each worker; with None one if `device` is a GPU, else none.
        address: A Ray cluster; with None several workers run on this machine.
        command: The call, for the record.
        imports: Modules, or paths of .py files, that this process and every worker import first:
            they register what model and policy name.
        progress: Show a bar on stderr, or plain lines where stderr is no terminal.

    Raises:
        UsageError: The model or data set is unknown, or parts of the call do not fit together.
        PolicyError, CheckpointError, DataError: One of the files is not what it has to be.
        RunError: The directory is in use or holds something else.
        SsmpruneError: The loss became infinite or NaN.
    """
    imports = absolute(imports)
    import_modules(imports)
    find_config(model)
    device = torch.device(device)
    faults = Faults()
    resolved: Policy | None = None
    with faults.gathered():
        resolved = load_for(policy, model) if isinstance(policy, str | Path) else policy
    with faults.gathered():
        data = absolute_name(data)
    job = TrainJob(
        model,
        data,
        Path(out).absolute(),
        settings or load_recipe("scratch" if init is None else "fine_tune"),
        resolved,
        Path(init).absolute() if init else None,
        progress,
        checkpoint_key,
        num_classes,
        imports,
    )
    gpus = float(device.type == "cuda") if gpus_per_worker is None else gpus_per_worker
    place = _Place(device, workers, gpus, address)
    run = _check(job, place, faults)
    with run.directory.claim(_identity(run.job, run.data)):
        if not run.directory.read_record():
            run.directory.write_record(_record(run, place, command))
        if "result" not in run.directory.read_record():
            place.train(run)
        record = run.directory.read_record()
    result, read = record["result"], job.task.metric.from_dict
    return TrainResult(
        run.directory.model_path,
        read(result["holdout"]),
        read(record["before"]) if "before" in record else None,
        result["wall_s"],
    )


@dataclass(frozen=True)
class _Run:
    """A run whose parts fit together.

    Attributes:
        checkpoint_key: Where in its file the weights lie that it begins with.
    """

    job: TrainJob
    data: TrainingData
    directory: TrainDirectory
    checkpoint_key: str | None


@dataclass(frozen=True)
class _Place:
    """Where a run trains; Ray takes it where there are several workers or a cluster.

    Attributes:
        gpus: GPUs of each worker.
    """

    device: torch.device
    workers: int
    gpus: float
    address: str | None

    @property
    def is_on_ray(self) -> bool:
        return self.workers > 1 or self.address is not None

    def check(self) -> None:
        """Make sure that Ray can be used, where it has to be.

        Raises:
            UsageError: It cannot.
        """
        if self.is_on_ray:
            from ssmprune.ray_session import check_ray

            check_ray(self.address)

    def train(self, run: _Run) -> None:
        """Train, and measure the result."""
        if not self.is_on_ray:
            loop.run(run.job, run.data, self.device)
            return
        from ssmprune.training.cluster import run_on_ray

        steps = run.job.settings.total_steps(run.data.stream.images)
        run_on_ray(run.job, steps, self.workers, self.gpus, self.address)


def _check(job: TrainJob, place: _Place, faults: Faults) -> _Run:
    """A run, if everything that is asked for fits together; writes nothing.

    Args:
        faults: What is known to be wrong already; told along.
    """
    with faults.gathered():
        _check_shares(job.settings, place.workers)
    data: TrainingData | None = None
    with faults.gathered():
        data = TrainingData.open(job)
        job = replace(job, num_classes=_classes(job, data))
    network: Backbone | None = None
    with faults.gathered():
        network = _check_model(job, place.workers, place.device)
    directory = TrainDirectory(job.out)
    with faults.gathered():
        directory.check_free()
    with faults.gathered():
        if data is not None and not directory.read_record():
            check_images(job.data)
    with faults.gathered():
        place.check()
    faults.tell()
    assert data is not None and network is not None
    return _Run(job, data, directory, network.checkpoint_key)


def _record(run: _Run, place: _Place, command: str) -> dict[str, Any]:
    """What is known of a run before its first step."""
    return {
        "config": _identity(run.job, run.data),
        "data": run.job.data,
        "init": run.job.init and str(run.job.init),
        "checkpoint_key": run.checkpoint_key,
        "command": command,
        "imports": list(run.job.imports),
        "device": str(place.device),
        "workers": place.workers,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in _PACKAGES}
        | {"python": platform.python_version(), **installed_versions()},
    }


def _identity(job: TrainJob, data: TrainingData) -> dict[str, Any]:
    """What decides the result of a run."""
    policy, own = job.policy, find_config(job.model).num_classes
    unusual: dict[str, Any] = {}
    if job.num_classes != own:
        unusual["num_classes"] = job.num_classes
    if job.checkpoint_key is not None:
        unusual["checkpoint_key"] = job.checkpoint_key
    return {
        "model": job.model,
        "data": data.stream.fingerprint,
        "policy": policy and policy.model_dump(mode="json", exclude={"measured", "provenance"}),
        "init": job.init and checkpoint_sha256(job.init),
        **unusual,  # left out where runs of earlier versions know no other
        **job.settings.model_dump(mode="json", exclude={"schema_"}),
    }


def _check_shares(settings: TrainSettings, workers: int) -> None:
    """Refuse a batch that cannot be divided as asked for."""
    if not 1 <= workers <= MOST_WORKERS:
        raise UsageError(f"workers must be at least 1 and at most {MOST_WORKERS}, got {workers}.")
    parts = workers * settings.accumulate
    if settings.batch_size % parts:
        raise UsageError(
            f"batch_size must be a multiple of the {parts} parts that {workers} workers and "
            f"accumulate {settings.accumulate} make, got {settings.batch_size}."
        )
    share = settings.batch_size // workers
    if (settings.mixup or settings.cutmix) and share % 2:
        raise UsageError(
            f"mixup and cutmix mix pairs, so each worker's share must be even, got {share} images; "
            "change batch_size."
        )


def _check_model(job: TrainJob, workers: int, device: torch.device) -> Backbone:
    """The model, if policy and checkpoint fit it and it can be trained as asked for."""
    if job.settings.distill and job.init is None:
        raise UsageError(
            "distillation must have the dense model's trained weights to learn from, but none are "
            "given; give init, or leave distill at 0."
        )
    settings = job.settings
    if (settings.mixup or settings.cutmix or settings.aux_weight) and not job.task.labels_images:
        raise UsageError(
            "mixup, cutmix and the auxiliary head need one label for each image, but the task of "
            f"{job.model} is {job.task.name}; leave them at 0."
        )
    network = job.create_model()
    if job.settings.distill and network.has_new_head:
        raise UsageError(
            f"distillation must have a teacher for the same classes, but {job.init} has no "
            f"classifier for {network.config.num_classes}; leave distill at 0."
        )
    if workers > 1 and device.type == "cpu" and has_batch_norm(network):
        raise UsageError(
            f"{job.model} must train in one process or on GPUs, as its batch norms need the whole "
            f"batch, got {workers} workers on the CPU."
        )
    return network


def _classes(job: TrainJob, data: TrainingData) -> int:
    """Size of the classifier: what was asked for, or as many as the data have classes."""
    classes, wanted = len(data.stream.classes), job.num_classes
    if wanted is not None and wanted < classes:
        raise UsageError(
            f"--num-classes must be at least the classes of the data, got {wanted}, but {job.data} "
            f"has {classes}; leave it out."
        )
    return classes if wanted is None else wanted
