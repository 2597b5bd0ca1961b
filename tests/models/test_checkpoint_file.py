"""Which weights of a file are read, and under which names."""

import datetime
import hashlib
import logging
import pathlib
import zipfile
from collections import defaultdict

import lightning
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import ssmprune
from ssmprune.errors import CheckpointError, UsageError
from ssmprune.models.checkpoint_file import checkpoint_sha256, read_weights


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return ssmprune.create_model("vim_nano").state_dict()


@pytest.fixture(scope="module")
def noise(weights):
    return {name: value + 1 for name, value in weights.items()}


def save(content, path):
    torch.save(content, path)
    return path


def assert_loads(path, weights, key=None):
    model = ssmprune.create_model("vim_nano", path, checkpoint_key=key)
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
    return model


@pytest.mark.parametrize(
    ("usual", "averaged"), [("model", "model_ema"), ("state_dict", "state_dict_ema")]
)
def test_a_choice_between_weights_is_told_and_can_be_made(
    tmp_path, weights, noise, usual, averaged, caplog
):
    path = save({averaged: weights, usual: noise, "epoch": 3}, tmp_path / "w.pth")
    assert assert_loads(path, noise).checkpoint_key == usual
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    for part in (f"those under '{usual}'", f"'{averaged}' and '{usual}'", str(path), "--check"):
        assert part in record.getMessage()
    caplog.clear()
    assert assert_loads(path, weights, averaged).checkpoint_key == averaged
    assert not caplog.records


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema.module", "weights"])
def test_the_only_weights_of_a_file_are_taken(tmp_path, weights, key, caplog):
    content = {
        "epoch": torch.tensor(3),
        "metrics": {"loss": torch.tensor(0.5)},
        "rng": {"cpu": torch.zeros(9, dtype=torch.uint8)},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 0.1}]},
    }
    outer, _, inner = key.partition(".")
    content[outer] = {inner: weights, "decay": 0.99} if inner else weights
    caplog.set_level("INFO")
    path = save(content, tmp_path / "w.pth")
    assert assert_loads(path, weights).checkpoint_key == key
    assert f"weights: those under '{key}' in {path}" in caplog.text


def test_weights_of_which_none_are_usual_have_to_be_named(tmp_path, weights, noise):
    path = save({"student": noise, "teacher": weights}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"got 'student' and 'teacher' in .*--checkpoint-key"):
        read_weights(path)
    assert_loads(path, weights, "teacher")


def test_a_key_that_is_not_there_is_refused_with_those_that_are(tmp_path, weights):
    path = save({"model": weights, "model_ema": weights}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"'model' and 'model_ema', got 'ema'; give one of them"):
        read_weights(path, "ema")
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"the top, got 'model'; leave it out"):
        read_weights(tmp_path / "w.safetensors", "model")
    with pytest.raises(UsageError, match="must go with a checkpoint, got 'model'"):
        ssmprune.create_model("vim_nano", checkpoint_key="model")


def test_the_running_means_of_mmcv_can_be_taken(tmp_path, weights, noise, caplog):
    means = {"ema_" + name.replace(".", "_"): value for name, value in weights.items()}
    path = save({"meta": {}, "state_dict": noise | means}, tmp_path / "w.pth")
    assert_loads(path, noise)
    assert "'state_dict' and 'state_dict.ema_'" in caplog.text
    assert_loads(path, weights, "state_dict.ema_")


WRAPPINGS = ["_orig_mod.", "module._orig_mod.", "model.", "net.", "module.", "student.", "a.b.c."]


@pytest.mark.parametrize("prefix", WRAPPINGS)
def test_a_prefix_of_all_names_is_left_out(tmp_path, weights, prefix):
    named = {prefix + name: value for name, value in weights.items()}
    assert_loads(save(named, tmp_path / "w.pth"), weights)
    safetensors.torch.save_file(named, tmp_path / "w.safetensors")
    assert_loads(tmp_path / "w.safetensors", weights)


part = st.text("abhlmnordesy_", min_size=1, max_size=8).filter(lambda text: text != "head")


@settings(max_examples=25, deadline=None)
@given(st.lists(part, max_size=3), st.lists(part, max_size=3))
def test_any_prefix_is_left_out_before_a_head_of_its_own_too(tmp_path_factory, outer, inner):
    weights = ssmprune.create_model("vim_nano").state_dict()
    named = {
        ".".join([*outer, *([] if name.startswith("head.") else inner), name]): value
        for name, value in weights.items()
    }
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    safetensors.torch.save_file(named, path)
    assert_loads(path, weights)


@pytest.mark.parametrize("name", ["vim_nano", "plainmamba_l1", "vmamba_tiny_s1l8"])
def test_every_family_loads_without_prefix(tmp_path, name):
    weights = ssmprune.create_model(name).state_dict()
    named = {f"model._orig_mod.{key}": value for key, value in weights.items()}
    path = save({"state_dict": named}, tmp_path / "w.ckpt")
    loaded = ssmprune.create_model(name, path).state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_names_that_fall_together_without_a_prefix_keep_it(tmp_path, weights):
    named = weights | {f"model.{name}": value for name, value in weights.items()}
    with pytest.raises(CheckpointError, match=r"unexpected: model\.cls_token"):
        ssmprune.create_model("vim_nano", save(named, tmp_path / "w.pth"))


class Module(lightning.LightningModule):
    """A model as people wrap it, with settings and figures that are plain data."""

    def __init__(self, lr, root, labels):
        super().__init__()
        self.save_hyperparameters()
        self.model = ssmprune.create_model("vim_nano")

    def training_step(self, batch, _):
        loss = self.model(batch[0]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), self.hparams.lr)


@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_a_checkpoint_of_lightning_loads(tmp_path):
    module = Module(1e-4, pathlib.Path("data"), defaultdict(list, n0=[1]))
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=1,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, "last", monitor="loss"),
            lightning.pytorch.callbacks.EarlyStopping("loss"),
            lightning.pytorch.callbacks.Timer(datetime.timedelta(hours=1)),
        ],
        logger=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(2, 1, 48, 48)), 2))
    assert_loads(tmp_path / "last.ckpt", module.model.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_precisions_are_converted(tmp_path, weights, dtype):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({k: v.to(dtype) for k, v in weights.items()}, path)
    assert_loads(path, {k: v.to(dtype).float() for k, v in weights.items()})


def test_weights_that_overflow_or_are_whole_numbers_are_refused(tmp_path, weights):
    large = weights | {"norm_f.weight": torch.full((64,), 1e300, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"finite, got NaN or infinity in norm_f\.weight"):
        ssmprune.create_model("vim_nano", save(large, tmp_path / "large.pth"))
    whole = weights | {"norm_f.weight": torch.ones(64, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r"of another type: norm_f\.weight torch\.int8 inst"):
        ssmprune.create_model("vim_nano", save(whole, tmp_path / "whole.pth"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "ckpt"])
def test_an_archive_of_something_else_is_refused(tmp_path, suffix):
    path = tmp_path / f"photos.{suffix}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/0.txt", "no weights")
    with pytest.raises(CheckpointError, match="a checkpoint must be a whole"):
        ssmprune.create_model("vim_nano", path)


def test_sha256_is_that_of_the_file_and_needs_one(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "w.pth").write_bytes(content)
    assert checkpoint_sha256(tmp_path / "w.pth") == hashlib.sha256(content).hexdigest()
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(CheckpointError, match="a checkpoint must be readable"):
            checkpoint_sha256(path)
