"""The page's figures for papers: the same data as PNG and SVG, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssmprune.pruning.picture import Row, draw_kept, save
from ssmprune_search.report.findings import Findings
from ssmprune_search.report.history import Choice, Moment
from ssmprune_search.report.samples import Bench
from ssmprune_search.results.figure import make_figure
from ssmprune_search.results.outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = ("png", "svg")
_COLOR, _DARK = "#0067A3", "#222222"


def draw_figures(findings: Findings, bench: Bench | None) -> dict[str, bytes]:
    """File names and contents; without the model at work no kept tokens."""
    outcome, shares = findings.outcome, findings.importances
    drawn: dict[str, Figure] = {
        "front": make_figure(outcome.picture()),
        "hypervolume": _hypervolume(findings.moments),
        "schedules": _schedules(findings),
        "choices": _choices(findings.choices),
    }
    if shares:
        drawn["importance"] = _importance({str(name): found for name, found in shares.items()})
    files = {f"{n}.{kind}": save(figure, kind) for n, figure in drawn.items() for kind in _FORMATS}
    if bench is not None:
        files |= {f"kept.{kind}": _kept(outcome, bench, kind) for kind in _FORMATS}
    return files


def _kept(outcome: Outcome, bench: Bench, kind: str) -> bytes:
    """What the middle member of the front keeps."""
    member = outcome.members[len(outcome.members) // 2]
    passage = bench.run(member.policy)
    rows = [
        Row(pixels, f"{label}", image)
        for image, (pixels, label) in enumerate(zip(bench.pixels, bench.labels, strict=True))
    ]
    return draw_kept(
        rows,
        passage.stages,
        verb=member.policy.reducer.verb,
        title=f"Trial {member.trial}, {100 * member.search.flops_ratio:.1f} % of the FLOPs",
        format=kind,
    )


def _figure(columns: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * columns, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[Axes] = figure.subplots(1, columns, squeeze=False)[0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _hypervolume(moments: Sequence[Moment]) -> Figure:
    figure, panels = _figure(2, 3.0)
    kinds: dict[str, Callable[[Moment], float]] = {
        "Candidates": lambda moment: moment.candidates,
        "Minutes": lambda moment: moment.seconds / 60,
    }
    for axes, (name, place) in zip(panels, kinds.items(), strict=True):
        x, y = [place(m) for m in moments], [m.hypervolume for m in moments]
        axes.step(x, y, where="post", color=_COLOR)
        axes.set(xlabel=name, ylim=(0, None))
    panels[0].set_ylabel("Hypervolume")
    return figure


def _schedules(findings: Findings) -> Figure:
    """A row for each member of the front: the share of the tokens that each block scans."""
    shares = findings.token_shares
    figure, [axes] = _figure(1, 1.2 + 0.24 * len(shares))
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    names = [f"{100 * m.search.flops_ratio:.0f} %" for m in findings.outcome.members]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(xlabel="Block", ylabel="FLOPs of the policy")
    figure.colorbar(picture, label="Share of the tokens")
    return figure


def _choices(kinds: dict[str, list[Choice]]) -> Figure:
    figure, panels = _figure(len(kinds), 1.2 + 0.3 * max(map(len, kinds.values())))
    for axes, (kind, found) in zip(panels, kinds.items(), strict=True):
        names = [choice.name for choice in found]
        axes.barh(names, [choice.front for choice in found], color=_COLOR, label="the front")
        axes.plot([c.all for c in found], names, "|", c=_DARK, ms=14, mew=2, label="all candidates")
        axes.invert_yaxis()
        axes.set(xlabel="Share", title=kind)
    shown = panels[-1].get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _importance(shares: dict[str, dict[str, float]]) -> Figure:
    names = list(next(iter(shares.values())))
    figure, panels = _figure(len(shares), 1.0 + 0.26 * len(names))
    for axes, (objective, found) in zip(panels, shares.items(), strict=True):
        axes.barh(names, [found[name] for name in names], color=_COLOR)
        axes.invert_yaxis()
        axes.set(xlabel="Share of the variance", title=objective)
    return figure
