"""The command `tokens` and its picture."""

import io
import json
import re
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
from ssmprune.pruning.picture import (
    GROUP_COLORS,
    Row,
    draw_kept,
    group_colors,
    outline,
    patch_means,
)
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


def groups_of(*rows):
    """The token that each patch is in, for one image."""
    return torch.tensor([rows])


def drawn(pixels, *stages):
    """The picture's right half, where the last stage is."""
    picture = Image.open(io.BytesIO(draw_kept([Row(pixels, "")], stages))).convert("RGB")
    return np.asarray(picture)[:, picture.width // 2 :].astype(int)


def test_picture_covers_pruned_patches_and_leaves_kept_ones_as_they_are():
    pixels = np.zeros((8, 8, 1), np.uint8)

    def dark_share(groups):
        return (drawn(pixels, KeptPatches(0, groups)).max(2) < 30).sum()

    whole = dark_share(groups_of((0, 1), (2, 3)))
    assert 0.2 < dark_share(groups_of((0, -1), (-1, -1))) / whole < 0.3


def test_picture_shows_the_mean_of_the_patches_of_a_merged_token_within_one_outline():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, 4:] = 200  # the upper right patch
    apart = drawn(pixels, KeptPatches(0, groups_of((0, 1), (2, 3))))
    together = drawn(pixels, KeptPatches(0, groups_of((0, 0), (1, 2)), torch.ones(1, 1)))
    color = [int(GROUP_COLORS[0][k : k + 2], 16) for k in (1, 3, 5)]

    def share(picture, color):
        return (abs(picture - color).max(2) < 3).mean()

    assert share(apart, [200] * 3) > 0.1 and share(together, [200] * 3) < 0.001
    assert share(together, [100] * 3) > 0.1 and share(apart, [100] * 3) < 0.001
    assert share(together, color) > 0.01 and share(apart, color) < 0.001


def test_outline_of_a_group_runs_inside_of_its_border_and_around_its_corners():
    square = [((0.1, 0.1), (0.9, 0.1)), ((0.9, 0.1), (0.9, 0.9))]
    square += [((0.9, 0.9), (0.1, 0.9)), ((0.1, 0.9), (0.1, 0.1))]

    def ends(lines):
        return {tuple(sorted(tuple(round(v, 6) for v in end) for end in line)) for line in lines}

    assert ends(outline([0], 4, 0.1)) == ends(square)
    angle = outline([0, 4, 5], 4, 0.1)  # two patches below one another, and one beside
    assert len(angle) == 8
    points = [end for line in ends(angle) for end in line]
    assert all(points.count(point) == 2 for point in points)  # nowhere open
    assert (0.9, 1.1) in points


def test_groups_that_touch_have_outlines_of_different_colors():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 12, (8, 8)) // 2
    places = [[tuple(p) for p in np.argwhere(tokens == t)] for t in range(6)]
    colors = group_colors([[8 * y + x for y, x in group] for group in places], 8)
    assert len({*colors}) == 6
    rows = group_colors([[8 * y + x for x in range(k, k + 2)] for y in range(8) for k in (0, 2)], 8)
    for y in range(7):
        assert not {*rows[2 * y : 2 * y + 2]} & {*rows[2 * y + 2 : 2 * y + 4]}


def test_patch_means_take_the_pixels_of_each_patch_of_any_grid():
    pixels = np.arange(5 * 7 * 2, dtype=np.uint8).reshape(5, 7, 2)
    means = patch_means(pixels, (2, 3))
    assert means.shape == (6, 2)
    assert (means[0] == pixels[:3, :3].reshape(-1, 2).mean(0)).all()
    assert (patch_means(pixels, (5, 7)) == pixels.reshape(-1, 2)).all()


@pytest.mark.parametrize("tokens", [(0, 1), (0, 0)])
def test_picture_of_the_same_is_the_same_file(tokens):
    stage = KeptPatches(0, groups_of(tokens, (-1, 2)))
    row = Row(np.zeros((8, 8, 3), np.uint8), "x")
    once, again = (draw_kept([row], [stage], format="svg") for _ in range(2))
    assert once == again


def test_tokens_tells_what_was_merged_and_how_alike_it_was(tmp_path):
    policy, path = tmp_path / "policy.yaml", tmp_path / "kept.svg"
    policy.write_text(
        "schema: ssmprune.policy/2\nmodel: vim_nano\nstages:\n"
        "  - {layer: 0, keep_count: 39, reduce: merge, match: neighbors}\n"
        "  - {layer: 3, keep_count: 20}\n"
    )
    arguments = ("--policy", policy, "--image", "digits:3", "-o", path)
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert re.search(
        r"^block 0: 39 of 64 tokens kept, 25 merged, mean similarity 0\.\d{3}; \d+ of several pat",
        result.stdout,
    )
    assert re.search(r"^block 3: 20 of 64 tokens kept; \d+ of several", result.stdout, re.M)
    told = json.loads(call(*arguments, "--force", "--json").stdout)
    first, last = told["stages"]
    assert (first["merged"], last["merged"], last["similarity"]) == (25, 0, None)
    assert 0 < first["similarity"] < 1
    [image] = told["images"]
    assert sum(len(group) - 1 for group in image["groups"][0]) == 25


def test_tokens_draws_every_image_that_is_given(tmp_path):
    path, one = tmp_path / "kept.png", tmp_path / "one.png"
    options = ("--policy", "uniform_vim_nano", "--json")
    both = call(*options, "--image", "digits:3", "--image", "digits:7", "-o", path)
    assert both.exit_code == 0, both.output
    told = json.loads(both.stdout)
    assert [(i["image"], i["predicted"]) for i in told["images"]] == [
        ("digits:3", 4),
        ("digits:7", 2),
    ]
    assert call(*options, "--image", "digits:3", "-o", one).exit_code == 0
    with Image.open(path) as two, Image.open(one) as single:
        assert two.height > 1.6 * single.height


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
