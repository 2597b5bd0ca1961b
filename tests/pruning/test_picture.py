"""The command `tokens` and its picture."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from ssmprune import create_model
from ssmprune.data.single import open_image, to_pixels
from ssmprune.errors import DataError, UsageError
from ssmprune.models.zoo import find_config
from ssmprune.pruning.kept import KeptPatches
from ssmprune.pruning.picture import Row, draw_kept
from ssmprune_search.cli.tokens import app


def call(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def fault(*arguments):
    """The message of a call that is refused."""
    result = call(*arguments)
    assert result.exit_code == 1 and result.stdout == ""
    return str(result.exception)


def test_tokens_draws_the_stages_and_tells_their_counts(tmp_path):
    path = tmp_path / "kept.png"
    result = call("--policy", "uniform_vim_nano", "--image", "digits:3", "-o", path, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [(s["layer"], s["kept"]) for s in told["stages"]] == [(1, 45), (3, 32), (5, 23)]
    assert told["predicted"] == 4  # what digit 3 of the holdout shows
    with Image.open(path) as picture:
        width, height = picture.size
    assert width > 3 * height / 2


@pytest.mark.parametrize(("ending", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_tokens_writes_vector_formats(tmp_path, ending, start):
    path = tmp_path / f"kept.{ending}"
    assert call("--policy", "uniform_vim_nano", "--image", "digits:0", "-o", path).exit_code == 0
    assert path.read_bytes().startswith(start)


def test_picture_covers_pruned_patches_and_leaves_kept_ones_as_they_are():
    pixels = np.zeros((8, 8, 1), np.uint8)
    kept = torch.zeros(1, 2, 2, dtype=torch.bool)
    kept[0, 0, 0] = True

    def dark_share(mask):
        stages = [KeptPatches(0, mask)]
        picture = Image.open(io.BytesIO(draw_kept([Row(pixels, "")], stages))).convert("L")
        right = np.asarray(picture)[:, picture.width // 2 :]
        return (right < 30).sum()

    whole = dark_share(torch.ones_like(kept))
    assert 0.2 < dark_share(kept) / whole < 0.3


def test_picture_of_the_same_is_the_same_file():
    stage = KeptPatches(0, torch.eye(4, dtype=torch.bool)[None])
    row = Row(np.zeros((8, 8, 3), np.uint8), "x")
    once, again = (draw_kept([row], [stage], format="svg") for _ in range(2))
    assert once == again


def test_image_file_goes_through_the_evaluation_transform_and_back(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (300, 260), (120, 130, 140)).save(path)
    config = find_config("vim_tiny_patch16_224")
    image = open_image(str(path), config)
    assert image.shape == (1, 3, 224, 224)
    assert (to_pixels(image, config.preprocessing) == [120, 130, 140]).all()


@pytest.mark.parametrize(
    ("image", "model", "error", "part"),
    [
        ("nowhere.png", "vim_nano", DataError, "there is none at nowhere.png"),
        ("digits:1456", "vim_nano", UsageError, "N from 0 to 1455"),
        ("digits:-1", "vim_nano", UsageError, "got digits:-1"),
        ("digits:0", "vim_tiny_patch16_224", UsageError, "48 x 48"),
    ],
)
def test_images_that_are_not_there_are_refused(image, model, error, part):
    with pytest.raises(error, match=part):
        open_image(image, find_config(model))


def test_image_file_is_read_in_grey_for_a_model_of_one_channel(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (96, 60), (200, 200, 200)).save(path)
    config = find_config("vim_nano")
    image = open_image(str(path), config)
    assert image.shape == (1, 1, 48, 48)
    assert (to_pixels(image, config.preprocessing) == 200).all()
    picture = tmp_path / "kept.png"
    told = call("--policy", "uniform_vim_nano", "--image", path, "-o", picture, "--json")
    assert told.exit_code == 0 and len(json.loads(told.stdout)["stages"]) == 3


def test_image_file_for_a_model_of_two_channels_is_refused(tmp_path):
    Image.new("RGB", (48, 48)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="1 or 3 channels"):
        open_image(str(tmp_path / "a.png"), replace(find_config("vim_nano"), channels=2))


def test_damaged_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="must be readable"):
        open_image(str(tmp_path / "a.png"), find_config("vim_tiny_patch16_224"))


def test_tokens_overwrites_only_with_force(tmp_path):
    path = tmp_path / "kept.png"
    path.write_text("mine")
    arguments = ("--policy", "uniform_vim_nano", "--image", "digits:0", "-o", path)
    assert "give --force" in fault(*arguments)
    assert path.read_text() == "mine"
    assert call(*arguments, "--force").exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_tokens_refuses_what_does_not_fit(tmp_path):
    from safetensors.torch import save_file

    weights = tmp_path / "other.safetensors"
    save_file(create_model("vim_nano").state_dict(), weights)
    other = ("--policy", "top_vim_tiny", "--image", "x.png", "-o", tmp_path / "k.png")
    assert "weights must be given for vim_tiny_patch16_224" in fault(*other)
    assert "its weights are those of vim_nano" in fault(*other, "--checkpoint", weights)
    unknown = ("--policy", "uniform_vim_nan", "--image", "digits:0", "-o", tmp_path / "k.png")
    assert "did you mean uniform_vim_nano" in fault(*unknown)
    ending = ("--policy", "uniform_vim_nano", "--image", "digits:0", "-o", tmp_path / "k.gif")
    assert "png, svg or pdf" in fault(*ending)
    assert list(tmp_path.iterdir()) == [weights]
