"""The command line as a whole, and the commands of the library."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from ssmprune import create_model
from ssmprune.measure.accuracy import Accuracy
from ssmprune.models.zoo import find_config
from ssmprune.scan.mamba_ssm import scan_failure
from ssmprune.training import TrainResult, load_recipe
from ssmprune_search.cli import app
from ssmprune_search.cli.group import COMMANDS, load

POLICY = """\
schema: ssmprune.policy/1
model: vim_nano
stages:
  - {layer: 1, keep_ratio: 0.7}
  - {layer: 4, keep_count: 20}
scorer: {name: l1}
"""


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def json_of(*arguments: object) -> Any:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vim_nano.safetensors"
    save_file(create_model("vim_nano").state_dict(), path)
    return path


def test_help_and_version_answer_without_heavy_imports() -> None:
    script = (
        "import sys\n"
        "from ssmprune_search.cli import app\n"
        "for argument in ('--help', '--version', 'search'):\n"
        "    try: app([argument])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'ray', 'optuna', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ssmprune 0" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_gives_an_example(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert f"Example: ssmprune {name} " in result.stdout


def test_help_of_the_whole_has_the_first_line_of_each_command() -> None:
    assert {name: load(name).help.splitlines()[0] for name in COMMANDS} == COMMANDS


def test_models_lists_parameters_and_flops() -> None:
    [row] = json_of("models", "vim_nano")
    parameters = sum(p.numel() for p in create_model("vim_nano").parameters())
    assert row["parameters"] == parameters
    assert row["paper_flops"] < row["flops"]
    table = call("models", "vim_tiny*").stdout
    assert "vim_tiny_patch16_224" in table
    assert "vim_small" not in table


def test_models_lists_backends_with_the_reason_of_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
    scan_failure.cache_clear()
    rows = {row.pop("backend"): row for row in json_of("models", "--backends")}
    assert set(rows) == {"reference", "cpu", "triton", "mamba_ssm"}
    assert rows["cpu"] == {"available": True, "reason": "runs on cpu"}
    assert not rows["mamba_ssm"]["available"]
    assert "mamba_ssm" in rows["mamba_ssm"]["reason"]
    table = call("models", "--backends").stdout
    assert rows["mamba_ssm"]["reason"].split()[0] in table
    scan_failure.cache_clear()


def test_profile_prints_costs_of_policy_and_dense(policy: Path) -> None:
    found = json_of("profile", "--model", "vim_nano", "--policy", policy, "--batch-size", 1)
    assert found["tokens"][:3] == [65, 65, 46]
    assert found["tokens"][-1] == 21
    for rule in ("flops", "paper_flops", "dense_flops", "dense_paper_flops"):
        assert sum(row[rule] for row in found["operators"]) == found[rule]
    assert found["flops_ratio"] == found["flops"] / found["dense_flops"] < 1
    assert found["latency"]["batch_size"] == 1


def test_profile_tells_what_each_stage_merges_and_what_the_matching_costs(tmp_path: Path) -> None:
    path = tmp_path / "merging.yaml"
    path.write_text(
        "schema: ssmprune.policy/2\nmodel: vim_nano\nstages:\n"
        "  - {layer: 0, keep_count: 39, reduce: merge, match: neighbors}\n"
        "  - {layer: 2, keep_count: 28, reduce: merge}\n"
        "  - {layer: 3, keep_count: 20}\n"
    )
    arguments = ("profile", "--model", "vim_nano", "--policy", path, "--batch-size", 1)
    found = json_of(*arguments)
    assert [(s["layer"], s["tokens"], s["match"]) for s in found["stages"]] == [
        (0, 39, "neighbors"),
        (2, 28, "alternate"),
        (3, 20, None),
    ]
    [match] = [row for row in found["operators"] if row["operator"] == "match"]
    width = find_config("vim_nano").embed_dim
    merged = 40 * 25 * width + 29 * 11 * width  # sums of the tokens that are joined
    assert match["flops"] == match["paper_flops"] == merged + 20 * 19 * width
    assert match["dense_flops"] == match["dense_paper_flops"] == 0
    text = call(*arguments).stdout
    assert "block 2: 28, alternate" in text and "block 3: 20, drop" in text


def test_profile_of_a_dense_model_has_ratio_one(weights: Path) -> None:
    result = call("profile", "--model", "vim_nano", "--checkpoint", weights, "--batch-size", 1)
    assert result.exit_code == 0
    assert "1.000" in result.stdout
    assert "leaving the model 65" in result.stdout


def test_profile_takes_another_image_size() -> None:
    found = json_of("profile", "--model", "vim_nano", "--image-size", "48x72", "--batch-size", 1)
    assert found["tokens"][0] == 8 * 12 + 1


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("49", "whole patches"),
        ("48x", "pixels"),
        ("big", "pixels"),
        ("99999999996", "1 to 16384 pixels"),
    ],
)
def test_profile_refuses_image_sizes_that_no_patches_cover(size: str, message: str) -> None:
    result = call("profile", "--model", "vim_nano", "--image-size", size)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


EVAL = ("eval", "--model", "vim_nano", "--data", "digits", "--checkpoint")


def test_eval_measures_the_split_under_the_policy(weights: Path, policy: Path) -> None:
    found = json_of(*EVAL, weights, "--policy", policy, "--split", "search")
    assert found["low"] < found["top1"] < found["high"]
    assert (found["split"], found["policy"]) == ("search", str(policy))
    assert found["images"] > 100


def test_eval_prints_the_accuracy_of_the_holdout_with_its_interval(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = Accuracy(top1=91.25, top5=99.5, images=1456, low=89.7, high=92.6)
    monkeypatch.setattr("ssmprune.measure.accuracy.evaluate", lambda *_, **__: accuracy)
    text = call(*EVAL, weights).stdout
    assert all(part in text for part in ("91.25 %", "89.70 to 92.60", "99.50 %"))
    assert "1,456 of the holdout split" in text


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the training loop, which returns at once."""
    calls: list[dict[str, Any]] = []

    def train(model: str, data: str, out: Path, settings: Any, **more: Any) -> TrainResult:
        calls.append({"model": model, "data": data, "out": out, "settings": settings, **more})
        return TrainResult(
            out / "model.safetensors", Accuracy(90.0, 99.0, 100, 85.0, 95.0), None, 1.0
        )

    monkeypatch.setattr("ssmprune_search.cli.train.run_training", train)
    return calls


