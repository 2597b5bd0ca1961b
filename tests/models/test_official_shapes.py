"""Every official model: names, shapes and number of its weights."""

import json

import pytest
import torch

import ssmprune

NAMES = (
    "vim_tiny_patch16_224",
    "vim_tiny_patch16_stride8_224",
    "vim_small_patch16_224",
    "vim_small_patch16_stride8_224",
    "vim_base_patch16_224",
    "plainmamba_l1",
    "plainmamba_l2",
    "plainmamba_l3",
    "vmamba_tiny_s1l8",
    "vmamba_tiny_s2l5",
    "vmamba_small_s2l15",
    "vmamba_small_s1l20",
    "vmamba_base_s2l15",
    "vmamba_base_s1l20",
    "vanilla_vmamba_tiny",
    "vanilla_vmamba_small",
    "vanilla_vmamba_base",
)


@pytest.fixture(scope="module")
def official(goldens_folder):
    models = json.loads((goldens_folder / "official_shapes.json").read_text())
    return {name: model for name, model in models.items() if not name.startswith("_")}


def test_every_official_model_is_tested(official):
    assert set(official) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_the_official_names_shapes_and_number(name, official):
    with torch.device("meta"):
        model = ssmprune.create_model(name)
    found = {key: list(value.shape) for key, value in model.state_dict().items()}
    expected = official[name]["state_dict"]
    assert found == {key.removeprefix("backbone."): shape for key, shape in expected.items()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == official[name]["n_params"]
