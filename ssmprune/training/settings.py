"""The numbers that decide what a training run computes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ssmprune.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """AdamW under a cosine schedule with warm-up; the defaults train `vim_nano` from scratch."""

    steps: int = 2600
    batch_size: int = 64
    lr: float = 3e-3
    """Highest learning rate; it falls to a fiftieth of this."""
    warmup_steps: int = 150
    weight_decay: float = 0.05
    """Not applied to vectors, embeddings and the logarithm of A."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    aux_weight: float = 0.5
    """Initial weight of the cross entropy on mean-pooled tokens; it falls linearly to zero."""
    curriculum: float = 0.1
    """Share of the steps over which composed images grow to their full difficulty."""
    amp: bool = False
    """Compute under bfloat16 autocast."""
    seed: int = 0
    checkpoint_every: int = 250
    """Steps between two checkpoints, each with a look at the search split."""

    def __post_init__(self) -> None:
        faults = [
            f"{name} must be {rule}, got {getattr(self, name)}."
            for name, rule, good in (
                ("steps", "at least 1", self.steps >= 1),
                ("batch_size", "at least 1", self.batch_size >= 1),
                ("lr", "a number above 0", 0 < self.lr < math.inf),
                ("warmup_steps", "between 0 and the steps", 0 <= self.warmup_steps <= self.steps),
                ("weight_decay", "a number from 0", 0 <= self.weight_decay < math.inf),
                ("clip", "above 0", self.clip > 0),
                ("aux_weight", "a number from 0", 0 <= self.aux_weight < math.inf),
                ("curriculum", "in [0, 1]", 0 <= self.curriculum <= 1),
                ("seed", "at least 0", self.seed >= 0),
                ("checkpoint_every", "at least 1", self.checkpoint_every >= 1),
            )
            if not good
        ]
        if faults:
            raise UsageError("\n".join(faults))


FROM_SCRATCH = TrainSettings()
FINE_TUNING = TrainSettings(steps=260, lr=5e-4, warmup_steps=20, aux_weight=0.0, curriculum=0.0)
"""For a model that is trained already: a tenth of the steps."""
