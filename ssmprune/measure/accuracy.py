"""Accuracy over a set of images, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssmprune.data.base import Batch
from ssmprune.errors import DataError, SsmpruneError, UsageError
from ssmprune.measure.metric import Metric
from ssmprune.models.configs import ModelConfig

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """Share of the images that a model classifies rightly, in percent."""

    top1: float
    top5: float
    images: int
    low: float
    """Lower end of the 95 % Wilson interval of `top1`."""
    high: float

    @property
    def score(self) -> float:
        return self.top1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def told(self) -> list[str]:
        return [
            f"top-1  {self.top1:.2f} %, 95 % interval {self.low:.2f} to {self.high:.2f}",
            f"top-5  {self.top5:.2f} %",
        ]


class Top1(Metric):
    """Share of the images whose class is the model's first choice."""

    name = "top1"
    title = "Top-1"

    def evaluate(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        *,
        amp: bool = False,
        progress: bool = False,
    ) -> Accuracy:
        return evaluate(model, loader, amp=amp, progress=progress)

    def from_dict(self, figures: Mapping[str, Any]) -> Accuracy:
        return Accuracy(**figures)

    def observe(self, model: nn.Module, loader: Iterable[Batch], *, amp: bool = False) -> Tensor:
        return correct(model, loader, amp=amp)

    def summary(self, observed: NDArray[Any]) -> tuple[float, float, float]:
        hits, images = int(observed.sum()), len(observed)
        return 100 * hits / images, *wilson_interval(hits, images)

    def chance(self, config: ModelConfig) -> float:
        return 100 / config.num_classes


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    device: torch.device | str | None = None,
    amp: bool = False,
    progress: bool = False,
) -> Accuracy:
    """Measure top-1 and top-5 accuracy.

    Args:
        model: Images `(B, C, H, W)` to logits `(B, K)`; put into eval mode for the duration.
        loader: Batches of images and labels.
        device: Where the model's parameters are, if not given; the model is not moved.
        amp: Run under bfloat16 autocast.
        progress: Show a progress bar on stderr.

    Raises:
        SsmpruneError: A logit is NaN.
        UsageError: A label is not among the model's classes.
        DataError: There are no images.
    """
    ranks = _ranks(model, loader, device, amp, progress)
    hits = int((ranks == 0).sum())
    low, high = wilson_interval(hits, len(ranks))
    return Accuracy(
        top1=100 * hits / len(ranks),
        top5=100 * int((ranks < 5).sum()) / len(ranks),
        images=len(ranks),
        low=low,
        high=high,
    )


def correct(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    device: torch.device | str | None = None,
    amp: bool = False,
) -> Tensor:
    """Tell for each image whether it is classified rightly, to compare models in pairs.

    Arguments and errors are those of `evaluate`.

    Returns:
        Booleans `(N,)` on the CPU, in the loader's order.
    """
    return _ranks(model, loader, device, amp, progress=False) == 0


def wilson_interval(hits: int, images: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of `hits` out of `images`, in percent."""
    share, z2 = hits / images, _Z_95**2
    centre = share + z2 / (2 * images)
    spread = _Z_95 * math.sqrt(share * (1 - share) / images + z2 / (4 * images**2))
    scale = 100 / (1 + z2 / images)
    low = scale * (centre - spread) if hits > 0 else 0.0
    high = scale * (centre + spread) if hits < images else 100.0
    return low, high


def _ranks(
    model: nn.Module,
    loader: Iterable[Batch],
    device: torch.device | str | None,
    amp: bool,
    progress: bool,
) -> Tensor:
    """Rank of the true class among the logits, 0 for the highest; ties go to the lower class.

    Everything stays on the device until the last batch has been queued.
    """
    if device is None:
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
    device = torch.device(device)
    ranks: list[Tensor] = []
    faults: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=amp):
            for images_BCHW, labels_B in _with_progress(loader) if progress else loader:
                labels_B1 = labels_B.to(device, non_blocking=True)[:, None]
                logits_BK = model(images_BCHW.to(device, non_blocking=True))
                classes = torch.arange(logits_BK.shape[1], device=device)
                known_B1 = labels_B1.clamp(0, len(classes) - 1)
                true_B1 = logits_BK.gather(1, known_B1)
                ahead_BK = (logits_BK > true_B1) | ((logits_BK == true_B1) & (classes < known_B1))
                ranks.append(ahead_BK.sum(1))
                faults.append(torch.stack([logits_BK.isnan().any(), (known_B1 != labels_B1).any()]))
    finally:
        model.train(was_training)
    if not ranks:
        raise DataError("accuracy needs at least 1 image, but the loader is empty; check the data.")
    any_nan, unknown = torch.stack(faults).any(0).tolist()
    if unknown:
        raise UsageError(
            f"labels must be among the model's {len(classes)} classes, but one is not; use a model "
            "with a class for every label of the data."
        )
    if any_nan:
        raise SsmpruneError(
            "logits must be numbers, but the model returned NaN; check that the checkpoint is "
            "whole, or measure without bfloat16."
        )
    return torch.cat(ranks).cpu()


def _with_progress(loader: Iterable[Batch]) -> Iterator[Batch]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("evaluating", total=getattr(loader, "images", None))
        for batch in loader:
            yield batch
            bar.advance(task, len(batch[1]))
