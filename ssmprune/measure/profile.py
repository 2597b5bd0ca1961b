"""What a model costs, dense and under its policy, side by side."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from ssmprune.errors import SsmpruneError
from ssmprune.measure.flops import FlopCount, count_flops
from ssmprune.measure.latency import Latency, compare_latency
from ssmprune.measure.trace import trace_flops
from ssmprune.models.backbone import Backbone
from ssmprune.scan import resolve_backend


@dataclass(frozen=True)
class Profile:
    """Costs of a model for one image, and its latency for one batch.

    Attributes:
        flops: FLOPs of the model as it is.
        dense_flops: FLOPs of the model without its policy.
        tokens: Tokens that each block scans; last, those that leave the model.
        latency: Latency against the dense model, None if it was not measured. For a dense model
            the two are the same program, and the ratio shows the noise.
    """

    flops: FlopCount
    dense_flops: FlopCount
    tokens: tuple[int, ...]
    latency: Latency | None

    @property
    def flops_ratio(self) -> float:
        return self.flops.flops / self.dense_flops.flops


def profile(
    model: Backbone,
    *,
    batch_size: int = 32,
    repeats: int = 20,
    latency: bool = True,
    amp: bool = False,
) -> Profile:
    """Count the FLOPs of `model` and time it against its dense self, on the device it is on.

    The closed form is checked against a trace of the forward.

    Args:
        model: A backbone, with or without a policy.
        batch_size: Images in the timed batch.
        repeats: Timed pairs.
        latency: Whether to measure latency.
        amp: Run under bfloat16 autocast, with the scan's state in float32.

    Raises:
        SsmpruneError: The trace holds an operator without a price, or differs from the closed form.
    """
    policy = None if model.plan is None else model.plan.policy
    counted, traced = count_flops(model.config, policy), trace_flops(model)
    if counted.by_operator() != traced.by_operator():
        raise SsmpruneError(
            f"closed-form FLOPs must equal the trace, got {counted.by_operator()} and "
            f"{traced.by_operator()} for {model.config.name}; mend "
            f"ssmprune/measure/flops_{model.config.family}.py."
        )
    return Profile(
        flops=counted,
        dense_flops=count_flops(model.config),
        tokens=model.config.block_tokens
        if policy is None
        else policy.entering_tokens(model.config),
        latency=_latency(model, batch_size, repeats, amp) if latency else None,
    )


def dense_twin(model: Backbone) -> Backbone:
    """The same model without its policy; it shares every weight with `model`."""
    twin = copy.copy(model)
    twin.plan = None
    return twin


def _latency(model: Backbone, batch_size: int, repeats: int, amp: bool) -> Latency:
    config, weight = model.config, next(model.parameters())
    images = torch.randn(
        batch_size,
        config.channels,
        *config.image_size,
        device=weight.device,
        dtype=weight.dtype,
    )
    backend = resolve_backend(model.backend, weight.device, weight.dtype)
    was_training = model.training
    model.eval()
    try:
        return compare_latency(
            dense_twin(model), model, images, repeats=repeats, amp=amp, backend=backend
        )
    finally:
        model.train(was_training)
