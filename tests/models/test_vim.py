"""Vim against the official implementation, activation by activation."""

import pytest
import torch

from ssmprune.models.vim import Vim
from ssmprune.models.vim_config import VimConfig
from ssmprune.scan import reference
from tests.conftest import relative_error

FILES = ("vim_tiny_config", "vim_overlap_config")


def build(golden, name: str, dtype: torch.dtype) -> Vim:
    settings = golden.config
    config = VimConfig(
        name=name,
        image_size=(settings["img_size"],) * 2,
        window_size=settings["patch_size"],
        stride=settings["stride"],
        embed_dim=settings["embed_dim"],
        depth=settings["depth"],
        d_state=settings["d_state"],
        num_classes=settings["num_classes"],
    )
    model = Vim(config).to(dtype).eval()
    model.load_state_dict(golden.under("param/"))
    return model


@pytest.fixture(scope="module", params=FILES)
def golden(request, load_golden):
    return load_golden(f"{request.param}.npz")


@torch.no_grad()
def activations(model: Vim, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every activation that the goldens hold, walked block by block as `forward_features` does."""
    found = {"patch_embed": model.patch_embed(images), "tokens_in": model.embed(images)}
    hidden = found["tokens_in"]
    residual = torch.zeros_like(hidden)
    for index, block in enumerate(model.layers):
        layer = f"layers.{index}"
        residual = residual + hidden
        normed = block.norm(residual)
        mixed = block.mixer(normed, None)
        hidden = block.mixer.out_proj(mixed.gated) / 2
        found[f"{layer}.residual"] = residual
        found[f"{layer}.normed"] = normed
        found[f"{layer}.hidden_states"] = hidden
        z = block.mixer.in_proj(normed).chunk(2, dim=-1)[1]
        for name, inputs, reverse in zip(("fwd", "bwd"), mixed.inputs, (False, True), strict=True):
            y = block.mixer.scan(inputs, None, reverse)
            found[f"{layer}.ssm_{name}"] = y.transpose(1, 2)
            gated = y * torch.nn.functional.silu(z)
            found[f"{layer}.ssm_{name}_gated"] = gated.transpose(1, 2)
            _, state = reference.selective_scan(
                *inputs[:6], None, inputs.delta_bias, True, None, reverse
            )
            found[f"{layer}.ssm_{name}_last_state"] = state
            if index == 0:
                found[f"{layer}.ssm_{name}_u"] = inputs.u.transpose(1, 2)
                found[f"{layer}.ssm_{name}_delta_raw"] = inputs.delta.transpose(1, 2)
                found[f"{layer}.ssm_{name}_B"] = inputs.B.transpose(1, 2)
                found[f"{layer}.ssm_{name}_C"] = inputs.C.transpose(1, 2)
    stream = model.forward_features(images)
    found["final_norm"] = stream.hidden
    found["pooled"] = stream.prefix_tokens()[:, 0]
    found["logits"] = model(images)
    return found


def test_every_activation_equals_the_official_model_in_float64(golden):
    model = build(golden, "golden", torch.float64)
    found = activations(model, golden.arrays["x"].double())
    expected = golden.under("f64/")
    assert set(expected) <= set(found)
    for name, value in expected.items():
        assert relative_error(found[name], value) <= 1e-10, name


def test_every_activation_equals_the_official_model_in_float32(golden):
    model = build(golden, "golden", torch.float32)
    found = activations(model, golden.arrays["x"])
    for name, value in golden.under("f64/").items():
        limit = 1e-5 if name == "logits" else 2e-5
        assert relative_error(found[name], value) <= limit, name
