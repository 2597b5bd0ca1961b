"""Pruned models as ONNX files, for runtimes without torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

from ssmprune.errors import UsageError
from ssmprune.files import replacing
from ssmprune.models.backbone import Backbone
from ssmprune.models.families import build_model


def export_onnx(model: Backbone, path: str | Path, batch_size: int = 1) -> None:
    """Write a model, dense or pruned, as an ONNX file for batches of one size.

    ONNX has no form of the scan's kernels, so the graph is that of the scan in plain torch,
    unrolled over the tokens. The file appears whole or not at all.

    Args:
        model: On the CPU in float32; it is not changed.
        path: The file; one that exists is replaced.
        batch_size: Images per batch.

    Raises:
        UsageError: The policy draws tokens at random, which no graph can repeat; the batch size is
            below 1; or onnx and onnxscript are not installed.
    """
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {batch_size}.")
    if "random" in _scorers(model):
        raise UsageError(
            "a scorer must decide by the image for ONNX, got 'random', whose draws no graph can "
            "repeat; use another scorer."
        )
    if not all(map(find_spec, ("onnx", "onnxscript"))):
        raise UsageError(
            "an ONNX export must have onnx and onnxscript; install them with "
            "`pip install onnx onnxscript`."
        )
    twin = build_model(model.config, "reference").eval()
    twin.load_state_dict(model.state_dict())
    twin.plan = model.plan
    images = torch.zeros(batch_size, model.config.channels, *model.config.image_size)
    with replacing(Path(path)) as file:
        torch.onnx.export(twin, (images,), file, dynamo=True, external_data=False, verbose=False)


def _scorers(model: Backbone) -> set[str]:
    if model.plan is None:
        return set()
    policy = model.plan.policy
    return {policy.stage_scorer(stage).name for stage in policy.stages}
