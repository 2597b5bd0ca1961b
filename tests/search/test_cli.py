"""The commands `search`, `front` and `export`."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ssmprune import Policy
from ssmprune.measure.flops import count_flops
from ssmprune.models.zoo import find_config
from ssmprune_search.cli import app
from ssmprune_search.results.outcome import Outcome
from ssmprune_search.run.directory import RunDirectory


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def json_of(*arguments: object) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refuses(result: Any, status: int, *parts: str) -> None:
    """The exit status, and one message on stderr without a traceback."""
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    for part in parts:
        assert part in " ".join(result.stderr.replace("│", " ").split())


def test_front_prints_one_front_in_three_forms(finished_run: Path) -> None:
    members = Outcome.read(finished_run).members
    as_json = json_of("front", finished_run)
    as_csv = list(csv.DictReader(io.StringIO(call("front", finished_run, "--csv").stdout)))
    table = call("front", finished_run).stdout
    assert [m["trial"] for m in as_json["front"]] == [m.trial for m in members]
    assert [int(line["trial"]) for line in as_csv] == [m.trial for m in members]
    assert all(f"{m.search.flops_ratio:.3f}" in table for m in members)
    assert as_json["model"] == "vim_nano"
    assert as_json["objectives"] == ["top1", "flops", "latency_ms"]
    assert 0 < as_json["hypervolume"] < 1


def test_front_renews_the_files_of_the_run(finished_run: Path) -> None:
    printed = call("front", finished_run, "--csv").stdout
    assert (finished_run / "front.csv").read_text() == printed
    assert (finished_run / "front.png").read_bytes().startswith(b"\x89PNG")


def test_front_of_a_run_that_cannot_be_written_to_is_printed_all_the_same(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Outcome, "write", refuse)
    result = call("front", finished_run, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["front"]
    assert "cannot be renewed" in result.stderr


def test_front_of_a_search_under_way_is_what_it_has_so_far(finished_run: Path) -> None:
    run = RunDirectory.open(finished_run)
    del (info := run.info)["dense"]["holdout"]
    run.write_info(info)
    found = json_of("front", finished_run)
    assert found["dense"]["holdout"] is None
    assert found["front"]


def test_export_takes_the_best_policy_within_the_limits(finished_run: Path, tmp_path: Path) -> None:
    front = json_of("front", finished_run)["front"]
    path = tmp_path / "policies" / "best.yaml"
    [chosen] = json_of("export", finished_run, "--max-flops-ratio", 0.7, "-o", path)
    within = [m for m in front if m["flops_ratio"] <= 0.7]
    assert chosen["trial"] == max(within, key=lambda m: m["search_top1"])["trial"]
    policy = Policy.load(path)
    assert policy.provenance is not None
    assert policy.provenance["trial"] == chosen["trial"]


def test_export_of_all_writes_a_file_for_each_member(finished_run: Path, tmp_path: Path) -> None:
    members = json_of("front", finished_run)["front"]
    assert call("export", finished_run, "--all", "-o", tmp_path / "all").exit_code == 0
    policies = [Policy.load(path) for path in sorted((tmp_path / "all").glob("*.yaml"))]
    trials = [p.provenance["trial"] for p in policies if p.provenance]
    assert sorted(trials) == sorted(m["trial"] for m in members)


def test_exported_policy_costs_what_the_export_says(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    [chosen] = json_of("export", finished_run, "-o", path, "--min-top1", 50)
    count = count_flops(find_config("vim_nano"), Policy.load(path))
    assert (count.flops, count.paper_flops) == (chosen["flops"], chosen["paper_flops"])


def test_export_does_not_overwrite_without_force(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    refuses(call("export", finished_run, "-o", path), 1, "mine.yaml exists; give --force")
    assert path.read_text() == "mine"
    assert call("export", finished_run, "-o", path, "--force").exit_code == 0
    assert Policy.load(path).measured is not None


def test_limits_that_nothing_meets_name_the_nearest(finished_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    result = call("export", finished_run, "--max-flops-ratio", 0.01, "-o", path)
    refuses(result, 2, "flops_ratio <= 0.01", "the nearest is trial")
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--max-flops-ratio", "60"), "--max-flops-ratio must be in (0, 2], 1 being dense, got 60"),
        (("--max-latency-ratio", "0"), "--max-latency-ratio must be in (0, 2]"),
        (("--max-latency-ratio", "nan"), "--max-latency-ratio must be in (0, 2]"),
        (("--min-top1", "0.9"), "--min-top1 must be in (1, 100] per cent, got 0.9"),
        (("--all", "--min-top1", "90"), "--all exports the whole front; leave --min-top1 out"),
    ],
)
def test_limits_out_of_range_are_wrong_calls(
    finished_run: Path, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    refuses(call("export", finished_run, *options, "-o", tmp_path / "best.yaml"), 2, part)


def test_csv_and_json_at_once_are_a_wrong_call(finished_run: Path) -> None:
    refuses(call("front", finished_run, "--csv", "--json"), 2, "give one of --csv and --json")


@pytest.mark.parametrize("command", [("front",), ("report",), ("export", "-o", "nowhere.yaml")])
@pytest.mark.parametrize(
    ("damage", "part"),
    [
        ("remove everything", "a run directory must hold a search"),
        ("remove run.json", "there is no run.json"),
        ("damage run.json", "must be readable JSON"),
        ("remove dense", "finish the search with --resume"),
        ("damage space.yaml", "unknown key 'modell'"),
        ("damage study.journal", "study.journal"),
        ("empty study.journal", "study.journal"),
    ],
)
def test_a_damaged_run_ends_with_status_1(
    finished_run: Path, command: tuple[str, ...], damage: str, part: str
) -> None:
    run = RunDirectory(finished_run)
    if damage == "remove everything":
        shutil.rmtree(finished_run)
    elif damage == "remove run.json":
        run.info_path.unlink()
    elif damage == "damage run.json":
        run.info_path.write_text(run.info_path.read_text()[:-20])
    elif damage == "remove dense":
        run.write_info({**run.info, "dense": {}})
    elif damage == "damage space.yaml":
        run.space_path.write_text("modell: vim_nano\n")
    elif damage == "damage study.journal":
        lines = run.journal_path.read_text().splitlines(keepends=True)
        run.journal_path.write_text("".join([*lines[:5], "no record\n", *lines[5:]]))
    elif damage == "empty study.journal":
        run.journal_path.write_text("")
    refuses(call(command[0], finished_run, *command[1:]), 1, part)


def test_front_reads_a_journal_with_a_half_written_last_line(finished_run: Path) -> None:
    before = json_of("front", finished_run)["front"]
    with RunDirectory(finished_run).journal_path.open("a") as journal:
        journal.write('{"op_code": 8, "work')
    assert json_of("front", finished_run)["front"] == before


SPACE = """\
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [0, 2], low: 0.5, step: 0.1}
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--trials", "0"), "--trials"),
        (("--workers", "0"), "--workers"),
        (("--trials", "many"), "--trials"),
        (("--seed", "-1"), "--seed"),
        (("--gpus-per-worker", "-1"), "--gpus-per-worker"),
        (("--sampler", "nsga3"), "unknown sampler 'nsga3'; did you mean nsga2"),
        (("--device", "tpu"), "a device must be there, got 'tpu'"),
        (("--data", "digts"), "unknown data set 'digts'"),
        (("--colour",), "--colour"),
    ],
)
def test_a_wrong_call_of_search_ends_with_status_2_and_writes_nothing(
    space: Path, weights: Path, tmp_path: Path, options: tuple[str, ...], part: str
) -> None:
    out = tmp_path / "run"
    refuses(call("search", space, "--checkpoint", weights, "--out", out, *options), 2, part)
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_search_on_a_device_that_is_not_there_is_a_wrong_call(space: Path, tmp_path: Path) -> None:
    result = call("search", space, "--out", tmp_path / "run", "--device", "cuda")
    refuses(result, 2, "got 'cuda'; there is cpu")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("ratios: [", "plain YAML"),
        (SPACE + "layers: [1]\n", "unknown key 'layers'"),
        (SPACE.replace("[0, 2]", "[0, 20]"), "layer must be below 8"),
        (SPACE.replace("0.5", "1.5"), "1.5"),
        (SPACE + "scorer: [l3]\n", "unknown scorer 'l3'"),
        (SPACE + "objectives: !!python/name:os.system\n", "remove tags"),
    ],
)
def test_a_bad_space_ends_with_status_1_and_writes_nothing(
    space: Path, tmp_path: Path, text: str, part: str
) -> None:
    space.write_text(text)
    refuses(call("search", space, "--out", tmp_path / "run"), 1, part, "space.yaml, line")
    assert not (tmp_path / "run").exists()


