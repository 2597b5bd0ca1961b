"""A candidate that does not fit into memory is tried with smaller batches before it fails."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmprune import Policy
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.evaluation.evaluator import ModelEvaluators
from ssmprune_search.evaluation.out_of_memory import Sparing
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune_search.study.race import Race

DENSE = Policy(model="vim_nano", stages=())
PRUNED = Policy.model_validate({"model": "vim_nano", "stages": [{"layer": 1, "keep_count": 30}]})


@dataclass(frozen=True)
class HungryEvaluators(SyntheticEvaluators):
    """Evaluators on a device that holds so many images, half as many of a dense model."""

    batch_size: int = 128
    room: int = 32

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> Any:
        free = SyntheticEvaluator(self.model, split)

        def evaluate(policy: Policy, race: Race | None = None) -> Measurement:
            if self.batch_size * (1 if policy.stages else 2) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return replace(free(policy), images=self.batch_size)

        return evaluate

    def with_half_batch(self) -> Any:
        return replace(self, batch_size=self.batch_size // 2) if self.batch_size > 16 else None


def test_batch_is_halved_until_it_fits_and_stays_so() -> None:
    evaluate = Sparing(HungryEvaluators("vim_nano"), "search", 1)
    assert [evaluate(p).images for p in (PRUNED, DENSE, PRUNED)] == [32, 16, 16]


def test_candidate_that_never_fits_fails_and_the_next_one_is_tried() -> None:
    evaluate = Sparing(HungryEvaluators("vim_nano", room=16), "search", 1)
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(DENSE)
    assert evaluate(PRUNED).images == 16


def test_model_is_measured_with_half_batches_down_to_that_of_latency(weights: Path) -> None:
    smaller = ModelEvaluators("vim_nano", weights, "digits", "cpu", ("top1",), 65)
    sizes = []
    while smaller is not None:
        sizes.append(smaller.batch_size)
        last, smaller = smaller, smaller.with_half_batch()
    assert sizes == [65, 32, 16]
    assert last == replace(last, batch_size=16)


@dataclass(frozen=True)
class BrittleEvaluators(HungryEvaluators):
    """Evaluators whose smaller batches cannot be opened at first."""

    refusals: list[Exception] = field(default_factory=list)

    def open(self, split: str, threads: int, dense: Measurement | None = None) -> Any:
        if self.batch_size < 128 and self.refusals:
            raise self.refusals.pop()
        return super().open(split, threads, dense)


@pytest.mark.parametrize("refusal", [OSError("no space"), torch.OutOfMemoryError("CUDA")])
def test_reopening_that_fails_once_ends_no_later_candidate(refusal: Exception) -> None:
    evaluate = Sparing(BrittleEvaluators("vim_nano", refusals=[refusal]), "search", 1)
    if isinstance(refusal, OSError):
        with pytest.raises(OSError, match="no space"):
            evaluate(PRUNED)
    assert evaluate(PRUNED).images == 32
    assert evaluate(DENSE).images == 16
