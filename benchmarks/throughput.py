"""Candidates per second of the search itself: two workers, an evaluator that costs nothing.

Beside it what Ray Tune is usually told to do: one Tune trial per candidate, proposed by its
`OptunaSearch`, with the same sampler, space and evaluator; in a process of its own, as is Tune's
default, or in processes that stay (`reuse_actors`). It keeps its study in memory only, and
evaluates equal and infeasible candidates like any other.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.storages import JournalStorage
from optuna.trial import FixedTrial
from ray import tune
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch

from ssmprune.ray_session import running_ray
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator, SyntheticEvaluators
from ssmprune_search.run.launch import search
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.journal import JournalFile

TITLE = "Candidates per second with a free evaluator, 2 workers"
SPACE = Path(__file__).parents[1] / "spaces" / "vim_nano.yaml"
WORKERS = 2


def run() -> list[dict[str, Any]]:
    ours = [row(sampler, trials=1000) for sampler in ("nsga2", "random")] + [row("tpe", trials=300)]
    return [*ours, peer(trials=10, reuse=False), peer(trials=300, reuse=True)]


def row(sampler: str, trials: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        result = search(
            SPACE,
            run_dir,
            trials=trials,
            workers=WORKERS,
            sampler=sampler,
            evaluators=SyntheticEvaluators("vim_nano"),
            progress=False,
        )
        storage = JournalStorage(JournalFile(run_dir / "study.journal"))
        finished = optuna.load_study(study_name=None, storage=storage).trials
    starts = [t.datetime_start.timestamp() for t in finished if t.datetime_start]
    ends = [t.datetime_complete.timestamp() for t in finished if t.datetime_complete]
    return {
        "one Tune trial is": "a worker",
        "sampler": sampler,
        "candidates": result.counts.finished,
        "candidates/s": result.counts.finished / (max(ends) - min(starts)),
        "whole call, s": result.seconds,
    }


def peer(trials: int, reuse: bool) -> dict[str, Any]:
    """Ray Tune with Optuna, as its documentation puts them together."""
    space = SearchSpace.load(SPACE)
    evaluate = SyntheticEvaluator(space.model, "search")

    def trainable(config: dict[str, Any]) -> None:
        start = time.time()
        figures = evaluate(space.suggest(FixedTrial(config)))
        values = {objective: figures.value(objective) for objective in space.objectives}
        tune.report({**values, "start": start, "end": time.time()})

    searcher = OptunaSearch(
        space.distributions(),
        metric=list(space.objectives),
        mode=["max" if objective == "top1" else "min" for objective in space.objectives],
        sampler=optuna.samplers.NSGAIISampler(seed=0),
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running_ray(None, WORKERS):
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": 1}),
            tune_config=tune.TuneConfig(
                search_alg=ConcurrencyLimiter(searcher, max_concurrent=WORKERS),
                num_samples=trials,
                reuse_actors=reuse,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        figures = [result.metrics or {} for result in tuner.fit()]
    seconds = max(f["end"] for f in figures) - min(f["start"] for f in figures)
    return {
        "one Tune trial is": f"a candidate{', processes stay' if reuse else ''}",
        "sampler": "nsga2",
        "candidates": len(figures),
        "candidates/s": len(figures) / seconds,
        "whole call, s": time.monotonic() - begin,
    }
