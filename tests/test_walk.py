"""The README's walk with a user's own images, classes, checkpoint and relative paths.

Each command is a process of its own and starts in another directory than the one before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CLASSES = {"ant": "0", "bee": "1", "käfer": "2"}
SPACE = """\
schema: ssmprune.space/1
model: vim_nano
ratios: {per: layer, layers: [1, 2, 3], low: 0.6, step: 0.1}
scorer: [l1, clipped_sum]
"""


@pytest.fixture
def another_ray() -> Iterator[None]:
    """A Ray that somebody else has left running on this machine."""
    script = (
        "import ray; ray.init(address='local', num_cpus=1, include_dashboard=False);"
        "print('up', flush=True); input(); ray.shutdown()"
    )
    call = [sys.executable, "-c", script]
    with subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "up\n"
        yield
        other.communicate("\n")


class Walk:
    """A user's directory, and the commands that they give somewhere in it."""

    def __init__(self, home: Path):
        self.home = home
        (home / "my env").symlink_to(sys.prefix)
        self.environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "LC_ALL": "C",
            "RAY_ADDRESS": "192.0.2.1:6379",
        }

    def __call__(self, place: str, *command: str) -> str:
        """Give a command in a directory; what it prints."""
        folder = self.home / place
        folder.mkdir(exist_ok=True)
        done = subprocess.run(
            [self.home / "my env" / "bin" / "python", "-m", "ssmprune_search", *command],
            cwd=folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        told = f"in {folder}: ssmprune {' '.join(command)}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, told
        assert "Traceback" not in done.stderr, told
        return done.stdout

    def json(self, place: str, *command: str) -> Any:
        return json.loads(self(place, *command, "--json"))


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    """A directory with a space and an umlaut in its name, with a folder of images of three classes.

    The images are exported digits under names of the user's own.
    """
    home = tmp_path / "Zoë's Käfer 2026"
    home.mkdir()
    walk = Walk(home)
    walk(".", "data", "export", "digits", "all digits")
    for split, source in (("train", "search"), ("val", "holdout")):
        for name, digit in CLASSES.items():
            files = sorted((home / "all digits" / source / digit).glob("*.png"))[:30]
            (home / "garden" / split / name).mkdir(parents=True)
            for file in files:
                shutil.copy(file, home / "garden" / split / name)
    (home / "space.yaml").write_text(SPACE)
    return walk


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_own_images_and_own_checkpoint_from_any_directory(walk: Walk, another_ray: None) -> None:
    data = ("--model", "vim_nano", "--data", "../garden")
    trained = walk.json(
        "a", "train", *data, "--init", "shipped", "--steps", "30", "--out", "../my weights"
    )
    assert trained["top1"] > 60
    weights = "my weights/model.safetensors"

    dense = walk.json("b", "eval", *data, "--checkpoint", f"../{weights}")
    assert dense["top1"] == pytest.approx(trained["top1"])

    own = ("--checkpoint", weights, "--data", "garden", "--out", "runs/first", "--workers", "2")
    begun = walk.json(".", "search", "space.yaml", *own, "--trials", "3")
    assert begun["front"]
    own = tuple(f"../{word}" if "/" in word or word == "garden" else word for word in own)
    found = walk.json("c", "search", "../space.yaml", *own, "--trials", "6", "--resume")
    assert len(found["front"]) >= 1 and found["dense"]["holdout"]["images"] == 45

    front = walk.json("d", "front", "../runs/first")
    assert front["front"] == found["front"]
    walk("e", "report", "../runs/first")
    page = (walk.home / "runs/first/report.html").read_text(encoding="utf-8")
    assert "data:image/png" in page and "k\\u00e4fer" in page  # it has found images and weights
    exported = walk.json("f", "export", "../runs/first", "--min-top1", "2", "-o", "best.yaml")

    pruned = walk.json(
        "g", "eval", *data, "--checkpoint", f"../{weights}", "--policy", "../f/best.yaml",
        "--split", "search",
    )  # fmt: skip
    assert pruned["top1"] == pytest.approx(exported[0]["search_top1"], abs=1e-6)
    image = next((walk.home / "garden/val/käfer").glob("*.png"))
    walk(
        "h", "tokens", "--policy", "../f/best.yaml", "--checkpoint", f"../{weights}",
        "--image", f"../garden/val/käfer/{image.name}", "-o", "kept.png",
    )  # fmt: skip
    assert (walk.home / "h/kept.png").stat().st_size > 1000
    tuned = walk.json(
        "i", "train", *data, "--policy", "../f/best.yaml", "--init", f"../{weights}",
        "--steps", "4", "--out", "../tuned",
    )  # fmt: skip
    assert tuned["before"]["top1"] == pytest.approx(exported[0]["holdout_top1"], abs=1e-6)
