"""Evaluation that gets by with the memory there is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.study.race import Race

if TYPE_CHECKING:  # brings torch, which an evaluator may do without
    from ssmprune_search.evaluation.evaluator import Evaluator, Evaluators


class Sparing:
    """An evaluator that halves its batch whenever the device is out of memory.

    It keeps to the smaller batch from then on. With the smallest batch, a candidate that does not
    fit fails, and the next one is tried.
    """

    def __init__(
        self, evaluators: Evaluators, split: str, threads: int, dense: Measurement | None = None
    ):
        """Args: as for `Evaluators.open`, which opens what is behind this one."""
        self._evaluators = evaluators
        self._arguments = split, threads, dense
        self._evaluate: Evaluator | None = evaluators.open(*self._arguments)

    def __call__(self, policy: Policy, race: Race | None = None) -> Measurement:
        """Measure a policy; arguments as for the evaluator behind this one.

        Whatever goes wrong ends this candidate only: the next one opens the evaluator again if it
        is not open.

        Raises:
            OutOfMemoryError: The smallest batch does not fit.
        """
        while True:
            try:
                if self._evaluate is None:
                    self._evaluate = self._evaluators.open(*self._arguments)
                return self._evaluate(policy, race)
            except Exception as fault:
                torch = sys.modules.get("torch")  # not loaded: the fault is none of its
                if torch is None or not isinstance(fault, torch.OutOfMemoryError):
                    raise
                smaller = self._evaluators.with_half_batch()
                if smaller is None:
                    raise
            self._evaluate = None
            torch.cuda.empty_cache()
            self._evaluators = smaller
