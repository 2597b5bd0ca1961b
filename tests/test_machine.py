"""CPUs are those that the machine, a batch system and a container leave to the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ssmprune.machine import cpu_count


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def test_without_a_quota_they_are_those_of_the_affinity(tmp_path: Path) -> None:
    assert cpu_count(tmp_path) == 16


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 16), ("400000 100000", 4), ("150000 100000", 2), ("10000 100000", 1)],
)
def test_quota_of_a_container_is_rounded_up(tmp_path: Path, quota: str, expected: int) -> None:
    group = tmp_path / "sys/fs/cgroup"
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    group.mkdir(parents=True)
    (group / "cpu.max").write_text(quota + "\n")
    assert cpu_count(tmp_path) == expected


def test_smallest_quota_of_the_groups_above_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user.slice/job.scope\n")
    slice_ = tmp_path / "sys/fs/cgroup/user.slice"
    (slice_ / "job.scope").mkdir(parents=True)
    (slice_ / "cpu.max").write_text("300000 100000\n")
    (slice_ / "job.scope" / "cpu.max").write_text("800000 100000\n")
    assert cpu_count(tmp_path) == 3


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("250000", 3)])
def test_quota_of_control_groups_of_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    text = "5:memory:/docker/0f3\n4:cpu,cpuacct:/docker/0f3\n"
    (tmp_path / "proc/self/cgroup").write_text(text)
    group = tmp_path / "sys/fs/cgroup/cpu,cpuacct"  # a container sees its own group at the root
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_count(tmp_path) == expected
