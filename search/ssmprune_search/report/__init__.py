"""The report of a run: one HTML page that needs nothing else, and its figures for papers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssmprune.errors import RunError
from ssmprune.files import write_atomically, write_bytes_atomically
from ssmprune_search.report.figures import draw_figures
from ssmprune_search.report.findings import Findings
from ssmprune_search.report.page import GENERATOR, page_text
from ssmprune_search.report.references import measure_references, read_measured
from ssmprune_search.report.samples import open_bench
from ssmprune_search.results.outcome import Outcome


@dataclass(frozen=True)
class Written:
    """What a report has written.

    Attributes:
        page: The HTML page.
        figures: The same figures as PNG and SVG.
        missing: Why the page lacks kept tokens, as a sentence; None where it has them.
    """

    page: Path
    figures: tuple[Path, ...]
    missing: str | None


def write_report(
    outcome: Outcome,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_key: str | None = None,
    data: str | None = None,
    measure: bool = False,
    device: str = "cpu",
) -> Written:
    """Write `report.html` and the folder `report` into a run's directory.

    Args:
        outcome: The run, finished or not.
        checkpoint: The weights that were searched with, where they have moved.
        checkpoint_key: Which weights of that file, for a run that does not record it.
        data: The data set that was searched with, where it has moved.
        measure: Evaluate known schedules on both splits, as the front was; their figures stay in
            `report/measured.json`. Without it only those that the search evaluated have any.
        device: Where to measure, and to run the sample images.

    Raises:
        RunError: The directory cannot be written to, or `measure` is given and the weights or
            the data are not those of the search.
    """
    path, folder = outcome.run.path / "report.html", outcome.run.path / "report"
    _refuse_foreign(path)
    bench, missing = open_bench(outcome, checkpoint, checkpoint_key, data, device)
    if measure:
        if bench is None:
            raise RunError(f"--measure needs the weights and the data of the search: {missing}.")
        measure_references(outcome, bench, folder)
    findings = Findings.gather(outcome, read_measured(outcome, folder))
    page, files = page_text(findings, bench, missing), draw_figures(findings, bench)
    try:
        paths = tuple(folder / name for name in files)
        for place, content in zip(paths, files.values(), strict=True):
            write_bytes_atomically(place, content)
        write_atomically(path, page)
    except OSError as fault:
        raise RunError(
            f"a report must be written into its run, but {outcome.run.path} cannot be written to: "
            f"{fault.strerror}; copy the run to a place of your own."
        ) from None
    return Written(path, paths, missing)


def _refuse_foreign(path: Path) -> None:
    """Make sure that only an earlier report is replaced."""
    if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise RunError(
            f"a report must replace nothing but an earlier one, but {path} is something else; "
            "move it away."
        )
