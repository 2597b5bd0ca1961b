"""A policy file, and images to train on."""

from pathlib import Path

import pytest
import torch

from ssmprune.data import open_stream

POLICY = """\
schema: ssmprune.policy/1
model: vim_nano
stages: [{layer: 1, keep_ratio: 0.5}, {layer: 4, keep_count: 16}]
scorer: {name: l1}
alignment: {decay: zero_input, conv: position}
"""


@pytest.fixture
def policy(tmp_path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture(scope="session")
def batch():
    """Four images with labels."""
    return next(open_stream("digits", image_size=(48, 48), channels=1, batch_size=4).batches())


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
