"""The run directory: what a search was, beside the journal of what it did.

`space.yaml` is the frozen search space, `run.json` tells what was searched, how, and the dense
baseline; `study.journal` is the study, unless `run.json` names a database that holds it. Everything
else in the directory follows from these three.
"""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ssmprune.errors import RunError, SpaceError, UsageError
from ssmprune.extensions import import_modules, recorded
from ssmprune.files import LOCK, holding, is_held, write_atomically
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.space.space import SearchSpace
from ssmprune_search.study.records import Owner
from ssmprune_search.study.storage import Database, Place, without_password
from ssmprune_search.study.study import Study

SCHEMA = "ssmprune.run/1"


class RunDirectory:
    """The files of one run."""

    def __init__(self, path: str | Path, database: str | None = None):
        """Args:
        path: The directory.
        database: URL of the study's database with its password, which `run.json` leaves out.
        """
        self.path = Path(path).absolute()
        self._database = database
        self.space_path = self.path / "space.yaml"
        self.info_path = self.path / "run.json"
        self.journal_path = self.path / "study.journal"

    @classmethod
    def open(cls, path: str | Path, database: str | None = None) -> RunDirectory:
        """The run in an existing directory; arguments as for the class.

        Raises:
            RunError: The directory does not hold a run.
        """
        run = cls(path, database)
        missing = [p.name for p in run._files() if not p.is_file()]
        if missing:
            what = "no directory" if not run.path.is_dir() else f"no {' and no '.join(missing)}"
            begin = "check the path, or begin a run with `ssmprune search`"
            raise RunError(
                f"a run directory must hold a search, but there is {what} at {path}; "
                f"{run.remedy(begin)}."
            )
        return run

    def _files(self) -> tuple[Path, ...]:
        in_database = self.info_path.is_file() and self.info.get("storage")
        journal = () if in_database else (self.journal_path,)
        return self.space_path, self.info_path, *journal

    @property
    def place(self) -> Place:
        """Where the study is."""
        storage = self.info.get("storage")
        if storage is None:
            return self.journal_path
        url = storage["url"]
        if self._database and without_password(self._database) == url:
            url = self._database
        return Database(url, storage["study"])

    def refuse_existing(self) -> None:
        """Make sure that a new run overwrites nothing.

        Raises:
            RunError: The directory holds something already.
        """
        if self.path.exists() and not (self.path.is_dir() and self._is_empty()):
            whole = all(p.is_file() for p in self._files())
            remedy = "give --resume to go on with it, or another" if whole else "give another"
            raise RunError(
                f"a run directory must be new, but {self.path} holds something already; "
                f"{remedy} directory."
            )

    def _is_empty(self) -> bool:
        return all(entry.name == LOCK for entry in self.path.iterdir())

    def lock(self) -> AbstractContextManager[None]:
        """Hold the directory, as `holding` does."""
        return holding(self.path, "search")

    def remedy(self, otherwise: str) -> str:
        """What to do where something is not there yet: wait, while a search is at work in it."""
        return "a search is at work there: wait for it" if is_held(self.path) else otherwise

    @property
    def space(self) -> SearchSpace:
        """The frozen search space, of the model with the checkpoint's classifier.

        Runs of earlier versions, which record no number of classes, had the model's own. Where a
        name is unknown, the modules that the run was searched with are imported, if the run is the
        user's own: opening a run of somebody else runs no code that it names.

        Raises:
            SpaceError: The file breaks a rule of the format, or names what is unknown.
            RunError: A module of the user's own run cannot be imported.
        """
        identity = self.info.get("identity", {}) if self.info_path.is_file() else {}
        try:
            space = SearchSpace.load(self.space_path)
        except SpaceError:
            self.import_own()
            space = SearchSpace.load(self.space_path, self.imports)
        return space.with_classes(identity.get("num_classes"))

    @property
    def imports(self) -> tuple[str, ...]:
        """What was imported for the search, as `run.json` records it."""
        return recorded(self.info["call"].get("imports"))

    def import_own(self) -> tuple[str, ...]:
        """Import the same, where the run belongs to the user of this process.

        Returns:
            What is imported now; nothing of somebody else's run.

        Raises:
            RunError: A module cannot be imported.
        """
        imports = self.imports if self.info_path.stat().st_uid == os.geteuid() else ()
        try:
            import_modules(imports)
        except UsageError as fault:
            raise RunError(
                f"{fault}\n{self.path} was searched with that; give --import with where it is now."
            ) from None
        return imports

    def study(self, owner: Owner | None = None) -> Study:
        """The run's study; arguments as for the class.

        Raises:
            RunError: The journal is damaged, or the database does not answer.
        """
        call = self.info["call"]
        return Study(self.place, self.space, str(call["sampler"]), int(call["seed"]), owner)

    def freeze_space(self, text: str) -> None:
        write_atomically(self.space_path, text)

    @property
    def info(self) -> dict[str, Any]:
        """What `run.json` holds.

        Raises:
            RunError: The file is no JSON of this format.
        """
        try:
            info = json.loads(self.info_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as fault:
            raise RunError(
                f"{self.info_path} must be readable JSON: {fault}; restore it from a copy."
            ) from None
        if not isinstance(info, dict) or info.get("schema") != SCHEMA:
            raise RunError(
                f"{self.info_path} must have schema {SCHEMA}; the run is of another version, "
                "begin a new one."
            )
        return info

    def write_info(self, info: dict[str, Any]) -> None:
        write_atomically(self.info_path, json.dumps({"schema": SCHEMA, **info}, indent=2) + "\n")

    def dense(self, split: str) -> Measurement:
        """The dense model's figures on `split`.

        Raises:
            RunError: They have not been measured yet.
        """
        figures = self.info.get("dense", {}).get(split)
        if figures is None:
            remedy = self.remedy("finish the search with --resume")
            raise RunError(
                f"a run must have measured the dense model on the {split} split, but "
                f"{self.info_path} has no such figures yet; {remedy}."
            )
        return Measurement.from_dict(figures)


def candidates(run_dir: str | Path) -> list[Candidate]:
    """The evaluated candidates of the run in `run_dir`; reads only, also while a search runs.

    Raises:
        RunError: The directory holds no run, or its journal is damaged.
    """
    return RunDirectory.open(run_dir).study().candidates()
