"""Weights from files, and files that are no weights."""

import argparse
import os
import pickle

import pytest
import safetensors.torch
import timm
import torch

import ssmprune
from ssmprune.errors import CheckpointError, UsageError
from ssmprune.models.checkpoints import shipped_checkpoint


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return ssmprune.create_model("vim_nano").state_dict()


def assert_loads(path, weights):
    model = ssmprune.create_model("vim_nano", checkpoint=path)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_safetensors_loads(tmp_path, weights):
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.safetensors", weights)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": w, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}},
    ],
    ids=["bare", "model", "module"],
)
def test_wrapped_checkpoints_load(tmp_path, weights, wrap):
    torch.save(wrap(weights), tmp_path / "w.pth")
    assert_loads(tmp_path / "w.pth", weights)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/ssmprune-must-not-exist",)


def test_pickle_that_runs_code_is_refused(tmp_path):
    torch.save({"model": Malicious()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"tensors only.*wants to run \S*system"):
        ssmprune.create_model("vim_nano", checkpoint=tmp_path / "w.pth")
    assert not os.path.exists("/tmp/ssmprune-must-not-exist")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_or_foreign_files_are_refused(tmp_path, weights, suffix):
    whole = tmp_path / f"whole.{suffix}"
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    save(weights, whole)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[:5000])
    text, empty = tmp_path / f"text.{suffix}", tmp_path / f"empty.{suffix}"
    text.write_text("no checkpoint at all")
    empty.write_bytes(b"")
    for path in (cut, text, empty, tmp_path / f"none.{suffix}", tmp_path):
        with pytest.raises(CheckpointError, match=r"a checkpoint must"):
            ssmprune.create_model("vim_nano", checkpoint=path)


def test_plain_pickle_and_tensorless_files_are_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(pickle.dumps({"a": 1}))
    torch.save({"epoch": 3}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth"):
        with pytest.raises(CheckpointError, match="a checkpoint must hold"):
            ssmprune.create_model("vim_nano", checkpoint=tmp_path / name)


def test_checkpoint_of_another_model_is_refused_with_its_differences(tmp_path, weights):
    other = {k: v for k, v in weights.items() if k != "head.bias"}
    other["head.weight"] = torch.zeros(7, 64)
    other |= {f"extra.{i}": torch.zeros(1) for i in range(12)}
    torch.save(other, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as caught:
        ssmprune.create_model("vim_nano", checkpoint=tmp_path / "w.pth")
    message = str(caught.value)
    assert "missing: head.bias" in message
    assert "head.weight (7, 64) instead of (10, 64)" in message
    assert "extra.9 and 2 more" in message and "extra.10" not in message


def test_shipped_checkpoint_is_found_by_model_name():
    assert shipped_checkpoint("vim_nano").name == "vim_nano.safetensors"
    assert shipped_checkpoint("vim_tiny_patch16_224") is None


def test_timm_builds_the_models_with_a_policy(tmp_path):
    policy = ssmprune.Policy.from_yaml(
        "model: vim_nano\nstages: [{layer: 1, keep_ratio: 0.5}]", "test"
    )
    policy.save(tmp_path / "policy.yaml")
    model = timm.create_model("vim_nano", policy=str(tmp_path / "policy.yaml"), num_classes=4)
    assert model(torch.zeros(2, 1, 48, 48)).shape == (2, 4)
    assert model.plan.policy == policy
    assert {"vim_nano", "vim_small_patch16_224"} <= set(timm.list_models("vim*"))
    with pytest.raises(UsageError, match="checkpoint_path"):
        timm.create_model("vim_nano", pretrained=True)


def test_unknown_model_is_refused_with_near_names():
    with pytest.raises(UsageError, match="did you mean vim_nano"):
        ssmprune.create_model("vim_nanno")
