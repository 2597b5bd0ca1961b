"""What every task and its metric have to hold."""

import math

import pytest
import torch

from ssmprune.models.factory import create_model
from ssmprune.tasks import TASKS, task_of

MODELS = {"classification": "vim_nano"}
"""A small model of each task."""

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@pytest.fixture(scope="module")
def opened():
    """Model and a few images of each task."""
    found = {}
    for name, model in MODELS.items():
        torch.manual_seed(0)
        backbone = create_model(model).eval()
        images = TASKS[name].open_images(
            backbone.config, "digits", "search", limit=12, batch_size=5
        )
        found[name] = backbone, images
    return found


@every_task
def test_models_name_their_task(task, opened):
    model, _ = opened[task.name]
    assert task_of(model.config) is task


@every_task
def test_observed_images_sum_up_to_what_is_evaluated(task, opened):
    model, images = opened[task.name]
    observed = task.metric.observe(model, images.loader)
    figures = task.metric.evaluate(model, images.loader)
    assert len(observed) == figures.images == 12
    assert task.metric.summary(observed.numpy()) == (figures.score, figures.low, figures.high)
    assert 0 <= figures.low <= figures.score <= figures.high <= 100


@every_task
def test_figures_are_read_back_and_told(task, opened):
    model, images = opened[task.name]
    figures = task.metric.evaluate(model, images.loader)
    assert task.metric.from_dict(figures.to_dict()) == figures
    assert figures.to_dict()[task.metric.name] == figures.score
    assert f"{figures.score:.2f}" in " ".join(figures.told())


@every_task
def test_chance_is_a_score(task, opened):
    model, _ = opened[task.name]
    assert 0 <= task.metric.chance(model.config) < 100


@every_task
@torch.no_grad()
def test_losses_are_sums_over_the_images(task, opened):
    model, images = opened[task.name]
    pixels, targets = next(iter(images.loader))
    outputs = model(pixels)
    taught = outputs.flip(0)
    for loss in (
        lambda part: task.loss(outputs[part], targets[part], 0.1),
        lambda part: task.divergence(outputs[part], taught[part], 2.0),
    ):
        parts = float(loss(slice(0, 2))) + float(loss(slice(2, None)))
        assert math.isclose(float(loss(slice(None))), parts, rel_tol=1e-5)
    assert float(task.divergence(outputs, outputs, 2.0)) == pytest.approx(0, abs=1e-5)
