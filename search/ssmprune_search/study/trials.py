"""A study's trials where Optuna keeps them: opened, read, queued, told, closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ssmprune.errors import RunError, UsageError
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.study.records import Records, as_closed, as_queued
from ssmprune_search.study.storage import Place, Store


class Trials:
    """The trials of an open study.

    Attributes:
        records: What `read` has found.
    """

    def __init__(self, place: Place, sampler: str):
        """Open a study.

        Args:
            place: Where it is kept.
            sampler: Who proposed a trial that does not say so.

        Raises:
            RunError: The journal is damaged, or the database does not answer.
        """
        self.records = Records(sampler)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._store = Store(place)
            self._study = optuna.load_study(
                study_name=self._store.study,
                storage=self._store.storage,
                sampler=optuna.samplers.RandomSampler(),
            )
            self._study_id = self._store.storage.get_study_id_from_name(self._store.study)
        except UsageError:
            raise
        except (ValueError, KeyError, AttributeError) as fault:
            raise RunError(
                f"a study must hold the records of a search, got {place}: {fault}; "
                "restore it from a copy, or begin a new run."
            ) from None

    @staticmethod
    def create(
        place: Place, maximise: Iterable[bool], queue: Iterable[tuple[str, Mapping[str, Any]]]
    ) -> None:
        """Write a new study.

        Args:
            place: Where it is to be kept.
            maximise: For each objective, whether more is better.
            queue: Sources and parameters of the candidates that come first.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        store = Store(place)
        study = optuna.create_study(
            study_name=store.study,
            storage=store.storage,
            directions=["maximize" if more else "minimize" for more in maximise],
        )
        for source, params in queue:
            _enqueue(study, params, as_queued(source, 1, params, None))

    def exclusive(self) -> AbstractContextManager[None]:
        """As that of `Store`."""
        return self._store.exclusive()

    def sync(self) -> None:
        """As that of `Store`."""
        self._store.sync()

    @property
    def session(self) -> str | None:
        """The session whose workers may ask; None between sessions."""
        session: str | None = self._study.user_attrs.get("session")
        return session

    @session.setter
    def session(self, session: str | None) -> None:
        self._study.set_user_attr("session", session)

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has found nothing new in the session so far."""
        return bool(self._study.user_attrs.get("exhausted"))

    @exhausted.setter
    def exhausted(self, exhausted: bool) -> None:
        self._study.set_user_attr("exhausted", exhausted)

    def holdout(self) -> dict[int, Measurement]:
        """Figures on the holdout, by the numbers of the trials."""
        return {
            int(name.partition(":")[2]): Measurement.from_dict(figures)
            for name, figures in self._study.user_attrs.items()
            if name.startswith("holdout:")
        }

    def set_holdout(self, number: int, measurement: Measurement) -> None:
        """Keep figures on the holdout, which come after the trial is finished."""
        self._study.set_user_attr(f"holdout:{number}", measurement.to_dict())

    def frozen(self) -> list[FrozenTrial]:
        """Optuna's own objects, by number; not to be changed."""
        return self._study.get_trials(deepcopy=False)

    def read(self) -> Records:
        """The records, with what is new."""
        self.records.read(self.frozen())
        return self.records

    def is_running(self, number: int) -> bool:
        """Whether a trial is not finished yet."""
        return self._store.storage.get_trial(self._id(number)).state == TrialState.RUNNING

    def ask(self, sampler: optuna.samplers.BaseSampler) -> optuna.Trial:
        """Begin the first trial of the queue, or else one that the sampler proposes."""
        self._study.sampler = sampler
        return self._study.ask()

    def start(self, number: int) -> optuna.Trial:
        """Begin a trial of the queue before those that are ahead of it."""
        trial_id = self._id(number)
        self._store.storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        return optuna.Trial(self._study, trial_id)

    def enqueue(
        self, source: str, attempt: int, params: Mapping[str, Any], resumes: int | None = None
    ) -> None:
        """Put a candidate into the queue; arguments are those of `Record`."""
        _enqueue(self._study, params, as_queued(source, attempt, params, resumes))

    def set(self, number: int, attributes: Mapping[str, Any]) -> None:
        """Write attributes that `records` has named."""
        for name, value in attributes.items():
            self._store.storage.set_trial_user_attr(self._id(number), name, value)

    def tell(self, number: int, values: Sequence[float]) -> None:
        """Complete a trial."""
        self._study.tell(number, values)

    def close(self, number: int, kind: str, reason: str) -> None:
        """End a trial that comes to nothing; `kind` is a name of `Counts`."""
        self.set(number, as_closed(kind, reason))
        self._study.tell(number, state=TrialState.FAIL)

    def _id(self, number: int) -> int:
        return self._store.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


def _enqueue(study: optuna.Study, params: Mapping[str, Any], attributes: dict[str, Any]) -> None:
    study.enqueue_trial(dict(params), user_attrs=attributes)
