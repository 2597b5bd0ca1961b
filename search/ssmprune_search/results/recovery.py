"""The front's members fine-tuned for a short while: what they recover, and whether order survives.

A search ranks policies without training. Each member's fine-tuning goes on where it was
interrupted, in `RUN/recovery/trial-N`; `recovery.json` and `recovery.csv` hold the figures.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from scipy.stats import kendalltau

from ssmprune.bounds import MOST_EPOCHS
from ssmprune.errors import UsageError
from ssmprune.files import write_atomically
from ssmprune.training import TrainResult, load_recipe, train
from ssmprune_search.candidate.measurement import Candidate
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.results.table import tokens_text

SCHEMA = "ssmprune.recovery/1"
DISTILL = 0.5
"""Weight of the dense model's judgement in a member's fine-tuning."""


@dataclass(frozen=True)
class Recovered:
    """A member before and after its fine-tuning, top-1 on the holdout in per cent."""

    trial: int
    tokens: str
    flops_ratio: float
    before_top1: float
    before_low: float
    before_high: float
    after_top1: float
    after_low: float
    after_high: float
    images: int
    checkpoint: str
    """Path of the weights within the run's directory."""


@dataclass(frozen=True)
class Recovery:
    """What fine-tuning has done to a front.

    Attributes:
        epochs: Of each member's fine-tuning.
        members: Fewest FLOPs first.
        kendall: Kendall's tau-b between accuracy before and after, None below two members or
            where all are alike. Members with more FLOPs are better both times, which raises it.
        p_value: Of no association.
    """

    epochs: float
    members: list[Recovered]
    kendall: float | None
    p_value: float | None

    @classmethod
    def of(cls, epochs: float, members: list[Recovered]) -> Recovery:
        """Compare the members' order before and after."""
        before, after = zip(*((m.before_top1, m.after_top1) for m in members), strict=True)
        if len(set(before)) < 2 or len(set(after)) < 2:
            return cls(epochs, members, None, None)
        tau = kendalltau(before, after)
        return cls(epochs, members, float(tau.statistic), float(tau.pvalue))

    def write(self, run: Path) -> tuple[Path, Path]:
        """Write `recovery.json` and `recovery.csv` into the run's directory."""
        rows = [asdict(member) for member in self.members]
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        paths = run / "recovery.json", run / "recovery.csv"
        data = json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)
        for path, content in zip(paths, (data + "\n", text.getvalue()), strict=True):
            write_atomically(path, content)
        return paths

    def to_table(self) -> Table:
        """The members, a line each."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("Trial", justify="right")
        for name in ("FLOPs ratio", "Top-1 before", "after", "Gain", "Tokens left after layer"):
            table.add_column(name)
        for m in self.members:
            table.add_row(
                str(m.trial),
                f"{m.flops_ratio:.3f}",
                f"{m.before_top1:.1f} ({m.before_low:.1f}-{m.before_high:.1f})",
                f"{m.after_top1:.1f} ({m.after_low:.1f}-{m.after_high:.1f})",
                f"{m.after_top1 - m.before_top1:+.1f}",
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
    recovery = Recovery.of(epochs, members)
    recovery.write(outcome.run.path)
    return recovery


def _recovered(member: Candidate, result: TrainResult, run: Path) -> Recovered:
    before, after = result.before, result.accuracy
    assert before is not None  # training began from a checkpoint
    figures: dict[str, Any] = {
        f"{when}_{name}": getattr(accuracy, name)
        for when, accuracy in (("before", before), ("after", after))
        for name in ("top1", "low", "high")
    }
    return Recovered(
        trial=member.trial,
        tokens=tokens_text(member.policy),
        flops_ratio=member.search.flops_ratio,
        images=after.images,
        checkpoint=str(result.checkpoint.relative_to(run)),
        **figures,
    )
