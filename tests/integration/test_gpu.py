"""The commands of the README on a GPU, where there is one, against the same ones on the CPU."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ON_GPU, ROOT

pytestmark = [*ON_GPU, pytest.mark.slow, pytest.mark.timeout(600)]

DEVICE = "cuda"


def ssmprune(*arguments: Any) -> str:
    call = [sys.executable, "-m", "ssmprune_search", *map(str, arguments)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def top1(policy: Path, device: str, *options: str) -> float:
    shipped = ("--model", "vim_nano", "--checkpoint", "shipped", "--data", "digits")
    told = ssmprune("eval", *shipped, "--policy", policy, "--device", device, "--json", *options)
    return float(json.loads(told)["top1"])


def test_search_on_a_gpu_finds_policies_that_the_cpu_confirms(tmp_path: Path) -> None:
    run, policies = tmp_path / "run", tmp_path / "policies"
    ssmprune(
        "search", "spaces/vim_nano.yaml", "--trials", 12, "--workers", 1, "--device", DEVICE,
        "--out", run,
    )  # fmt: skip
    dense = json.loads((run / "run.json").read_text())["dense"]["search"]
    assert dense["latency_protocol"]["device"].startswith(DEVICE)
    assert dense["latency_protocol"]["backend"] == "triton"
    assert json.loads(ssmprune("front", run, "--json"))["candidates"] == 12
    ssmprune("export", run, "--all", "-o", policies)
    least, *_, most = sorted(policies.glob("*.yaml"))
    for policy in (least, most):
        assert top1(policy, DEVICE) == pytest.approx(top1(policy, "cpu"), abs=0.3)


def test_bfloat16_on_a_gpu_is_as_good_as_float32_on_the_cpu() -> None:
    policy = ROOT / "ssmprune/policies/uniform_vim_nano.yaml"
    assert top1(policy, DEVICE, "--bf16") == pytest.approx(top1(policy, "cpu"), abs=1.0)


def test_training_on_a_gpu_has_the_losses_of_the_cpu(tmp_path: Path) -> None:
    losses = []
    for device in (DEVICE, "cpu"):
        out = tmp_path / f"on-{device}"
        ssmprune(
            "train", "--model", "vim_nano", "--data", "digits", "--policy", "uniform_vim_nano",
            "--init", "shipped", "--steps", 3, "--device", device, "--out", out,
        )  # fmt: skip
        losses.append(float(read_csv(out / "log.csv")[-1]["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))
