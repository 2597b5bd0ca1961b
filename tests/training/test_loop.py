import csv
import functools
import json
import math
from itertools import islice

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from ssmprune import Policy, create_model
from ssmprune.data import open_images, open_stream
from ssmprune.errors import RunError, SsmpruneError, UsageError
from ssmprune.training import TrainSettings, loop, train
from ssmprune.training.loop import Trainer, parameter_groups, shard_limit

SHORT = TrainSettings(steps=6, batch_size=4, warmup_steps=2, checkpoint_every=4, curriculum=0.5)
POLICY = """
schema: ssmprune.policy/1
model: vim_nano
stages: [{layer: 1, keep_ratio: 0.5}]
"""


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(loop, "open_images", functools.partial(open_images, limit=16))
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
        self._stream, self._before = stream, before

    def batches(self, start=0):
        yield from islice(self._stream.batches(start), max(0, self._before - start))
        raise KeyboardInterrupt


@pytest.mark.parametrize("policy", [None, Policy.from_yaml(POLICY)], ids=["dense", "pruned"])
def test_a_resumed_run_computes_what_an_uninterrupted_one_does(tmp_path, monkeypatch, policy):
    whole = train("vim_nano", "digits", tmp_path / "whole", SHORT, policy=policy)
    with monkeypatch.context() as patch:
        for before in (3, 5):
            patch.setattr(
                loop, "open_stream", lambda *a, n=before, **k: Interrupted(open_stream(*a, **k), n)
            )
            with pytest.raises(KeyboardInterrupt):
                train("vim_nano", "digits", tmp_path / "parts", SHORT, policy=policy)
    torch.manual_seed(99)
    parts = train("vim_nano", "digits", tmp_path / "parts", SHORT, policy=policy)
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
    still = TrainSettings(steps=1, batch_size=2, lr=1e-12, warmup_steps=0, aux_weight=0.0)
    result = train("vim_nano", "digits", tmp_path / "out", still, init=checkpoint)
    begun, ended = load_file(checkpoint), load_file(result.checkpoint)
    assert all(torch.allclose(begun[name], ended[name], atol=1e-9) for name in begun)
    assert result.before == result.accuracy


def test_weights_trained_with_a_policy_fit_the_dense_model(tmp_path, checkpoint):
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    settings = TrainSettings(steps=2, batch_size=4, warmup_steps=0, aux_weight=0.0)
    result = train("vim_nano", "digits", tmp_path / "out", settings, init=checkpoint, policy=policy)
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


def test_train_refuses_data_with_other_classes_than_the_model(tmp_path):
    from PIL import Image

    for split in ("train", "search", "holdout"):
        (tmp_path / "photos" / split / "ant").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / split / "ant" / "1.png")
    with pytest.raises(UsageError, match=r"1000 classes, but .* has 1;"):
        train("vim_tiny_patch16_224", str(tmp_path / "photos"), tmp_path / "out", SHORT)


def test_a_loss_that_is_not_finite_ends_the_run_without_a_checkpoint(tmp_path):
    wild = TrainSettings(steps=4, batch_size=2, lr=1e30, warmup_steps=0)
    with pytest.raises(SsmpruneError, match=r"the loss must be finite, but it is (nan|inf).*lower"):
        train("vim_nano", "digits", tmp_path / "out", wild)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.json"]


def test_progress_goes_to_stderr_in_plain_lines(tmp_path, capsys):
    train("vim_nano", "digits", tmp_path / "loud", SHORT)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.split()[1] for line in shown.err.splitlines()] == ["4/6", "6/6"]
    train("vim_nano", "digits", tmp_path / "quiet", SHORT, progress=False)
    assert capsys.readouterr() == ("", "")


def test_trainer_learns_a_batch_by_heart():
    torch.manual_seed(0)
    images, labels = next(
        open_stream("digits", image_size=(48, 48), channels=1, batch_size=4).batches()
    )
    trainer = Trainer(
        create_model("vim_nano"), TrainSettings(steps=20, lr=2e-3, warmup_steps=2, batch_size=4)
    )
    losses = [trainer.step(step, images, labels).item() for step in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_shards_of_a_batch_compute_what_the_whole_does():
    stream = open_stream("digits", image_size=(48, 48), channels=1, batch_size=5)
    losses = []
    for shards in (1, 2):
        torch.manual_seed(0)
        settings = TrainSettings(steps=3, warmup_steps=0, lr=1e-3)
        trainer = Trainer(create_model("vim_nano"), settings, shards)
        batches = enumerate(islice(stream.batches(), 3))
        losses.append([trainer.step(step, *batch).item() for step, batch in batches])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    trainer = Trainer(
        create_model("vim_nano"), TrainSettings(steps=100, lr=1.0, warmup_steps=10, clip=1e-9)
    )
    images, labels = torch.zeros(1, 1, 48, 48), torch.zeros(1, dtype=torch.int64)
    seen = {}
    for step in (0, 5, 10, 50, 99):
        trainer.step(step, images, labels)
        seen[step] = trainer.lr
    cosine = [0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * s / 100)) for s in (10, 50, 99)]
    assert seen[0] == pytest.approx(0.1) and seen[5] == pytest.approx(0.55)
    assert [seen[s] for s in (10, 50, 99)] == pytest.approx(cosine)


def test_a_batch_is_not_divided_where_a_batch_norm_needs_all_of_it():
    with torch.device("meta"):
        assert shard_limit(create_model("vim_nano")) > 1
        assert shard_limit(create_model("plainmamba_l1")) == 1


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("vim_nano", {"A_b_log", "D_b", "cls_token"}),
        ("plainmamba_l1", {"direction_Bs"}),
    ],
)
def test_decay_spares_vectors_embeddings_and_the_logarithm_of_A(name, own):
    with torch.device("meta"):
        model = create_model(name)
    decayed, undecayed = parameter_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(p)].split(".")[-1] for p in undecayed["params"]}
    assert {"bias", "A_log", "D", "pos_embed"} | own <= spared
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.05, 0.0)
    assert all(names[id(p)].endswith("weight") and p.ndim > 1 for p in decayed["params"])
    assert len(decayed["params"]) + len(undecayed["params"]) == len(names)
