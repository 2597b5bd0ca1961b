"""Everything that a report tells of a run, gathered once for the page and for the figures."""

from __future__ import annotations

from dataclasses import dataclass

from ssmprune_search.report.history import Choice, Moment, choices, follow, importances
from ssmprune_search.report.recovery import RecoveryTable, read_recovery
from ssmprune_search.report.references import (
    KnownSchedule,
    Measured,
    SmallerModels,
    find_schedules,
    find_smaller_models,
)
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.study.records import Counts
from ssmprune_search.study.study import Study


@dataclass(frozen=True)
class Findings:
    """A run, and what follows from it.

    Attributes:
        unfinished: What the search still lacks, as a sentence; None when it is complete.
        token_shares: For each member of the front the share of the dense model's tokens that each
            block scans.
    """

    outcome: Outcome
    counts: Counts
    unfinished: str | None
    schedules: list[KnownSchedule]
    smaller: SmallerModels
    moments: list[Moment]
    importances: dict[str, dict[str, float]]
    choices: dict[str, list[Choice]]
    token_shares: list[list[float]]
    recovery: RecoveryTable | None

    @property
    def merges(self) -> bool:
        """Whether a policy of the page merges tokens."""
        policies = [member.policy for member in self.outcome.members]
        policies += [schedule.policy for schedule in self.schedules]
        return any(policy.merges for policy in policies)

    @classmethod
    def gather(cls, outcome: Outcome, measured: Measured) -> Findings:
        """Read the study of a run.

        Args:
            outcome: The run.
            measured: Figures of known schedules that reports have measured.
        """
        study = outcome.run.study()
        return cls(
            outcome=outcome,
            counts=study.counts(),
            unfinished=_unfinished(outcome, study),
            schedules=find_schedules(outcome, measured),
            smaller=find_smaller_models(outcome),
            moments=follow(outcome, study),
            importances=importances(outcome, study),
            choices=choices(outcome),
            token_shares=_token_shares(outcome),
            recovery=read_recovery(outcome.run.path),
        )


def _unfinished(outcome: Outcome, study: Study) -> str | None:
    trials, finished = int(outcome.run.info["call"]["trials"]), study.counts().finished
    if finished < trials and not study.exhausted:
        return f"{finished} of {trials} candidates are finished"
    waiting = sum(member.holdout is None for member in outcome.members)
    if waiting:
        return (
            f"{waiting} of the front's {len(outcome.members)} policies are not measured on the "
            "holdout yet"
        )
    return None


def _token_shares(outcome: Outcome) -> list[list[float]]:
    config = outcome.run.space.config
    dense = config.block_tokens[: config.depth]
    return [
        [left / every for left, every in zip(scanned, dense, strict=True)]
        for scanned in (m.policy.entering_tokens(config)[:-1] for m in outcome.members)
    ]
