"""The training loop: one process, dense or with a policy, resumed exactly where it stopped."""

from __future__ import annotations

import math
import platform
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn

from ssmprune.data import ImageSet, TrainingStream, open_images, open_stream
from ssmprune.errors import SsmpruneError, UsageError
from ssmprune.measure.accuracy import Accuracy, evaluate
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoints import checkpoint_sha256
from ssmprune.models.factory import create_model
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy, load_for
from ssmprune.training.directory import TrainDirectory
from ssmprune.training.progress import Progress
from ssmprune.training.settings import FINE_TUNING, FROM_SCRATCH, TrainSettings

LOG_EVERY = 50
"""Steps between two rows of the log, checkpoints aside."""

_BETAS = (0.9, 0.98)
_FINAL_LR = 0.02
_MAX_SHARDS = 4
_UNDECAYED = re.compile(r"(_log|pos_embed|cls_token|direction_Bs)$")
_PACKAGES = ("ssmprune", "torch", "timm", "numpy", "numba", "scikit-learn")


@dataclass(frozen=True)
class TrainResult:
    """A finished run."""

    checkpoint: Path
    accuracy: Accuracy
    """On the holdout, with the policy if there is one."""
    before: Accuracy | None
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
    device: torch.device | str = "cpu",
    command: str = "",
    progress: bool = True,
) -> TrainResult:
    """Train a model, or go on with a run that was interrupted.

    A run that is finished already is not repeated. On the CPU an interrupted and resumed run
    computes the same as one that was not interrupted.

    Args:
        model: A name of `ssmprune models`.
        data: `digits`, or a folder of images with a sub-folder `train`.
        out: Directory of the run: new, or that of an interrupted run with the same settings.
        settings: `FROM_SCRATCH` if not given, or with `init` `FINE_TUNING`.
        policy: A policy, or its path or shipped name, under which the model trains and is measured.
        init: Checkpoint to begin from; without one the weights are random.
        device: Where to train.
        command: The call, for the record.
        progress: Show a bar on stderr, or plain lines where stderr is no terminal.

    Raises:
        UsageError: The model or data set is unknown, or the two do not fit.
        PolicyError, CheckpointError, DataError: One of the files is not what it has to be.
        RunError: The directory is in use or holds something else.
        SsmpruneError: The loss became infinite or NaN.
    """
    settings = settings or (FROM_SCRATCH if init is None else FINE_TUNING)
    if policy is not None and not isinstance(policy, Policy):
        policy = load_for(policy, model)
    config = find_config(model)
    shape: dict[str, Any] = {"image_size": config.image_size, "channels": config.channels}
    stream = open_stream(
        data,
        **shape,
        batch_size=settings.batch_size,
        seed=settings.seed,
        curriculum_steps=round(settings.curriculum * settings.steps),
    )
    search, holdout = (open_images(data, split, **shape) for split in ("search", "holdout"))
    if len(stream.classes) != config.num_classes:
        raise UsageError(
            f"the data must have the model's {config.num_classes} classes, but {data} has "
            f"{len(stream.classes)}; use the model that was made for it."
        )
    torch.manual_seed(settings.seed)
    network = create_model(model, init, policy).to(device)

    identity = {
        "model": model,
        "data": stream.fingerprint,
        "policy": policy and policy.model_dump(mode="json", exclude={"measured", "provenance"}),
        "init": init and checkpoint_sha256(init),
        **asdict(settings),
    }
    directory = TrainDirectory(out)
    with directory.claim(identity):
        record = directory.read_record()
        if "result" not in record:
            record = {
                "config": identity,
                "data": data,
                "init": init and str(init),
                "command": command,
                "device": str(device),
                "threads": torch.get_num_threads(),
                "versions": {name: version(name) for name in _PACKAGES}
                | {"python": platform.python_version()},
            }
            if init is not None:
                before = evaluate(network, holdout.loader, amp=settings.amp)
                record["before"] = asdict(before)
            directory.write_record(record)
            with _shards(network) as shards:
                trainer = Trainer(network, settings, shards)
                wall_s = _fit(trainer, stream, search, directory, _labels(record), progress)
                final = {
                    split.split: asdict(evaluate(network, split.loader, amp=settings.amp))
                    for split in (search, holdout)
                }
            record["result"] = {"wall_s": round(wall_s, 1), **final}
            directory.write_model(network.state_dict(), _labels(record))
            directory.write_record(record)
        result = record["result"]
        return TrainResult(
            directory.model_path,
            Accuracy(**result["holdout"]),
            Accuracy(**record["before"]) if "before" in record else None,
            result["wall_s"],
        )


