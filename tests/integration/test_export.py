"""Pruned models as graphs for other runtimes, at a fixed batch size."""

from dataclasses import replace

import onnxruntime
import pytest
import torch

import ssmprune.export
from ssmprune import Policy, apply_policy, export_onnx
from ssmprune.errors import UsageError
from ssmprune.models.families import build_model
from ssmprune.models.zoo import find_config
from ssmprune.policy import Scorer

ALIGNED = {"decay": "zero_input", "conv": "position"}
MERGED = {"decay": "zero_input", "sizes": "exact"}
VIM = replace(find_config("vim_nano"), image_size=(24, 24), embed_dim=16, depth=2)
SMALL = {
    "vim": (
        VIM,
        {"stages": [{"layer": 0, "keep_ratio": 0.5}], "alignment": ALIGNED},
    ),
    **{
        f"vim-{match}": (
            VIM,
            {
                "stages": [{"layer": 0, "keep_ratio": 0.6, "reduce": "merge", "match": match}],
                "alignment": {**MERGED, "conv": "runs"},
            },
        )
        for match in ("alternate", "neighbors", "score")
    },
    "plain_mamba": (
        replace(
            find_config("plainmamba_l1"), image_size=(64, 64), embed_dim=16, depth=2, d_state=4
        ),
        {"stages": [{"layer": 0, "keep_ratio": 0.5}], "alignment": ALIGNED},
    ),
    "plain_mamba-alternate": (
        replace(
            find_config("plainmamba_l1"), image_size=(64, 64), embed_dim=16, depth=2, d_state=4
        ),
        {
            "stages": [{"layer": 0, "keep_ratio": 0.6, "reduce": "merge"}],
            "alignment": {**MERGED, "conv": "runs"},
        },
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


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("family", ["vim", "vim-alternate", "plain_mamba"])
def test_onnxruntime_computes_the_same(family, tmp_path):
    model, images = pruned(family, "auto")
    export_onnx(model, tmp_path / "model.onnx", batch_size=len(images))
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    [found] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(found), model(images), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_onnx_export_refuses_draws_and_empty_batches(tmp_path):
    model, _ = pruned("vim", "auto")
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        export_onnx(model, tmp_path / "model.onnx", batch_size=0)
    policy = model.plan.policy
    apply_policy(model, policy.model_copy(update={"scorer": Scorer(name="random")}))
    with pytest.raises(UsageError, match="'random', whose draws no graph can repeat"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_export_without_its_packages_names_them(tmp_path, monkeypatch):
    monkeypatch.setattr(ssmprune.export, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install onnx onnxscript"):
        export_onnx(pruned("vim", "auto")[0], tmp_path / "model.onnx")
