"""What a surrogate is told of a policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmprune import Policy
from ssmprune.models.zoo import find_config
from ssmprune.policy import Alignment, Merge, Scorer, Stage
from ssmprune.pruning.alignment import decays
from ssmprune.pruning.scorers import scorers
from ssmprune_search.candidate.encoding import Encoding, encoding_key

CONFIG = find_config("vim_nano")
LAST = Stage(layer=3, keep_ratio=0.7)


def stage(layer: int = 1, match: str | None = "neighbors", **changes: Any) -> Stage:
    return Stage(
        layer=layer, keep_ratio=0.6, reduce="merge" if match else "drop", match=match, **changes
    )


def policy(*stages: Stage, **changes: Any) -> Policy:
    return Policy(model="vim_nano", stages=stages, **changes)


def point(policy: Policy) -> np.ndarray:
    return Encoding.of(policy, CONFIG).point


@st.composite
def dropping(draw: st.DrawFn) -> Policy:
    layers = sorted(draw(st.sets(st.integers(0, 7), max_size=4)))
    names = st.sampled_from(["l1", "l2", "clipped_sum"])
    return policy(
        *(Stage(layer=n, keep_ratio=draw(st.sampled_from([0.5, 0.7, 0.9]))) for n in layers),
        scorer=Scorer(name=draw(names)),
        alignment=Alignment(
            decay=draw(st.sampled_from(["none", "neighbor"])),
            strength=draw(st.sampled_from([0.5, 1.0])),
            conv=draw(st.sampled_from(["compact", "position"])),
        ),
    )


@given(dropping(), dropping())
def test_policies_that_drop_are_as_far_apart_as_before_there_was_merging(
    one: Policy, other: Policy
) -> None:
    def before(policy: Policy) -> np.ndarray:
        logs = np.log(np.divide(policy.entering_tokens(CONFIG), CONFIG.block_tokens))
        chosen = policy.scorer.name if policy.stages else None
        alignment = policy.alignment if policy.stages else Alignment()
        return np.array(
            [
                *3 * logs / np.sqrt(len(logs)),
                *((name == chosen) / 2**0.5 for name in sorted(scorers.names())),
                *((alignment.decay == name) / 2**0.5 for name in decays.names()),
                alignment.strength * (alignment.decay != "none"),
                alignment.conv != "compact",
            ]
        )

    expected = np.linalg.norm(before(one) - before(other))
    assert np.linalg.norm(point(one) - point(other)) == pytest.approx(expected, abs=1e-12)


MERGED = policy(stage(), LAST)


@pytest.mark.parametrize(
    "other",
    [
        policy(stage(match=None), LAST),
        policy(stage(match="alternate"), LAST),
        policy(stage(match="score"), LAST),
        policy(stage(layer=2), LAST),
        policy(stage(), stage(layer=3).model_copy(update={"keep_ratio": 0.7})),
        policy(stage(), LAST, merge=Merge(metric="stream")),
        policy(stage(), LAST, merge=Merge(protect=2)),
        policy(stage(), LAST, alignment=Alignment(sizes="exact")),
        policy(stage(), LAST, alignment=Alignment(sizes="scaled")),
        policy(stage(), LAST, alignment=Alignment(conv="runs")),
        policy(stage(), LAST, scorer=Scorer(name="l1")),
    ],
)
def test_policies_that_merge_otherwise_are_apart(other: Policy) -> None:
    assert np.linalg.norm(point(MERGED) - point(other)) > 0.2
    assert encoding_key(MERGED) != encoding_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (policy(stage(match="alternate")), policy(stage(match="alternate", scorer=None))),
        (policy(stage()), policy(stage(), merge=Merge(weight="equal"))),
        (policy(stage()), policy(stage(scorer=Scorer(name="l1")))),
        (policy(stage()), policy(stage(), scorer=Scorer(name="l2"))),
    ],
)
def test_what_changes_nothing_is_not_told(one: Policy, other: Policy) -> None:
    assert np.array_equal(point(one), point(other))
    assert encoding_key(one) == encoding_key(other)


def test_merging_early_and_late_differ_by_the_tokens_that_are_merged() -> None:
    """The profile of what is merged is that of the tokens where all stages merge."""
    tokens = len(CONFIG.block_tokens)
    merged = point(policy(stage(1), stage(4)))
    profile = merged[:tokens]
    assert any(
        np.allclose(merged[start : start + tokens], profile)
        for start in range(tokens, len(merged) - tokens + 1)
    )
