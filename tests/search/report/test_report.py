"""The report of a run: what its page and its figures hold."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import ssmprune_search.report
from ssmprune import Policy
from ssmprune.errors import RunError
from ssmprune.models.zoo import model_names
from ssmprune.pruning.picture import group_colors
from ssmprune_search.candidate.measurement import Measurement
from ssmprune_search.candidate.pareto import pareto_front
from ssmprune_search.cli import app
from ssmprune_search.evaluation.synthetic import SyntheticEvaluators
from ssmprune_search.report import write_report
from ssmprune_search.report.references import PUBLISHED_TOP1, find_smaller_models
from ssmprune_search.report.samples import group_text
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.run.directory import RunDirectory
from ssmprune_search.space.space import SearchSpace

FIGURES = ("front", "hypervolume", "schedules", "choices", "importance")


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def page_of(run: Path) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def written(_finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its report."""
    run = Path(shutil.copytree(_finished_run, tmp_path_factory.mktemp("report") / "synthetic"))
    result = call("report", run)
    assert result.exit_code == 0, result.output
    assert "report.html, and 10 figures" in result.stderr
    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes seconds and is tested on `written`."""
    monkeypatch.setattr(ssmprune_search.report, "draw_figures", lambda *_: {})
    monkeypatch.setattr(ssmprune_search.report.findings, "importances", lambda *_: {})


def test_page_needs_no_other_file_and_is_small(written: Path) -> None:
    page = page_of(written)
    assert len(page.encode()) < 6e6
    markup = page[: page.index('<script type="application/json"')]
    assert re.findall(r'(?:src|href)="(?!data:)', markup) == []
    assert (
        "default-src 'none'" in page
        and "@import" not in page
        and "url(" not in page.replace("url(#inside)", "")
    )


def test_page_has_every_candidate_and_what_it_is_compared_with(written: Path) -> None:
    outcome, data = Outcome.read(written), data_of(page_of(written))
    kinds = {p["id"]: p["kind"] for p in data["points"]}
    members = {f"trial-{m.trial}" for m in outcome.members}
    assert {id for id, kind in kinds.items() if kind == "front"} == members
    others = [c for c in outcome.candidates if f"trial-{c.trial}" not in members]
    shown = {id for id, kind in kinds.items() if kind == "candidate"}
    assert shown == {f"trial-{c.trial}" for c in others if "schedule:" not in c.source}
    schedules = {p["name"] for p in data["points"] if p["kind"] == "schedule"}
    assert {"uniform_vim_nano", "equal@0.8", "equal@0.6"} <= schedules
    [dense] = [p for p in data["points"] if p["kind"] == "dense"]
    assert dense["search"][0] == round(outcome.dense.top1, 3)


def test_page_tells_each_policy_as_the_run_has_it(written: Path) -> None:
    outcome, data = Outcome.read(written), data_of(page_of(written))
    for member in outcome.members:
        told = data["policies"][f"trial-{member.trial}"]
        policy = Policy.from_yaml(told["yaml"])
        assert policy.stages == member.policy.stages and policy.scorer == member.policy.scorer
        sums = [sum(rule) for rule in zip(*told["operators"].values(), strict=True)]
        assert sums == [told["flops"], told["paper_flops"]]
        assert told["flops"] == member.search.flops
        assert len(told["tokens"]) == outcome.run.space.config.depth + 1


def test_hypervolume_ends_at_that_of_the_front_and_grows_from_the_first_candidates(
    written: Path,
) -> None:
    outcome, history = Outcome.read(written), data_of(page_of(written))["history"]
    assert history[0][0] == 1 and history[-1][0] == len(outcome.candidates)
    assert history[-1][2] == pytest.approx(outcome.hypervolume(), abs=1e-5)
    first = [c for c in outcome.candidates if c.trial <= outcome.candidates[9].trial]
    volume = outcome.hypervolume(pareto_front(first, outcome.objectives))
    assert dict((n, v) for n, _, v in history)[10] == pytest.approx(volume, abs=1e-5)
    seconds = [at for _, at, _ in history]
    assert seconds == sorted(seconds)


def test_page_shows_peak_memory_where_it_is_an_objective(
    written: Path, finished_run: Path, quick: None
) -> None:
    space = finished_run / "space.yaml"
    space.write_text(space.read_text().replace("latency_ms", "peak_memory_bytes"))
    result = call("report", finished_run)
    assert result.exit_code == 0, result.output
    with_memory, without = page_of(finished_run), page_of(written)
    title = '<th scope="col">Peak memory</th>'
    assert title in with_memory and title not in without
    data = data_of(with_memory)
    assert "peak_memory_bytes" in data["objectives"]
    assert all(p["memory"] for p in data["points"] if p["kind"] in ("front", "dense"))


def test_figures_are_there_for_papers_in_both_formats(written: Path) -> None:
    for name in FIGURES:
        assert (written / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        root = ElementTree.parse(written / "report" / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_page_says_why_it_lacks_kept_tokens(written: Path) -> None:
    assert "Kept tokens are not shown: no file with the weights of the search" in page_of(written)


def test_page_and_message_of_a_model_without_smaller_ones(written: Path) -> None:
    assert "the zoo has no smaller dense model for the 10 classes" in page_of(written)


@pytest.mark.usefixtures("quick")
def test_report_of_an_unfinished_run_shows_what_is_there_and_says_so(finished_run: Path) -> None:
    run = RunDirectory.open(finished_run)
    info = run.info
    del info["dense"]["holdout"]
    run.write_info({**info, "call": {**info["call"], "trials": 60}})
    write_report(Outcome.read(finished_run))
    page = page_of(finished_run)
    assert "This search is not finished:" in page and "30 of 60 candidates are finished" in page
    assert data_of(page)["images"]["holdout"] is None


def test_report_of_a_finished_run_calls_it_finished(written: Path) -> None:
    assert "not finished" not in page_of(written)


@pytest.mark.usefixtures("quick")
def test_report_replaces_a_report_and_nothing_else(finished_run: Path) -> None:
    path = finished_run / "report.html"
    path.write_text("my own notes")
    result = call("report", finished_run)
    assert result.exit_code == 1 and "move it away" in result.stderr
    assert path.read_text() == "my own notes"
    path.unlink()
    before = {p: p.read_bytes() for p in finished_run.iterdir() if p.is_file()}
    for _ in range(2):
        assert call("report", finished_run).exit_code == 0
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.usefixtures("quick")
def test_report_of_a_run_that_cannot_be_written_to_is_refused(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ssmprune_search.report, "write_atomically", refuse)
    with pytest.raises(RunError, match="cannot be written to: Permission denied"):
        write_report(Outcome.read(finished_run))


@pytest.mark.usefixtures("quick")
def test_names_from_outside_stay_text(finished_run: Path) -> None:
    run = RunDirectory.open(finished_run)
    info = run.info
    run.write_info({**info, "call": {**info["call"], "data": "<script>alert(1)</script>"}})
    write_report(Outcome.read(finished_run))
    assert "<script>alert" not in page_of(finished_run)


@pytest.mark.usefixtures("quick")
def test_measure_evaluates_known_schedules_once_and_keeps_the_figures(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Fake:
        def measure(self, policy: Policy, split: str, dense: Measurement) -> Measurement:
            asked.append(split)
            return SyntheticEvaluators("vim_nano").open(split, 1)(policy)

    outcome = Outcome.read(finished_run)
    for _ in range(2):
        ssmprune_search.report.measure_references(outcome, Fake(), finished_run / "report")  # type: ignore[arg-type]
    measured = ssmprune_search.report.read_measured(outcome, finished_run / "report")
    schedules = ssmprune_search.report.references.find_schedules(outcome, measured)
    assert all(schedule.is_measured for schedule in schedules)
    assert asked.count("search") == 1  # uniform_vim_nano; the search evaluated all others
    assert asked.count("holdout") == len(asked) - 1
    write_report(outcome)
    [point] = [
        p for p in data_of(page_of(finished_run))["points"] if p["name"] == "uniform_vim_nano"
    ]
    assert point["holdout"] is not None


def test_measure_without_the_weights_is_refused(finished_run: Path) -> None:
    result = call("report", finished_run, "--measure")
    assert result.exit_code == 1
    assert "--measure needs the weights" in result.stderr and "--checkpoint" in result.stderr
    assert not (finished_run / "report.html").exists()


def test_weights_of_another_model_are_refused(finished_run: Path, weights: Path) -> None:
    result = call("report", finished_run, "--checkpoint", weights)
    assert result.exit_code == 1 and "--checkpoint must be the weights" in result.stderr
    assert not (finished_run / "report.html").exists()


def imagenet_run(top1: float) -> Any:
    space = SearchSpace.load("spaces/vim_small_patch16_224.yaml")
    dense = SyntheticEvaluators(space.model).open("search", 1)(Policy(model=space.model, stages=()))
    return SimpleNamespace(
        run=SimpleNamespace(space=space), dense=replace(dense, top1=top1), dense_holdout=None
    )


def test_smaller_models_stand_on_the_axes_only_where_the_dense_model_does_as_published() -> None:
    there, elsewhere = (
        find_smaller_models(imagenet_run(80.3)),
        find_smaller_models(imagenet_run(62)),
    )
    assert there.comparable and not elsewhere.comparable
    assert [m.name for m in there.models] == [m.name for m in elsewhere.models]
    ratios = {m.name: m.flops_ratio for m in there.models}
    assert {"vim_tiny_patch16_224", "plainmamba_l1"} <= ratios.keys()
    assert "vim_base_patch16_224" not in ratios and all(ratio < 1 for ratio in ratios.values())


def test_published_accuracies_are_those_of_models_of_the_zoo() -> None:
    assert PUBLISHED_TOP1.keys() == set(model_names()) - {"vim_nano"}


@pytest.mark.usefixtures("quick")
def test_page_names_what_each_stage_does_where_some_merge(
    finished_run: Path, with_merging: Callable[[Outcome], Outcome], written: Path
) -> None:
    outcome = with_merging(Outcome.read(finished_run))
    write_report(outcome)
    page, without = page_of(finished_run), page_of(written)
    text = "0:39:neighbors 2:28:alternate 3:20"
    assert f'<td class="stages">{text}</td>' in page and ":neighbors" not in without
    told = data_of(page)["policies"]
    stages = {m.trial: told[f"trial-{m.trial}"]["stages"] for m in outcome.members}
    assert [*stages.values()][:2] == [text, None]
    [kinds] = [part for part in page.split("<h3>") if part.startswith("Stages</h3>")]
    assert "<dt>neighbors, alternate, drop</dt>" in kinds and "<dt>drop</dt>" in kinds


def test_groups_go_to_the_page_as_text_that_gives_them_back() -> None:
    groups = [[0, 1, 40], [2, 3], [41, 48, 63]]
    parts = [part.split(" ") for part in group_text(groups, 8).split(",")]
    assert [[int(number, 36) for number in numbers] for _, *numbers in parts] == groups
    colors = [int(color) for color, *_ in parts]
    assert colors == group_colors(groups, 8) and colors[0] not in colors[1:]
    assert group_text([], 8) == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("keep_ratio_3", "block 3, ratio"),
        ("reduce_12", "block 12, reduce"),
        ("stage_0_keep_ratio", "stage 0 keep ratio"),
        ("decay", "decay"),
    ],
)
def test_parameters_are_told_in_words(name: str, words: str) -> None:
    assert ssmprune_search.report.page._parameter(name) == words


@pytest.mark.usefixtures("quick")
def test_recovery_of_the_front_is_shown_where_the_run_has_it(finished_run: Path) -> None:
    table = "trial,before_top1,after_top1\n3,81.25,93.5\n"
    (finished_run / "recovery.csv").write_text(table)
    write_report(Outcome.read(finished_run))
    page = page_of(finished_run)
    assert '<th scope="col">after top1</th>' in page and "<td>93.50</td>" in page
