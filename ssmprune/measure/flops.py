"""FLOPs of a model under a policy, in closed form: counts follow from the policy alone.

One multiply-add is one FLOP, as in fvcore. Two rules:

- `flops` counts what runs: every scan direction, scoring, sorting and gathering included. A scan
  costs 9 L E N per direction, a norm 5 per element, a reduction one per element that enters it, a
  sort of L numbers L ceil(log2 L), a gather or scatter one per element that is moved.
  Element-wise work is free.
- `paper_flops` follows the publications of the family, which its own module describes. No family
  charges scoring and gathering, and all charge a pruned block by the tokens that enter it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssmprune.measure.rows import FlopRow
from ssmprune.models.configs import ModelConfig
from ssmprune.models.families import families
from ssmprune.policy import Policy
from ssmprune.pruning.apply import PruningPlan


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of a model for one image."""

    rows: tuple[FlopRow, ...]

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    @property
    def paper_flops(self) -> int:
        return sum(row.paper_flops for row in self.rows)

    def by_operator(self) -> dict[str, tuple[int, int]]:
        """`flops` and `paper_flops` of each operator that costs anything."""
        totals: dict[str, tuple[int, int]] = {}
        for row in self.rows:
            flops, paper = totals.get(row.operator, (0, 0))
            totals[row.operator] = (flops + row.flops, paper + row.paper_flops)
        return {operator: total for operator, total in totals.items() if any(total)}


def count_flops(config: ModelConfig, policy: Policy | None = None) -> FlopCount:
    """Count the FLOPs of one image.

    Args:
        config: The model.
        policy: Its policy; without one the model is dense.

    Raises:
        PolicyError: The policy is for another model.
    """
    steps = {} if policy is None else PruningPlan.of(policy, config).steps
    return FlopCount(tuple(families[config.family].flops.rows(config, steps)))
