"""Memory of a search's worker over 200 candidates: what is kept of the dense prefix is bounded.

In a process of its own; candidates are drawn at random from the shipped model's space and see the
first search images, under bfloat16 autocast too.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import optuna
import torch

from benchmarks.record import apart
from ssmprune.tasks import task_of
from ssmprune_search.evaluation.evaluator import PREFIX_BYTES, ModelEvaluator, ModelEvaluators
from ssmprune_search.run.settings import find_checkpoint
from ssmprune_search.space.space import SearchSpace

TITLE = "Resident memory of a worker after so many candidates, MiB"
SPACE = Path(__file__).parents[1] / "spaces" / "vim_nano.yaml"
CANDIDATES = 200
EVERY = 25
IMAGES = 128
_MIB = 2**20


def memory(amp: bool) -> dict[str, Any]:
    """MiB after the first candidate, and then after every few."""
    space = SearchSpace.load(SPACE)
    checkpoint = find_checkpoint(None, space.model)
    evaluators = ModelEvaluators(
        space.model, checkpoint, "digits", "cpu", ("top1", "flops"), 128, amp
    )
    torch.set_num_threads(2)
    model = evaluators.load()
    task = task_of(model.config)
    images = task.open_images(model.config, "digits", "search", batch_size=128, limit=IMAGES)
    evaluate = ModelEvaluator(evaluators, model, images.resident("cpu"), None)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    resident: dict[str, float] = {}
    for number in range(1, CANDIDATES + 1):
        evaluate(space.suggest(study.ask()))
        if number == 1 or number % EVERY == 0:
            resident[f"after {number}"] = _resident()
    settled = [resident[f"after {n}"] for n in range(2 * EVERY, CANDIDATES + 1, EVERY)]
    return {
        "precision": "bfloat16" if amp else "float32",
        "most kept of prefixes": PREFIX_BYTES / _MIB,
        **resident,
        "highest": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        f"more after {CANDIDATES} than after {2 * EVERY}": settled[-1] - settled[0],
    }


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / _MIB


def run() -> list[dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return [apart(memory, amp) for amp in (False, True)]
