"""What every family's model does: image sizes, the whole grid, timm's registry."""

import itertools
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F

import ssmprune
from ssmprune.errors import UsageError
from ssmprune.models.configs import with_image_size
from ssmprune.models.zoo import find_config, model_names
from tests.contracts.conftest import FAMILIES


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return family.build()


def patch_positions(config):
    """Position in the sequence of each patch token, in raster order."""
    return [p for p in range(config.num_tokens) if p not in config.prefix_positions]


@torch.no_grad()
def test_grid_of_a_dense_model_holds_its_patch_tokens(family, model):
    images, (height, width) = family.images(), model.config.grid
    assert height != width
    grid = model.forward_features(images, restore=True)
    patches = model.forward_features(images).hidden[:, patch_positions(model.config)]
    assert torch.equal(grid, patches.reshape(4, height, width, -1))


@torch.no_grad()
def test_grid_of_a_pruned_model_holds_each_token_as_it_left(family, model):
    images, config = family.images(), model.config
    entered = {}
    for index, block in enumerate(model.layers):
        block.norm.register_forward_pre_hook(
            lambda _, args, index=index: entered.update({index: args[0]})
        )
    ssmprune.apply_policy(model, family.policy(0.6))
    first = model.forward_features(images).positions
    ssmprune.apply_policy(model, family.policy(0.6, 0.5))
    last = model.forward_features(images)

    expected = entered[0].clone()
    for image in range(4):
        expected[image, first[image]] = entered[1][image]
    final_norm = model.norm_f if hasattr(model, "norm_f") else model.ln1
    expected = final_norm(expected)
    for image in range(4):
        expected[image, last.positions[image]] = last.hidden[image]
    grid = model.forward_features(images, restore=True)
    assert last.hidden.shape[1] < first.shape[1] < config.num_tokens
    assert torch.allclose(grid.flatten(1, 2), expected[:, patch_positions(config)], atol=1e-12)


@torch.no_grad()
def test_grid_is_restored_under_bfloat16_autocast(family):
    model, images = family.build().float(), family.images().float()
    ssmprune.apply_policy(model, family.policy(0.6, 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        grid = model.forward_features(images, restore=True)
    assert grid.shape == (4, *model.config.grid, model.config.embed_dim)
    assert grid.isfinite().all()


def test_gradients_reach_every_cell_of_the_restored_grid(family, model):
    ssmprune.apply_policy(model, family.policy(0.6, 0.5))
    images = family.images()[:2].requires_grad_()
    grid = model.forward_features(images, restore=True)
    for row in range(model.config.grid[0]):
        for column in range(model.config.grid[1]):
            [gradient] = torch.autograd.grad(grid[0, row, column, 0], images, retain_graph=True)
            assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0


@pytest.mark.parametrize("name", model_names())
def test_timm_builds_every_model_for_another_image_size(name):
    config = find_config(name)
    width, height = itertools.islice(filter(config.fits, itertools.count(1)), 2)
    with torch.device("meta"):
        model = timm.create_model(name, img_size=(height, width), num_classes=7)
        logits = model(torch.empty(2, config.channels, height, width))
    assert logits.shape == (2, 7)
    assert model.config == replace(config, image_size=(height, width), num_classes=7)


def test_timm_finds_the_families():
    assert set(model_names("*vim*")) <= set(timm.list_models("*vim*"))


@pytest.mark.parametrize(
    ("name", "size", "told"),
    [
        ("vim_tiny_patch16_224", 225, r"got 225 in 225 x 225; use 224 or 240"),
        ("vim_tiny_patch16_224", (224, 230), r"got 230 in 224 x 230; use 224 or 240"),
        ("vim_tiny_patch16_stride8_224", 30, r"use 24 or 32"),
        ("vim_tiny_patch16_224", 0, r"got 0 in 0 x 0; use 16"),
        ("vim_tiny_patch16_224", -16, r"use 16"),
        ("vim_nano", 47, r"use 42 or 48"),
        ("plainmamba_l1", (224, 225), r"got 225 in 224 x 225; use 224 or 240"),
    ],
)
def test_image_size_that_patches_do_not_cover_is_refused_with_its_neighbours(name, size, told):
    with pytest.raises(UsageError, match=told):
        ssmprune.create_model(name, image_size=size)


def test_patches_cover_the_image_exactly_as_the_convolution_does():
    for name in model_names("vim*"):
        config = find_config(name)
        for side in range(1, 65):
            windows = range(-config.padding, side + config.padding, config.stride)
            ends = [start + config.window_size for start in windows]
            assert config.fits(side) == (side + config.padding in ends), (name, side)
            if config.fits(side):
                assert (
                    with_image_size(config, side).grid[0] == ends.index(side + config.padding) + 1
                )


def test_position_embedding_of_another_grid_is_resized_as_the_official_script_does():
    model = ssmprune.create_model("vim_nano", image_size=(60, 36))  # 10 x 6 patches
    weights = ssmprune.create_model("vim_nano").state_dict()
    adapted = model.adapt_weights(weights)
    rows = weights["pos_embed"]
    grid = rows[:, 1:].reshape(1, 8, 8, 64).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=(10, 6), mode="bicubic", align_corners=False)
    expected = torch.cat([rows[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
    assert torch.allclose(adapted["pos_embed"], expected, atol=1e-6)
    model.load_state_dict(adapted)
    assert model.adapt_weights(adapted)["pos_embed"] is adapted["pos_embed"]


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 64), (1, 13, 64), (1, 0, 64)])
def test_position_embedding_without_a_square_grid_stays_as_it_is(shape):
    rows = torch.zeros(shape)
    adapted = ssmprune.create_model("vim_nano").adapt_weights({"pos_embed": rows})
    assert adapted["pos_embed"] is rows
