"""Figures of a policy are those of the pruned model on the split's images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from ssmprune import Policy, create_model
from ssmprune.data import Batch, open_images
from ssmprune.errors import CheckpointError, UsageError
from ssmprune.measure.accuracy import correct, evaluate
from ssmprune.measure.flops import count_flops
from ssmprune.policy import Scorer, Stage
from ssmprune_search.candidate.cost import Cost
from ssmprune_search.candidate.measurement import LATENCY_BATCH, Measurement
from ssmprune_search.evaluation.evaluator import LATENCY_REPEATS, ModelEvaluator, ModelEvaluators
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, best_top1
from ssmprune_search.study.race import Incumbent, Race

DENSE = Policy(model="vim_nano", stages=())
PRUNED = Policy(
    model="vim_nano",
    stages=(Stage(layer=1, keep_ratio=0.5), Stage(layer=4, keep_ratio=0.7)),
    scorer=Scorer(name="l1"),
)
LATENCY: tuple[str, ...] = ("top1", "flops", "latency_ms")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    safetensors.torch.save_file(create_model("vim_nano").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def make_evaluator(checkpoint: Path):
    def make(*objectives: str, split: str = "search", dense=None) -> ModelEvaluator:
        setting = ModelEvaluators("vim_nano", checkpoint, "digits", "cpu", objectives, 128)
        return setting.open(split, torch.get_num_threads(), dense)

    return make


def test_measurement_is_that_of_the_pruned_model(make_evaluator, checkpoint: Path) -> None:
    found = make_evaluator("top1", "flops")(PRUNED)
    model = create_model("vim_nano", checkpoint=checkpoint, policy=PRUNED)
    images = open_images("digits", "search", image_size=(48, 48), channels=1, batch_size=128)
    accuracy = evaluate(model, images.loader)
    count, dense = count_flops(model.config, PRUNED), count_flops(model.config)
    assert (found.top1, found.top1_low, found.top1_high, found.images) == (
        accuracy.top1,
        accuracy.low,
        accuracy.high,
        len(images),
    )
    assert (found.flops, found.paper_flops) == (count.flops, count.paper_flops)
    assert found.flops_ratio == count.flops / dense.flops
    assert found.split == "search"
    assert math.isnan(found.latency_ms)


def test_evaluator_keeps_no_policy_from_one_call_to_the_next(make_evaluator) -> None:
    evaluator = make_evaluator("top1", "flops")
    fresh = evaluator(DENSE)
    evaluator(PRUNED)
    again = evaluator(DENSE)
    assert (again.top1, again.flops_ratio) == (fresh.top1, 1.0)


@pytest.mark.slow
def test_latency_is_the_dense_models_times_the_ratio(make_evaluator) -> None:
    dense = make_evaluator(*LATENCY)(DENSE)
    assert dense.latency_ratio == 1.0
    assert dense.latency_ms > 0
    found = make_evaluator(*LATENCY, dense=dense)(PRUNED)
    assert found.latency_ms == pytest.approx(dense.latency_ms * found.latency_ratio)
    assert found.latency_ratio_low <= found.latency_ratio <= found.latency_ratio_high
    protocol = found.latency_protocol
    assert (protocol["device"], protocol["precision"], protocol["backend"]) == (
        "cpu",
        "float32",
        "cpu",
    )
    assert (protocol["batch_size"], protocol["repeats"]) == (LATENCY_BATCH, LATENCY_REPEATS)
    assert protocol["threads"] >= 1 and protocol["device_name"]


def test_holdout_is_another_set_of_images(make_evaluator) -> None:
    found = make_evaluator("top1", "flops", split="holdout")(DENSE)
    assert (found.split, found.images) == ("holdout", 1456)


def test_identity_tells_weights_and_data_apart(checkpoint: Path, tmp_path: Path) -> None:
    def identity(path: Path, objectives: tuple[str, ...] = ("top1",), device: str = "cpu"):
        return ModelEvaluators("vim_nano", path, "digits", device, objectives, 128).identity()

    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file(create_model("vim_nano").state_dict(), other)
    assert identity(checkpoint) == identity(checkpoint)
    assert identity(checkpoint)["checkpoint"] != identity(other)["checkpoint"]
    assert set(identity(checkpoint)["data"]) == {"search", "holdout"}


def test_identity_refuses_what_is_no_checkpoint_or_no_data(
    checkpoint: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        ModelEvaluators("vim_nano", broken, "digits", "cpu", ("top1",), 128).identity()
    with pytest.raises(UsageError, match="digits"):
        ModelEvaluators("vim_nano", checkpoint, "digitz", "cpu", ("top1",), 128).identity()


def test_synthetic_problem_is_best_with_equal_ratios_at_every_layer() -> None:
    evaluator = SyntheticEvaluator("vim_nano", "search")
    equal = Policy(
        model="vim_nano",
        stages=tuple(Stage(layer=n, keep_ratio=0.8) for n in range(7)),
        scorer=Scorer(name="l1"),
    )
    found = evaluator(equal)
    assert found.top1 == best_top1(found.flops_ratio)
    assert evaluator(PRUNED).top1 < best_top1(evaluator(PRUNED).flops_ratio)
    assert evaluator(DENSE).top1 == 100.0


MEMORY: tuple[str, ...] = ("top1", "flops", "peak_memory_bytes")


@pytest.mark.slow
def test_peak_memory_is_measured_where_it_is_an_objective(make_evaluator) -> None:
    dense = make_evaluator(*MEMORY)(DENSE)
    assert dense.peak_memory_ratio == 1.0 and dense.peak_memory_bytes > 0
    with_unit, without = (make_evaluator(*MEMORY, dense=d)(PRUNED) for d in (dense, None))
    assert with_unit == without
    assert without.peak_memory_ratio == without.peak_memory_bytes / dense.peak_memory_bytes
    assert without.memory_protocol["batch_size"] == LATENCY_BATCH
    assert math.isnan(make_evaluator("top1", "flops")(PRUNED).peak_memory_ratio)
    assert math.isnan(make_evaluator(*MEMORY, split="holdout")(PRUNED).peak_memory_bytes)


@pytest.mark.parametrize(("more", "raced"), [(0, True), (1, False)])
def test_only_a_incumbent_that_takes_no_more_memory_stops_a_candidate(
    make_evaluator, more: int, raced: bool
) -> None:
    evaluator = make_evaluator(*MEMORY)
    alone = evaluator(PRUNED)
    stronger = incumbent_of(np.ones(728, bool), alone)
    memory = alone.peak_memory_bytes + more
    race = Race(replace(stronger, search=replace(alone, peak_memory_bytes=memory)))
    found = evaluator(PRUNED, race)
    assert race.is_lost == raced
    assert found.peak_memory_bytes == alone.peak_memory_bytes
    assert (found.images < 728) == raced


def test_measurement_of_a_run_from_before_peak_memory_loads(make_evaluator) -> None:
    figures = make_evaluator("top1", "flops")(PRUNED).to_dict()
    older = {k: v for k, v in figures.items() if "memory" not in k}
    found = Measurement.from_dict(older)
    assert math.isnan(found.peak_memory_bytes) and math.isnan(found.peak_memory_ratio)
    assert found.to_dict() == figures


@pytest.fixture(scope="module")
def hits(make_evaluator) -> np.ndarray:
    """What the pruned model gets right."""
    race = Race()
    make_evaluator("top1", "flops")(PRUNED, race)
    return race.scores


def incumbent_of(correct: np.ndarray, found: Measurement) -> Incumbent:
    return Incumbent(7, Cost(1, (1,)), replace(found, latency_ms=3.5), correct)


def test_race_is_shown_the_images_in_their_order(
    make_evaluator, checkpoint: Path, hits: np.ndarray
) -> None:
    model = create_model("vim_nano", checkpoint=checkpoint, policy=PRUNED)
    images = open_images("digits", "search", image_size=(48, 48), channels=1, batch_size=128)
    assert hits.tolist() == correct(model, images.loader).tolist()


def test_stopped_candidate_sees_no_more_images_and_is_not_timed(
    make_evaluator, hits: np.ndarray
) -> None:
    evaluator = make_evaluator(*LATENCY)
    race = Race(incumbent_of(np.ones(728, bool), evaluator(DENSE)))
    found = evaluator(PRUNED, race)
    assert race.is_lost
    assert found.images == len(race.scores) == race.rungs(728)[0]
    assert race.scores.tolist() == hits[: found.images].tolist()
    assert found.top1 == 100 * hits[: found.images].sum() / found.images
    assert found.latency_ms == 3.5
    assert math.isnan(found.latency_ratio)


def test_candidate_that_pauses_and_goes_on_sees_each_image_once(
    make_evaluator, hits: np.ndarray
) -> None:
    evaluator = make_evaluator(*LATENCY)
    dense = evaluator(DENSE)
    race = Race(incumbent_of(hits, dense), pauses=True)
    part = evaluator(PRUNED, race)
    assert race.is_paused and part.images == len(race.scores) == 46
    assert part.latency_ms == 3.5
    assert math.isnan(part.latency_ratio)
    claimed = ~race.scores  # so that what is known tells what was classified again
    later = Race(incumbent_of(hits, dense), known=claimed)
    whole = evaluator(PRUNED, later)
    assert later.scores.tolist() == [*claimed, *hits[46:]]
    assert whole.images == 728
    assert whole.latency_ratio > 0


@pytest.mark.parametrize("amp", [False, True])
def test_kept_prefix_is_bit_by_bit_what_the_model_computes_and_holds_no_graph(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, amp: bool
) -> None:
    entered: list[torch.Tensor] = []

    def spy(model: torch.nn.Module, batches: Iterable[Batch], **settings: Any) -> torch.Tensor:
        def taken() -> Iterator[Batch]:
            for entering, labels in batches:
                entered.append(entering)
                yield entering, labels

        return correct(model, taken(), **settings)

    monkeypatch.setattr("ssmprune.measure.accuracy.correct", spy)
    setting = ModelEvaluators("vim_nano", checkpoint, "digits", "cpu", ("top1",), 128, amp=amp)
    setting.open("search", torch.get_num_threads())(PRUNED)
    model = create_model("vim_nano", checkpoint=checkpoint).eval()
    images = open_images("digits", "search", image_size=(48, 48), channels=1, batch_size=128)
    whole = torch.cat([batch for batch, _ in images.loader])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
        parts = whole.split([len(entering) for entering in entered])
        expected = [model.run_dense(model.embed(part), 0, 1) for part in parts]
    assert all(torch.equal(a, b) for a, b in zip(entered, expected, strict=True))
    assert not any(entering.requires_grad for entering in entered)