TRAIN = ("train", "--model", "vim_nano", "--data", "digits", "--out")


def test_train_from_scratch_and_fine_tuning_have_their_own_defaults(
    trained: list[dict[str, Any]], tmp_path: Path, weights: Path
) -> None:
    assert json_of(*TRAIN, tmp_path / "a")["top1"] == 90.0
    assert call(*TRAIN, tmp_path / "b", "--init", weights).exit_code == 0
    recipes = [load_recipe("scratch"), load_recipe("fine_tune")]
    assert [c["settings"] for c in trained] == recipes
    assert [c["init"] for c in trained] == [None, weights]


def test_train_takes_a_recipe_and_what_is_given_in_its_place(
    trained: list[dict[str, Any]], tmp_path: Path, weights: Path
) -> None:
    given = ("--steps", 1300, "--lr", 0.01, "--batch-size", 8, "--seed", 3, "--bf16")
    more = ("--recipe", "rmeeto", "--init", weights, "--distill", 0.7, "--workers", 4)
    assert call(*TRAIN, tmp_path, *given, *more).exit_code == 0
    [made] = trained
    changes = {"steps": 1300, "lr": 0.01, "batch_size": 8, "seed": 3, "amp": True, "distill": 0.7}
    assert made["settings"] == load_recipe("rmeeto").changed(**changes)
    assert (made["workers"], made["address"], made["gpus_per_worker"]) == (4, None, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--model", "vim_nano", "--data", "digits"),
        ("profile", "--model", "vim_nano"),
        (*TRAIN, "nowhere"),
    ],
)
def test_a_device_that_is_not_there_is_a_wrong_call(arguments: tuple[str, ...]) -> None:
    refuses(call(*arguments, "--device", "cuda"), 2, "there is cpu")


