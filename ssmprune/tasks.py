"""Each task, by the name that configurations of models have as `task`."""

from __future__ import annotations

from ssmprune.classification import Classification
from ssmprune.models.configs import ModelConfig
from ssmprune.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (Classification(),)}


def task_of(config: ModelConfig) -> Task:
    """What a model is for."""
    return TASKS[config.task]
