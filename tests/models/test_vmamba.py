"""VMamba against the official implementation, activation by activation."""

import re

import pytest
import torch
from torch import Tensor

from ssmprune.models.vmamba import VMamba
from ssmprune.models.vmamba_config import VMambaConfig
from tests.conftest import relative_error

FILES = ("vmamba_tiny_config", "vmamba_v0_tiny_config")


def build(golden, dtype: torch.dtype) -> VMamba:
    settings = golden.config
    config = VMambaConfig(
        name="golden",
        image_size=tuple(settings["img_size"]),
        widths=tuple(settings["dims"]),
        depths=tuple(settings["depths"]),
        d_state=settings["ssm_d_state"],
        expand=int(settings["ssm_ratio"]),
        vanilla=settings["forward_type"] == "v0",
        num_classes=settings["num_classes"],
    )
    model = VMamba(config).to(dtype).eval()
    model.load_state_dict(golden.under("param/"))
    return model


@pytest.fixture(scope="module", params=FILES)
def golden(request, load_golden):
    return load_golden(f"{request.param}.npz")


ENTERS = {"op": "normed", "op.out_norm": "merged", "op.out_proj": "before_out_proj"}
LEAVES = {"op.out_norm": "out_norm", "op": "op_out", "": "out"}


@torch.no_grad()
def activations(model: VMamba, images: Tensor) -> dict[str, Tensor]:
    """What enters and leaves the modules of one forward, channel-last, by the goldens' names."""
    found: dict[str, Tensor] = {}

    def watch(module: torch.nn.Module, enters: str | None, leaves: str | None) -> None:
        def keep(_, inputs, output):
            found.update({name: x for name, x in ((enters, inputs[0]), (leaves, output)) if name})

        module.register_forward_hook(keep)

    watch(model.patch_embed, None, "patch_embed")
    watch(model.classifier.norm, None, "final_norm")
    watch(model.classifier.head, "pooled", "logits")
    for number, stage in enumerate(model.layers):
        watch(stage.downsample, None, f"layers.{number}.downsample")
        for index, block in enumerate(stage.blocks):
            name = f"layers.{number}.blocks.{index}"
            for part, module in block.named_modules():
                ends = (ENTERS.get(part), LEAVES.get(part))
                watch(module, *(end and f"{name}.{end}" for end in ends))
    model(images)
    return found


@torch.no_grad()
def scans(model: VMamba, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scans of every block, (B, 4, E, L), each direction in the order in which it walks."""

    def walked(sequences: list[Tensor]) -> Tensor:
        turned = [x.flip(1) if k >= 2 else x for k, x in enumerate(sequences)]
        return torch.stack(turned, 1).transpose(2, 3)

    arrays: dict[str, Tensor] = {}
    for number, stage in enumerate(model.layers):
        for index, block in enumerate(stage.blocks):
            name = f"layers.{number}.blocks.{index}"
            inputs = block.op.scan_inputs(block.op.project(found[f"{name}.normed"])[0])
            ys = [block.op.scan(scan, reverse=k >= 2) for k, scan in enumerate(inputs)]
            arrays[f"{name}.scan_out"] = walked(ys)
            arrays[f"{name}.scan_us"] = walked([scan.u for scan in inputs])
            arrays[f"{name}.scan_dts"] = walked([scan.delta for scan in inputs])
            arrays[f"{name}.scan_Bs"] = walked([scan.B for scan in inputs])
            arrays[f"{name}.scan_Cs"] = walked([scan.C for scan in inputs])
    return arrays


def check(golden, dtype: torch.dtype, limit: float, logits_limit: float) -> None:
    model = build(golden, dtype)
    found = activations(model, golden.arrays["x"].to(dtype))
    channels_first = not model.config.vanilla
    laid_out = {
        name: x.permute(0, 3, 1, 2) if x.dim() == 4 and channels_first else x
        for name, x in found.items()
    }
    laid_out.update(scans(model, found))
    expected = golden.under("f64/")
    assert set(expected) <= set(laid_out)
    for name, value in expected.items():
        error = relative_error(laid_out[name].reshape(value.shape), value)
        assert error <= (logits_limit if name == "logits" else limit), name


def test_every_activation_equals_the_official_model_in_float64(golden):
    check(golden, torch.float64, 1e-10, 1e-10)


def test_every_activation_equals_the_official_model_in_float32(golden):
    check(golden, torch.float32, 2e-5, 1e-5)


@torch.no_grad()
def test_features_are_the_last_grid_for_an_image_of_any_size(golden):
    model = build(golden, torch.float32)
    images = torch.randn(2, 3, 72, 36, generator=torch.manual_seed(0))
    grid = model.forward_features(images, restore=True)
    stream = model.forward_features(images)
    assert grid.shape == (2, 3, 2, model.config.embed_dim)
    assert stream.positions.tolist() == [[*range(6)]] * 2
    assert torch.equal(stream.hidden, grid.flatten(1, 2))
    logits = model.classifier.head(grid.mean((1, 2)))
    torch.testing.assert_close(model(images), logits)


def old_name(key: str) -> str:
    for old, new in (
        (r"(blocks\.\d+)\.norm\.", r"\1.ln_1."),
        (r"(blocks\.\d+)\.op\.", r"\1.self_attention."),
        (r"^patch_embed\.0\.", "patch_embed.proj."),
        (r"^patch_embed\.2\.", "patch_embed.norm."),
        (r"^classifier\.", ""),
    ):
        key = re.sub(old, new, key)
    return key


def test_weights_of_older_files_get_their_present_names_and_shapes(golden):
    weights = golden.under("param/")
    old = {
        old_name(key): x[:, :, None, None] if key.endswith("_proj.weight") else x
        for key, x in weights.items()
    }
    assert {"patch_embed.proj.weight", "norm.weight", "head.bias"} < old.keys()
    assert "layers.2.blocks.1.self_attention.in_proj.weight" in old
    assert "layers.2.blocks.1.ln_1.weight" in old
    model = build(golden, torch.float32)
    adapted = model.adapt_weights(old)
    assert adapted.keys() == weights.keys() == model.adapt_weights(weights).keys()
    assert all(torch.equal(adapted[key], x) for key, x in weights.items())
