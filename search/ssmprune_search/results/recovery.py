"""The front's members fine-tuned for a short while: what they recover, and whether order survives.

A search ranks policies without training. Each member's fine-tuning goes on where it was
interrupted, in `RUN/recovery/trial-N`; `recovery.json` and `recovery.csv` hold the figures.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from scipy.stats import kendalltau

from ssmprune.bounds import MOST_EPOCHS
from ssmprune.errors import UsageError
from ssmprune.files import write_atomically
from ssmprune.training import TrainResult, load_recipe, train
from ssmprune_search.candidate.measurement import Candidate
from ssmprune_search.candidate.objective import Objective
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.results.table import tokens_text

SCHEMA = "ssmprune.recovery/1"
DISTILL = 0.5
"""Weight of the dense model's judgement in a member's fine-tuning."""


@dataclass(frozen=True)
class Recovered:
    """A member before and after its fine-tuning, scores on the holdout in per cent."""

    trial: int
    tokens: str
    flops_ratio: float
    before: tuple[float, float, float]
    """The score, and the ends of its 95 % interval."""
    after: tuple[float, float, float]
    images: int
    checkpoint: str
    """Path of the weights within the run's directory."""

    def row(self, score: str) -> dict[str, Any]:
        """The figures for files, where the score is called `score`."""
        figures = {
            f"{when}_{name}": value
            for when, values in (("before", self.before), ("after", self.after))
            for name, value in zip((score, "low", "high"), values, strict=True)
        }
        known = {"trial": self.trial, "tokens": self.tokens, "flops_ratio": self.flops_ratio}
        return {**known, **figures, "images": self.images, "checkpoint": self.checkpoint}


@dataclass(frozen=True)
class Recovery:
    """What fine-tuning has done to a front.

    Attributes:
        score: What is compared.
        epochs: Of each member's fine-tuning.
        members: Fewest FLOPs first.
        kendall: Kendall's tau-b between accuracy before and after, None below two members or
            where all are alike. Members with more FLOPs are better both times, which raises it.
        p_value: Of no association.
    """

    score: Objective
    epochs: float
    members: list[Recovered]
    kendall: float | None
    p_value: float | None

    @classmethod
    def of(cls, score: Objective, epochs: float, members: list[Recovered]) -> Recovery:
        """Compare the members' order before and after."""
        before, after = zip(*((m.before[0], m.after[0]) for m in members), strict=True)
        if len(set(before)) < 2 or len(set(after)) < 2:
            return cls(score, epochs, members, None, None)
        tau = kendalltau(before, after)
        return cls(score, epochs, members, float(tau.statistic), float(tau.pvalue))

    def write(self, run: Path) -> tuple[Path, Path]:
        """Write `recovery.json` and `recovery.csv` into the run's directory."""
        rows = [member.row(self.score.name) for member in self.members]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        paths = run / "recovery.json", run / "recovery.csv"
        found = {"epochs": self.epochs, "members": rows}
        found |= {"kendall": self.kendall, "p_value": self.p_value}
        data = json.dumps({"schema": SCHEMA, **found}, indent=2)
        for path, content in zip(paths, (data + "\n", text.getvalue()), strict=True):
            write_atomically(path, content)
        return paths

    def to_table(self) -> Table:
        """The members, a line each."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("Trial", justify="right")
        before = f"{self.score.title} before"
        for name in ("FLOPs ratio", before, "after", "Gain", "Tokens left after layer"):
            table.add_column(name)
        for m in self.members:
            table.add_row(
                str(m.trial),
                f"{m.flops_ratio:.3f}",
                "{:.1f} ({:.1f}-{:.1f})".format(*m.before),
                "{:.1f} ({:.1f}-{:.1f})".format(*m.after),
                f"{m.after[0] - m.before[0]:+.1f}",
                m.tokens or "all",
            )
        return table

    def summary(self) -> str:
        """The rank correlation in words."""
        if self.kendall is None:
            return "no rank correlation: fewer than two different accuracies"
        return (
            f"rank correlation before and after (Kendall's tau): {self.kendall:.2f}, "
            f"p = {self.p_value:.2g}"
        )


def check_epochs(epochs: float) -> None:
    """Refuse epochs that nobody can train for.

    Raises:
        UsageError: They are not above 0, or too many.
    """
    if not 0 < epochs <= MOST_EPOCHS:
        raise UsageError(
            f"--recover must be epochs above 0 and up to {MOST_EPOCHS}, got {epochs:g}."
        )


def recover(
    run_dir: str | Path,
    epochs: float,
    *,
    checkpoint: str | Path,
    device: str = "cpu",
    workers: int = 1,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    storage: str | None = None,
    progress: bool = True,
) -> Recovery:
    """Fine-tune every member of a run's front, one after the other, and write the figures.

    Args:
        run_dir: The run's directory; members that were recovered before are not trained again.
        epochs: Passes over the training images for each member.
        checkpoint: The weights that the search pruned, which also teach.
        device: cpu or cuda.
        workers: Processes that share each batch.
        gpus_per_worker: As `train` takes it.
        address: A Ray cluster.
        storage: URL of the study's database with its password, which the run does not record.
        progress: Show progress on standard error.

    Raises:
        UsageError: `epochs` is out of range.
        RunError: The run has no front yet, or its directory `recovery` is in use.
        DataError: The data set has no training images.
    """
    check_epochs(epochs)
    outcome = Outcome.read(run_dir, storage)
    call, imports = outcome.run.info["call"], outcome.run.import_own()
    settings = load_recipe("fine_tune").changed(
        epochs=epochs, distill=DISTILL, amp=bool(call.get("amp"))
    )
    members = []
    for member in outcome.members:
        result = train(
            member.policy.model,
            call["data"],
            outcome.run.path / "recovery" / f"trial-{member.trial}-epochs-{epochs:g}",
            settings,
            policy=member.policy,
            init=checkpoint,
            checkpoint_key=outcome.run.info["identity"].get("checkpoint_key"),
            num_classes=outcome.run.space.config.num_classes,
            device=device,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            address=address,
            command=f"ssmprune search --recover {epochs:g}",
            imports=imports,
            progress=progress,
        )
        members.append(_recovered(member, result, outcome.run.path))
    recovery = Recovery.of(outcome.score, epochs, members)
    recovery.write(outcome.run.path)
    return recovery


def _recovered(member: Candidate, result: TrainResult, run: Path) -> Recovered:
    before, after = result.before, result.accuracy
    assert before is not None  # training began from a checkpoint
    return Recovered(
        trial=member.trial,
        tokens=tokens_text(member.policy),
        flops_ratio=member.search.flops_ratio,
        images=after.images,
        before=(before.score, before.low, before.high),
        after=(after.score, after.low, after.high),
        checkpoint=str(result.checkpoint.relative_to(run)),
    )
