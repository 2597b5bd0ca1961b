"""A run some of whose policies merge tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ssmprune import Policy
from ssmprune_search.results.outcome import Outcome

MERGING = {
    "model": "vim_nano",
    "stages": [
        {"layer": 0, "keep_count": 39, "reduce": "merge", "match": "neighbors"},
        {"layer": 2, "keep_count": 28, "reduce": "merge"},
        {"layer": 3, "keep_count": 20},
    ],
}


@pytest.fixture(scope="session")
def with_merging() -> Callable[[Outcome], Outcome]:
    """Has every other member of the front merge tokens, the first one too."""

    def change(outcome: Outcome) -> Outcome:
        merging = [replace(m, policy=Policy(**MERGING)) for m in outcome.members[::2]]
        changed = {member.trial: member for member in merging}
        return replace(
            outcome,
            members=[changed.get(m.trial, m) for m in outcome.members],
            candidates=[changed.get(c.trial, c) for c in outcome.candidates],
        )

    return change
