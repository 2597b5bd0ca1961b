"""Policy files written from a run."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace
from pathlib import Path

import pytest

import ssmprune
from ssmprune.errors import FileError, UsageError
from ssmprune_search.results.export import annotate, file_name, write_policies
from ssmprune_search.results.outcome import Outcome


@pytest.fixture
def outcome(finished_run: Path) -> Outcome:
    return Outcome.read(finished_run)


def test_exported_policy_loads_as_the_candidate_with_its_figures(
    outcome: Outcome, tmp_path: Path
) -> None:
    member = outcome.members[3]
    write_policies({tmp_path / "policy.yaml": annotate(member, outcome)})
    loaded = ssmprune.Policy.load(tmp_path / "policy.yaml")
    assert loaded.model_copy(update={"measured": None, "provenance": None}) == member.policy
    assert loaded.measured == annotate(member, outcome).measured
    assert ssmprune.create_model("vim_nano", policy=tmp_path / "policy.yaml").plan is not None


def test_measured_tells_both_splits_both_rules_and_the_latency_with_its_protocol(
    outcome: Outcome,
) -> None:
    member = outcome.members[3]
    protocol = {"device": "cpu", "device_name": "some CPU", "threads": 2, "repeats": 6}
    search = replace(member.search, latency_protocol=protocol)
    measured = annotate(replace(member, search=search), outcome).measured
    assert measured is not None
    assert member.holdout is not None
    for split, figures in (("search", member.search), ("holdout", member.holdout)):
        assert measured[split] == {
            "split": split,
            "images": figures.images,
            "top1": round(figures.top1, 2),
            "top1_low": round(figures.top1_low, 2),
            "top1_high": round(figures.top1_high, 2),
            "dense_top1": 100.0,
        }
    for rule in ("flops", "paper_flops"):
        cost = measured[rule]
        assert cost["policy"] == getattr(member.search, rule)
        assert cost["dense"] == getattr(outcome.dense, rule)
        assert cost["ratio"] == pytest.approx(cost["policy"] / cost["dense"], abs=1e-4)
    latency = measured["latency"]
    assert latency["ratio_low"] <= latency["ratio"] <= latency["ratio_high"]
    assert protocol.items() <= latency.items()


def test_measured_tells_the_peak_memory_with_its_protocol(outcome: Outcome) -> None:
    member = outcome.members[3]
    search = replace(member.search, memory_protocol={"device": "cpu"})
    measured = annotate(replace(member, search=search), outcome).measured
    assert measured is not None
    assert measured["peak_memory_bytes"] == {
        "policy": search.peak_memory_bytes,
        "dense": 1_000_000,
        "ratio": round(search.peak_memory_ratio, 4),
        "device": "cpu",
    }


def test_provenance_leads_back_to_the_trial_without_naming_the_machine(
    outcome: Outcome, finished_run: Path
) -> None:
    member = outcome.members[0]
    provenance = annotate(member, outcome).provenance
    assert provenance is not None
    space = (finished_run / "space.yaml").read_bytes()
    assert provenance["space_sha256"] == hashlib.sha256(space).hexdigest()
    expected = {"space": "small.yaml", "run": "synthetic", "trial": member.trial, "seed": 7}
    assert expected.items() <= provenance.items()
    assert {"sampler", "source", "checkpoint_sha256", "versions", "exported"} <= provenance.keys()
    assert "/" not in str(provenance).replace(str(provenance["versions"]), "")


def test_policy_without_holdout_is_exported_without_it(outcome: Outcome) -> None:
    measured = annotate(outcome.candidates[0], outcome).measured
    assert measured is not None
    assert ("holdout" in measured) == (outcome.candidates[0].holdout is not None)


def test_export_never_overwrites_without_force(outcome: Outcome, tmp_path: Path) -> None:
    policy = annotate(outcome.members[0], outcome)
    (tmp_path / "b.yaml").write_text("mine")
    with pytest.raises(FileError, match=r"b\.yaml exists; give --force"):
        write_policies({tmp_path / "a.yaml": policy, tmp_path / "b.yaml": policy})
    assert sorted(p.name for p in tmp_path.glob("*.yaml")) == ["b.yaml"]
    assert (tmp_path / "b.yaml").read_text() == "mine"
    write_policies({tmp_path / "b.yaml": policy}, force=True)
    assert ssmprune.Policy.load(tmp_path / "b.yaml") == policy


def test_export_makes_the_folder_but_refuses_a_folder_for_a_file(
    outcome: Outcome, tmp_path: Path
) -> None:
    policy = annotate(outcome.members[0], outcome)
    write_policies({tmp_path / "new" / "policy.yaml": policy})
    assert stat.S_IMODE((tmp_path / "new" / "policy.yaml").stat().st_mode) & 0o400
    with pytest.raises(UsageError, match="is a directory"):
        write_policies({tmp_path / "new": policy})
    with pytest.raises(FileError, match="cannot be"):
        write_policies({tmp_path / "new" / "policy.yaml" / "below.yaml": policy})


def test_file_names_of_a_front_differ_and_sort_by_flops(outcome: Outcome) -> None:
    names = [file_name(member) for member in outcome.members]
    assert len(set(names)) == len(names)
    assert [n[:10] for n in names] == sorted(n[:10] for n in names)
