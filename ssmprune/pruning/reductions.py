"""Each reduction, by the name that policies and spaces give it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ssmprune.models.configs import ModelConfig
from ssmprune.pruning.grid import Grid
from ssmprune.pruning.reduction import Reduction
from ssmprune.pruning.sequence import SequenceReduction

REDUCTIONS: dict[str, Reduction] = {found.name: found for found in (SequenceReduction(), Grid())}
"""The first is the default."""

DEFAULT = next(iter(REDUCTIONS))

if TYPE_CHECKING:
    ReductionName = str
else:
    ReductionName = Literal[tuple(REDUCTIONS)]

SUMMARIES = "; ".join(f"{name}: {found.summary}" for name, found in REDUCTIONS.items())


def fitting_reduction(config: ModelConfig) -> Reduction:
    """The first reduction that can serve a model."""
    return next(found for found in REDUCTIONS.values() if found.fits(config))
