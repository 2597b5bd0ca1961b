"""What the stages of a policy do, and which of its settings count for that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ssmprune.models.configs import ModelConfig
from ssmprune.pruning.matching import find_match
from ssmprune.stage import Alignment, Merge, Stage

DROP = "drop"


def word(stage: Stage) -> str:
    """What a stage does, in a word: `drop`, or the match that it merges by."""
    return find_match(stage.match).name if stage.reduce == "merge" else DROP


def doing(word: str) -> dict[str, Any]:
    """The fields of a stage that does what a word says."""
    if word == DROP:
        return {"reduce": "drop", "match": None}
    return {"reduce": "merge", "match": word}


def merges(stages: Sequence[Stage]) -> bool:
    """Whether a stage merges tokens."""
    return any(stage.reduce == "merge" for stage in stages)


def asks_scorer(stage: Stage) -> bool:
    """Whether the scorer of a stage decides anything at it."""
    return stage.reduce == "drop" or find_match(stage.match).scores


def stage_scorers(stages: Sequence[Stage], scorer: str) -> list[str]:
    """The scorer of each stage, where `scorer` is the policy's; that one if there is no stage.

    A stage that asks none has that of the first that does.
    """
    asked = [s.scorer.name if s.scorer else scorer for s in stages if asks_scorer(s)]
    first, rest = (asked or [scorer])[0], iter(asked)
    return [next(rest) if asks_scorer(stage) else first for stage in stages] or [first]


def mergeable(
    stages: Sequence[Stage],
    counts: Iterable[tuple[int, int]],
    protect: int,
    config: ModelConfig,
    together: bool,
) -> list[Stage]:
    """The stages, of which those drop whose match cannot merge so many.

    Args:
        stages: Those of a policy.
        counts: Of each, the patch tokens that enter it and those that it leaves.
        protect: Places on either side of the class token where no token is merged.
        config: The model.
        together: All drop where one has to.
    """
    able = [
        stage.reduce == "drop"
        or entering - left
        <= find_match(stage.match).most(entering, protect, bool(config.prefix_positions))
        for stage, (entering, left) in zip(stages, counts, strict=True)
    ]
    return [
        stage.model_copy(update=doing(word(stage) if (all(able) if together else can) else DROP))
        for stage, can in zip(stages, able, strict=True)
    ]


def counting_merge(stages: Sequence[Stage], merge: Merge, config: ModelConfig) -> Merge:
    """A policy's settings of merging, with the default for those that change nothing.

    Args:
        stages: Its stages that remove anything.
        merge: What it says.
        config: Its model.
    """
    merging = [stage for stage in stages if stage.reduce == "merge"]
    by_score = any(map(asks_scorer, merging))
    counts = {
        "metric": bool(merging),
        "weight": len(merging) > 1,  # before the first, each token stands for itself
        "protect": bool(merging and config.prefix_positions),
        "untouched": by_score,
        "fate": by_score,
    }
    return Merge(**{name: getattr(merge, name) for name, does in counts.items() if does})


def counting_alignment(
    stages: Sequence[Stage], alignment: Alignment, config: ModelConfig
) -> Alignment:
    """A policy's alignment, with the default for what changes nothing; arguments as above."""
    if not stages:
        return Alignment()
    conv, sizes = alignment.conv, alignment.sizes
    if not merges(stages):
        sizes = "own"
        if conv == "runs":
            conv = "position" if config.convolves_grid else "compact"
    strength = 1.0 if alignment.decay == "none" else alignment.strength
    return Alignment(decay=alignment.decay, strength=strength, conv=conv, sizes=sizes)
