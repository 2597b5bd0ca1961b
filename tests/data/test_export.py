"""The embedded digits as files: to the model, in every command, the same images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from ssmprune import create_model, evaluate
from ssmprune.data import open_images, open_stream
from ssmprune.data.export import export_images
from ssmprune.data.single import open_image
from ssmprune.errors import FileError, UsageError
from ssmprune.measure.accuracy import correct
from ssmprune.models.checkpoints import shipped_checkpoint
from ssmprune.models.zoo import find_config
from ssmprune_search.cli import app
from ssmprune_search.results.outcome import Outcome

SHAPE = {
    "image_size": (48, 48),
    "channels": 1,
    "preprocessing": find_config("vim_nano").preprocessing,
    "num_classes": 10,
}


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "digits"
    result = call("data", "export", "digits", folder, "--train-images", 300, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == {"folder": str(folder), "images": {"search": 728, "holdout": 1456, "train": 300}}
    return folder


def test_files_are_8_bit_grey_in_class_folders(exported):
    files = list(exported.glob("*/*/*"))
    assert len(files) == 728 + 1456 + 300
    assert {path.parts[-3] for path in files} == {"train", "search", "holdout"}
    assert {path.parts[-2] for path in files} == set("0123456789")
    with Image.open(files[0]) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (48, 48))
    assert [path.name for path in exported.parent.iterdir()] == ["digits"]


@pytest.mark.parametrize("split", ["search", "holdout"])
def test_files_hold_the_images_within_half_a_step_of_8_bits(exported, split):
    config = find_config("vim_nano")
    images = torch.cat([batch for batch, _ in open_images("digits", split, **SHAPE).loader])
    step = 1 / 255 / config.preprocessing.std[0]
    for place in (0, 1, 100, len(images) - 1):
        [path] = (exported / split).glob(f"*/{place:05}.png")
        read = open_image(str(path), config)
        assert (read[0] - images[place]).abs().max() <= step / 2 + 1e-5


def test_no_pixel_of_any_digit_is_clipped(exported):
    for path in list(exported.glob("*/*/*"))[::10]:
        with Image.open(path) as image:
            low, high = image.getextrema()
        assert low > 0 and high < 255


@pytest.mark.parametrize("split", ["search", "holdout"])
def test_top1_of_the_folder_is_that_of_the_embedded_set(exported, split):
    model = create_model("vim_nano", shipped_checkpoint("vim_nano"))
    ours = evaluate(model, open_images("digits", split, **SHAPE).loader)
    theirs = evaluate(model, open_images(str(exported), split, **SHAPE).loader)
    assert ours.images == theirs.images
    assert abs(ours.top1 - theirs.top1) <= 0.3


@pytest.mark.slow
def test_eval_reads_the_folder(exported):
    result = call("eval", "--model", "vim_nano", "--data", exported, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 1456
    assert "chance" not in result.stderr


def test_training_reads_the_folder(exported):
    stream = open_stream(str(exported), **SHAPE, batch_size=4)
    images, labels = next(stream.batches())
    assert stream.images == 300 and images.shape == (4, 1, 48, 48) and labels.shape == (4,)


@pytest.mark.parametrize("content", [None, "file"])
def test_a_folder_that_is_new_or_empty_is_written(tmp_path, content):
    folder = tmp_path / "deep" / "digits"
    if content:
        folder.mkdir(parents=True)
    assert call("data", "export", "digits", folder).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["holdout", "search"]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("digits", "file"):
        result = call("data", "export", "digits", tmp_path / name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "new or empty" in result.stderr and "name another one" in result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["digits", "file", "mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("digit",), "did you mean digits"), (("digits", 5005), "at most 5004, .* got 5005")],
)
def test_what_there_is_not_cannot_be_exported(tmp_path, arguments, message):
    name, *count = arguments
    with pytest.raises(UsageError, match=message):
        export_images(name, tmp_path / "out", train_images=sum(count))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    save, written = Image.Image.save, []

    def failing(image, path):
        written.append(path)
        if len(written) > 20:
            raise OSError(28, "No space left on device")
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", failing)
    with pytest.raises(FileError, match="No space left on device"):
        export_images("digits", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def noise(tmp_path):
    """A folder of ten classes that are not told apart by anything."""
    for label in range(10):
        for part in ("search", "holdout"):
            place = tmp_path / "noise" / part / f"{label}"
            place.mkdir(parents=True)
            Image.fromarray(np.full((48, 48), 127, np.uint8)).save(place / "0.png")
    return tmp_path / "noise"


def test_an_accuracy_at_chance_is_told_as_one_that_cannot_be_right(noise):
    dense = call("eval", "--model", "vim_nano", "--data", noise)
    assert dense.exit_code == 0 and "10.00 %" in dense.stdout
    assert "top-1 is not above chance, 10 %" in dense.stderr
    pruned = call("eval", "--model", "vim_nano", "--data", noise, "--policy", "uniform_vim_nano")
    assert pruned.exit_code == 0 and "chance" not in pruned.stderr


def test_eval_says_once_that_folders_are_taken_as_synsets(noise, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(create_model("vim_nano", num_classes=1000).state_dict(), weights)
    for split in ("search", "holdout"):
        (noise / split / "0").rename(noise / split / "n01440764")
        for label in range(1, 10):
            shutil.rmtree(noise / split / f"{label}")
    result = call("eval", "--model", "vim_nano", "--data", noise, "--checkpoint", weights)
    assert result.exit_code == 0, result.output
    [line] = [line for line in result.stderr.splitlines() if "synset" in line]
    assert line.endswith("the synsets that they name, 1 of the 1000 of imagenet-1k.")


def test_eval_refuses_another_number_of_classes(exported, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "holdout").symlink_to(exported / "holdout")
    (tmp_path / "more" / "search" / "ten").mkdir(parents=True)
    result = call("eval", "--model", "vim_nano", "--data", tmp_path / "more")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the model's 10 classes, but" in result.stderr and "has 11" in result.stderr


def test_search_refuses_another_number_of_classes_before_it_writes(exported, tmp_path):
    (tmp_path / "fewer").mkdir()
    for split in ("search", "holdout"):
        for label in "012":
            (tmp_path / "fewer" / split).mkdir(exist_ok=True)
            (tmp_path / "fewer" / split / label).symlink_to(exported / split / label)
    space = Path(__file__).parents[2] / "spaces" / "vim_nano.yaml"
    arguments = (space, "--data", tmp_path / "fewer", "--out", tmp_path / "run")
    result = call("search", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the model's 10 classes, but" in result.stderr and "has 3" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_on_the_folder_finds_what_one_on_the_embedded_set_finds(exported, tmp_path):
    space = Path(__file__).parents[2] / "spaces" / "vim_nano.yaml"
    found = {}
    for data in ("digits", str(exported)):
        run = tmp_path / f"{Path(data).is_dir()}"
        options = ("--trials", 12, "--workers", 1, "--seed", 0, "--data", data, "--out", run)
        result = call("search", space, *options, "--no-early-stopping")
        assert result.exit_code == 0, result.output
        found[data] = Outcome.read(run).candidates
    ours, theirs = found.values()
    assert len(ours) == len(theirs) == 12
    on_both_fronts = 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.policy == other.policy
        assert one.search.flops == other.search.flops
        assert abs(one.search.top1 - other.search.top1) <= 0.5
        if one.holdout is not None and other.holdout is not None:
            on_both_fronts += 1
            assert abs(one.holdout.top1 - other.holdout.top1) <= 0.5
    assert on_both_fronts  # not the same ones: latency, and one image, decide places on a front


def test_pruned_models_classify_files_as_they_do_the_embedded_images(exported):
    weights = shipped_checkpoint("vim_nano")
    model = create_model("vim_nano", weights, policy="uniform_vim_nano")
    shares = [
        correct(model, open_images(data, "search", **SHAPE).loader).double().mean().item()
        for data in ("digits", str(exported))
    ]
    assert abs(shares[0] - shares[1]) <= 0.005
