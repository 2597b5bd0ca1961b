"""The documents: their code runs, and their commands do as written."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ssmprune.extensions import GROUP

ROOT = Path(__file__).parents[1]
MOST_LINES = 30

CHECKS = """
import ssmprune
from ssmprune import Policy
from ssmprune.measure.flops import count_flops
from ssmprune.measure.trace import trace_flops

stages = [{"layer": 1, "keep_ratio": 0.5}, {"layer": 3, "keep_ratio": 0.5}]
images = torch.randn(2, 3, 64, 64)
kept = {}
for scorer, decay in (("peak", "fading"), ("peak", "none"), ("l1", "none")):
    policy = Policy(
        model="front_vim_tiny", stages=stages, scorer={"name": scorer}, alignment={"decay": decay}
    )
    assert Policy.from_yaml(policy.to_yaml()) == policy
    model = ssmprune.create_model("front_vim_tiny", policy=policy).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        logits, stream = model(images), model.forward_features(images)
    assert logits.shape == (2, 1000) and stream.positions.shape == (2, 5)
    assert (stream.positions[:, 0] == 0).all()
    traced, counted = trace_flops(model), count_flops(model.config, policy)
    assert traced.by_operator() == counted.by_operator()
    kept[scorer, decay] = logits
assert not torch.equal(kept["peak", "fading"], kept["peak", "none"])
assert not torch.equal(kept["peak", "none"], kept["l1", "none"])
"""


def blocks(name: str) -> list[str]:
    """The Python code of a document, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.S)


def commands(name: str) -> list[str]:
    """The `ssmprune` commands of a document, in their order, without comments."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    found = re.findall(r"^    (ssmprune .*)$", text, re.M)
    return [shlex.join(shlex.split(command, comments=True)) for command in found]


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_code_of_the_page_on_extending_runs_and_is_short(tmp_path):
    code = blocks("docs/extending.md")
    assert len(code) == 3
    assert all(len(block.splitlines()) < MOST_LINES for block in code)
    run([sys.executable, "-c", "\n".join([*code, CHECKS])], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_of_the_page_on_extending_find_its_module(tmp_path):
    page = (ROOT / "docs" / "extending.md").read_text()
    assert f'[project.entry-points."{GROUP}"]' in page
    (tmp_path / "my_scorers.py").write_text("\n".join(blocks("docs/extending.md")[:2]))
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", page, re.S):
        (tmp_path / name).write_text(text)
    told = commands("docs/extending.md")
    assert [command.split()[1] for command in told] == ["eval", "search", "front"]
    for command in told:
        run([sys.executable, "-m", "ssmprune_search", *shlex.split(command)[1:]], tmp_path)


# What needs data or a cluster of the reader's own; its options are checked instead.
NOT_HERE = ("imagenet",)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["README.md", "docs/tutorial.md"])
def test_commands_run_as_written(name, tmp_path):
    (tmp_path / "spaces").symlink_to(ROOT / "spaces")
    told = commands(name)
    assert told
    for command in told:
        if not any(part in command for part in NOT_HERE):
            run([sys.executable, "-m", "ssmprune_search", *shlex.split(command)[1:]], tmp_path)


def test_documents_link_to_what_is_there():
    for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / link).exists(), f"{link} in {path.name}"
