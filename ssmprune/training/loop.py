"""What one process of a training run does: all of it, or its share beside others."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssmprune.data import ImageSet, TrainingStream
from ssmprune.errors import RunError, SsmpruneError
from ssmprune.measure.metric import Metric
from ssmprune.models.backbone import Backbone
from ssmprune.models.factory import create_model
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy
from ssmprune.task import Task
from ssmprune.tasks import task_of
from ssmprune.training.directory import TrainDirectory
from ssmprune.training.log import RunLog
from ssmprune.training.settings import TrainSettings
from ssmprune.training.trainer import Trainer, dense_copy, shards

LOG_EVERY = 50
"""Steps between two rows of the log, checkpoints aside."""


@dataclass(frozen=True)
class TrainJob:
    """A training run, as every process of it is told.

    Attributes:
        checkpoint_key: Which weights of `init`, as for `create_model`.
        num_classes: Size of the classifier; None for the model's own.
        imports: What each process imports first, for the names of model and policy.
    """

    model: str
    data: str
    out: Path
    settings: TrainSettings
    policy: Policy | None = None
    init: Path | None = None
    progress: bool = True
    checkpoint_key: str | None = None
    num_classes: int | None = None
    imports: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        return task_of(find_config(self.model))

    def create_model(self) -> Backbone:
        """The model as its training begins."""
        return create_model(
            self.model,
            self.init,
            self.policy,
            checkpoint_key=self.checkpoint_key,
            num_classes=self.num_classes,
            new_head=True,
        )


@dataclass(frozen=True)
class TrainingData:
    """The images of a run."""

    stream: TrainingStream
    search: ImageSet
    holdout: ImageSet

    @classmethod
    def open(cls, job: TrainJob) -> TrainingData:
        """Open the data set of `job`.

        Raises:
            UsageError: The data set is unknown, or does not fit the model.
            DataError: A folder is missing, or holds no images.
        """
        config, settings, task = find_config(job.model), job.settings, job.task
        expected = {"num_classes": job.num_classes, "exact_classes": False}
        stream = task.open_stream(
            config,
            job.data,
            **expected,
            batch_size=settings.batch_size,
            seed=settings.seed,
            augment=settings.augment,
            erase=settings.erase,
        )
        stream.curriculum_steps = round(settings.curriculum * settings.total_steps(stream.images))
        search, holdout = (
            task.open_images(config, job.data, split, **expected) for split in ("search", "holdout")
        )
        return cls(stream, search, holdout)


def run(job: TrainJob, data: TrainingData, device: torch.device) -> None:
    """Make all steps that are left, measure, and write the results.

    Every process of an initialised torch.distributed calls this; the first one writes the files.

    Raises:
        RunError: The directory has no record of the run.
        SsmpruneError: The loss became infinite or NaN.
    """
    settings, directory, metric = job.settings, TrainDirectory(job.out), job.task.metric
    record = directory.read_record()
    if not record:
        raise RunError(
            f"the output must lie where all machines of the cluster see it, but {job.out} is not "
            "there for one of them; name a folder on a shared file system."
        )
    torch.manual_seed(settings.seed)
    network = job.create_model().to(device)
    if job.init is not None and "before" not in record and _is_first():
        before = metric.evaluate(network, data.holdout.loader, amp=settings.amp)
        record["before"] = before.to_dict()
        directory.write_record(record)
    teacher = dense_copy(network) if settings.distill else None
    if dist.is_initialized() and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    steps = settings.total_steps(data.stream.images)
    with shards(network) as count:
        trainer = Trainer(network, settings, steps, count, teacher)
        shown = job.progress and _is_first()
        wall_s = _train(trainer, steps, data, directory, record, metric, shown)
        if not _is_first():
            return
        measured = {
            split.split: metric.evaluate(trainer.result, split.loader, amp=settings.amp).to_dict()
            for split in (data.search, data.holdout)
        }
    record["result"] = {"wall_s": round(wall_s, 1), **measured}
    directory.write_model(trainer.result.state_dict(), _labels(record, steps, metric))
    directory.write_record(record)


def _train(
    trainer: Trainer,
    steps: int,
    data: TrainingData,
    directory: TrainDirectory,
    record: dict[str, Any],
    metric: Metric,
    shown: bool,
) -> float:
    """Make all steps that are left; returns the seconds that the run has taken altogether."""
    first, before = 0, 0.0
    state = directory.read_state()
    if state is not None:
        first, before = state["step"], state["seconds"]
        trainer.restore(state["trainer"])
    start = time.perf_counter() - before
    every = trainer.settings.checkpoint_every
    losses: list[Tensor] = []
    batches = data.stream.batches(first, *_place())
    log = RunLog(directory, first, steps, metric, shown) if _is_first() else None
    try:
        for done, batch in zip(range(first + 1, steps + 1), batches, strict=False):
            losses.append(trainer.step(done - 1, *batch))
            is_checkpoint = done % every == 0 or done == steps
            if log:
                log.advance()
            if not is_checkpoint and done % LOG_EVERY:
                continue
            loss = _mean_loss(losses, done, trainer.settings)
            losses.clear()
            if log is None:
                continue
            score = None
            if is_checkpoint:
                amp = trainer.settings.amp
                score = metric.evaluate(trainer.result, data.search.loader, amp=amp).score
            seconds = time.perf_counter() - start
            log.add(done, seconds, trainer.lr, loss, score)
            if is_checkpoint:
                directory.write_model(trainer.result.state_dict(), _labels(record, done, metric))
                directory.write_state(
                    {"step": done, "seconds": seconds, "trainer": trainer.state()}
                )
    finally:
        if log:
            log.close()
    return time.perf_counter() - start


def _place() -> tuple[int, int]:
    """Number of this process, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _is_first() -> bool:
    return _place()[0] == 0


def _mean_loss(losses: list[Tensor], done: int, settings: TrainSettings) -> float:
    """Mean over the steps and over the processes."""
    mean = torch.stack(losses).mean()
    if dist.is_initialized():
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
    loss = mean.item()
    if not math.isfinite(loss):
        raise SsmpruneError(
            f"the loss must be finite, but it is {loss} within the {len(losses)} steps up to "
            f"{done}; lower lr (now {settings.lr}) or lengthen the warm-up "
            f"(now {settings.warmup:g} of the steps), in a new directory."
        )
    return loss


def _labels(record: dict[str, Any], step: int, metric: Metric) -> dict[str, str]:
    """What a checkpoint says about itself."""
    labels = {
        "format": "pt",
        "model": record["config"]["model"],
        "data": record["data"],
        "seed": str(record["config"]["seed"]),
        "step": str(step),
        "command": record["command"],
        "ssmprune": record["versions"]["ssmprune"],
    }
    for split in ("search", "holdout"):
        if split in record.get("result", {}):
            score = record["result"][split][metric.name]
            labels[f"{split}_{metric.name}"] = f"{score:.2f}"
    return labels
