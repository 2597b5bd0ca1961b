"""Samplers, early stopping and the portfolio, replayed on a table of real evaluations.

Each search has one worker, the seed's own order of the images, and 150 candidates; with early
stopping it goes on until it has reached the target or has seen as many images as the search
without. The target of a seed is 99 % of the hypervolume that its search without early stopping ends
with; "images" are those seen when a search first gets there, as medians over the seeds. A false
stop is a candidate of the table's true front that was stopped, out of those that were proposed.
"""

from __future__ import annotations

import functools
import multiprocessing
import statistics
import tempfile
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.policy_table import SPACE, PolicyTable
from ssmprune.measure.accuracy import wilson_interval
from ssmprune.policy import Policy
from ssmprune_search.candidate.cost import Cost
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.pareto import hypervolume, pareto_front, pruning_key
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.study.race import Race
from ssmprune_search.study.records import Owner
from ssmprune_search.study.study import Study

TITLE = "Searches replayed on 2,589 measured policies, medians of 20 seeds"
SAMPLERS = ("random", "nsga2", "tpe", "ehvi", "auto")
SEEDS = range(20)
CANDIDATES = 150
MARGIN = 0.99
PROCESSES = 2
OBJECTIVES = ("top1", "flops")


@functools.cache
def recorded() -> tuple[PolicyTable, dict[Any, int], set[Any]]:
    """The table, its rows by pruning key, and the pruning keys of its true front."""
    table = PolicyTable.load()
    rows = {pruning_key(policy): row for row, policy in enumerate(table.policies)}
    measured = [
        Candidate(row, policy, "table", measurement(table, policy, table.correct[row]))
        for row, policy in enumerate(table.policies)
    ]
    return (
        table,
        rows,
        {pruning_key(member.policy) for member in pareto_front(measured, OBJECTIVES)},
    )


def evaluate(policy: Policy, race: Race, order: NDArray[np.int64]) -> Measurement:
    """Look a policy up, and show it to a race in the given order of the images."""
    table, rows, _ = recorded()
    correct = table.correct[rows[pruning_key(policy)]][order]
    for images in race.rungs(len(correct)):
        if race.show(correct[:images]):
            break
    return measurement(table, policy, race.scores)


def measurement(table: PolicyTable, policy: Policy, correct: NDArray[np.bool_]) -> Measurement:
    """The figures of a policy that got `correct`, (images seen,), right."""
    hits, images, flops = (
        int(correct.sum()),
        len(correct),
        Cost.of(policy, table.space.config).flops,
    )
    low, high = wilson_interval(hits, images)
    return Measurement(
        split="search",
        top1=100 * hits / images,
        top1_low=low,
        top1_high=high,
        images=images,
        flops=flops,
        flops_ratio=flops / table.space.dense_flops,
        paper_flops=flops,
        latency_ms=float("nan"),
        latency_ratio=float("nan"),
        latency_ratio_low=float("nan"),
        latency_ratio_high=float("nan"),
    )


@dataclass
class History:
    """What a search had seen and found after each of its candidates."""

    images: list[int]
    hypervolume: list[float]
    candidates: int = 0
    stopped: int = 0
    false_stops: int = 0
    true_front: int = 0

    def reaching(self, target: float) -> float:
        """Images seen when the hypervolume first reached `target`; infinite if it never did."""
        pairs = zip(self.images, self.hypervolume, strict=True)
        return next((images for images, found in pairs if found >= target), inf)


def replay(
    sampler: str, seed: int, early_stopping: bool, budget: float = inf, target: float = inf
) -> History:
    """Search the table for `CANDIDATES`, or with early stopping for any number of them.

    Args:
        budget: Images after which the search ends.
        target: Hypervolume at which it ends.
    """
    table, _, best = recorded()
    order = np.random.default_rng(seed).permutation(len(table.dense))
    reference = {"top1": 0.0, "flops": float(table.space.dense_flops)}
    history = History([], [])
    found: list[Candidate] = []
    seen, volume = 0, 0.0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        study = _study(Path(folder), sampler, seed)
        while seen < budget and volume < target:
            suggestion = study.ask(_most(early_stopping), early_stopping)
            if suggestion is None:
                break
            race = suggestion.race
            figures = evaluate(suggestion.policy, race, order)
            study.tell(suggestion.trial, figures, race)
            seen += figures.images - len(race.known)
            is_new, is_best = not len(race.known), pruning_key(suggestion.policy) in best
            history.candidates += is_new
            history.true_front += is_new and is_best
            history.stopped += race.is_lost
            history.false_stops += race.is_lost and is_best
            if not race.ended_early:
                new = Candidate(suggestion.trial, suggestion.policy, sampler, figures)
                found = pareto_front([*found, new], OBJECTIVES)
                volume = hypervolume(found, OBJECTIVES, reference)
            history.images.append(seen)
            history.hypervolume.append(volume)
    return history


def _most(early_stopping: bool) -> int:
    return 10**6 if early_stopping else CANDIDATES


def _study(folder: Path, sampler: str, seed: int) -> Study:
    run = RunDirectory(folder)
    run.freeze_space(SPACE.read_text())
    Study.create(run.journal_path, run.space)
    run.write_info({"call": {"sampler": sampler, "seed": seed}})
    study = run.study(Owner("session", 0, "process"))
    study.begin_session("session")
    return study


def _both(task: tuple[str, int]) -> tuple[History, History]:
    """A seed's search without and with early stopping."""
    sampler, seed = task
    plain = replay(sampler, seed, early_stopping=False)
    target = MARGIN * plain.hypervolume[-1]
    return plain, replay(sampler, seed, True, plain.images[-1], target)


def run() -> list[dict[str, Any]]:
    tasks = [(sampler, seed) for sampler in SAMPLERS for seed in SEEDS]
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        histories = dict(zip(tasks, pool.imap(_both, tasks), strict=True))
    return [row(sampler, [histories[sampler, seed] for seed in SEEDS]) for sampler in SAMPLERS]


def row(sampler: str, pairs: list[tuple[History, History]]) -> dict[str, Any]:
    targets = [MARGIN * plain.hypervolume[-1] for plain, _ in pairs]
    plain = [p.reaching(target) for (p, _), target in zip(pairs, targets, strict=True)]
    raced = [r.reaching(target) for (_, r), target in zip(pairs, targets, strict=True)]
    return {
        "sampler": sampler,
        "hypervolume after 150": statistics.median(p.hypervolume[-1] for p, _ in pairs),
        "images to 99 %": statistics.median(plain),
        "with early stopping": statistics.median(raced),
        "share, median": statistics.median(b / a for a, b in zip(plain, raced, strict=True)),
        "of all its images": statistics.median(
            b / p.images[-1] for (p, _), b in zip(pairs, raced, strict=True)
        ),
        "candidates tried until then": statistics.median(r.candidates for _, r in pairs),
        "stopped": sum(r.stopped for _, r in pairs),
        "of the true front": sum(r.false_stops for _, r in pairs),
        "true front proposed": sum(r.true_front for _, r in pairs),
    }
