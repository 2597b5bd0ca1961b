"""A run that goes on: whether it may, and its study, which may move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssmprune.errors import RunError, UsageError
from ssmprune_search.run.begin import as_recorded, new_place
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.journal import recover
from ssmprune_search.study.storage import JOURNAL, Database, Place, move, without_password


def resume(
    run: RunDirectory,
    space: SearchSpace,
    identity: dict[str, Any],
    call: dict[str, Any],
    storage: str | None,
    say: Callable[[str], None],
) -> None:
    """Make an earlier run ready to go on.

    Args:
        space, identity, call: What is asked for now, as for `begin`.
        storage: Where the study is to be, as for `SearchSettings`.
        say: Tells people of what had to be done.

    Raises:
        RunError: The call is for another search than the run's.
        UsageError: The run has more trials already.
    """
    info = run.info
    before, now = info["call"], {k: v for k, v in call.items() if v is not None}
    changed = [key for key in info["identity"] if info["identity"][key] != identity.get(key)]
    changed += [key for key in ("sampler", "seed") if key in now and now[key] != before[key]]
    if _without_imports(space) != _without_imports(run.space):
        changed.append("space")
    if changed:
        raise RunError(
            f"a run must be resumed with what it was begun with, but {' and '.join(changed)} "
            f"changed since {run.path} was begun; give the same, or begin a run elsewhere."
        )
    message = recover(run.place) if isinstance(run.place, Path) else None
    if message is not None:
        say(message)
    finished = run.study().counts().finished
    if call["trials"] < finished:
        raise UsageError(
            f"--trials must be at least {finished}, the candidates that {run.path} has already, "
            f"got {call['trials']}; it counts those of earlier calls."
        )
    run.write_info({**info, "call": {**before, **now}})
    if storage is not None and _is_elsewhere(run, storage):
        say(f"search: the study has moved to {_move(run, storage)}")


def _without_imports(space: SearchSpace) -> SearchSpace:
    """The space as such; its modules may lie elsewhere by now."""
    return space.model_copy(update={"imports": ()})


def _is_elsewhere(run: RunDirectory, storage: str) -> bool:
    """Whether the run's study is not where `--storage` says."""
    if storage == JOURNAL:
        return isinstance(run.place, Database)
    return run.place == run.journal_path or run.info["storage"]["url"] != without_password(storage)


def _move(run: RunDirectory, storage: str) -> Place:
    """Copy the study to another storage; `run.json`, written last, makes the copy the study."""
    place = new_place(run, None if storage == JOURNAL else storage)
    copy = place if isinstance(place, Database) else place.with_suffix(".copy")
    if isinstance(copy, Path):
        copy.unlink(missing_ok=True)
    move(run.place, copy)
    if isinstance(copy, Path):
        copy.replace(run.journal_path)
    run.write_info({**run.info, "storage": as_recorded(place)})
    if isinstance(place, Database) and run.journal_path.exists():
        run.journal_path.rename(run.journal_path.with_suffix(".moved"))
    return place
