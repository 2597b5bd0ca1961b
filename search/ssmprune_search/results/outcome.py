"""What a run has come to: read from its directory, and written there as table and picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmprune.errors import RunError
from ssmprune.files import write_atomically, write_bytes_atomically
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import Objective, score_of
from ssmprune_search.candidate.pareto import dense_reference, hypervolume, pareto_front
from ssmprune_search.results.figure import Picture, draw_figure
from ssmprune_search.results.table import row, to_csv
from ssmprune_search.run.directory import RunDirectory


@dataclass(frozen=True)
class Outcome:
    """A run's candidates and front.

    Attributes:
        candidates: All that were fully evaluated and keep to the space's limits.
        members: The front, fewest FLOPs first.
        dense: The dense model on the search split.
        dense_holdout: The dense model on the holdout, once that is measured.
    """

    run: RunDirectory
    objectives: tuple[str, ...]
    candidates: list[Candidate]
    members: list[Candidate]
    dense: Measurement
    dense_holdout: Measurement | None

    @classmethod
    def read(cls, path: str | Path, database: str | None = None) -> Outcome:
        """The outcome so far of a run; arguments as for `RunDirectory`.

        Raises:
            RunError: There is no run, its files are damaged, or nothing has been evaluated yet.
        """
        run = RunDirectory.open(path, database)
        dense = run.dense("search")
        candidates = run.study().candidates()
        if not candidates:
            remedy = run.remedy("go on with `ssmprune search --resume`")
            raise RunError(
                f"a front needs candidates within the space's limits, but {run.path} has none yet; "
                f"{remedy}."
            )
        objectives = run.space.objectives
        return cls(
            run=run,
            objectives=objectives,
            candidates=candidates,
            members=pareto_front(candidates, objectives),
            dense=dense,
            dense_holdout=run.dense("holdout") if "holdout" in run.info["dense"] else None,
        )

    @property
    def score(self) -> Objective:
        """The objective that says how well a policy does the model's task."""
        return score_of(self.run.space.config)

    def hypervolume(self, candidates: Sequence[Candidate] | None = None) -> float:
        """That of the front, or of others, against the dense model's costs and a score of 0."""
        candidates = self.members if candidates is None else candidates
        return hypervolume(candidates, self.objectives, dense_reference(self.dense))

    def to_dict(self) -> dict[str, Any]:
        """The outcome for JSON; `front` has the columns of `front.csv`."""
        return {
            "run": str(self.run.path),
            "model": self.run.space.model,
            "objectives": list(self.objectives),
            "candidates": len(self.candidates),
            "hypervolume": self.hypervolume(),
            "dense": {
                "search": self.dense.to_dict(),
                "holdout": self.dense_holdout and self.dense_holdout.to_dict(),
            },
            "front": [row(member) for member in self.members],
        }

    def picture(self) -> Picture:
        """The front as `draw_figure` takes it."""
        model, data = self.run.space.model, Path(self.run.info["call"]["data"]).name
        return Picture(
            title=f"{model} on {data}\n"
            f"{len(self.members)} of {len(self.candidates)} candidates make the front",
            candidates=self.candidates,
            members=self.members,
            dense=self.dense,
            dense_holdout=self.dense_holdout,
            score=self.score,
        )

    def write(self) -> tuple[Path, Path]:
        """Write `front.csv` and `front.png` into the run's directory."""
        table, picture = self.run.path / "front.csv", self.run.path / "front.png"
        write_atomically(table, to_csv(self.members))
        write_bytes_atomically(picture, draw_figure(self.picture()))
        return table, picture
