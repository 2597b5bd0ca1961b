"""What has become of a study's trials; each is read once when it is finished, as it stays as it is.

Optuna hands out all trials whenever it is asked for any. A search asks several times for each
candidate, so what is told here must not take longer the more trials there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

from ssmprune.policy import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement


@dataclass(frozen=True)
class Counts:
    """Trials of a study by what became of them.

    Attributes:
        evaluated: Candidates with a measurement on all images.
        stopped: Candidates that a rival stopped early.
        paused: Candidates that wait for the rest of the images.
        failed: Candidates whose evaluation failed.
        running: Candidates that a worker evaluates, or evaluated when it died.
        waiting: Candidates in the queue.
        duplicate: Proposals equal to an earlier one; answered from the record.
        infeasible: Proposals that broke the FLOPs limits.
        lost: Evaluations that ended with their worker; their candidates were queued again.
    """

    evaluated: int = 0
    stopped: int = 0
    paused: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    duplicate: int = 0
    infeasible: int = 0
    lost: int = 0

    @property
    def finished(self) -> int:
        """What counts towards the number of trials of a search."""
        return self.evaluated + self.stopped + self.failed


class Ledger:
    """What `read` has seen of a study.

    Attributes:
        open: Trials that wait or run, by number.
        evaluated: Candidates that were evaluated on all images, by the numbers of their trials.
        stopped: Trials that a rival stopped, by number.
        paused: Trials that saw the first images only, or none, by number, gone on or not.
    """

    def __init__(self, source: Callable[[FrozenTrial], str]):
        """Args:
        source: Who proposed a trial, as `Candidate.source`.
        """
        self._source = source
        self._known = 0
        self._finished = Counter[str]()
        self._by_key: dict[str, FrozenTrial] = {}
        self._gone_on: set[int] = set()
        self.open: dict[int, FrozenTrial] = {}
        self.evaluated: dict[int, Candidate] = {}
        self.stopped: dict[int, FrozenTrial] = {}
        self.paused: dict[int, FrozenTrial] = {}

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Look at what is new in the study's trials, which are in the order of their numbers."""
        numbers = [*self.open, *range(self._known, len(trials))]
        self._known = len(trials)
        self.open = {n: trials[n] for n in numbers if not trials[n].state.is_finished()}
        for number in numbers:
            if number not in self.open:
                self._enter(trials[number])

    def counts(self) -> Counts:
        """Trials by what became of them."""
        kinds = self._finished + Counter(t.state.name.lower() for t in self.open.values())
        kinds["paused"] -= len(self.resumed)
        return Counts(**kinds)

    @property
    def resumed(self) -> set[int]:
        """Trials that paused and whose candidates have gone on since, or are in the queue to."""
        return self._gone_on | {
            t.user_attrs["resumes"] for t in self.open.values() if "resumes" in t.user_attrs
        }

    @property
    def waiting(self) -> dict[int, FrozenTrial]:
        """Trials that paused and have not gone on, by number."""
        resumed = self.resumed
        return {n: trial for n, trial in self.paused.items() if n not in resumed}

    @property
    def partial(self) -> dict[int, FrozenTrial]:
        """Trials that tell most of a candidate that has not seen all images, by number."""
        return self.stopped | {n: t for n, t in self.paused.items() if n not in self._gone_on}

    def twin(self, key: str) -> FrozenTrial | None:
        """The last trial whose candidate has this `key`, unless its worker has died."""
        under_way = (t for t in self.open.values() if candidate_key(t) == key)
        return self._by_key.get(key) or next(under_way, None)

    def _enter(self, trial: FrozenTrial) -> None:
        kind = became(trial)
        self._finished[kind] += 1
        key = candidate_key(trial)
        if key is not None and kind != "lost":
            self._by_key[key] = trial
        if "resumes" in trial.user_attrs and kind != "lost":
            self._gone_on.add(trial.user_attrs["resumes"])
        if kind == "stopped":
            self.stopped[trial.number] = trial
        if kind == "paused":
            self.paused[trial.number] = trial
        if kind == "evaluated":
            self.evaluated[trial.number] = Candidate(
                trial=trial.number,
                policy=candidate_policy(trial),
                source=self._source(trial),
                search=Measurement.from_dict(trial.user_attrs["measurement"]),
            )


def became(trial: FrozenTrial) -> str:
    """What became of a finished trial, by a name of `Counts`."""
    attributes = trial.user_attrs
    if trial.state != TrialState.COMPLETE:
        closed = attributes.get("closed")
        return str(closed["as"]) if closed else "failed"
    if "answered_by" in attributes:
        return "duplicate"
    return next((kind for kind in ("stopped", "paused") if kind in attributes), "evaluated")


def candidate_key(trial: FrozenTrial) -> str | None:
    """Equal for candidates that prune alike; None for what never became one."""
    candidate = trial.user_attrs.get("candidate")
    return str(candidate["key"]) if candidate else None


def candidate_policy(trial: FrozenTrial) -> Policy:
    """The policy of a trial that has become a candidate."""
    return Policy.model_validate(trial.user_attrs["candidate"]["policy"])
