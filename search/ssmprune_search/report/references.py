"""What a front is compared with: known schedules, and smaller dense models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ssmprune.files import write_atomically
from ssmprune.measure.flops import count_flops
from ssmprune.models.zoo import find_config, model_names
from ssmprune.policy import Policy, shipped_policies
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.pareto import pruning_key
from ssmprune_search.report.samples import Bench
from ssmprune_search.results.outcome import Outcome

PUBLISHED_TOP1 = {
    "vim_tiny_patch16_224": 76.1,
    "vim_tiny_patch16_stride8_224": 78.3,
    "vim_small_patch16_224": 80.5,
    "vim_small_patch16_stride8_224": 81.6,
    "vim_base_patch16_224": 81.9,
    "plainmamba_l1": 77.9,
    "plainmamba_l2": 81.6,
    "plainmamba_l3": 82.3,
    "vmamba_tiny_s1l8": 82.6,
    "vmamba_tiny_s2l5": 82.5,
    "vmamba_small_s1l20": 83.3,
    "vmamba_small_s2l15": 83.6,
    "vmamba_base_s1l20": 83.8,
    "vmamba_base_s2l15": 83.9,
    "vanilla_vmamba_tiny": 82.2,
    "vanilla_vmamba_small": 83.5,
    "vanilla_vmamba_base": 83.7,
}
"""Top-1 in per cent on ImageNet's validation images, by the tables of the models' repositories."""

_SAME_DATA = 1.0  # points: a dense model this near its published top1 ran on comparable images

Measured = dict[str, dict[str, Measurement]]
"""Figures by policy, as `_key` names it, and by split."""


@dataclass(frozen=True)
class KnownSchedule:
    """A policy that somebody chose by hand.

    Attributes:
        name: Of a policy that ships with the package, or of the search's own queue.
        figures: By split, as far as measured.
    """

    name: str
    policy: Policy
    figures: dict[str, Measurement]

    @property
    def is_measured(self) -> bool:
        """Whether its accuracy is known on both splits."""
        return {"search", "holdout"} <= self.figures.keys()


@dataclass(frozen=True)
class SmallerModel:
    """A dense model that costs no more than the searched one.

    Attributes:
        flops_ratio: Its FLOPs over those of the searched model.
        score: Published top-1, in per cent.
    """

    name: str
    flops: int
    flops_ratio: float
    score: float


@dataclass(frozen=True)
class SmallerModels:
    """The answer to "is a smaller model better?", as far as there is one.

    Attributes:
        models: Most FLOPs first.
        comparable: Whether they may stand on the axes of the run's own measurements.
        note: Why, or why not, in sentences.
    """

    models: list[SmallerModel]
    comparable: bool
    note: str


def find_schedules(outcome: Outcome, measured: Measured) -> list[KnownSchedule]:
    """Those that ship for the model, and those that the search began with, fewest FLOPs first."""
    evaluated = {_key(c.policy): c for c in outcome.candidates}
    shipped = [(name, policy) for name, policy in _shipped(outcome.run.space.model)]
    known = {_key(policy) for _, policy in shipped}
    queued = [(c.source.partition(":")[2], c.policy) for c in outcome.candidates if _queued(c)]
    found = []
    for name, policy in [*shipped, *(q for q in queued if _key(q[1]) not in known)]:
        figures = dict(measured.get(_key(policy), {}))
        if candidate := evaluated.get(_key(policy)):
            figures |= {f.split: f for f in (candidate.search, candidate.holdout) if f}
        found.append(KnownSchedule(name, policy, figures))
    config = outcome.run.space.config
    return sorted(found, key=lambda s: count_flops(config, s.policy).flops)


def measure_references(outcome: Outcome, bench: Bench, folder: Path) -> None:
    """Evaluate known schedules where the search did not, and keep their figures in `folder`."""
    measured = read_measured(outcome, folder)
    for schedule in find_schedules(outcome, measured):
        for split in ("search", "holdout"):
            if split not in schedule.figures:
                figures = bench.measure(schedule.policy, split, outcome.dense)
                measured.setdefault(_key(schedule.policy), {})[split] = figures
                _write_measured(outcome, measured, folder)


def read_measured(outcome: Outcome, folder: Path) -> Measured:
    """What earlier reports of the same run have measured; nothing if there is none."""
    try:
        data = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if data.get("identity") != outcome.run.info["identity"]:
        return {}
    return {
        key: {split: Measurement.from_dict(figures) for split, figures in splits.items()}
        for key, splits in data["policies"].items()
    }


def _write_measured(outcome: Outcome, measured: Measured, folder: Path) -> None:
    policies = {
        key: {split: figures.to_dict() for split, figures in splits.items()}
        for key, splits in measured.items()
    }
    data = {"identity": outcome.run.info["identity"], "policies": policies}
    write_atomically(folder / "measured.json", json.dumps(data, indent=2) + "\n")


def find_smaller_models(outcome: Outcome) -> SmallerModels:
    """Dense models of the zoo with the same classes and no more FLOPs, and what they prove."""
    space, dense = outcome.run.space, outcome.dense_holdout or outcome.dense
    classes = space.config.num_classes
    models = [
        SmallerModel(name, flops, flops / space.dense_flops, PUBLISHED_TOP1[name])
        for name, flops in _dense_flops(classes).items()
        if flops < space.dense_flops and name in PUBLISHED_TOP1
    ]
    models.sort(key=lambda m: -m.flops)
    if not models:
        return SmallerModels(
            [],
            False,
            f"This run cannot tell: the zoo has no smaller dense model for the {classes} classes "
            f"of {space.model}. Train one and set its top-1 and FLOPs against the front's.",
        )
    published = PUBLISHED_TOP1.get(space.model)
    comparable = published is not None and abs(published - dense.score) <= _SAME_DATA
    if comparable:
        note = (
            "Top-1 of the smaller models is as published, on all of ImageNet's validation images. "
            f"It may stand beside this run's as {space.model} reaches {dense.score:.1f} % here, "
            f"within {_SAME_DATA:g} point of its published {published:.1f} %."
        )
    else:
        told = "has no published top-1" if published is None else f"has {published:.1f} %"
        note = (
            f"The published top-1 of these models is not drawn beside this run's: {space.model} "
            f"reaches {dense.score:.1f} % here and {told} as published, so the images or the "
            f"weights differ."
        )
    return SmallerModels(models, comparable, note)


def _dense_flops(classes: int) -> dict[str, int]:
    """FLOPs of the zoo's models with so many classes."""
    configs = {name: find_config(name) for name in model_names()}
    return {n: count_flops(c).flops for n, c in configs.items() if c.num_classes == classes}


def _shipped(model: str) -> list[tuple[str, Policy]]:
    policies = ((name, Policy.load(name)) for name in shipped_policies())
    return [(name, policy) for name, policy in policies if policy.model == model]


def _queued(candidate: Candidate) -> bool:
    return candidate.source.startswith("schedule:")


def _key(policy: Policy) -> str:
    return repr(pruning_key(policy))