def test_search_refuses_a_directory_that_holds_a_run(space: Path, finished_run: Path) -> None:
    refuses(call("search", space, "--out", finished_run), 1, "give --resume to go on with it")


def test_search_refuses_a_directory_that_another_search_uses(
    weights: Path, finished_run: Path
) -> None:
    arguments = (finished_run / "space.yaml", "--checkpoint", weights, "--out", finished_run)
    with RunDirectory(finished_run).lock():
        refuses(call("search", *arguments, "--resume"), 1, "used by one search at a time")


def test_search_resumes_only_what_is_there(space: Path, tmp_path: Path) -> None:
    result = call("search", space, "--out", tmp_path / "run", "--resume")
    refuses(result, 1, "there is no directory")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint"])
def test_search_refuses_a_bad_checkpoint(space: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    result = call("search", space, "--out", tmp_path / "run", "--checkpoint", path)
    refuses(result, 1, "a checkpoint must")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> list[dict[str, Any]]:
    """Calls of the search, which finds the finished run at once."""
    import ssmprune_search.run.launch
    from ssmprune_search.study.records import Counts

    calls: list[dict[str, Any]] = []

    def run(space: Path, run_dir: Path, **options: Any) -> ssmprune_search.run.launch.SearchResult:
        calls.append({"space": space, "run_dir": run_dir, **options})
        if options["seed"] == 130:
            raise KeyboardInterrupt
        return ssmprune_search.run.launch.SearchResult(
            run_dir=run_dir,
            trials=options["trials"],
            counts=Counts(evaluated=30),
            front=Outcome.read(run_dir).members if options["seed"] == 2 else [],
            seconds=1.0,
            interrupted=options["seed"] in (1, 2),
        )

    monkeypatch.setattr(ssmprune_search.run.launch, "search", run)
    return calls


def test_search_prints_the_front_that_it_found(
    searched: list[dict[str, Any]], finished_run: Path
) -> None:
    found = json_of("search", "space.yaml", "--out", finished_run, "--trials", 30)
    assert found == json_of("front", finished_run)
    assert searched[0]["trials"] == 30
    assert searched[0]["workers"] == 2


@pytest.mark.parametrize("seed", [1, 130])
def test_an_interrupted_search_ends_with_status_130(
    searched: list[dict[str, Any]], finished_run: Path, seed: int
) -> None:
    result = call("search", "space.yaml", "--out", finished_run, "--seed", seed)
    refuses(result, 130)


def test_an_interrupted_search_leaves_the_front_that_it_found(
    searched: list[dict[str, Any]], finished_run: Path
) -> None:
    result = call("search", "space.yaml", "--out", finished_run, "--seed", 2, "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["front"]
    assert "Interrupted: 30 of 150 candidates finished" in result.stderr
    assert len((finished_run / "front.csv").read_text().splitlines()) > 1
    assert (finished_run / "front.png").stat().st_size > 1000
