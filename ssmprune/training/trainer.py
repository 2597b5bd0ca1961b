"""A model with its optimiser and schedule, one step at a time, alone or beside other processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssmprune.models.backbone import Backbone
from ssmprune.pruning.apply import PruningPlan
from ssmprune.training.anneal import annealed
from ssmprune.training.loss import Mixing, TrainingLoss
from ssmprune.training.settings import TrainSettings

_MAX_SHARDS = 4
_UNDECAYED = re.compile(r"(_log|pos_embed|cls_token|direction_Bs)$")


class Trainer:
    """A model with its optimiser and schedule; knows neither data nor files.

    Where torch.distributed is initialised, each process computes its share of a batch, and the
    gradients are averaged by torch's DDP.

    Args:
        model: On its device, with the policy applied if there is one.
        settings: Its batches, curriculum, seed and checkpoints concern the caller.
        steps: Steps of the whole run.
        shards: Parts of a batch that are computed at the same time, each in a thread of its own.
        teacher: The dense model to learn from, on the same device.
    """

    def __init__(
        self,
        model: Backbone,
        settings: TrainSettings,
        steps: int,
        shards: int = 1,
        teacher: Backbone | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.device = next(model.parameters()).device
        self._steps = steps
        self._shards = shards
        self._pool = ThreadPoolExecutor(shards, thread_name_prefix="ssmprune-train")
        self._teacher = teacher
        self._loss = TrainingLoss(model, settings).to(self.device)
        self._parameters = list(self._loss.parameters())
        self._ddp = _distributed(self._loss) if dist.is_initialized() else None
        self._rank = dist.get_rank() if self._ddp else 0
        mixes = settings.mixup or settings.cutmix
        self._mixing = Mixing(settings, model.config.num_classes) if mixes else None
        self._ema = ModelEmaV3(model, settings.ema, use_warmup=True) if settings.ema else None
        self._optimizer = _optimizer(self._loss, settings)
        warmup = round(settings.warmup * steps)
        self._schedule, _ = create_scheduler_v2(
            self._optimizer,
            sched=settings.schedule,
            num_epochs=steps,
            updates_per_epoch=1,
            step_on_epochs=False,
            min_lr=settings.final_lr * settings.lr,
            decay_rate=1.0,
            warmup_epochs=warmup,
            warmup_lr=settings.lr / max(1, warmup),
        )

    @property
    def lr(self) -> float:
        """Learning rate of the latest step."""
        return float(self._optimizer.param_groups[0]["lr"])

    @property
    def result(self) -> Backbone:
        """What is measured and kept: the model, or the running mean of its weights."""
        if self._ema is None:
            return self.model
        mean: Backbone = self._ema.module
        return mean

    def step(self, step: int, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Make step number `step`, counted from 0, on this process's share of the batch.

        Returns:
            The mean loss of the share before the step, without the auxiliary head's, on the device.
        """
        images = images_BCHW.to(self.device, non_blocking=True)
        targets = labels_B.to(self.device, non_blocking=True)
        if self._mixing is not None:
            images, targets = self._mixing(images, targets, step, self._rank)
        self._loss.train()
        self._schedule.step_update(step)
        parts = list(
            zip(
                images.chunk(self.settings.accumulate),
                targets.chunk(self.settings.accumulate),
                strict=True,
            )
        )
        aux_weight = self.settings.aux_weight * (1 - step / self._steps)
        losses = []
        with self._annealing(step):
            for index, part in enumerate(parts):
                is_last = index == len(parts) - 1
                losses.append(self._accumulate(*part, aux_weight, 1 / len(images), is_last))
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.settings.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._ema is not None:
            self._ema.update(self.model, step + 1)
        return torch.stack(losses).sum()

    def _accumulate(
        self, images: Tensor, targets: Tensor, aux_weight: float, image_weight: float, is_last: bool
    ) -> Tensor:
        """Add a part's gradients to the parameters; returns its share of the mean loss."""

        def compute(images: Tensor, targets: Tensor, objective: nn.Module) -> tuple[Tensor, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp):
                taught = self._judge(images)
                loss, reported = objective(images, targets, taught, aux_weight)
            return image_weight * loss, image_weight * reported

        if self._shards == 1:
            objective = self._ddp or self._loss
            with _unsynchronised(objective, wanted=not is_last):
                loss, reported = compute(images, targets, objective)
                loss.backward()  # type: ignore[no-untyped-call]
            return reported

        def differentiate(images: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
            loss, reported = compute(images, targets, self._loss)
            return reported, *torch.autograd.grad(loss, self._parameters)

        shares = self._pool.map(
            differentiate, images.chunk(self._shards), targets.chunk(self._shards)
        )
        reported, *gradients = (torch.stack(share).sum(0) for share in zip(*shares, strict=True))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return reported

    def _judge(self, images: Tensor) -> Tensor | None:
        """The teacher's logits (B, K)."""
        if self._teacher is None:
            return None
        with torch.no_grad():
            logits: Tensor = self._teacher(images)
        return logits

    @contextmanager
    def _annealing(self, step: int) -> Iterator[None]:
        """Prune by the policy as far as it has been annealed, for the duration."""
        plan, until = self.model.plan, self.settings.anneal * self._steps
        if plan is None or step >= until:
            yield
            return
        config = self.model.config
        self.model.plan = PruningPlan.of(annealed(plan.policy, step / until, config), config)
        try:
            yield
        finally:
            self.model.plan = plan

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, as tensors and plain values."""
        return {
            "modules": self._loss.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema else None,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self._on_cuda else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self._loss.load_state_dict(state["modules"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.module.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"])
        if self._on_cuda and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)

    @property
    def _on_cuda(self) -> bool:
        return self.device.type == "cuda"


def dense_copy(model: Backbone) -> Backbone:
    """A model's dense twin with the weights of this moment, to be learnt from."""
    teacher = deepcopy(model).eval().requires_grad_(False)
    teacher.plan = None
    return teacher


def _distributed(loss: TrainingLoss) -> DistributedDataParallel:
    device = next(loss.parameters()).device
    return DistributedDataParallel(loss, [device] if device.type == "cuda" else None)


def _unsynchronised(module: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """Keep the processes' gradients apart for the duration, if that is wanted."""
    if wanted and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def _optimizer(loss: TrainingLoss, settings: TrainSettings) -> torch.optim.Optimizer:
    """timm's optimiser of this name."""
    options: dict[str, Any] = {} if settings.betas is None else {"betas": settings.betas}
    groups = parameter_groups(loss, settings.weight_decay)
    return create_optimizer_v2(groups, opt=settings.optimizer, lr=settings.lr, **options)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the images of a batch depend on each other in training."""
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def shard_limit(model: nn.Module) -> int:
    """In how many parts at most a batch of `model` is computed on the CPU.

    One where a batch norm needs the whole batch; else beyond a few Python's lock is the limit.
    """
    return 1 if has_batch_norm(model) else _MAX_SHARDS


@contextmanager
def shards(model: nn.Module) -> Iterator[int]:
    """How many shards to train in; divides torch's threads among them for the duration.

    Small operators gain next to nothing from a second thread, and the waiting threads of two pools
    would take the cores from each other.
    """
    threads = torch.get_num_threads()
    alone_on_cpu = next(model.parameters()).device.type == "cpu" and not dist.is_initialized()
    count = min(threads, shard_limit(model)) if alone_on_cpu else 1
    torch.set_num_threads(threads // count)
    try:
        yield count
    finally:
        torch.set_num_threads(threads)


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
