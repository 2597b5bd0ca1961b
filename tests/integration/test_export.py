"""Pruned models as graphs for other runtimes, at a fixed batch size."""

from dataclasses import replace

import pytest
import torch

from ssmprune import Policy, apply_policy
from ssmprune.models.families import build_model
from ssmprune.models.zoo import find_config

ALIGNED = {"decay": "zero_input", "conv": "position"}
SMALL = {
    "vim": (
        replace(find_config("vim_nano"), image_size=(24, 24), embed_dim=16, depth=2),
        {"stages": [{"layer": 0, "keep_ratio": 0.5}], "alignment": ALIGNED},
    ),
    "plain_mamba": (
        replace(
            find_config("plainmamba_l1"), image_size=(64, 64), embed_dim=16, depth=2, d_state=4
        ),
        {"stages": [{"layer": 0, "keep_ratio": 0.5}], "alignment": ALIGNED},
    ),
}


def pruned(family, backend):
    """A small pruned model, and images for it."""
    config, policy = SMALL[family]
    torch.manual_seed(0)
    model = build_model(config, backend).eval()
    apply_policy(model, Policy.model_validate({"model": config.name, **policy}))
    return model, torch.randn(2, config.channels, *config.image_size)


@pytest.mark.parametrize("family", SMALL)
def test_exported_program_computes_the_same(family, tmp_path):
    model, images = pruned(family, "auto")
    torch.export.save(torch.export.export(model, (images,)), tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    other = torch.randn(images.shape)
    assert torch.allclose(program(other), model(other), atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("family", SMALL)
def test_onnxruntime_computes_the_same(family, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, images = pruned(family, "reference")
    torch.onnx.export(model, (images,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    other = torch.randn(images.shape)
    [found] = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    assert torch.allclose(torch.from_numpy(found), model(other), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_onnx_export_with_kernels_is_refused_with_the_remedy(tmp_path):
    pytest.importorskip("onnxscript")
    model, images = pruned("vim", "cpu")
    with pytest.raises(torch.onnx.OnnxExporterError, match="backend='reference'"):
        torch.onnx.export(model, (images,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    assert not (tmp_path / "model.onnx").exists()
