"""What the stages of a policy do, in words."""

from __future__ import annotations

from itertools import groupby

from ssmprune.policy import Policy, Stage
from ssmprune.pruning.matching import find_match
from ssmprune_search.results.table import tokens_text


def stages_text(policy: Policy) -> str:
    """Patch tokens that each stage leaves, `0:52 3:31`.

    Of a policy that merges, after what the stages do: `merge neighbors 0:39 2:28, drop 3:19`.
    """
    counts = tokens_text(policy)
    if not policy.merges:
        return counts
    pairs = zip(map(stage_text, policy.stages), counts.split(), strict=True)
    alike = groupby(pairs, key=lambda pair: pair[0])
    return ", ".join(" ".join([does, *(count for _, count in run)]) for does, run in alike)


def stage_text(stage: Stage) -> str:
    """What a stage does, such as `drop` or `merge neighbors`."""
    return f"merge {find_match(stage.match).name}" if stage.reduce == "merge" else stage.reduce


def stage_kinds_text(policy: Policy) -> str:
    """What the stages do, each once, in the order in which they begin: `merge neighbors, drop`."""
    return ", ".join(dict.fromkeys(map(stage_text, policy.stages))) or "nothing"