def refuses(result: Any, status: int, *parts: str) -> None:
    """The exit status, and one message on stderr without a traceback."""
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert result.stdout == ""
    for part in parts:
        assert part in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("modles",), ("No such command 'modles'",)),
        (("models", "vim_nono"), ("unknown model 'vim_nono'", "vim_nano")),
        (("profile", "--model", "vim_nono"), ("did you mean vim_nano",)),
        (("profile", "--model", "vim_nano", "--batch-size", "0"), ("--batch-size",)),
        (("profile", "--model", "vim_nano", "--device", "tpu"), ("got 'tpu'", "cpu")),
        (("profile", "--model", "vim_nano", "--colour"), ("--colour",)),
        (("profile",), ("Missing option '--model'",)),
        (("eval", "--model", "vim_tiny_patch16_224", "--data", "digits"), ("none ship with it",)),
        ((*TRAIN, "nowhere", "--steps", "0"), ("--steps",)),
        ((*TRAIN, "nowhere", "--steps", "many"), ("--steps",)),
        ((*TRAIN, "nowhere", "--lr", "-1"), ("lr must be greater than 0, got -1",)),
        ((*TRAIN, "nowhere", "--recipe", "top_vin"), ("did you mean top_vim",)),
        (
            (*TRAIN, "nowhere", "--distill", "3", "--device", "tpu", "--init", "x"),
            ("distill must be less than or equal to 1, got 3", "a device must be there"),
        ),
    ],
)
def test_a_wrong_call_ends_with_status_2(
    arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    refuses(call(*arguments), 2, *parts)


def test_unknown_data_and_split_are_wrong_calls(weights: Path) -> None:
    arguments = ("eval", "--model", "vim_nano", "--checkpoint", weights)
    refuses(call(*arguments, "--data", "digts"), 2, "unknown data set 'digts'", "digits")
    refuses(call(*arguments, "--data", "digits", "--split", "test"), 2, "unknown split 'test'")


BAD_POLICIES = {
    "no yaml": ("stages: [", "plain YAML"),
    "a tag that runs code": ("!!python/object/apply:os.system ['true']", "remove tags"),
    "unknown key": (POLICY + "scorrer: {name: l1}\n", "did you mean 'scorer'"),
    "unknown scorer": (POLICY.replace("name: l1", "name: l9"), "unknown scorer 'l9'"),
    "unknown alignment": (POLICY + "alignment: {decay: zero}\n", "zero_input"),
    "ratio above 1": (POLICY.replace("0.7", "1.2"), "1.2"),
    "wrong type": (POLICY.replace("0.7", "lots"), "lots"),
    "layer out of range": (POLICY.replace("layer: 4", "layer: 40"), "below 8"),
    "layer twice": (POLICY.replace("layer: 4", "layer: 1"), "twice"),
    "another model": (POLICY.replace("vim_nano", "vim_tiny_patch16_224"), "vim_tiny_patch16_224"),
}


@pytest.mark.parametrize("fault", BAD_POLICIES)
def test_a_bad_policy_ends_with_status_1(fault: str, tmp_path: Path) -> None:
    text, part = BAD_POLICIES[fault]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    refuses(call("profile", "--model", "vim_nano", "--policy", path), 1, part, "bad.yaml")


def _truncate(path: Path, weights: Path) -> None:
    path.write_bytes(weights.read_bytes()[:1000])


def _other_model(path: Path, weights: Path) -> None:
    save_file({"head.weight": torch.zeros(3, 3)}, path)


def _text(path: Path, weights: Path) -> None:
    path.write_text("not a checkpoint")


def _missing(path: Path, weights: Path) -> None: ...


def _directory(path: Path, weights: Path) -> None:
    path.mkdir()


def _empty(path: Path, weights: Path) -> None:
    path.touch()


def _archive(path: Path, weights: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photos/0.txt", "not a checkpoint")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "damage", [_truncate, _other_model, _text, _missing, _directory, _empty, _archive]
)
def test_a_bad_checkpoint_ends_with_status_1(
    damage: Callable[[Path, Path], None], suffix: str, tmp_path: Path, weights: Path
) -> None:
    path = tmp_path / f"bad{suffix}"
    damage(path, weights)
    arguments = ("eval", "--model", "vim_nano", "--data", "digits", "--checkpoint", path)
    refused = call(*arguments)
    refuses(refused, 1, "a checkpoint must")
    assert len(refused.stderr.splitlines()) < 6
    refuses(call(*TRAIN, tmp_path / "out", "--init", path), 1, "a checkpoint must")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def both(tmp_path: Path, weights: Path) -> Path:
    """A checkpoint with noise under `model` and `weights` under `model_ema`."""
    averaged = load_file(weights)
    noise = {name: value + 1 for name, value in averaged.items()}
    torch.save({"model": noise, "model_ema": averaged}, tmp_path / "both.pth")
    return tmp_path / "both.pth"


def test_eval_says_which_weights_it_took_of_several(
    both: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = Accuracy(top1=91.25, top5=99.5, images=1456, low=89.7, high=92.6)
    monkeypatch.setattr("ssmprune.measure.accuracy.evaluate", lambda *_, **__: accuracy)
    result = call(*EVAL, both, "--json")
    [line] = result.stderr.splitlines()
    assert f"those under 'model' in {both}" in line and "'model_ema'" in line
    assert "--checkpoint-key" in line
    assert json.loads(result.stdout)["checkpoint_key"] == "model"
    result = call(*EVAL, both, "--checkpoint-key", "model_ema", "--json")
    assert json.loads(result.stdout)["checkpoint_key"] == "model_ema"
    refuses(call(*EVAL, both, "--checkpoint-key", "ema"), 2, "'model' and 'model_ema', got 'ema'")


def test_tokens_says_that_it_took_the_only_weights(
    tmp_path: Path, weights: Path, policy: Path
) -> None:
    torch.save({"model_ema": load_file(weights)}, tmp_path / "w.pth")
    options = ("--image", "digits:0", "-o", tmp_path / "kept.png", "--json")
    result = call("tokens", "--policy", policy, "--checkpoint", tmp_path / "w.pth", *options)
    assert result.stderr.splitlines() == [
        f"weights: those under 'model_ema' in {tmp_path / 'w.pth'}"
    ]
    assert json.loads(result.stdout)["checkpoint_key"] == "model_ema"


def test_profile_counts_the_classifier_of_the_checkpoint_and_says_its_size(
    tmp_path: Path, weights: Path
) -> None:
    path = tmp_path / "pets.safetensors"
    save_file(create_model("vim_nano", num_classes=37).state_dict(), path)
    arguments = ("profile", "--model", "vim_nano", "--batch-size", 1, "--json", "--checkpoint")
    own, pets = (call(*arguments, file) for file in (weights, path))
    assert pets.stderr.splitlines() == [f"classifier: {path} has a 37-class head"]
    assert own.stderr == ""
    flops = [json.loads(result.stdout)["dense_flops"] for result in (own, pets)]
    assert flops[1] - flops[0] == 64 * 27
    assert json.loads(pets.stdout)["num_classes"] == 37


def test_a_key_without_a_file_is_a_wrong_call(tmp_path: Path) -> None:
    key = ("--checkpoint-key", "model_ema")
    refuses(call("profile", "--model", "vim_nano", *key), 2, "must go with a checkpoint")
    refuses(call(*TRAIN, tmp_path / "out", *key), 2, "must go with a checkpoint")
    refuses(call(*TRAIN, tmp_path / "out", "--num-classes", 9), 2, "at least", "got 9", "has 10")
    assert not (tmp_path / "out").exists()


def test_train_hands_on_key_and_classes(
    trained: list[dict[str, Any]], tmp_path: Path, both: Path
) -> None:
    options = ("--init", both, "--checkpoint-key", "model_ema", "--num-classes", 12)
    assert call(*TRAIN, tmp_path / "out", *options).exit_code == 0
    assert (trained[0]["checkpoint_key"], trained[0]["num_classes"]) == ("model_ema", 12)


def test_a_missing_folder_of_images_ends_with_status_1(tmp_path: Path, weights: Path) -> None:
    arguments = ("eval", "--model", "vim_nano", "--checkpoint", weights)
    result = call(*arguments, "--data", tmp_path / "nowhere")
    assert result.exit_code in (1, 2)
    assert "Traceback" not in result.output


def test_an_output_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refuses(call(*TRAIN, tmp_path), 1, "holds other files")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_ctrl_c_ends_with_status_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssmprune_search.cli.train.run_training", interrupted)
    refuses(call(*TRAIN, tmp_path), 130, "Interrupted.")


def test_a_picture_where_nothing_can_be_written_ends_in_one_message(tmp_path):
    (tmp_path / "file").touch()
    call = ["tokens", "--policy", "uniform_vim_nano", "--image", "digits:0"]
    done = CliRunner().invoke(app, [*call, "-o", str(tmp_path / "file" / "kept.png")])
    assert done.exit_code == 1
    assert f"{tmp_path}/file is not: File exists; check the path" in done.stderr


@pytest.mark.slow
def test_training_on_a_full_disk_ends_in_one_message(tmp_path):
    words = ["train", "--model", "vim_nano", "--data", "digits", "--steps", "1", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "ssmprune_search", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "File too large; check the path" in done.stderr