class Trainer:
    """A model with its optimiser and schedule; knows neither data nor files.

    Args:
        model: On its device, with the policy applied if there is one.
        settings: Its `batch_size`, `curriculum`, `seed` and `checkpoint_every` concern the caller.
        shards: Parts of a batch that are computed at the same time, each in a thread of its own.
    """

    def __init__(self, model: Backbone, settings: TrainSettings, shards: int = 1) -> None:
        self.model = model
        self.settings = settings
        self.device = next(model.parameters()).device
        modules: dict[str, nn.Module] = {"model": model}
        if settings.aux_weight:
            width, classes = model.config.embed_dim, model.config.num_classes
            modules["aux_head"] = nn.Linear(width, classes).to(self.device)
        self._modules = nn.ModuleDict(modules)
        self._parameters = list(self._modules.parameters())
        self._shards = shards
        self._pool = ThreadPoolExecutor(shards, thread_name_prefix="ssmprune-train")
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self._modules, settings.weight_decay),
            lr=settings.lr,
            betas=_BETAS,
            fused=True,
        )
        self._schedule = CosineLRScheduler(
            self._optimizer,
            t_initial=settings.steps,
            lr_min=_FINAL_LR * settings.lr,
            warmup_t=settings.warmup_steps,
            warmup_lr_init=settings.lr / max(1, settings.warmup_steps),
            t_in_epochs=False,
        )

    @property
    def lr(self) -> float:
        """Learning rate of the latest step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self, step: int, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Make step number `step`, counted from 0.

        Returns:
            The cross entropy of the batch before the step, on the device.
        """
        images_BCHW = images_BCHW.to(self.device, non_blocking=True)
        labels_B = labels_B.to(self.device, non_blocking=True)
        self._modules.train()
        self._schedule.step_update(step)
        aux_weight = self.settings.aux_weight * (1 - step / self.settings.steps)

        def compute(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            return self._loss_and_gradients(images, labels, aux_weight, 1 / len(labels_B))

        if self._shards == 1:
            loss, *gradients = compute(images_BCHW, labels_B)
        else:
            split = torch.chunk(images_BCHW, self._shards), torch.chunk(labels_B, self._shards)
            parts = zip(*self._pool.map(compute, *split), strict=True)
            loss, *gradients = (torch.stack(shares).sum(0) for shares in parts)
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(self._parameters, self.settings.clip)
        self._optimizer.step()
        return loss

    def _loss_and_gradients(
        self, images: Tensor, labels: Tensor, aux_weight: float, image_weight: float
    ) -> tuple[Tensor, ...]:
        """The weighted sum of the images' cross entropies, and the gradient of each parameter."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp):
            stream = self.model.forward_features(images)
            logits = self.model.forward_head(stream)
            loss = image_weight * F.cross_entropy(logits, labels, reduction="sum")
            objective = loss
            if "aux_head" in self._modules:
                logits = self._modules["aux_head"](stream.hidden.mean(1))
                aux = F.cross_entropy(logits, labels, reduction="sum")
                objective = loss + aux_weight * image_weight * aux
        return loss.detach(), *torch.autograd.grad(objective, self._parameters)

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""
        return {
            "modules": self._modules.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self._on_cuda else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self._modules.load_state_dict(state["modules"])
        self._optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        if self._on_cuda and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"


def _fit(
    trainer: Trainer,
    stream: TrainingStream,
    search: ImageSet,
    directory: TrainDirectory,
    labels: dict[str, str],
    progress: bool,
) -> float:
    """Make all steps that are left; returns the seconds that the run has taken altogether."""
    settings = trainer.settings
    first, before = 0, 0.0
    state = directory.read_state()
    if state is not None:
        first, before = state["step"], state["seconds"]
        trainer.restore(state["trainer"])
    rows = directory.read_log(until=first)
    start = time.perf_counter() - before
    losses: list[Tensor] = []
    with Progress(first, settings.steps, progress) as shown:
        for step, batch in zip(range(first, settings.steps), stream.batches(first), strict=False):
            losses.append(trainer.step(step, *batch))
            done = step + 1
            shown.advance()
            checkpoint = done % settings.checkpoint_every == 0 or done == settings.steps
            if not checkpoint and done % LOG_EVERY:
                continue
            row = {
                "step": done,
                "lr": f"{trainer.lr:.3e}",
                "loss": f"{_mean_loss(losses, done, settings):.4f}",
                "search_top1": "",
            }
            losses.clear()
            if checkpoint:
                accuracy = evaluate(trainer.model, search.loader, amp=settings.amp)
                row["search_top1"] = f"{accuracy.top1:.2f}"
            seconds = time.perf_counter() - start
            rows.append(row | {"seconds": f"{seconds:.1f}"})
            shown.row(rows[-1])
            if checkpoint:
                directory.write_log(rows)
                directory.write_model(trainer.model.state_dict(), labels | {"step": str(done)})
                directory.write_state(
                    {"step": done, "seconds": seconds, "trainer": trainer.state()}
                )
    return time.perf_counter() - start


def shard_limit(model: nn.Module) -> int:
    """In how many parts at most a batch of `model` is computed on the CPU.

    One where a batch norm needs the whole batch; else beyond a few Python's lock is the limit.
    """
    batch_norms = (isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return 1 if any(batch_norms) else _MAX_SHARDS


@contextmanager
def _shards(model: nn.Module) -> Iterator[int]:
    """How many shards to train in; divides torch's threads among them for the duration.

    Small operators gain next to nothing from a second thread, and the waiting threads of two pools
    would take the cores from each other.
    """
    threads = torch.get_num_threads()
    on_cpu = next(model.parameters()).device.type == "cpu"
    shards = min(threads, shard_limit(model)) if on_cpu else 1
    torch.set_num_threads(threads // shards)
    try:
        yield shards
    finally:
        torch.set_num_threads(threads)


def _mean_loss(losses: list[Tensor], done: int, settings: TrainSettings) -> float:
    loss = torch.stack(losses).mean().item()
    if not math.isfinite(loss):
        raise SsmpruneError(
            f"the loss must be finite, but it is {loss} within the {len(losses)} steps up to "
            f"{done}; lower lr (now {settings.lr}) or lengthen the warm-up "
            f"(now {settings.warmup_steps} steps), in a new directory."
        )
    return loss


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; vectors, embeddings of positions and the logarithm of A do not."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        undecays = parameter.ndim <= 1 or _UNDECAYED.search(name)
        (undecayed if undecays else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]


def _labels(record: dict[str, Any]) -> dict[str, str]:
    """What a checkpoint says about itself."""
    labels = {
        "format": "pt",
        "model": record["config"]["model"],
        "data": record["data"],
        "seed": str(record["config"]["seed"]),
        "step": str(record["config"]["steps"]),
        "command": record["command"],
        "ssmprune": record["versions"]["ssmprune"],
    }
    for split in ("search", "holdout"):
        if split in record.get("result", {}):
            labels[f"{split}_top1"] = f"{record['result'][split]['top1']:.2f}"
    return labels
