"""The front as rows, CSV and table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console

from ssmprune import Policy
from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.results.table import COLUMNS, row, settings_text, to_csv, to_table

MakeCandidate = Callable[..., Candidate]


def test_row_has_every_column_and_none_where_nothing_was_measured(
    make_candidate: MakeCandidate,
) -> None:
    found = row(make_candidate(3, 90.0, 0.5))
    assert list(found) == list(COLUMNS)
    assert found["tokens"] == "1:63 5:28"
    assert (found["scorer"], found["alignment"]) == ("clipped_sum", "none compact")
    assert found["merge"] == "none"
    assert (found["search_top1"], found["search_top1_low"]) == (90.0, 88.0)
    empty = {key for key, value in found.items() if value is None}
    assert empty == {c for c in COLUMNS if c.startswith(("holdout", "latency", "peak_memory"))}


def test_row_names_the_scorers_of_stages_and_the_strength_of_alignment(
    make_candidate: MakeCandidate,
) -> None:
    policy = Policy.model_validate(
        {
            "model": "vim_nano",
            "stages": [
                {"layer": 1, "keep_ratio": 0.5, "scorer": {"name": "l1"}},
                {"layer": 2, "keep_ratio": 0.5},
            ],
            "alignment": {"decay": "neighbor", "strength": 0.5, "conv": "position"},
        }
    )
    found = row(replace(make_candidate(0, 90.0, 0.5), policy=policy))
    assert found["tokens"] == "1:32 2:16"
    assert found["scorer"] == "l1/clipped_sum"
    assert found["alignment"] == "neighbor 0.5 position"


def test_row_says_what_was_merged_and_how(make_candidate: MakeCandidate) -> None:
    merged = {"layer": 1, "keep_ratio": 0.6, "reduce": "merge", "match": "neighbors"}
    policy = Policy.model_validate(
        {
            "model": "vim_nano",
            "stages": [merged, {"layer": 2, "keep_ratio": 0.5, "scorer": {"name": "l1"}}],
            "merge": {"metric": "stream", "protect": 2},
            "alignment": {"sizes": "exact", "conv": "runs"},
        }
    )
    found = row(replace(make_candidate(0, 90.0, 0.5), policy=policy))
    assert found["tokens"] == "1:39:neighbors 2:20"
    assert (found["scorer"], found["merge"]) == ("l1", "stream protect 2")
    assert found["alignment"] == "none runs exact"
    assert settings_text(policy) == (
        "scorer l1, merged by stream protect 2, alignment none runs exact"
    )
    alone = policy.model_copy(update={"stages": policy.stages[:1]})
    assert row(replace(make_candidate(0, 90.0, 0.5), policy=alone))["scorer"] == "none"


def test_row_of_a_grid_policy_has_the_scanned_tokens_and_no_scorer(
    make_candidate: MakeCandidate,
) -> None:
    stages = [{"layer": 1, "keep_ratio": 0.25}, {"layer": 4, "keep_ratio": 0.5}]
    policy = Policy.model_validate(
        {"model": "vmamba_tiny_s1l8", "reduction": "grid", "stages": stages}
    )
    found = row(replace(make_candidate(0, 90.0, 0.5), policy=policy))
    assert (found["tokens"], found["scorer"], found["alignment"]) == ("1:784 4:100", "none", "grid")


def test_csv_reads_back_as_the_rows(make_candidate: MakeCandidate) -> None:
    found = [make_candidate(1, 90.0, 0.5), make_candidate(2, 91.5, 0.6, 0.7, holdout=90.25)]
    read = list(csv.DictReader(io.StringIO(to_csv(found))))
    for line, candidate in zip(read, found, strict=True):
        expected = row(candidate)
        assert line == {k: "" if v is None else str(v) for k, v in expected.items()}


def test_table_shows_the_figures_with_their_intervals_within_100_columns(
    make_candidate: MakeCandidate, dense: Measurement
) -> None:
    member = make_candidate(17, 91.25, 0.583, 0.712, holdout=90.5, source="schedule:[odd]@0.8")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(to_table([member], dense, None))
    text = console.export_text()
    assert all(part in text for part in ("17", "0.583", "91.2", "89.2-92.2", "90.5", "0.692-0.732"))
    assert all(part in text for part in ("dense", "1:63 5:14", "schedule:[odd]@0.8"))


def test_table_of_a_search_without_latency_has_no_column_for_it(
    make_candidate: MakeCandidate, dense: Measurement
) -> None:
    untimed = make_candidate(0, dense.top1, 1.0).search
    titles = [
        str(c.header) for c in to_table([make_candidate(17, 91.25, 0.5)], untimed, None).columns
    ]
    assert not any("Latency" in title or "Memory" in title for title in titles)


def test_table_of_a_search_with_peak_memory_has_a_column_for_it(
    make_candidate: MakeCandidate, dense: Measurement
) -> None:
    memory = {"peak_memory_bytes": 3 * 2**20, "peak_memory_ratio": 0.75}
    member = make_candidate(17, 91.25, 0.5)
    member = replace(member, search=replace(member.search, **memory))
    table = to_table([member], replace(dense, peak_memory_bytes=2**22, peak_memory_ratio=1.0), None)
    cells = [list(c.cells) for c in table.columns if str(c.header).startswith("Memory")]
    assert cells == [["1.000\n[dim]4.0", "0.750\n[dim]3.0"]]
    assert memory.items() <= row(member).items()
