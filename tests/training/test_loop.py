import csv
import functools
import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssmprune import Policy, classification, create_model
from ssmprune.data import open_images, open_stream
from ssmprune.errors import DataError, RunError, SsmpruneError, UsageError
from ssmprune.models import zoo
from ssmprune.training import TrainSettings, loop, train

SHORT = TrainSettings(
    steps=6, batch_size=4, lr=3e-3, warmup=0.34, checkpoint_every=4, curriculum=0.5, aux_weight=0.5
)
STILL = TrainSettings(steps=1, batch_size=2, lr=1e-12)
EVERYTHING = SHORT.changed(
    distill=0.5, temperature=2.0, anneal=0.9, ema=0.9, mixup=0.8, cutmix=1.0, accumulate=2
)
POLICY = """
schema: ssmprune.policy/1
model: vim_nano
stages: [{layer: 1, keep_ratio: 0.5}]
"""


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(classification, "open_images", functools.partial(open_images, limit=16))
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("init") / "nano.safetensors"
    save_file(create_model("vim_nano").state_dict(), path)
    return path


def read_log(out):
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_train_writes_a_checkpoint_that_says_what_it_is(tmp_path):
    result = train("vim_nano", "digits", tmp_path / "out", SHORT, command="ssmprune train ...")
    record = json.loads((tmp_path / "out" / "train.json").read_text())
    create_model("vim_nano", result.checkpoint)
    with safetensors.safe_open(result.checkpoint, "pt") as file:
        metadata = file.metadata()
    assert metadata["model"] == "vim_nano" and metadata["command"] == "ssmprune train ..."
    assert (metadata["seed"], metadata["step"]) == ("0", "6")
    assert metadata["holdout_top1"] == f"{result.accuracy.top1:.2f}"
    assert record["config"]["steps"] == 6 and record["config"]["lr"] == 3e-3
    assert record["result"]["holdout"]["images"] == result.accuracy.images == 16
    assert set(record["versions"]) >= {"torch", "timm", "python"}
    assert record["result"]["wall_s"] == result.wall_s


def test_log_has_a_row_at_intervals_and_the_search_split_at_checkpoints(tmp_path):
    train("vim_nano", "digits", tmp_path / "out", SHORT)
    rows = read_log(tmp_path / "out")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert [bool(row["search_top1"]) for row in rows] == [False, True, True]
    assert all(math.isfinite(float(row["loss"])) for row in rows)


class Interrupted:
    """A stream that stops before a step, as if the power had gone."""

    def __init__(self, stream, before):
        self.classes, self.fingerprint = stream.classes, stream.fingerprint
        self.images = stream.images
        self._stream, self._before = stream, before

    def batches(self, start=0, part=0, parts=1):
        self._stream.curriculum_steps = self.curriculum_steps
        yield from islice(self._stream.batches(start), max(0, self._before - start))
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "policy"),
    [(SHORT, None), (EVERYTHING, Policy.from_yaml(POLICY))],
    ids=["dense", "pruned, with everything"],
)
def test_a_resumed_run_computes_what_an_uninterrupted_one_does(
    tmp_path, monkeypatch, checkpoint, settings, policy
):
    more = {"policy": policy, "init": checkpoint if policy else None}
    whole = train("vim_nano", "digits", tmp_path / "whole", settings, **more)
    with monkeypatch.context() as patch:
        for before in (3, 5):
            patch.setattr(
                classification,
                "open_stream",
                lambda *a, n=before, **k: Interrupted(open_stream(*a, **k), n),
            )
            with pytest.raises(KeyboardInterrupt):
                train("vim_nano", "digits", tmp_path / "parts", settings, **more)
    torch.manual_seed(99)
    parts = train("vim_nano", "digits", tmp_path / "parts", settings, **more)
    assert parts.accuracy == whole.accuracy
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(tmp_path / out)]
        for out in ("whole", "parts")
    ]
    assert rows[0] == rows[1]
    weights, again = load_file(whole.checkpoint), load_file(parts.checkpoint)
    assert all(torch.equal(value, again[name]) for name, value in weights.items())


def test_a_finished_run_is_not_repeated(tmp_path):
    first = train("vim_nano", "digits", tmp_path / "out", SHORT)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert train("vim_nano", "digits", tmp_path / "out", SHORT) == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_train_refuses_the_directory_of_another_run(tmp_path, checkpoint):
    train("vim_nano", "digits", tmp_path / "out", SHORT)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match=r"init is None there and [0-9a-f]{64} here"):
        train("vim_nano", "digits", tmp_path / "out", SHORT, init=checkpoint)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_train_begins_from_the_given_checkpoint(tmp_path, checkpoint):
    result = train("vim_nano", "digits", tmp_path / "out", STILL, init=checkpoint)
    begun, ended = load_file(checkpoint), load_file(result.checkpoint)
    assert all(torch.allclose(begun[name], ended[name], atol=1e-9) for name in begun)
    assert result.before == result.accuracy


