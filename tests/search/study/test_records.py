"""Records tell of a study what reading all of its trials would tell, and read each once."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from ssmprune import Policy
from ssmprune_search.evaluation.synthetic import SyntheticEvaluator
from ssmprune_search.study.records import Counts, Record, Records

POLICY = Policy(model="vim_nano", stages=())
MEASURED = SyntheticEvaluator("vim_nano", "search")(POLICY).to_dict()

MOMENT = datetime(2026, 1, 1)
ENDS = ("evaluated", "stopped", "duplicate", "failed", "infeasible", "lost")


def trial(number: int, state: str, key: str) -> FrozenTrial:
    """A trial that waits, runs, or has come to one of the ends."""
    attributes = {"candidate": {"policy": POLICY.model_dump(mode="json"), "key": key}}
    if state in ("waiting", "duplicate", "infeasible"):
        del attributes["candidate"]
    if state in ("evaluated", "stopped"):
        attributes |= {"measurement": MEASURED}
    attributes |= {"stopped": {"stopped": {}}, "duplicate": {"answered_by": 0}}.get(state, {})
    if state in ("failed", "infeasible", "lost"):
        attributes |= {"closed": {"as": state, "reason": ""}}
    complete = state in ("evaluated", "stopped", "duplicate")
    made = create_trial(
        state=TrialState.COMPLETE if complete else TrialState.FAIL,
        values=[1.0] if complete else None,
        user_attrs=attributes,
    )
    made.number, made.datetime_start, made.datetime_complete = number, MOMENT, MOMENT
    if state in ("waiting", "running"):
        made.state = TrialState.WAITING if state == "waiting" else TrialState.RUNNING
    return made


@given(
    st.lists(st.tuples(st.sampled_from(ENDS), st.sampled_from("abcdef"), st.integers(0, 9))),
)
def test_records_agree_with_all_trials_read_at_once_whenever_they_read(
    course: list[tuple[str, str, int]],
) -> None:
    """Each trial waits, runs, and ends at the same or a later moment."""
    records = Records("tpe")
    for moment in range(len(course) + 12):
        now = [
            trial(
                number,
                "waiting" if moment <= number else end if moment > number + late else "running",
                key,
            )
            for number, (end, key, late) in enumerate(course)
            if moment >= number
        ]
        records.read(now)
        anew = Records("tpe")
        anew.read(now)
        assert records.counts() == anew.counts()
        assert records.counts().running == sum(t.state == TrialState.RUNNING for t in now)
        assert records.evaluated == anew.evaluated
        for key in "abcdef":
            alike = [t.number for t in now if Record.of(t, "tpe").key == key]
            found = records.with_key(key)
            kept = [n for n in alike if "closed" not in now[n].user_attrs or not_lost(now[n])]
            assert (found is None) == (not kept)
            assert found is None or found.number in kept


def not_lost(trial: FrozenTrial) -> bool:
    return trial.user_attrs["closed"]["as"] != "lost"


def test_finished_trials_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    of = Record.of

    def read(trial: FrozenTrial, sampler: str) -> Record:
        if trial.state.is_finished():
            asked.append(trial.number)
        return of(trial, sampler)

    monkeypatch.setattr(Record, "of", read)
    records = Records("tpe")
    records.read([trial(0, "evaluated", "a"), trial(1, "running", "b")])
    records.read([trial(0, "evaluated", "a"), trial(1, "evaluated", "b")])
    records.read([trial(0, "evaluated", "a"), trial(1, "evaluated", "b")])
    assert asked == [0, 1]
    assert records.counts() == Counts(evaluated=2)
