"""Candidates per second of the search itself: two workers, an evaluator that costs nothing."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from search.launch import search
from search.synthetic import SyntheticEvaluators

TITLE = "Candidates per second with a free evaluator, 2 workers"
SPACE = Path(__file__).parents[1] / "spaces" / "vim_nano.yaml"


def run() -> list[dict[str, Any]]:
    return [row(sampler, trials=1000) for sampler in ("nsga2", "random")] + [row("tpe", trials=300)]


def row(sampler: str, trials: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        result = search(
            SPACE,
            run_dir,
            trials=trials,
            workers=2,
            sampler=sampler,
            evaluators=SyntheticEvaluators("vim_nano"),
            progress=False,
        )
        storage = JournalStorage(JournalFileBackend(str(run_dir / "study.journal")))
        [study] = optuna.get_all_study_summaries(storage)
        finished = optuna.load_study(study_name=study.study_name, storage=storage).trials
    starts = [t.datetime_start for t in finished if t.datetime_start]
    ends = [t.datetime_complete for t in finished if t.datetime_complete]
    seconds = (max(ends) - min(starts)).total_seconds()
    return {
        "sampler": sampler,
        "candidates": result.counts.finished,
        "candidates/s": result.counts.finished / seconds,
        "whole call, s": result.seconds,
    }