def test_weights_trained_with_a_policy_fit_the_dense_model(tmp_path, checkpoint):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    result = train("vim_nano", "digits", tmp_path / "out", STILL, init=checkpoint, policy=policy)
    assert load_file(result.checkpoint).keys() == load_file(checkpoint).keys()
    create_model("vim_nano", result.checkpoint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vim_nan", "digits"), "did you mean vim_nano"),
        (("vim_nano", "digit"), "did you mean digits"),
        (("vim_tiny_patch16_224", "digits"), "use a model made for it"),
    ],
)
def test_a_wrong_call_writes_nothing(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        train(*arguments, tmp_path / "out", SHORT)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_losses_of_an_uninterrupted_one(tmp_path):
    script = f"""
import os, signal
import torch
from ssmprune.training import TrainSettings, loop, train
torch.set_num_threads(1)
loop.LOG_EVERY = 2
step, made = loop.Trainer.step, []
def killed(self, number, *batch):
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, number, *batch)
loop.Trainer.step = killed
train("vim_nano", "digits", {str(tmp_path / "parts")!r}, TrainSettings(**{SHORT.model_dump()!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(read_log(tmp_path / "parts")) == 2
    for out in ("whole", "parts"):
        train("vim_nano", "digits", tmp_path / out, SHORT)
    whole, parts = ([float(r["loss"]) for r in read_log(tmp_path / o)] for o in ("whole", "parts"))
    assert len(whole) == 3 and parts == pytest.approx(whole, abs=1e-6)


def test_a_run_in_epochs_makes_their_steps(tmp_path):
    settings = SHORT.changed(epochs=0.004)  # of 1,251 sources, four images each
    train("vim_nano", "digits", tmp_path / "out", settings)
    assert read_log(tmp_path / "out")[-1]["step"] == "6"


def test_tensorboard_gets_what_the_log_has(tmp_path):
    train("vim_nano", "digits", tmp_path / "out", SHORT)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    rows = read_log(tmp_path / "out")
    losses = {str(event.step): event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({row["step"]: float(row["loss"]) for row in rows}, abs=1e-6)
    assert [event.step for event in events.Scalars("search_top1")] == [4, 6]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with two classes, and `vim_photo`, a model made for it."""
    config = replace(
        zoo.find_config("vim_nano"), name="vim_photo", channels=3, num_classes=2, depth=2
    )
    monkeypatch.setitem(zoo.configs._entries, "vim_photo", config)
    for i, part in enumerate(("train/ant", "train/bee", "val/ant", "val/bee")):
        (tmp_path / "photos" / part).mkdir(parents=True)
        for k in range(3):
            pixels = np.random.default_rng(10 * i + k).integers(0, 256, (60, 60, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / part / f"{k}.png")
    return tmp_path / "photos"


def test_a_folder_of_images_is_trained_on_with_augmentation(tmp_path, photos):
    settings = TrainSettings(
        epochs=2, batch_size=2, lr=1e-3, mixup=0.8, augment="rand-m9-mstd0.5-inc1", erase=0.25
    )
    result = train("vim_photo", str(photos), tmp_path / "out", settings)
    assert [row["step"] for row in read_log(tmp_path / "out")] == ["2", "4", "6"]
    assert result.accuracy.images == 3


def test_record_of_a_run_with_relative_paths_holds_from_any_directory(
    tmp_path, photos, monkeypatch
):
    weights = create_model("vim_photo").state_dict()
    save_file(weights, tmp_path / "weights.safetensors")
    monkeypatch.chdir(tmp_path)
    train("vim_photo", "photos", "out", STILL, init="weights.safetensors")
    record = json.loads(Path("out/train.json").read_text())
    assert (record["data"], record["init"]) == (str(photos), str(tmp_path / "weights.safetensors"))


def test_an_augmentation_that_timm_does_not_know_is_refused(tmp_path, photos):
    with pytest.raises(UsageError, match="augment must be one of timm's"):
        train("vim_photo", str(photos), tmp_path / "out", STILL.changed(augment="nonsense"))


def test_unreadable_images_are_all_told_before_anything_is_written(tmp_path, photos):
    for part in ("train/ant/0.png", "val/bee/1.png"):
        (photos / part).write_bytes((photos / part).read_bytes()[:200])
    message = r"2 of 12 are not; .*train/ant/0\.png, .*val/bee/1\.png\.$"
    with pytest.raises(DataError, match=message):
        train("vim_photo", str(photos), tmp_path / "out", STILL)
    assert not (tmp_path / "out").exists()


def test_all_faults_of_a_call_are_told_at_once_and_nothing_is_overwritten(tmp_path, photos):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    (tmp_path / "bad.safetensors").write_text("no weights")
    (photos / "train" / "cat").mkdir()
    with pytest.raises(UsageError) as caught:
        train(
            "vim_photo",
            str(photos),
            tmp_path / "out",
            TrainSettings(steps=1, batch_size=6, accumulate=4, lr=1e-3),
            policy=policy,
            init=tmp_path / "bad.safetensors",
            num_classes=2,
        )
    told = str(caught.value)
    for part in ("policy.yaml", "bad.safetensors", "other files", "multiple of the 4", "has 3"):
        assert part in told
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_train_takes_the_number_of_classes_from_the_data(tmp_path, photos):
    for part in ("train", "val"):
        shutil.copytree(photos / part / "ant", photos / part / "cat")
    result = train("vim_photo", str(photos), tmp_path / "out", STILL)
    assert load_file(result.checkpoint)["head.weight"].shape == (3, 64)
    assert create_model("vim_photo", result.checkpoint).config.num_classes == 3


def test_training_gives_synsets_the_logits_of_a_classifier_of_imagenet(tmp_path, photos):
    for part in ("train", "val"):
        (photos / part / "ant").rename(photos / part / "n02219486")
        (photos / part / "bee").rename(photos / part / "n02206856")
    job = loop.TrainJob("vim_photo", str(photos), tmp_path, STILL, num_classes=1000)
    data = loop.TrainingData.open(job)
    _, labels = next(data.stream.batches())
    assert {data.stream.classes[label] for label in labels} <= {"n02206856", "n02219486"}
    assert set(labels.tolist()) <= {309, 310} and data.holdout.class_list == "imagenet-1k"
    own = loop.TrainingData.open(replace(job, num_classes=None))
    assert own.stream.classes == ("n02206856", "n02219486")


def test_train_refuses_fewer_classes_than_the_data_have(tmp_path, photos):
    with pytest.raises(UsageError, match=r"num-classes must be .* got 1, but .* has 2;"):
        train("vim_photo", str(photos), tmp_path / "out", SHORT, num_classes=1)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A checkpoint of `vim_nano` with 37 classes."""
    torch.manual_seed(6)
    path = tmp_path_factory.mktemp("init") / "pets.safetensors"
    save_file(create_model("vim_nano", num_classes=37).state_dict(), path)
    return path


def test_a_head_of_another_size_begins_anew_and_one_of_the_right_size_stays(tmp_path, pets, caplog):
    caplog.set_level("INFO")
    begun = load_file(pets)
    new = load_file(train("vim_nano", "digits", tmp_path / "new", STILL, init=pets).checkpoint)
    assert f"a new, random one for 10 classes; {pets} has one for 37" in caplog.text
    assert new["head.weight"].shape == (10, 64)
    assert torch.allclose(begun["norm_f.weight"], new["norm_f.weight"], atol=1e-6)
    result = train("vim_nano", "digits", tmp_path / "kept", STILL, init=pets, num_classes=37)
    kept = load_file(result.checkpoint)
    assert torch.allclose(begun["head.weight"], kept["head.weight"], atol=1e-6)
    assert caplog.text.count("a new, random one") == 2  # as the call is checked, and as it begins
    with pytest.raises(RunError, match="num_classes is 37 there and None here"):
        train("vim_nano", "digits", tmp_path / "kept", STILL, init=pets)


def test_a_checkpoint_without_the_classes_does_not_teach_them(tmp_path, pets):
    with pytest.raises(UsageError, match="no classifier for 10; leave distill at 0"):
        train("vim_nano", "digits", tmp_path / "out", STILL.changed(distill=0.5), init=pets)
    assert not (tmp_path / "out").exists()


def test_train_begins_from_the_weights_of_the_given_key(tmp_path, checkpoint):
    good, path = load_file(checkpoint), tmp_path / "both.pth"
    torch.save({"model": {k: v * 0 for k, v in good.items()}, "model_ema": good}, path)
    out = tmp_path / "out"
    result = train("vim_nano", "digits", out, STILL, init=path, checkpoint_key="model_ema")
    ended = load_file(result.checkpoint)
    assert all(torch.allclose(good[name], ended[name], atol=1e-6) for name in good)
    assert json.loads((out / "train.json").read_text())["checkpoint_key"] == "model_ema"
    with pytest.raises(RunError, match="checkpoint_key is model_ema there and None here"):
        train("vim_nano", "digits", out, STILL, init=path)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"distill": 0.5}, {}, "give init, or leave distill at 0"),
        ({"batch_size": 5}, {"workers": 2}, "multiple of the 2 parts"),
        ({"batch_size": 3, "mixup": 1.0}, {}, "must be even, got 3"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path, changes, more, message):
    with pytest.raises(UsageError, match=message):
        train("vim_nano", "digits", tmp_path / "out", SHORT.changed(**changes), **more)


def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint(tmp_path):
    wild = TrainSettings(steps=4, batch_size=2, lr=1e30)
    with pytest.raises(SsmpruneError, match=r"the loss must be finite, but it is (nan|inf).*lower"):
        train("vim_nano", "digits", tmp_path / "out", wild)
    assert not {"model.safetensors", "last.ckpt"} & {p.name for p in (tmp_path / "out").iterdir()}


def test_progress_goes_to_stderr_in_plain_lines(tmp_path, capsys):
    train("vim_nano", "digits", tmp_path / "loud", SHORT)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split()[1] for line in shown.err.splitlines()] == ["4/6", "6/6"]
    train("vim_nano", "digits", tmp_path / "quiet", SHORT, progress=False)
    assert capsys.readouterr() == ("", "")
