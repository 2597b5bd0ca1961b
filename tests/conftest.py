"""Fixtures that several test files share."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

# Before torch is imported: tests run side by side, and threads that wait must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]

if not torch.cuda.is_available():  # has to be there before triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

ON_GPU = (
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
)
INTERPRETED = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles for the GPU")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outages", type=int, default=2, help="for tests/search/test_outages.py")
    parser.addoption("--outage-seconds", type=float, default=1.0, help="of each outage")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the slow ones begin first, so that no long one is left for the end of a run."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class Golden(NamedTuple):
    """One file of reference numbers: settings and arrays by name."""

    config: dict
    arrays: dict[str, Tensor]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The arrays below a name, by the rest of their names."""
        return {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}


@pytest.fixture(scope="session")
def goldens_folder() -> Path:
    """The folder of the reference numbers; skips where they are not at hand."""
    folder = Path(os.environ.get("SSMPRUNE_GOLDENS", ROOT.parent / "shared" / "goldens"))
    if not folder.is_dir():
        pytest.skip(f"no goldens: set SSMPRUNE_GOLDENS, or put them at {folder}")
    return folder


@pytest.fixture(scope="session")
def load_golden(goldens_folder):
    """Reads a golden file by name."""

    def load(name: str) -> Golden:
        with np.load(goldens_folder / name) as file:
            config = json.loads(str(file["config_json"])) if "config_json" in file else {}
            numeric = (k for k in file.files if file[k].dtype.kind in "fiu")
            return Golden(config, {key: torch.from_numpy(file[key]) for key in numeric})

    return load


def relative_error(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| over max |expected|; the plain difference where all of that is 0."""
    difference = (found.double() - expected.double()).abs().max().item()
    scale = expected.abs().max().item()
    return difference / scale if scale else difference
