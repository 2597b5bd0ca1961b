"""A run that begins: its directory, and its study with what is tried first."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ssmprune.extensions import installed_versions
from ssmprune.policy import Policy
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.storage import Database, Place, without_password
from ssmprune_search.study.study import Study

_PACKAGES = ("ssmprune", "torch", "optuna", "ray", "numpy")


def begin(
    run: RunDirectory,
    text: str,
    space: SearchSpace,
    warm: Sequence[tuple[str, Policy]],
    identity: dict[str, Any],
    call: dict[str, Any],
    database: str | None,
) -> None:
    """Write a new run; `run.json` comes last and makes it one.

    Args:
        text: The space's file.
        warm: Names and policies that are tried after the known schedules.
        identity: What its figures are of: model, weights, data, and how they are measured.
        call: What was asked for.
        database: URL of the study's database; with None it is a file.
    """
    run.freeze_space(text)
    place = new_place(run, database)
    Study.create(place, space, warm)
    call = {**call, "sampler": call["sampler"] or "tpe", "seed": call["seed"] or 0}
    run.write_info(
        {
            "call": call,
            "identity": identity,
            "versions": _versions(),
            "machine": platform.platform(),
            "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "storage": as_recorded(place),
            "dense": {},
        }
    )


def new_place(run: RunDirectory, database: str | None) -> Place:
    """Where a study that begins there is kept."""
    if database is None:
        return run.journal_path
    return Database(database, study=f"{run.path.name}-{uuid.uuid4().hex[:8]}")


def as_recorded(place: Place) -> dict[str, str] | None:
    """The place for `run.json`; None for the journal."""
    if isinstance(place, Path):
        return None
    return {"url": without_password(place.url), "study": place.study}


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **packages, **installed_versions()}
