"""Weights from files, and files that are no weights."""

import argparse
import json
import os
import pickle
import re
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import ssmprune
from ssmprune.errors import CheckpointError, UsageError
from ssmprune.models.checkpoints import load_checkpoint, shipped_checkpoint

RELEASED = ["vim_tiny_patch16_224", "plainmamba_l1", "vmamba_tiny_s1l8", "vanilla_vmamba_tiny"]


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return ssmprune.create_model("vim_nano").state_dict()


@pytest.fixture(scope="module")
def official(goldens_folder):
    return json.loads((goldens_folder / "official_shapes.json").read_text())


def on_meta(name):
    with torch.device("meta"):
        return ssmprune.create_model(name)


def save_official(entry, path, options):
    """Write a released file of zeros; a tensor of any shape takes the space of one number."""
    weights = {key: torch.zeros(()).expand(shape) for key, shape in entry["state_dict"].items()}
    wrap = {"vim": vim_file, "plainmamba": mmcv_file}.get(entry["family"])
    torch.save(wrap(weights) if wrap else vmamba_file(weights, options), path)


def assert_loads(path, weights):
    model = ssmprune.create_model("vim_nano", checkpoint=path)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)


def test_safetensors_loads(tmp_path, weights):
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.safetensors", weights)


@pytest.fixture
def yacs_options(monkeypatch):
    """Options as VMamba saved them: a mapping of yacs, a package that we do without."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    options = module.CfgNode(MODEL=module.CfgNode(DIMS=[96]))
    options.__dict__["__immutable__"] = True
    return options


def vim_file(weights):
    return {
        "model": weights,
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5, "params": [0]}]},
        "epoch": 299,
        "model_ema": {key: torch.zeros_like(value) for key, value in weights.items()},
        "args": argparse.Namespace(lr=0.1, opt_betas=None, mixup_mode="batch"),
    }


def mmcv_file(weights):
    averaged = {"ema_" + key.replace(".", "_"): value for key, value in weights.items()}
    return {
        "meta": {"CLASSES": ("tench",), "best_score": np.float64(77.9), "iter": np.int64(9)},
        "state_dict": OrderedDict(weights | averaged),
    }


def vmamba_file(weights, options):
    return {"model": weights, "max_accuracy": 82.6, "epoch": 264, "config": options}


def test_wrapped_checkpoints_load(tmp_path, weights, yacs_options):
    path = tmp_path / "w.pth"
    in_backbone = {f"backbone.{key}": value for key, value in weights.items()}
    for content in (
        weights,
        {f"module.{key}": value for key, value in weights.items()},
        vim_file(weights),
        mmcv_file(in_backbone),
        vmamba_file(weights, yacs_options),
    ):
        torch.save(content, path)
        assert_loads(path, weights)


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta")
@pytest.mark.parametrize("name", RELEASED)
def test_released_files_load_as_they_are(tmp_path, official, name, yacs_options):
    save_official(official[name], tmp_path / "w.pth", yacs_options)
    load_checkpoint(on_meta(name), tmp_path / "w.pth")


FORMER_NAMES = {
    r"^patch_embed\.0\.": "patch_embed.proj.",
    r"^patch_embed\.2\.": "patch_embed.norm.",
    r"(blocks\.\d+)\.norm\.": r"\1.ln_1.",
    r"\.op\.": ".self_attention.",
    r"^classifier\.": "",
}


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta")
def test_names_and_windows_of_old_vmamba_files_are_understood(tmp_path, official, yacs_options):
    def former(key):
        for name, old in FORMER_NAMES.items():
            key = re.sub(name, old, key)
        return key

    entry = official["vanilla_vmamba_tiny"]
    shapes = {
        former(key): [*shape, 1, 1] if key.endswith("_proj.weight") else shape
        for key, shape in entry["state_dict"].items()
    }
    assert {"patch_embed.norm.bias", "norm.bias", "head.bias"} <= set(shapes)
    save_official(entry | {"state_dict": shapes}, tmp_path / "w.pth", yacs_options)
    load_checkpoint(on_meta("vanilla_vmamba_tiny"), tmp_path / "w.pth")


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


@pytest.mark.parametrize("share", [0.001, 0.002, 0.01, 0.1, 0.5, 0.999])
def test_cut_files_of_the_old_format_are_refused(tmp_path, weights, share):
    path = tmp_path / "w.pth"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"a checkpoint must .*again"):
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
    assert "no model of the zoo has these weights" in message
    assert "missing: head.bias" in message
    assert "head.weight (7, 64) instead of (10, 64)" in message
    assert "extra.9 and 2 more" in message and "extra.10" not in message


@pytest.mark.parametrize(
    ("file", "model"),
    [
        ("vim_small_patch16_224", "vim_tiny_patch16_224"),
        ("vim_tiny_patch16_stride8_224", "vim_tiny_patch16_224"),
        ("vim_tiny_patch16_224", "vim_tiny_patch16_stride8_224"),
        ("vmamba_tiny_s2l5", "vim_nano"),
        ("plainmamba_l2", "vmamba_tiny_s1l8"),
    ],
)
def test_checkpoint_of_another_model_of_the_zoo_is_refused_with_its_name(
    tmp_path, official, yacs_options, file, model
):
    save_official(official[file], tmp_path / "w.pth", yacs_options)
    with pytest.raises(CheckpointError, match=f"for {model}; its weights are those of {file}, use"):
        load_checkpoint(on_meta(model), tmp_path / "w.pth")


def test_checkpoint_of_another_image_size_is_resized(tmp_path, weights):
    torch.save(weights, tmp_path / "w.pth")
    model = ssmprune.create_model("vim_nano", tmp_path / "w.pth", image_size=60)
    assert model.pos_embed.shape[1] == 101 and torch.equal(model.cls_token, weights["cls_token"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, weights, value):
    spoilt = weights | {"layers.3.mixer.D": weights["layers.3.mixer.D"].clone()}
    spoilt["layers.3.mixer.D"][5] = value
    torch.save(spoilt, tmp_path / "w.pth")
    with pytest.raises(
        CheckpointError, match=r"finite, got NaN or infinity in layers.3.mixer.D of"
    ):
        ssmprune.create_model("vim_nano", checkpoint=tmp_path / "w.pth")


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
