"""On a CUDA device, pretended, every model does what it does on the CPU, with every setting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ssmprune.data import open_images, open_stream
from ssmprune.models.backbone import Backbone
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.models.configs import ModelConfig
from ssmprune.models.factory import create_model
from ssmprune.models.families import build_model
from ssmprune.models.vim import Vim
from ssmprune.models.zoo import find_config
from ssmprune.policy import Policy, Stage
from ssmprune.pruning.alignment import decays
from ssmprune.pruning.apply import apply_policy
from ssmprune.pruning.kept import kept_patches
from ssmprune.pruning.scorers import scorers
from ssmprune.training import TrainSettings
from ssmprune.training.trainer import Trainer, dense_copy
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.evaluation.evaluator import ModelEvaluator, ModelEvaluators
from tests.contracts.conftest import FAMILIES
from tests.pretend import DEVICE, pretended_cuda

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a GPU is there: see tests/integration/test_gpu.py"
)


class Case(NamedTuple):
    """A small model and its policy."""

    config: ModelConfig
    policy: Policy | None

    def build(self) -> Backbone:
        torch.manual_seed(0)
        model = build_model(self.config)
        if self.policy is not None:
            apply_policy(model, self.policy)
        return model

    def images(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(2, self.config.channels, *self.config.image_size, generator=generator)


HIERARCHIES = {
    name: replace(
        find_config(zoo_name),
        widths=(8, 12, 16, 24),
        depths=(2, 1, 1, 1),
        image_size=(40, 56),
        num_classes=5,
    )
    for name, zoo_name in {"vmamba": "vmamba_tiny_s1l8", "vanilla": "vanilla_vmamba_tiny"}.items()
}


def _cases() -> Iterator[tuple[str, Case]]:
    for name, family in FAMILIES.items():
        yield f"{name}-dense", Case(family.config, None)
        for scorer in sorted(scorers.names()):
            if family.has(scorer):
                yield (
                    f"{name}-{scorer}",
                    Case(family.config, family.policy(0.7, 0.5, scorer=scorer)),
                )
        for decay, conv in product(decays.names(), family.conv):
            policy = family.policy(0.7, 0.5, decay=decay, strength=0.5, conv=conv)
            yield f"{name}-{decay}-{conv}", Case(family.config, policy)
    for name, config in HIERARCHIES.items():
        yield f"{name}-dense", Case(config, None)
        stages = tuple(Stage(layer=layer, keep_ratio=0.6) for layer in (0, 2, 4))
        yield (
            f"{name}-grid",
            Case(config, Policy(model=config.name, reduction="grid", stages=stages)),
        )


CASES = dict(_cases())
DIFFERENTIATED = {
    name: case for name, case in CASES.items() if name.rpartition("-")[2] not in scorers.names()
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_differentiated_case = pytest.mark.parametrize(
    "case", DIFFERENTIATED.values(), ids=DIFFERENTIATED
)
every_precision = pytest.mark.parametrize("amp", [False, True], ids=["float32", "bfloat16"])


def outputs(model: Backbone, images: Tensor, amp: bool) -> dict[str, Tensor]:
    with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        stream = model.forward_features(images)
        return {
            "logits": model.forward_head(stream),
            "tokens": stream.hidden,
            "positions": stream.positions,
            "grid": model.forward_features(images, restore=True),
        }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], amp: bool) -> None:
    """Everything is on CUDA, of the same types, shapes and, without autocast, values."""
    assert found.keys() == expected.keys()
    for name, x in found.items():
        like = expected[name]
        assert (x.device, x.dtype, x.shape) == (DEVICE, like.dtype, like.shape), name
        if not amp:
            torch.testing.assert_close(x.cpu(), like, rtol=1e-4, atol=1e-6, msg=name)


@every_precision
@every_case
def test_outputs_are_those_of_the_cpu(case: Case, amp: bool) -> None:
    model, images = case.build().eval(), case.images()
    expected = outputs(model, images, amp)
    with pretended_cuda():
        found = outputs(model.to("cuda"), images.to("cuda"), amp)
    if amp and not isinstance(model, Vim):  # CUDA's autocast has the final LayerNorm in float32
        for name in ("tokens", "grid"):
            expected[name] = expected[name].float()
    assert_same(found, expected, amp)


def gradients(model: Backbone, images: Tensor, amp: bool) -> dict[str, Tensor]:
    model.train()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=amp):
        loss = model(images).float().square().sum()
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: x for name, x in found.items() if x is not None} | {"loss": loss.detach()}


@every_precision
@every_differentiated_case
def test_gradients_are_those_of_the_cpu(case: Case, amp: bool) -> None:
    model, images = case.build(), case.images()
    expected = gradients(case.build(), images, amp)
    with pretended_cuda():
        found = gradients(model.to("cuda"), images.to("cuda"), amp)
    assert_same(found, expected, amp)


@every_precision
def test_resuming_from_the_dense_blocks_is_the_whole_forward(amp: bool) -> None:
    config = FAMILIES["vim"].config
    policy = Policy(model=config.name, stages=(Stage(layer=1, keep_ratio=0.5),))
    case = Case(config, policy)
    with pretended_cuda():
        model, images = case.build().to("cuda").eval(), case.images().to("cuda")
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=amp):
            entering = model.run_dense(model.embed(images), 0, 1)
            found, expected = model.forward_from(entering, 1), model(images)
    assert entering.device == found.device == DEVICE
    assert torch.equal(found.cpu(), expected.cpu())


@pytest.mark.parametrize("name", ["vim-l1", "plain_mamba-l1", "vmamba-grid"])
def test_kept_patches_are_those_of_the_cpu(name: str) -> None:
    model, images = CASES[name].build(), CASES[name].images()
    logits, expected = kept_patches(model, images)
    with pretended_cuda():
        found_logits, found = kept_patches(model.to("cuda"), images.to("cuda"))
    torch.testing.assert_close(found_logits.cpu(), logits, rtol=1e-4, atol=1e-6)
    assert [(stage.layer, stage.count) for stage in found] == [
        (stage.layer, stage.count) for stage in expected
    ]
    assert all(torch.equal(a.mask, b.mask) for a, b in zip(found, expected, strict=True))


POLICY = Policy(
    model="vim_nano", stages=(Stage(layer=1, keep_ratio=0.7), Stage(layer=4, keep_ratio=0.7))
)
OBJECTIVES: tuple[str, ...] = ("top1", "flops", "latency_ms", "peak_memory_bytes")


def measure(device: str, amp: bool) -> Measurement:
    """The policy's figures on some of the digits, by way of a search's evaluator."""
    checkpoint = shipped_checkpoint("vim_nano")
    assert checkpoint is not None
    setting = ModelEvaluators("vim_nano", checkpoint, "digits", device, OBJECTIVES, 32, amp)
    size: dict[str, Any] = {"image_size": (48, 48), "channels": 1}
    images = open_images("digits", "search", **size, batch_size=32, limit=32)
    return ModelEvaluator(setting, setting.load(), images.resident(device), None)(POLICY)


@pytest.mark.slow
@every_precision
def test_evaluator_of_a_search_measures_what_it_does_on_the_cpu(amp: bool) -> None:
    with pretended_cuda():
        found = measure("cuda", amp)
    expected = measure("cpu", amp)
    assert (found.images, found.flops) == (expected.images, expected.flops)
    assert found.top1 == pytest.approx(expected.top1, abs=4 if amp else 0)
    assert found.latency_ratio > 0 and found.peak_memory_ratio == 1
    for protocol in (found.latency_protocol, found.memory_protocol):
        assert (protocol["device"], protocol["backend"]) == (str(DEVICE), "triton")
        assert protocol["precision"] == ("bfloat16" if amp else "float32")


def train(device: str, amp: bool) -> tuple[list[float], Trainer]:
    """The losses of two steps with everything that a recipe can ask for."""
    settings = TrainSettings(
        steps=2, batch_size=4, accumulate=2, lr=1e-3, ema=0.9, label_smoothing=0.1, mixup=0.2,
        cutmix=0.2, distill=0.5, anneal=1.0, aux_weight=0.5, amp=amp,
    )  # fmt: skip
    torch.manual_seed(0)
    model = create_model("vim_nano", policy=POLICY).to(device)
    trainer = Trainer(model, settings, 2, teacher=dense_copy(model))
    stream = open_stream("digits", image_size=(48, 48), channels=1, batch_size=4)
    batches = enumerate(islice(stream.batches(), 2))
    return [trainer.step(step, *batch).item() for step, batch in batches], trainer


@pytest.mark.slow
@every_precision
def test_training_takes_the_steps_of_the_cpu(amp: bool) -> None:
    expected, on_cpu = train("cpu", amp)
    with pretended_cuda():
        found, trainer = train("cuda", amp)
        trainer.restore(trainer.state())
    assert found == pytest.approx(expected, rel=1e-2 if amp else 1e-5)
    for (name, x), like in zip(
        trainer.result.state_dict().items(), on_cpu.result.state_dict().values(), strict=True
    ):
        assert (x.device, x.dtype) == (DEVICE, like.dtype), name


def test_operator_refuses_tensors_of_two_devices() -> None:
    with pretended_cuda():
        there = torch.ones(2, device="cuda")
        with pytest.raises(RuntimeError, match="on cuda:0 and on the CPU"):
            there + torch.ones(2)
        assert (there + torch.tensor(1.0)).device == DEVICE
