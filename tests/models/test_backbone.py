"""What every family's model does: image sizes, the whole grid, timm's registry."""

import itertools
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F

import ssmprune
from ssmprune.errors import UsageError
from ssmprune.measure.flops import count_flops
from ssmprune.measure.trace import trace_flops
from ssmprune.models.configs import with_image_size
from ssmprune.models.zoo import find_config, model_names
from ssmprune.policy import Policy, Stage

SMALL = ["vim_nano"]


@pytest.fixture(params=SMALL)
def model(request):
    torch.manual_seed(0)
    return ssmprune.create_model(request.param, image_size=(48, 36)).eval()


def images_for(model, batch=2):
    config = model.config
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, config.channels, *config.image_size, generator=generator)


def prune(model, *ratios):
    stages = tuple(Stage(layer=layer, keep_ratio=ratio) for layer, ratio in ratios)
    ssmprune.apply_policy(model, Policy(model=model.config.name, stages=stages))


def patch_positions(config):
    """Position in the sequence of each patch token, in raster order."""
    return [p for p in range(config.num_tokens) if p not in config.prefix_positions]


@torch.no_grad()
def test_grid_of_a_dense_model_holds_its_patch_tokens(model):
    images, (height, width) = images_for(model), model.config.grid
    assert height != width
    grid = model.forward_features(images, restore=True)
    patches = model.forward_features(images).hidden[:, patch_positions(model.config)]
    assert torch.equal(grid, patches.reshape(2, height, width, -1))


@torch.no_grad()
def test_grid_of_a_pruned_model_holds_each_token_as_it_left(model):
    images, config = images_for(model), model.config
    entered = {}
    for index, block in enumerate(model.layers):
        block.norm.register_forward_pre_hook(
            lambda _, args, index=index: entered.update({index: args[0]})
        )
    prune(model, (1, 0.5))
    first = model.forward_features(images).positions
    prune(model, (1, 0.5), (3, 0.4))
    last = model.forward_features(images)

    expected = entered[1].clone()
    for image in range(2):
        expected[image, first[image]] = entered[3][image]
    expected = model.norm_f(expected)
    for image in range(2):
        expected[image, last.positions[image]] = last.hidden[image]
    grid = model.forward_features(images, restore=True)
    assert last.hidden.shape[1] < first.shape[1] < config.num_tokens
    found = grid.flatten(1, 2)
    assert torch.allclose(found, expected[:, patch_positions(config)], atol=1e-6)


def test_gradients_reach_every_cell_of_the_restored_grid(model):
    prune(model, (1, 0.5), (3, 0.4))
    images = images_for(model).requires_grad_()
    grid = model.forward_features(images, restore=True)
    for row in range(model.config.grid[0]):
        for column in range(model.config.grid[1]):
            [gradient] = torch.autograd.grad(grid[0, row, column].sum(), images, retain_graph=True)
            assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0


def test_flops_of_another_image_size_equal_the_trace(model):
    prune(model, (1, 0.5))
    counted = count_flops(model.config, model.plan.policy)
    assert counted.by_operator() == trace_flops(model).by_operator()


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
